"""Families: one short table per architecture of `transformers`, and the conversion that reads them.

    cfg, weights = convert(config, tensors)     # config.json as a dict, and a mapping of name → tensor

`weights` is lazy: each canonical tensor is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.weights.families import dialect
from cutaway.weights.families.bloom import BLOOM
from cutaway.weights.families.convert import CanonicalTensors, configure, text_config, unknown
from cutaway.weights.families.falcon import FALCON
from cutaway.weights.families.gemma import GEMMA, GEMMA2, GEMMA3
from cutaway.weights.families.gpt2 import GPT2
from cutaway.weights.families.gpt_neo import GPT_NEO
from cutaway.weights.families.gptj import GPTJ
from cutaway.weights.families.llama import GRANITE, LLAMA, MISTRAL, OLMO, OLMO2, SMOLLM3
from cutaway.weights.families.mixture import MIXTRAL
from cutaway.weights.families.mpt import MPT
from cutaway.weights.families.neox import NEOX
from cutaway.weights.families.opt import OPT
from cutaway.weights.families.others import COHERE, STABLELM, STARCODER2
from cutaway.weights.families.phi import PHI, PHI3
from cutaway.weights.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from cutaway.weights.families.table import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        GPT2, GPT_NEO, GPTJ, NEOX, OPT, BLOOM, FALCON, MPT, LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE,
        GEMMA, GEMMA2, GEMMA3, PHI, PHI3, STABLELM, OLMO, OLMO2, SMOLLM3, GRANITE, COHERE, STARCODER2,
    )
}  # fmt: skip
"""`model_type` of a config → its family."""

__all__ = ["FAMILIES", "CanonicalTensors", "Family", "configuration", "convert", "family_of"]


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config of `transformers`.

    Raises:
        UnsupportedArchitecture: there is no such family; lists those that there are.
    """
    model_type = text_config(config).get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise unknown(model_type, FAMILIES.values())
    return FAMILIES[model_type]


def configuration(
    config: Mapping[str, Any], *, n_ctx: int | None = None, first_n_layers: int | None = None
) -> HookedTransformerConfig:
    """Our configuration of a model, from its config alone."""
    if dialect.is_own(config):
        return dialect.configuration(config, n_ctx=n_ctx, first_n_layers=first_n_layers)
    return configure(family_of(config), text_config(config), n_ctx=n_ctx, first_n_layers=first_n_layers)[0]


def convert(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    n_ctx: int | None = None,
    first_n_layers: int | None = None,
) -> tuple[HookedTransformerConfig, Mapping[str, Tensor]]:
    """Our configuration and canonical tensors of a model of `transformers`, or of the dialect's own.

    Args:
        config: what `config.json` holds, or `model.config.to_dict()`.
        tensors: names as in the checkpoint → tensors; read one at a time.
        n_ctx: as many positions instead of all; more only where positions need no weights.
        first_n_layers: only so many layers.

    Raises:
        UnsupportedArchitecture: the family, or a field of the config, is not understood.
        WeightsMismatch: the names or shapes of the tensors are not those of the family.
    """
    if dialect.is_own(config):
        own = dialect.configuration(config, n_ctx=n_ctx, first_n_layers=first_n_layers)
        return own, dialect.tensors(config, tensors, own)
    family = family_of(config)
    cfg, hf = configure(family, text_config(config), n_ctx=n_ctx, first_n_layers=first_n_layers)
    return cfg, CanonicalTensors(family, cfg, hf, tensors)
