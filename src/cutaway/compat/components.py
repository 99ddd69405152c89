"""The dialect's `components`: the parts of the network as importable classes."""

from __future__ import annotations

from typing import Any

from cutaway.errors import ConfigError
from cutaway.model.attention import Attention, GroupedQueryAttention
from cutaway.model.block import TransformerBlock
from cutaway.model.mlp import MLP, CanBeUsedAsMLP, GatedMLP, MoE
from cutaway.model.norm import LayerNorm, LayerNormPre, RMSNorm, RMSNormPre
from cutaway.model.positions import PosEmbed
from cutaway.model.transformer import Embed, Unembed

AbstractAttention = Attention


class GatedMLP4Bit(GatedMLP):
    """The dialect's MLP of 4-bit weights, for code that imports the name; there is none here."""

    def __init__(self, cfg: Any):
        raise ConfigError("weights of 4 bits are not computed with here; load the model in dtype='bfloat16'")


__all__ = [
    "MLP",
    "AbstractAttention",
    "Attention",
    "CanBeUsedAsMLP",
    "Embed",
    "GatedMLP",
    "GatedMLP4Bit",
    "GroupedQueryAttention",
    "LayerNorm",
    "LayerNormPre",
    "MoE",
    "PosEmbed",
    "RMSNorm",
    "RMSNormPre",
    "TransformerBlock",
    "Unembed",
]
