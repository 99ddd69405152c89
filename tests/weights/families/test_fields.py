"""Which config fields matter is knowledge about `transformers`, held here against its installed source and its numbers.

A table lists every field that `transformers` reads when it builds or runs the family; what it never reads changes
nothing. Two names for one thing mean what they mean there.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from cutaway import loading
from cutaway.errors import UnsupportedArchitecture
from cutaway.hooked_transformer import HookedTransformer
from cutaway.weights.families import FAMILIES, configuration, convert, ignored_fields, mpt
from cutaway.weights.families.rope import KINDS, PARAMETERS
from cutaway.weights.families.table import BASE, SHARED
from tests.weights.families.reads import fields_read, is_field, module, reads
from tests.weights.families.tiny import CASES, from_file, tensors_of, tiny, tokens_for

pytestmark = pytest.mark.filterwarnings("ignore::cutaway.weights.processing.SkippedRewrite")
NEAR = 2e-5


def missed(model_type: str, fields: set[str]) -> list[str]:
    """What `transformers` reads of a family's config, and a table of these fields lacks."""
    config = CONFIG_MAPPING[model_type]
    lacking = []
    for name, places in reads(MODEL_FOR_CAUSAL_LM_MAPPING[config], config).items():
        own = any(place.startswith("models.") for place in places)
        known = fields | (BASE.keys() - SHARED.keys() if own else BASE.keys())
        name = config.attribute_map.get(name, name)
        if name not in known:
            lacking.append(name)
    return sorted(lacking)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_table_has_every_field_that_transformers_reads(model_type: str) -> None:
    inner = set(mpt.ATTENTION) if model_type == "mpt" else set()
    assert missed(model_type, FAMILIES[model_type].fields.keys() | inner) == []


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_field_left_out_of_a_table_is_found(model_type: str) -> None:
    """Each field that a table copies, left out in turn (one by another name of an older release is read nowhere)."""
    fields = set(FAMILIES[model_type].fields)
    copied = {name for name, field in FAMILIES[model_type].fields.items() if field.ours is not None and name not in BASE}
    found = {name for name in copied if name in missed(model_type, fields - {name})}
    assert copied - found <= {"seq_length"}  # BLOOM's own length, which `transformers` never needs


SOURCE = """
class ThingConfig:
    def __post_init__(self, **kwargs):
        self.written = kwargs.pop("popped", 1)
        if self.mine:
            self.other = kwargs.get("got")
class Thing:
    def forward(self, x):
        x = x * self.config.plain + getattr(self.config, "looked_up", 1)
        x = x + self.config.get_text_config().inner + self.config.attn_config.nested
        config.assigned = 3
        return x if hasattr(config, "tried") else self.not_a_field
"""


def test_a_read_is_seen_in_every_form() -> None:
    read = {name for node in ast.parse(SOURCE).body for name in fields_read(node)}
    read -= {"get_text_config", "attn_config"}
    assert read == {"popped", "mine", "got", "plain", "looked_up", "inner", "nested", "tried"}


@torch.no_grad()
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_run_reads_no_field_that_the_source_does_not_show(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build a model, run it and generate with a config that keeps count of what is read."""
    case = next(case for case in CASES if tiny(case).config.model_type == model_type)
    model = tiny(case)
    config, seen = type(model.config), set()
    inherited = config.__getattribute__

    def watched(self: Any, name: str) -> Any:
        seen.add(name)
        return inherited(self, name)

    again = config(**CASES[case][2])
    again._attn_implementation, again._experts_implementation = "eager", "eager"
    monkeypatch.setattr(config, "__getattribute__", watched)
    type(model)(again).eval().generate(tokens_for(model)[:1, :5], max_new_tokens=3, do_sample=False)
    monkeypatch.undo()
    shown = reads(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]], config).keys()
    fields = {name for name in seen if name in config.__dataclass_fields__ and is_field(config, name)}
    assert len(fields) > 5 and fields - shown <= {"architectures", "output_hidden_states"}


def test_every_parameter_of_the_rotation_is_known() -> None:
    """What the functions of our kinds of scaling take out of `rope_parameters`."""
    read = set()
    for name, nodes in module("modeling_rope_utils").definitions.items():
        kind = name.removeprefix("_compute_").split("_")[0]
        for node in nodes if name.startswith("_compute_") and kind in KINDS else []:
            for inner in ast.walk(node):
                settings = isinstance(inner, ast.Subscript) and "rope_parameters" in ast.unparse(inner.value)
                key = inner.slice if isinstance(inner, ast.Subscript) and settings else None
                if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr == "get":
                    key = inner.args[0]
                if isinstance(key, ast.Constant):
                    read.add(key.value)
    assert {"rope_theta", "factor", "beta_fast", "low_freq_factor"} <= read <= set(PARAMETERS)


ODD = {
    "is_llama_config": True, "n_special": 0, "predict_special_tokens": True, "sliding_window_size": 4096, "unk_token_id": 0,
    "max_sequence_length": 2048, "model_max_length": 4096, "unsloth_fixed": True, "use_mrope": False,
    "gradient_checkpointing": True, "attention_softmax_in_fp32": True, "offset_alibi": 100, "fused_bias": 3,
    "custom_pipelines": {"text-generation": {"impl": "x.Y"}}, "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}, "n": 7,
}  # fmt: skip
"""Fields that no family of `transformers` reads."""


@torch.no_grad()
@pytest.mark.parametrize("model_type", FAMILIES)
def test_fields_that_are_never_read_change_nothing(model_type: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if tiny(case).config.model_type == model_type)
    config = tiny(case).config.to_dict()
    model, odd = from_file(config, tmp_path), from_file(config | ODD, tmp_path)
    tokens = tokens_for(model)
    assert torch.equal(model(tokens).logits, odd(tokens).logits)  # or they do not belong in the list
    assert configuration(config | ODD) == configuration(config)
    unknown = ODD.keys() - BASE.keys() - FAMILIES[model_type].fields.keys()
    assert ignored_fields(config | ODD).items() >= {name: ODD[name] for name in unknown}.items() and len(unknown) > 12


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fields_that_are_never_read_change_nothing_one_by_one(model_type: str) -> None:
    case = next(case for case in CASES if tiny(case).config.model_type == model_type)
    config = tiny(case).config.to_dict()
    want = configuration(config)
    for name in ODD.keys() - BASE.keys() - FAMILIES[model_type].fields.keys():
        assert configuration(config | {name: ODD[name]}) == want, name


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_alias_means_what_it_means_there(model_type: str) -> None:
    """Each name that `attribute_map` has besides a field's own: instead of it, and beside it."""
    case = next(case for case in CASES if tiny(case).config.model_type == model_type)
    config, kind = tiny(case).config.to_dict(), CONFIG_MAPPING[model_type]
    for alias, own in kind.attribute_map.items():
        if own in config and isinstance(config[own], int):
            instead = {name: value for name, value in config.items() if name != own} | {alias: config[own]}
            for changed in (instead, config | {alias: config[own]}):
                theirs = kind.from_dict(changed).to_dict()
                assert theirs[own] == config[own] and configuration(changed) == configuration(config), alias


TWICE: dict[str, tuple[str, dict[str, Any]]] = {
    "scaling under both names": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    ),
    "scaling without a kind": ("llama", {"rope_scaling": {"finetuned": True}, "rope_theta": 500.0}),
    "theta beside parameters that lack it": ("llama", {"rope_parameters": {"rope_type": "default"}, "rope_theta": 77.0}),
    "theta beside parameters that have it": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": 7.0},
    ),
    "a share of heads that rotate, which Llama never reads": ("llama", {"partial_rotary_factor": 0.5}),
    "an original length beside the parameters": (
        "llama, yarn",
        {"original_max_position_embeddings": 30},
    ),
    "NeoX, both names": ("neox", {"rotary_emb_base": 99, "rope_theta": 5.0, "rotary_pct": 0.5, "partial_rotary_factor": 1.0}),
    "NeoX, new names only": ("neox", {"rope_theta": 5.0, "partial_rotary_factor": 1.0, "hidden_size": 24}),
    "NeoX, old names inside": (
        "neox",
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_emb_base": 99, "hidden_size": 24},
    ),
    "StableLM, a name that it never had there": ("stablelm", {"rope_pct": 0.3}),
    "StableLM": ("stablelm", {"partial_rotary_factor": 0.7, "rope_theta": 99.0}),
    "Phi": ("phi", {"rope_theta": 99.0, "hidden_size": 24}),
    "Gemma's legacy value": ("gemma", {"hidden_act": "gelu"}),
    "Gemma, both names": ("gemma", {"hidden_act": "gelu", "hidden_activation": "silu"}),
    "Gemma, the new name only": ("gemma", {"hidden_activation": "relu"}),
    "Gemma 2, both names": ("gemma2", {"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh"}),
    "Gemma 2, the old name only": ("gemma2", {"hidden_act": "silu", "hidden_activation": None}),
    "Gemma 3, local base": ("gemma3", {"rope_local_base_freq": 50.0, "rope_theta": 900.0, "rope_parameters": None}),
    "Gemma 3, scaling": (
        "gemma3",
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_parameters": None, "layer_types": None,
         "sliding_window_pattern": 2},
    ),
    "GPT-2, aliases": ("gpt2", {"hidden_size": 36, "num_attention_heads": 4, "n_head": 6, "n_ctx": 99}),
    "GPT-Neo, layers beside types": ("gpt_neo", {"attention_layers": ["local"] * 4}),
    "GPT-Neo, types alone": ("gpt_neo", {"attention_types": [[["local", "global"], 2]], "attention_layers": None}),
    "BLOOM, an alias": ("bloom", {"num_attention_heads": 4}),
    "BLOOM, the old name": ("bloom", {"n_embed": 24}),
    "MPT, what its attention never reads": ("mpt", {"attn_config": {"alibi": False, "qk_ln": True, "softmax_scale": 0.2}}),
    "Qwen 2, windows that are switched off": ("qwen2", {"use_sliding_window": False, "layer_types": None}),
    "Qwen 2, a first layer with a window": ("qwen2", {"max_window_layers": 2, "layer_types": None}),
    "Mistral with a kind for each layer": (
        "mistral",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 4},
    ),
    "SmolLM3": ("smollm3, local", {"no_rope_layer_interval": 2, "no_rope_layers": None, "layer_types": None}),
    "experts under their other name": ("mixtral", {"num_experts": 3}),
    "a tied unembedding": ("llama", {"tie_word_embeddings": True}),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", TWICE)
def test_two_names_for_one_thing_mean_what_they_mean_there(name: str, tmp_path: Path) -> None:
    case, changes = TWICE[name]
    config = tiny(case).config.to_dict()
    if "rope_parameters" not in changes and {"rope_theta", "rope_scaling", "rotary_emb_base"} & changes.keys():
        config.pop("rope_parameters")
    config = {key: value for key, value in (config | changes).items() if value is not None or key not in changes}
    model = from_file(config, tmp_path)
    tokens = tokens_for(model)
    cfg, weights = convert(config, tensors_of(model))
    cfg.device = "cpu"
    want = model(tokens).logits
    assert (loading.build(HookedTransformer, cfg, weights)(tokens) - want).abs().max() < NEAR * want.abs().max()


@torch.no_grad()
def test_a_live_model_is_taken_as_it_is() -> None:
    """Its config was read already: a value set by hand stays, even one that a file could not say."""
    config = tiny("gemma").config
    config.hidden_act = "gelu"
    model = transformers.GemmaForCausalLM._from_config(config, attn_implementation="eager").eval()
    ours = HookedTransformer.from_pretrained_no_processing("tiny", hf_model=model, device="cpu")
    assert ours.cfg.act_fn == "gelu" and configuration(model.config.to_dict()).act_fn == "gelu_pytorch_tanh"
    assert (ours(tokens_for(model)) - model(tokens_for(model)).logits).abs().max() < 1e-4


def test_a_model_says_which_fields_were_ignored(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"is_llama_config": True}))
    ours = HookedTransformer.from_pretrained_no_processing(tmp_path, device="cpu")
    assert ours.provenance == {"folder": str(tmp_path), "ignored_fields": {"is_llama_config": True}}
    assert HookedTransformer(ours.cfg).provenance == {}


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("falcon 7b", {"head_dim": 8}),
        ("qwen2", {"use_sliding_window": False}),  # layer_types has windows
        ("gpt_neo", {"attention_layers": ["local"] * 3}),
        ("gemma2", {"layer_types": ["full_attention"]}),
        ("neox", {"num_attention_heads": 5}),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}),
    ],
)
def test_what_transformers_refuses_is_refused(case: str, changes: dict[str, Any], tmp_path: Path) -> None:
    config = tiny(case).config.to_dict() | changes
    with pytest.raises(Exception):  # noqa: B017 (any: it is theirs)
        model = from_file(config, tmp_path)
        model(tokens_for(model))
    with pytest.raises(UnsupportedArchitecture, match=r"transformers refuses") as refusal:
        configuration(config)
    assert "\n" not in str(refusal.value)


# Published configurations.

WAITING = {"opt-350m": "do_layer_norm_before=False", "falcon-rw-1b": "alibi=True"}


@torch.no_grad()
def test_published_configs_agree_with_transformers(shared: Path, tmp_path: Path) -> None:
    """Alone, and with every field that any of the others has and `transformers` never reads for this one."""
    published: dict[str, dict[str, Any]] = json.loads((shared / "data/configs/published.json").read_text())
    pool = {name: value for config in published.values() for name, value in config.items()}
    assert len(published) == 37
    for name, config in published.items():
        if name in WAITING:
            with pytest.raises(UnsupportedArchitecture, match=WAITING[name]):
                configuration(config)
            continue
        model = from_file(config, tmp_path)
        tokens = tokens_for(model, length=16, batch=2)
        want = model(tokens).logits
        cfg, weights = convert(config, tensors_of(model))
        cfg.device = "cpu"
        logits = loading.build(HookedTransformer, cfg, weights)(tokens)
        assert (logits - want).abs().max() < NEAR * want.abs().max(), name
        processed = HookedTransformer.from_pretrained(name, hf_model=model, device="cpu")
        assert (processed(tokens).log_softmax(-1) - want.log_softmax(-1)).abs().max() < 5e-5, name
        others = {field: pool[field] for field in inert(model, pool, config)}
        assert len(others) > 20 and configuration(config | others) == configuration(config), name


def inert(model: Any, pool: dict[str, Any], config: dict[str, Any]) -> set[str]:
    """Fields of other configs that this one lacks, and that no source of its family reads."""
    kind = type(model.config)
    read = reads(MODEL_FOR_CAUSAL_LM_MAPPING[kind], kind).keys() | kind.attribute_map.keys()
    own = {name for name in pool if name in kind.__dataclass_fields__ or isinstance(getattr(kind, name, None), property)}
    return pool.keys() - read - own - config.keys() - {"architectures"}
