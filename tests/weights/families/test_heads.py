"""Unembeddings: tied, beside a tied embedding, missing; and which classes a config may name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.errors import ConfigError, UnsupportedArchitecture
from cutaway.hooked_transformer import HookedTransformer
from cutaway.weights.families.heads import HeadIsItsOwn, HeadIsMissing
from tests.weights.families.tiny import tiny, tokens_for

pytestmark = pytest.mark.filterwarnings("ignore::cutaway.weights.processing.SkippedRewrite")


def saved(model: Any, place: Path, tensors: dict[str, Tensor] | None = None, **settings: Any) -> Path:
    """A folder of a model, with other tensors or other settings in its config."""
    from safetensors.torch import save_file

    model.save_pretrained(place)
    if tensors is not None:
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, place / "model.safetensors")
    config = json.loads((place / "config.json").read_text()) | settings
    (place / "config.json").write_text(json.dumps(config))
    return place


def apart(place: Path, model: Any, **options: Any) -> float:
    tokens = tokens_for(model)
    with torch.no_grad():
        want = model(tokens).logits.log_softmax(-1)
        found = HookedTransformer.from_pretrained(place, device="cpu", **options)(tokens).log_softmax(-1)
        return float((found - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("case", ["gpt2", "llama, biases", "gemma2", "starcoder2", "neox, in turn"])
def test_an_equal_head_beside_the_embedding_is_fine(case: str, tmp_path: Path) -> None:
    model = tiny(case)
    with warnings.catch_warnings():
        warnings.simplefilter("error", HeadIsItsOwn)
        assert apart(saved(model, tmp_path, dict(model.state_dict())), model) < 5e-5


@pytest.mark.parametrize("case", ["gpt2", "llama, biases", "gemma2", "starcoder2", "neox, in turn"])
@pytest.mark.filterwarnings("ignore::cutaway.weights.families.heads.HeadIsItsOwn")
def test_another_head_is_kept_as_transformers_keeps_it(case: str, tmp_path: Path) -> None:
    model = tiny(case)
    tensors = dict(model.state_dict())
    head = next(name for name in tensors if name in ("lm_head.weight", "embed_out.weight"))
    tensors[head] = tensors[head] + 0.2 * torch.randn(tensors[head].shape, generator=torch.Generator().manual_seed(5))
    place = saved(model, tmp_path, tensors)
    theirs = type(model).from_pretrained(place, attn_implementation="eager").eval()
    assert apart(place, theirs) < 5e-5 < apart(place, model)
    with pytest.warns(HeadIsItsOwn, match=f"'{head}' beside it differs: it is used, as transformers does"):
        HookedTransformer.from_pretrained(place, device="cpu")


@pytest.mark.parametrize("case", ["llama", "gptj", "phi", "mistral"])
def test_a_model_without_its_head(case: str, tmp_path: Path) -> None:
    """Everything before the unembedding is right, and a warning says that logits are not."""
    model = tiny(case)
    place = saved(model.base_model, tmp_path)
    with pytest.warns(HeadIsMissing, match="no unembedding, so every logit is zero"):
        found = HookedTransformer.from_pretrained_no_processing(place, device="cpu")
    tokens = tokens_for(model)
    with torch.no_grad():
        want = model.base_model(tokens).last_hidden_state
        got = found.ln_final(found(tokens, stop_at_layer=found.cfg.n_layers))
        assert (got - want).abs().max() < 5e-5 * want.abs().max()
        assert not found(tokens).any()


def test_the_body_of_a_tied_model_has_its_head(tmp_path: Path) -> None:
    model = tiny("gpt2")
    assert apart(saved(model.base_model, tmp_path), model) < 5e-5


# Classes.


def test_a_class_that_is_not_known_is_its_familys_where_every_tensor_and_field_is(tmp_path: Path) -> None:
    model = tiny("llama")
    place = saved(model, tmp_path, architectures=["MyLlamaForCausalLM"])
    assert apart(place, model) < 5e-5
    said = HookedTransformer.from_pretrained(place).provenance["taken_for"]
    assert "its class MyLlamaForCausalLM is not known" in said and "LlamaForCausalLM" in said
    assert "taken_for" not in HookedTransformer.from_pretrained(place, architecture="LlamaForCausalLM").provenance


@pytest.mark.parametrize(
    ("field", "tensor", "why"),
    [("my_trick", None, "no class of the family reads: my_trick"), (None, "gate.weight", "lacks: gate.weight")],
)
def test_a_class_that_is_not_known_names_the_way_in(tmp_path: Path, field: str | None, tensor: str | None, why: str) -> None:
    model = tiny("llama")
    place = saved(model, tmp_path, architectures=["MyLlamaForCausalLM"], **({field: 3} if field else {}))
    if tensor:
        saved(model, place, {**model.state_dict(), tensor: torch.ones(2)}, architectures=["MyLlamaForCausalLM"])
    said = r"is a MyLlamaForCausalLM, and the classes of Llama .* name that: architecture='LlamaForCausalLM'"
    with pytest.raises(UnsupportedArchitecture, match=f"{said}.*{why}"):
        HookedTransformer.from_pretrained(place)
    if tensor is None:
        assert apart(place, model, architecture="LlamaForCausalLM") < 5e-5
    with pytest.raises(ConfigError, match=r"no class that is known \(did you mean 'LlamaForCausalLM'"):
        HookedTransformer.from_pretrained(place, architecture="LlamaForCausalLMs")


def test_code_of_a_repository_is_never_run(tmp_path: Path) -> None:
    model = tiny("llama")
    (tmp_path / "modeling_mine.py").write_text("raise SystemExit('run!')")
    auto = {"AutoConfig": "modeling_mine.MyConfig", "AutoModelForCausalLM": "modeling_mine.MyModel"}
    place = saved(model, tmp_path, architectures=["MyModel"], model_type="mine", auto_map=auto)
    with pytest.raises(UnsupportedArchitecture, match=r"a MyModel whose code is in its .* never run; .*architecture="):
        HookedTransformer.from_pretrained(place, trust_remote_code=True)
    assert apart(place, model, architecture="LlamaForCausalLM") < 5e-5


def test_a_folder_of_quantised_weights_says_how_to_have_them_in_full(tmp_path: Path) -> None:
    place = saved(tiny("llama"), tmp_path, quantization_config={"quant_method": "awq"})
    with pytest.raises(UnsupportedArchitecture, match=r"quantised by awq .*give the model that it was quantised from"):
        HookedTransformer.from_pretrained(place)


def test_a_live_model_that_was_dequantised_is_not_quantised() -> None:
    model = tiny("llama")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    HookedTransformer.from_pretrained("x", hf_model=model, device="cpu")
    model.model.layers[0].mlp.register_buffer("qweight", torch.zeros(2))
    with pytest.raises(UnsupportedArchitecture, match="quantised"):
        HookedTransformer.from_pretrained("x", hf_model=model, device="cpu")
