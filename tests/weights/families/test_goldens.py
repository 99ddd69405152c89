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
from tests.weights.families.tiny import CASES, HEADS, from_file, tensors_of, tiny, tokens_for

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


# Every field that a table handles means, when it is changed, what it means in `transformers`, or is refused.

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


def loads(config: dict[str, Any], tensors: dict[str, Tensor]) -> HookedTransformer | None:
    try:
        return ours(config, tensors)
    except REFUSED:
        return None


def agrees(network: HookedTransformer, config: dict[str, Any], tensors: dict[str, Tensor], tokens: Tensor, folder: Path) -> bool:
    """Whether `transformers` computes the same with this config and these tensors."""
    model = from_file(config, folder)
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert set(missing) <= {*HEADS, *(f"transformer.{name}" for name in HEADS)}
    model.tie_weights()
    return apart(network(tokens), model(tokens).logits) < NEAR


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_changed_field_means_what_it_means_there(case: str, tmp_path: Path) -> None:
    model, tokens, out = theirs(case)
    config, tensors = model.config.to_dict(), tensors_of(model)
    wrong, seen = [], 0
    for name in set(fields_of(case)) - {"tie_word_embeddings"}:  # (which tensors a file has decides with it)
        changed = config | {name: mutated(config[name])}
        network = loads(changed, tensors)
        if network is not None:
            seen += apart(network(tokens), out.logits) > 100 * NEAR
            if not agrees(network, changed, tensors, tokens, tmp_path):
                wrong.append(name)
    assert wrong == [] and seen > 0


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if "rope_parameters" in CASES[case][2]])
def test_configs_of_earlier_years(case: str) -> None:
    """`rope_theta`, `rope_scaling` and patterns of layers by number, as most published configs have them."""
    model, tokens, out = theirs(case)
    config = model.config.to_dict()
    rope = config.pop("rope_parameters")
    local, rope = rope.get("sliding_attention"), rope.get("full_attention", rope)
    base, share = ("rotary_emb_base", "rotary_pct") if "neox" in case else ("rope_theta", "partial_rotary_factor")
    config |= {base: rope["rope_theta"], share: rope.get("partial_rotary_factor")}
    if local:
        config["rope_local_base_freq"] = local["rope_theta"]
    kept = {name: value for name, value in rope.items() if name not in ("rope_theta", "rope_type", "partial_rotary_factor")}
    kind = "rope_type" if local else "type"  # (Gemma 3 came later, and does not look at `type`)
    config["rope_scaling"] = {kind: rope["rope_type"], **kept} if rope["rope_type"] != "default" else None
    if case not in ("gemma3", "ministral"):  # (whose tiny models have no regular pattern)
        config.pop("layer_types", None)
    if case == "smollm3":
        config.pop("no_rope_layers")
    assert apart(ours(config, tensors_of(model))(tokens), out.logits) < NEAR


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if "rope_parameters" in CASES[case][2]])
def test_a_changed_parameter_of_the_rotation_means_what_it_means_there(case: str, tmp_path: Path) -> None:
    model, tokens, out = theirs(case)
    config, tensors = model.config.to_dict(), tensors_of(model)
    seen = 0
    for path, settings in _tables(config["rope_parameters"]):
        for name, value in settings.items():
            if name == "rope_type" or value is None:
                continue
            half = [one * 0.5 for one in value] if isinstance(value, list) else type(value)(value * 0.5)
            rope = _with(config["rope_parameters"], path, {**settings, name: half})
            changed = config | {"rope_parameters": rope}
            network = loads(changed, tensors)
            if network is not None:
                seen += apart(network(tokens), out.logits) > 100 * NEAR
                assert agrees(network, changed, tensors, tokens, tmp_path), (path, name)
    assert seen > 0


def _tables(settings: dict[str, Any]) -> list[tuple[str | None, dict[str, Any]]]:
    nested = [(name, inner) for name, inner in settings.items() if isinstance(inner, dict)]
    return nested or [(None, settings)]  # type: ignore[return-value]


def _with(settings: dict[str, Any], path: str | None, inner: dict[str, Any]) -> dict[str, Any]:
    return inner if path is None else {**settings, path: inner}


def test_every_family_has_a_golden() -> None:
    covered = {theirs(case)[0].config.model_type for case in CASES}
    assert covered == set(FAMILIES)


def test_rewrites_that_loading_leaves_out_are_listed_and_not_warned_of() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = HookedTransformer.from_pretrained("tiny", hf_model=theirs("llama")[0], device="cpu")
    assert not seen
    assert any("RMS" in why for why in model.provenance["skipped_rewrites"])
