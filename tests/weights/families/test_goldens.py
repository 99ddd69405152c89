"""Goldens: every family against `transformers`, and every config field that it handles must matter.

The models are tiny and random, of odd sizes, with weights so large that attention is sharp.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway import loading
from cutaway.errors import ConfigError, UnsupportedArchitecture, WeightsMismatch
from cutaway.hooked_transformer import HookedTransformer
from cutaway.weights.families import FAMILIES, convert, family_of
from cutaway.weights.families.table import BASE, IGNORED
from cutaway.weights.processing import SkippedRewrite
from tests.weights.families.tiny import CASES, tensors_of, tiny, tokens_for

pytestmark = pytest.mark.filterwarnings("ignore::cutaway.weights.processing.SkippedRewrite")
NEAR = 2e-5


@functools.cache
def theirs(case: str) -> tuple[Any, Tensor, Any]:
    model = tiny(case)
    tokens = tokens_for(model)
    with torch.no_grad():
        return model, tokens, model(tokens, output_hidden_states=True)


def ours(config: dict[str, Any], tensors: dict[str, Tensor]) -> HookedTransformer:
    cfg, weights = convert(config, tensors)
    cfg.device = "cpu"
    return loading.build(HookedTransformer, cfg, weights)


def apart(x: Tensor, y: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((x - y).abs().max() / y.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_and_residual_stream(case: str) -> None:
    model, tokens, out = theirs(case)
    logits, cache = ours(model.config.to_dict(), tensors_of(model)).run_with_cache(tokens)
    layers = [apart(cache["resid_pre", layer], state) for layer, state in enumerate(out.hidden_states[:-1])]
    assert apart(logits, out.logits) < NEAR, layers
    assert max(layers) < NEAR
    assert out.logits.std() > 0.1  # or the comparison says little


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_processing_leaves_the_probabilities(case: str) -> None:
    model, tokens, out = theirs(case)
    processed = HookedTransformer.from_pretrained("tiny", hf_model=model, device="cpu")
    want = out.logits.log_softmax(-1)
    assert apart(processed(tokens).log_softmax(-1), want) < NEAR


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_padded_row_is_what_it_is_alone(case: str) -> None:
    model, tokens, out = theirs(case)
    network = ours(model.config.to_dict(), tensors_of(model))
    padded = torch.cat([torch.zeros(len(tokens), 4, dtype=torch.long), tokens], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    assert apart(network(padded, attention_mask=mask)[:, 4:], out.logits) < NEAR


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_generation_token_for_token(case: str) -> None:
    """Past every local window (5 to 7 positions), with kept keys and values and without."""
    model, tokens, _ = theirs(case)
    want = tokens
    for _ in range(6):
        want = torch.cat([want, model(want).logits[:, -1:].argmax(-1)], dim=1)
    network = ours(model.config.to_dict(), tensors_of(model))
    for keep in (True, False):
        settings = {"do_sample": False, "stop_at_eos": False, "use_past_kv_cache": keep, "verbose": False}
        assert torch.equal(network.generate(tokens, max_new_tokens=6, **settings), want), keep


@torch.no_grad()
@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe, some dense", "gpt2", "neox"])
def test_what_is_saved_is_the_same_model(case: str, tmp_path: Path) -> None:
    """Files name and split tensors otherwise than live models do, those of experts above all."""
    model, tokens, out = theirs(case)
    model.save_pretrained(tmp_path)
    network = HookedTransformer.from_pretrained_no_processing(tmp_path, device="cpu")
    assert apart(network(tokens), out.logits) < NEAR


@torch.no_grad()
def test_the_language_model_inside_one_that_sees() -> None:
    """Gemma 3 from 4B on has its text model under `text_config`, beside a vision tower that we pass over."""
    import transformers

    text = {name: value for name, value in CASES["gemma3"][2].items() if name != "rope_parameters"}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision | {"patch_size": 14}, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.25)
    tokens = torch.randint(3, 53, (2, 17), generator=draw)
    network = ours(model.config.to_dict(), model.state_dict())
    assert apart(network(tokens), model(input_ids=tokens).logits) < NEAR


# Every field that a table handles changes something, or is refused.

NO_EFFECT = {
    "max_position_embeddings",  # n_ctx alone, where positions have no weights
    "max_seq_len",
    "seq_length",
    "n_positions",
    "n_ctx",
    "is_decoder",  # for encoders
    "num_hidden_layers",  # fewer layers: seen below, in the tensors that are left over
}
REFUSED = (ConfigError, UnsupportedArchitecture, WeightsMismatch)


def mutated(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.5
    if isinstance(value, str):
        return {"relu": "gelu", "silu": "gelu"}.get(value, "relu")
    if isinstance(value, list):
        return [swapped(one) for one in value]
    return None


def swapped(one: Any) -> Any:
    pairs = (("sliding_attention", "full_attention"), ("global", "local"), (0, 1))
    both = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    return both.get(one, one) if not isinstance(one, list) else [list(reversed(one[0])), one[1]]


def fields_of(case: str) -> list[str]:
    """The fields of a tiny model's config that its family's table does something with, and that have a value."""
    config = theirs(case)[0].config.to_dict()
    known = BASE | dict(family_of(config).fields)
    return [name for name, value in config.items() if known.get(name, IGNORED) is not IGNORED and mutated(value) is not None]


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_every_handled_field_matters(case: str) -> None:
    model, tokens, out = theirs(case)
    config, tensors = model.config.to_dict(), tensors_of(model)
    idle = []
    for name in set(fields_of(case)) - NO_EFFECT:
        try:
            network = ours(config | {name: mutated(config[name])}, tensors)
        except REFUSED:
            continue
        if apart(network(tokens), out.logits) < 100 * NEAR:
            idle.append(name)
    assert sorted(idle) == sorted(IDLE.get(case, [])), "IDLE " + repr((case, sorted(idle)))


IDLE = {
    "falcon 7b": ["num_kv_heads"],  # multi_query says it already
    "falcon 40b": ["multi_query", "parallel_attn"],  # of the older generation
    "falcon 11b": ["multi_query", "parallel_attn"],
    "falcon, in turn": ["num_kv_heads"],  # every head has keys of its own there
    "mpt": ["learned_pos_emb"],  # not read by `transformers` either
    "phi3": ["original_max_position_embeddings"],  # read where the rotation is scaled
    "qwen2": ["max_window_layers"],  # layer_types says it already
    "qwen3": ["layer_types", "max_window_layers", "use_sliding_window"],  # no window is set
    "qwen3_moe": ["intermediate_size", "mlp_only_layers", "use_sliding_window"],  # no dense layer, no window
    "gemma3": ["_sliding_window_pattern"],  # layer_types says it already
    "smollm3": ["layer_types", "no_rope_layer_interval", "use_sliding_window"],  # no window; no_rope_layers says it already
    "smollm3, local": ["no_rope_layer_interval"],
}
"""Fields that a case cannot show."""


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if "rope_parameters" in CASES[case][2]])
def test_configs_of_earlier_years(case: str) -> None:
    """`rope_theta`, `rope_scaling` and patterns of layers by number, as most published configs have them."""
    model, tokens, out = theirs(case)
    config = model.config.to_dict()
    rope = config.pop("rope_parameters")
    local, rope = rope.get("sliding_attention"), rope.get("full_attention", rope)
    config |= {"rope_theta": rope["rope_theta"], "partial_rotary_factor": rope.get("partial_rotary_factor")}
    if local:
        config["rope_local_base_freq"] = local["rope_theta"]
    kept = {name: value for name, value in rope.items() if name not in ("rope_theta", "rope_type", "partial_rotary_factor")}
    config["rope_scaling"] = {"type": rope["rope_type"], **kept} if rope["rope_type"] != "default" else None
    if case != "gemma3":  # (whose tiny model has no regular pattern)
        config.pop("layer_types", None)
    if case == "smollm3":
        config.pop("no_rope_layers")
    assert apart(ours(config, tensors_of(model))(tokens), out.logits) < NEAR


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if "rope_parameters" in CASES[case][2]])
def test_every_parameter_of_the_rotation_matters(case: str) -> None:
    model, tokens, out = theirs(case)
    config, tensors = model.config.to_dict(), tensors_of(model)
    for path, settings in _tables(config["rope_parameters"]):
        for name, value in settings.items():
            if name == "rope_type" or value is None or (case == "llama, dynamic" and name == "factor"):
                continue
            changed = _with(config["rope_parameters"], path, {**settings, name: value * 0.5})
            try:
                network = ours(config | {"rope_parameters": changed}, tensors)
            except REFUSED:
                continue
            assert apart(network(tokens), out.logits) > 100 * NEAR, (path, name)


def _tables(settings: dict[str, Any]) -> list[tuple[str | None, dict[str, Any]]]:
    nested = [(name, inner) for name, inner in settings.items() if isinstance(inner, dict)]
    return nested or [(None, settings)]  # type: ignore[return-value]


def _with(settings: dict[str, Any], path: str | None, inner: dict[str, Any]) -> dict[str, Any]:
    return inner if path is None else {**settings, path: inner}


def test_every_family_has_a_golden() -> None:
    covered = {theirs(case)[0].config.model_type for case in CASES}
    assert covered == set(FAMILIES)


def test_warnings_of_processing_are_the_expected_kind() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        HookedTransformer.from_pretrained("tiny", hf_model=theirs("llama")[0], device="cpu")
    assert {warning.category for warning in seen} == {SkippedRewrite}
