"""The dialect's `components`: the parts of the network as importable classes."""

from __future__ import annotations

from cutaway.model.attention import Attention, GroupedQueryAttention
from cutaway.model.block import TransformerBlock
from cutaway.model.mlp import MLP, GatedMLP, MoE
from cutaway.model.norm import LayerNorm, LayerNormPre, RMSNorm, RMSNormPre
from cutaway.model.positions import PosEmbed
from cutaway.model.transformer import Embed, Unembed

AbstractAttention = Attention
CanBeUsedAsMLP = MLP

__all__ = [
    "MLP",
    "AbstractAttention",
    "Attention",
    "CanBeUsedAsMLP",
    "Embed",
    "GatedMLP",
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
