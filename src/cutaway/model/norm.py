"""Norms: LayerNorm and RMSNorm, with and without weights of their own, each with its two sites.

The scale that a norm divides by is a site, because freezing it makes the rest of the norm linear. Nobody
listening means the fused kernel; readers are given the very numbers that the kernel used.

Inputs may be `[batch, pos, d_model]` or, with split inputs, `[batch, pos, head, d_model]`. Where the inputs of
all heads are one tensor, `heads` says how many there are, and listeners see a view with a head axis.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.config import HookedTransformerConfig
from cutaway.model.hook_points import HookPoint, listening, written

Config = HookedTransformerConfig | dict[str, Any]


class LayerNorm(nn.Module):
    """LayerNorm with weight and bias (https://arxiv.org/abs/1607.06450).

    `hook_normalized` is its output; the precision is float32 at least.
    """

    affine = True

    def __init__(self, cfg: Config, length: int | None = None):
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        self.eps, self.length = self.cfg.eps, length or self.cfg.d_model
        dtype = self.cfg.torch_dtype
        self.w = nn.Parameter(torch.ones(self.length, dtype=dtype)) if self.affine else None
        self.b = nn.Parameter(torch.zeros(self.length, dtype=dtype)) if self.affine else None
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "*axes length"], heads: int | None = None) -> Float[Tensor, "*out length"]:
        """The normalised input, in the precision of the model."""
        if not listening(self.hook_scale):
            normalized = F.layer_norm(x, (self.length,), self.w, self.b, self.eps)
        elif not written(self.hook_scale):
            normalized, _, inverse = torch.native_layer_norm(x, (self.length,), self.w, self.b, self.eps)
            through(self.hook_scale, 1 / inverse, heads)
        else:
            full = precise(x)
            full = full - full.mean(-1, keepdim=True)
            normalized = divided(full, self.hook_scale, self.eps, heads)
            if self.w is not None and self.b is not None:
                normalized = normalized * self.w + self.b
        return through(self.hook_normalized, normalized, heads).to(x.dtype)


class LayerNormPre(LayerNorm):
    """LayerNorm whose weight and bias were folded into what reads it."""

    affine = False


class RMSNorm(nn.Module):
    """RMSNorm with a weight (https://arxiv.org/abs/1910.07467).

    `hook_normalized` comes before the weight; the precision is float32 at least.
    """

    affine = True

    def __init__(self, cfg: Config, length: int | None = None):
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        self.eps, self.length = self.cfg.eps, length or self.cfg.d_model
        self.w = nn.Parameter(torch.ones(self.length, dtype=self.cfg.torch_dtype)) if self.affine else None
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "*axes length"], heads: int | None = None) -> Float[Tensor, "*out length"]:
        """The normalised input, in the precision of the model."""
        normalized = divided(precise(x), self.hook_scale, self.eps, heads)
        normalized = through(self.hook_normalized, normalized, heads).to(x.dtype)
        return normalized if self.w is None else normalized * self.w


class RMSNormPre(RMSNorm):
    """RMSNorm whose weight was folded into what reads it."""

    affine = False


class EachHeadNorm(nn.Module):
    """A norm of every head by itself, with weights of its own; those of all heads lie side by side.

    `hook_normalized` comes before the weights; the precision is float32 at least.
    """

    def __init__(self, cfg: Config, heads: int):
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        self.eps, self.d_head, self.centred = self.cfg.eps, self.cfg.d_head, self.cfg.qk_norm_type == "LN"
        width, dtype = heads * self.d_head, self.cfg.torch_dtype
        self.w = nn.Parameter(torch.ones(width, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(width, dtype=dtype)) if self.centred else None
        self.hook_scale = HookPoint()
        self.hook_normalized = HookPoint()

    def forward(self, x: Float[Tensor, "*axes head d_head"]) -> Float[Tensor, "*axes head d_head"]:
        """The normalised input, in the precision of the model."""
        full = precise(x)
        if self.centred:
            full = full - full.mean(-1, keepdim=True)
        normalized = self.hook_normalized(divided(full, self.hook_scale, self.eps, None)).to(x.dtype)
        normalized = normalized * self._per_head(self.w, x)
        return normalized if self.b is None else normalized + self._per_head(self.b, x)

    def _per_head(self, weights: Tensor, x: Tensor) -> Tensor:
        """`[head, d_head]`, repeated where heads share keys and somebody asked for a key per head."""
        weights = weights.unflatten(0, (-1, self.d_head))
        return weights.repeat_interleave(x.shape[-2] // len(weights), dim=0)


def precise(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


def divided(x: Tensor, hook_scale: nn.Module, eps: float, heads: int | None) -> Tensor:
    """`x` over the root of its mean square, which listeners of the scale may change (per head, if they do)."""
    scale = through(hook_scale, (x.pow(2).mean(-1, keepdim=True) + eps).sqrt(), heads)
    return (x.unsqueeze(-2) if scale.ndim > x.ndim else x) / scale


def through(point: nn.Module, x: Tensor, heads: int | None) -> Tensor:
    """`x` after its listeners: they see one copy per head, which is a mere view until somebody writes."""
    if heads is None or not listening(point):
        return point(x)
    view = x.unsqueeze(-2).expand(*x.shape[:-1], heads, x.shape[-1])
    out: Tensor = point(view)
    return x if out is view else out


NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"LN": LayerNorm, "LNPre": LayerNormPre, "RMS": RMSNorm, "RMSPre": RMSNormPre}


def post_norm(block: nn.Module, name: str) -> nn.Module:
    """The norm after attention ("ln1_post") or MLP ("ln2_post") of a block; one that does nothing where there is none."""
    found: nn.Module = getattr(block, name, NO_NORM)
    return found


NO_NORM = nn.Identity()


def norm_of(cfg: HookedTransformerConfig, *, final: bool = False) -> nn.Module:
    """The norm that a configuration asks for: before attention and MLP, or before the unembedding."""
    if cfg.normalization_type is None:
        return nn.Identity()
    kind = cfg.normalization_type
    if final and cfg.final_rms:
        kind = "RMS" if kind in ("LN", "RMS") else "RMSPre"
    return NORMS[kind](cfg)
