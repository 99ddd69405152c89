"""Rotary positions in configs: two generations of field names, and the kinds of scaling.

Newer releases of `transformers` put everything into `rope_parameters` (see `resolution`), older ones keep `rope_theta`
beside `rope_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cutaway.weights.families import schema
from cutaway.weights.families.table import Field, Fields, read

ROPE: dict[str, Field] = {
    "rope_theta": read(),
    "rope_scaling": read(),
    "rope_parameters": read(),
    "partial_rotary_factor": read(),
    "original_max_position_embeddings": read(),
}

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
"""The kinds of scaling that we have."""

BY_LAYER_TYPE = {"full_attention", "sliding_attention"}  # Gemma 3 has a table of settings for each
PARAMETERS = (
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "low_freq_factor", "high_freq_factor",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "original_max_position_embeddings",
    "long_factor", "short_factor",
)  # fmt: skip
"""Their parameters; `transformers` reads no others of these kinds."""


def rotary(hf: Fields, d_head: int, *, theta: float = 10000.0, partial: float | None = None) -> dict[str, Any]:
    """Our fields of rotary positions; `theta` and `partial` are what the family takes where the config says nothing.

    Families without `partial` always rotate whole heads.
    """
    settings, name = parameters(hf)
    base = settings.get("rope_theta") or hf["rope_theta"] or theta
    share = next(x for x in (settings.get("partial_rotary_factor"), hf["partial_rotary_factor"], partial, 1.0) if x is not None)
    if partial is None and share != 1:  # (without scaling, their code does not look at it)
        if kind_of(settings) != "default":
            raise hf.refuse(name, f"{hf.family} models rotate whole heads, and partial_rotary_factor is {share}")
        share = 1.0
    return {
        "positional_embedding_type": "rotary",
        "rotary_base": float(base),
        "rotary_dim": int(d_head * share),
        **scaling(hf, settings, name, pairs=int(d_head * share) // 2),
    }


def parameters(hf: Fields) -> tuple[dict[str, Any], str]:
    """What the config says about rotary positions, and the name of the field that says it."""
    name = "rope_scaling" if hf["rope_scaling"] else "rope_parameters"
    settings = hf[name] or {}
    if not isinstance(settings, Mapping):
        raise hf.refuse(name, "it should be a table of names and values")
    flat = {key: value for key, value in settings.items() if key not in BY_LAYER_TYPE}
    schema.check_rope(flat, name)
    return dict(settings), name


def kind_of(settings: Mapping[str, Any]) -> str:
    """The kind of scaling."""
    return str(settings.get("rope_type", settings.get("type")) or "default")


def scaling(hf: Fields, settings: Mapping[str, Any], name: str, *, pairs: int) -> dict[str, Any]:
    """Our fields for a kind of scaling of so many `pairs` of coordinates; refuses a kind that we do not have."""
    kind = kind_of(settings)
    if kind not in KINDS:
        raise hf.refuse(name, f"there is no rope type {kind!r}; there are {', '.join(KINDS)}")
    original = settings.get("original_max_position_embeddings")
    if kind != "default" and hf["original_max_position_embeddings"] is not None:
        original = hf["original_max_position_embeddings"]
    if kind == "default":
        return {}
    longest = hf["max_position_embeddings"]
    factor = settings.get("factor")
    if factor is None:
        if kind not in ("yarn", "longrope"):
            raise hf.refuse(name, f"rope type {kind!r} needs a factor")
        factor = longest / (original or longest)
    if kind == "linear":
        return {"rotary_linear_factor": float(factor)}
    if kind == "dynamic":  # slows rotations beyond max_position_embeddings only, and n_ctx ends there
        return {}
    if kind == "llama3":
        low, high = settings.get("low_freq_factor"), settings.get("high_freq_factor")
        if low is None or high is None or low >= high:
            raise hf.refuse(name, "rope type 'llama3' needs a low_freq_factor and a larger high_freq_factor")
        return {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": float(factor),
            "NTK_by_parts_low_freq_factor": float(low),
            "NTK_by_parts_high_freq_factor": float(high),
            "NTK_original_ctx_len": int(original or longest),
        }
    if kind == "longrope":
        return _longrope(hf, settings, name, float(factor), int(original or longest), pairs)
    return _yarn(hf, settings, name, float(factor), int(original or longest))


def _longrope(hf: Fields, settings: Mapping[str, Any], name: str, factor: float, original: int, pairs: int) -> dict[str, Any]:
    tables = {which: settings.get(which) or [] for which in ("short_factor", "long_factor")}
    for which, table in tables.items():
        if len(table) != pairs:
            raise hf.refuse(name, f"rope type 'longrope' needs a {which} for each of {pairs} pairs, and there are {len(table)}")
    strength = settings.get("attention_factor")
    if strength is None:  # https://arxiv.org/abs/2402.13753
        if factor > 1 and original < 2:
            raise hf.refuse(name, "rope type 'longrope' needs original_max_position_embeddings of at least 2")
        strength = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {
        **{f"longrope_{which}": [float(one) for one in table] for which, table in tables.items()},
        "longrope_attention_factor": float(strength),
        "longrope_original_max_position_embeddings": original,
    }


def _yarn(hf: Fields, settings: Mapping[str, Any], name: str, factor: float, original: int) -> dict[str, Any]:
    if settings.get("truncate", True) is not True:
        raise hf.refuse(name, "only truncate=True is understood")
    strength = settings.get("attention_factor")
    if strength is None:
        m, m_all = settings.get("mscale"), settings.get("mscale_all_dim")
        strength = _temperature(factor, m) / _temperature(factor, m_all) if m and m_all else _temperature(factor)
    return {
        "use_yarn_rope": True,
        "yarn_factor": factor,
        "yarn_attention_factor": float(strength),
        "yarn_beta_fast": float(settings.get("beta_fast") or 32),
        "yarn_beta_slow": float(settings.get("beta_slow") or 1),
        "yarn_original_max_position_embeddings": original,
    }


def _temperature(factor: float, m: float = 1.0) -> float:
    """YaRN's rule for the size of queries and keys (https://arxiv.org/abs/2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1.0


def stretches(config: Mapping[str, Any]) -> bool:
    """Whether the rotation depends on how long a text is once it exceeds `max_position_embeddings`."""
    return kind_of(config.get("rope_scaling") or config.get("rope_parameters") or {}) == "dynamic"
