"""Families: one short table per architecture of `transformers`, and the conversion that reads them.

    cfg, weights = convert(config, tensors)     # config.json as a dict, and a mapping of name → tensor

`weights` is lazy: each canonical tensor is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.weights.families import claims, dialect, heads, quantised, schema
from cutaway.weights.families.apertus import APERTUS
from cutaway.weights.families.bloom import BLOOM
from cutaway.weights.families.convert import CanonicalTensors, configure, unknown
from cutaway.weights.families.falcon import FALCON
from cutaway.weights.families.gemma import GEMMA, GEMMA2, GEMMA3
from cutaway.weights.families.gpt2 import GPT2
from cutaway.weights.families.gpt_neo import GPT_NEO
from cutaway.weights.families.gptj import GPTJ
from cutaway.weights.families.llama import GRANITE, LLAMA, MINISTRAL, MISTRAL, OLMO, OLMO2, SMOLLM3
from cutaway.weights.families.mixture import MIXTRAL
from cutaway.weights.families.mpt import MPT
from cutaway.weights.families.neox import NEOX
from cutaway.weights.families.opt import OPT
from cutaway.weights.families.others import COHERE, STABLELM, STARCODER2
from cutaway.weights.families.phi import PHI, PHI3
from cutaway.weights.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from cutaway.weights.families.resolution import resolve, text_config
from cutaway.weights.families.table import Family, Fields

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        GPT2, GPT_NEO, GPTJ, NEOX, OPT, BLOOM, FALCON, MPT, LLAMA, MISTRAL, MINISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE,
        GEMMA, GEMMA2, GEMMA3, PHI, PHI3, STABLELM, OLMO, OLMO2, SMOLLM3, GRANITE, COHERE, STARCODER2, APERTUS,
    )
}  # fmt: skip
"""`model_type` of a config → its family."""

__all__ = ["FAMILIES", "CanonicalTensors", "Family", "claimed", "configuration", "convert", "family_of", "ignored_fields"]


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config of `transformers`.

    Raises:
        UnsupportedArchitecture: there is no such family; lists those that there are.
    """
    return FAMILIES[_understood(config)["model_type"]]


def _understood(config: Mapping[str, Any], *, resolved: bool = False) -> Mapping[str, Any]:
    """The config as `transformers` reads it, of a family that there is."""
    quantised.refuse(config)
    given = text_config(config)
    family = FAMILIES.get(str(given.get("model_type")))
    if family is None and "text_config" not in config:
        raise unknown(config, FAMILIES.values())
    if family is not None:
        schema.check(given, family.fields.keys())  # before anything is made as long as the config says
    found = given if resolved else resolve(config)
    if found.get("model_type") not in FAMILIES:
        raise unknown(found, FAMILIES.values())
    return found


def _configure(
    config: Mapping[str, Any], *, n_ctx: int | None, first_n_layers: int | None, resolved: bool
) -> tuple[Family, HookedTransformerConfig, Fields]:
    found = _understood(config, resolved=resolved)
    family = FAMILIES[found["model_type"]]
    return family, *configure(family, found, n_ctx=n_ctx, first_n_layers=first_n_layers)


def claimed(config: Mapping[str, Any], *, name: str, architecture: str | None = None) -> claims.Claim:
    """The config, with the class that `architecture` vouches for, or its family's where its own is not known (see `claims`)."""
    if dialect.is_own(config):
        return claims.Claim(config)
    return claims.settled(config, FAMILIES, name=name, architecture=architecture)


def configuration(
    config: Mapping[str, Any], *, n_ctx: int | None = None, first_n_layers: int | None = None
) -> HookedTransformerConfig:
    """Our configuration of a model, from its config alone."""
    if dialect.is_own(config):
        return dialect.configuration(config, n_ctx=n_ctx, first_n_layers=first_n_layers)
    return _configure(config, n_ctx=n_ctx, first_n_layers=first_n_layers, resolved=False)[1]


def ignored_fields(config: Mapping[str, Any], *, resolved: bool = False) -> dict[str, Any]:
    """The fields of a config that `transformers` never reads, with their values: they cannot change the model."""
    if dialect.is_own(config):
        return {}
    hf = _configure(config, n_ctx=None, first_n_layers=None, resolved=resolved)[2]
    return {name: value for name, value in hf.ignored.items() if name in config}


def convert(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    n_ctx: int | None = None,
    first_n_layers: int | None = None,
    resolved: bool = False,
) -> tuple[HookedTransformerConfig, Mapping[str, Tensor]]:
    """Our configuration and canonical tensors of a model of `transformers`, or of the dialect's own.

    Args:
        config: what `config.json` holds, or `model.config.to_dict()`.
        tensors: names as in the checkpoint → tensors; read one at a time.
        n_ctx: as many positions instead of all; more only where positions need no weights.
        first_n_layers: only so many layers.
        resolved: the config is a live model's, as its configuration class has filled it in.

    Raises:
        UnsupportedArchitecture: the family, or a field of the config, is not understood, or `transformers` refuses it.
        WeightsMismatch: the names or shapes of the tensors are not those of the family.
    """
    if dialect.is_own(config):
        own = dialect.configuration(config, n_ctx=n_ctx, first_n_layers=first_n_layers)
        return own, dialect.tensors(config, tensors, own)
    found = _understood(config, resolved=resolved)
    family = FAMILIES[found["model_type"]]
    found, tensors = heads.settle(family, found, tensors)
    cfg, hf = configure(family, found, n_ctx=n_ctx, first_n_layers=first_n_layers)
    return cfg, CanonicalTensors(family, cfg, hf, tensors)
