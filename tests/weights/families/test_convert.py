"""What a table does not understand stops the load, by name, before a tensor is read."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from cutaway.errors import ConfigError, UnsupportedArchitecture, WeightsMismatch
from cutaway.weights import canonical
from cutaway.weights.families import FAMILIES, configuration, convert, ignored_fields
from cutaway.weights.families.table import BASE
from tests.weights.families.tiny import tiny

LLAMA = tiny("llama")
CONFIG, TENSORS = LLAMA.config.to_dict(), LLAMA.state_dict()


class Watched(dict[str, Tensor]):
    """Tensors that count their reads; shapes are free, and so is the first, at which the type checker looks."""

    reads = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.items()}

    def __getitem__(self, name: str) -> Tensor:
        self.reads += name != next(iter(self))
        return super().__getitem__(name)


def refused(changes: dict[str, Any], why: str, kind: type[Exception] = UnsupportedArchitecture, base: Any = CONFIG) -> None:
    watched = Watched(TENSORS)
    with pytest.raises(kind, match=why):
        convert({**base, **changes}, watched)
    assert watched.reads == 0


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_an_unknown_family_lists_those_that_there_are() -> None:
    refused({"model_type": "mamba"}, "no family for model_type='mamba'; there are GPT-2, GPT-Neo, .*StarCoder 2")


def test_a_field_that_transformers_never_reads_is_ignored_and_named() -> None:
    cfg, weights = convert(CONFIG, TENSORS)
    for harmless in ({"attention_sink": 4}, {"n_special": 0}, {"attention_dropout": 0.5}, {"use_cache": False}):
        found, tensors = convert(CONFIG | harmless, TENSORS)
        assert found == cfg and same(tensors, weights)
    odd = {"attention_sink": 4, "is_llama_config": True, "unused": None, "pad_token_id": 3}
    assert ignored_fields(CONFIG | odd) == {"attention_sink": 4, "is_llama_config": True}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"rope_parameters": {"rope_type": "proportional", "factor": 2.0}},
            "there is no rope type 'proportional'; there are default, linear",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
            "transformers refuses this config of model_type='llama': .*Missing required keys.*'factor'.*; mend config.json",
        ),
        ({"num_attention_heads": 7}, r"hidden size \(36\) is not a multiple of the number of attention heads \(7\); mend config"),
        ({"hidden_size": "large"}, "hidden_size: expected int, got str"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "only truncate=True"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
            "Llama models rotate whole heads",
        ),
        ({"is_causal": False}, "is_causal=False .* only True is understood"),
        ({"hidden_act": "quick_gelu"}, "activation function 'quick_gelu' is not one we have; there are relu, gelu"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True .* only False is understood"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures=.* only LlamaForCausalLM"),
        (
            {
                "rope_scaling": {
                    "rope_type": "longrope",
                    "short_factor": [1.0],
                    "long_factor": [1.0],
                    "factor": 2.0,
                    "original_max_position_embeddings": 16,
                }
            },
            "needs a short_factor for each of",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 3,
                    "long_factor": [1.0] * 3,
                    "factor": 2.0,
                    "original_max_position_embeddings": 1,
                }
            },
            "needs original_max_position_embeddings of at least 2",
        ),
    ],
)
def test_a_value_that_is_not_understood_is_named(changes: dict[str, Any], why: str) -> None:
    refused(changes, why)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"quantised by bitsandbytes .*dequantize\(\)\.save_pretrained"),
        ({"quant_method": "bitsandbytes_4bit"}, r"quantised by bitsandbytes_4bit .*dequantize\(\)\.save_pretrained"),
        ({"quant_method": "fp8"}, r"quantization_config=FineGrainedFP8Config\(dequantize=True\)\)\.save_pretrained"),
        ({"quant_method": "gptq", "bits": 4}, "quantised by gptq .*: give the model that it was quantised from, a copy"),
        ({"bits": 4}, "llama model are quantised by bitsandbytes"),
    ],
)
def test_quantised_weights_say_how_to_have_them_in_full(settings: dict[str, Any], why: str) -> None:
    refused({"quantization_config": settings}, why)


def test_what_transformers_has_dequantised_loads() -> None:
    """A model that it has read from GGUF keeps saying that it was quantised."""
    settings = {"quant_method": transformers.utils.quantization_config.QuantizationMethod.GGUF}
    assert same(convert(CONFIG | {"quantization_config": settings}, TENSORS, resolved=True)[1], convert(CONFIG, TENSORS)[1])


def test_code_of_a_checkpoint_is_never_run() -> None:
    remote = {"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM", "AutoConfig": "configuration_evil.EvilConfig"}
    refused({"model_type": "evil", "auto_map": remote}, r"'evil'; its code is in the checkpoint \(auto_map\), and is never run")
    assert ignored_fields(CONFIG | {"auto_map": remote}) == {"auto_map": remote}  # a stock model with code beside it


def test_tensors_that_are_missing_left_over_or_misshapen() -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    without = {key: tensor for key, tensor in TENSORS.items() if key != name}
    with pytest.raises(WeightsMismatch, match=r"lacks 'layers\.1\.mlp\.up_proj\.weight' for blocks\.1\.mlp\.W_in of this Llama"):
        convert(CONFIG, without)
    with pytest.raises(WeightsMismatch, match=r"lacks: model\.layers\.0\.self_attn\.q_proj\.lora_A"):
        convert(CONFIG, TENSORS | {"model.layers.0.self_attn.q_proj.lora_A": torch.zeros(2, 2)})
    with pytest.raises(
        WeightsMismatch, match=r"up_proj\.weight has shape \[36, 52\], which gives no blocks\.1\.mlp\.W_in of shape"
    ):
        convert(CONFIG, TENSORS | {name: TENSORS[name].T})
    refused({"num_hidden_layers": 2}, r"lacks: model\.layers\.2\.", WeightsMismatch)


def test_buffers_of_old_files_are_passed_over() -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)}
    assert same(convert(CONFIG, TENSORS | buffer)[1], convert(CONFIG, TENSORS)[1])
    gpt2 = tiny("gpt2")
    old = {name.removeprefix("transformer."): tensor for name, tensor in gpt2.state_dict().items()}  # as the published file
    _, weights = convert(gpt2.config.to_dict(), old | {"h.0.attn.bias": torch.ones(1, 1, 40, 40)})
    assert same(weights, convert(gpt2.config.to_dict(), gpt2.state_dict())[1])


def test_fewer_layers_and_positions() -> None:
    cfg, weights = convert(CONFIG, TENSORS, first_n_layers=2, n_ctx=7)
    assert (cfg.n_layers, cfg.n_ctx) == (2, 7)
    whole = convert(CONFIG, TENSORS)[1]
    assert same(weights, {name: whole[name] for name in whole if not name.startswith("blocks.2.")})
    gpt2 = tiny("gpt2")
    cfg, weights = convert(gpt2.config.to_dict(), gpt2.state_dict(), n_ctx=7)
    assert weights["pos_embed.W_pos"].shape == (7, 36)
    with pytest.raises(ConfigError, match="n_ctx=41, and the model has learned embeddings of 40 positions only"):
        convert(gpt2.config.to_dict(), gpt2.state_dict(), n_ctx=41)
    with pytest.raises(ConfigError, match="first_n_layers=4 of a model that has 3"):
        convert(CONFIG, TENSORS, first_n_layers=4)
    assert configuration(CONFIG, n_ctx=99).n_ctx == 99
    dynamic = tiny("llama, dynamic").config.to_dict()
    with pytest.raises(ConfigError, match="dynamic rotary scaling is understood up to 40 positions only"):
        configuration(dynamic, n_ctx=41)


class Fresh(Watched):
    """Tensors that are read anew each time, none before the last one was let go of."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__(tensors)
        self.read: list[weakref.ref[torch.UntypedStorage]] = []

    def __getitem__(self, name: str) -> Tensor:
        assert all(one() is None for one in self.read), name
        tensor = super().__getitem__(name).clone()
        self.read.append(weakref.ref(tensor.untyped_storage()))
        return tensor


def test_tensors_are_read_one_at_a_time() -> None:
    fresh = Fresh(TENSORS)
    _, weights = convert(CONFIG, fresh)
    for name in weights:
        weights[name]
    assert len(fresh.read) >= len(TENSORS)


def test_packed_tensors_are_read_once() -> None:
    gpt2 = tiny("gpt2")
    watched = Watched({name: tensor for name, tensor in gpt2.state_dict().items() if name != "lm_head.weight"})
    cfg, weights = convert(gpt2.config.to_dict(), watched)
    assert watched.reads == 0
    for letter in "QKV":
        weights[f"blocks.1.attn.W_{letter}"]
    assert watched.reads == 1
    assert weights["blocks.0.attn.W_Q"].shape == (6, 36, 6)
    assert set(weights) == set(canonical.shapes(cfg))


def test_constants_are_folded_before_rounding() -> None:
    """A checkpoint in bfloat16 keeps the embedding's scale exact, and norms of 1 + w lose nothing."""
    gemma = tiny("gemma")
    half = {name: tensor.bfloat16() for name, tensor in gemma.state_dict().items()}
    _, weights = convert(gemma.config.to_dict(), half)
    assert torch.equal(weights["embed.W_E"], half["model.embed_tokens.weight"].float() * 6.0)
    assert torch.equal(weights["ln_final.w"], 1 + half["model.norm.weight"].float())
    assert weights["unembed.W_U"].dtype == torch.bfloat16


def test_every_default_is_that_of_transformers() -> None:
    """A field that a config leaves out means what `transformers` takes for it."""
    import transformers

    for model_type, family in FAMILIES.items():
        given = transformers.CONFIG_MAPPING[model_type]().to_dict()
        said = {
            name: field.default
            for name, field in family.fields.items()
            if name in given and field.default is not None and field.accepted is None and name not in BASE
        }
        if not given.get("use_sliding_window", True):
            said.pop("sliding_window", None)
        assert len(said) >= 5, model_type  # as many fields as the smallest family has
        assert {name: given[name] for name in said} == said, model_type


# The dialect's own models.

OWN = {
    "n_layers": 2, "d_model": 16, "n_ctx": 10, "d_head": 4, "n_heads": 4, "d_mlp": 24, "d_vocab": 19, "act_fn": "solu_ln",
    "attn_only": False, "normalization": "LNPre", "tokenizer_name": "EleutherAI/gpt-neox-20b", "lr": 1e-3, "seed": 3,
}  # fmt: skip


def own_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.randn(shape) for name, shape in canonical.shapes(configuration(config)).items()}


def test_own_models_are_canonical_already() -> None:
    config = OWN | {"shortformer_pos": True, "attn_only": True, "final_rms": True}
    weights = own_weights(config)
    before = torch.get_rng_state()
    cfg, tensors = convert(config, weights | {"blocks.0.attn.mask": torch.ones(10, 10)}, n_ctx=6)
    assert torch.equal(torch.get_rng_state(), before)  # the seed of its training reseeds nothing
    assert (cfg.positional_embedding_type, cfg.normalization_type, cfg.final_rms, cfg.n_ctx) == ("shortformer", "LNPre", True, 6)
    assert torch.equal(tensors["blocks.1.attn.W_O"], weights["blocks.1.attn.W_O"])
    assert tensors["pos_embed.W_pos"].shape == (6, 16)
    with pytest.raises(WeightsMismatch, match="it lacks"):
        convert(config, {name: weights[name] for name in list(weights)[1:]})


def test_the_first_solu_models_are_turned_round() -> None:
    config = OWN | {"architecture": "neel-solu-old", "normalization": "LN"}
    weights = own_weights(config)
    old = {
        (name.replace("ln_final", "norm").replace("ln", "norm")): tensor.transpose(-2, -1) if "W_" in name else tensor
        for name, tensor in weights.items()
    }
    _, tensors = convert(config, old)
    for name, tensor in weights.items():
        assert torch.equal(tensors[name], tensor), name
    with pytest.raises(UnsupportedArchitecture, match="architecture='mingpt'"):
        convert(config | {"architecture": "mingpt"}, old)
