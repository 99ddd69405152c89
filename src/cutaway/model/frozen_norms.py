"""A norm with its scale held: linear up to a constant, so that what it does to a sum it does to each term.

A norm of the residual stream centres its input (LayerNorm), divides by a scale, multiplies by a weight and adds a bias.
With the scale held at a measured number, everything but the bias is linear. Attribution, lenses, paths, circuits of
weights and the dialect's caches all use the one below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from cutaway.config import HookedTransformerConfig

FINAL = "ln_final"


def norms_of(cfg: HookedTransformerConfig) -> dict[str, str]:
    """Each norm of the residual stream by name (`0.ln1`, `0.ln2`, …, `ln_final`), with the site of its scale."""
    if cfg.normalization_type is None:
        return {}
    parts = [] if cfg.post_norm_only else ["ln1"] if cfg.attn_only else ["ln1", "ln2"]
    if cfg.has_post_norms:
        parts = [*parts, "ln1_post"] + ([] if cfg.attn_only else ["ln2_post"])
    named = {f"{l}.{part}": f"blocks.{l}.{part}.hook_scale" for l in range(cfg.n_layers) for part in parts}
    return named | {FINAL: "ln_final.hook_scale"}


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """What a norm does to terms of its input while its scale is held.

    Args:
        weight: multiplied after the division; None where it was folded into what reads the norm.
        bias: added last; belongs to no term of the input.
        centred: whether the mean is subtracted first.
        scale: what is divided by; None: 1.
    """

    weight: Float[Tensor, "d_model"] | None = None
    bias: Float[Tensor, "d_model"] | None = None
    centred: bool = False
    scale: Float[Tensor, "*axes 1"] | None = None

    def __call__(self, terms: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*normed d_model"]:
        """What terms of the input become, without the bias."""
        if self.centred:
            terms = terms - terms.mean(-1, keepdim=True)
        if self.scale is not None:
            terms = terms / self.scale.to(terms.device)
        return terms if self.weight is None else terms * self.weight.to(terms.device)

    def transposed(self, directions: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*before d_model"]:
        """The directions before the norm that read what `directions` read after it.

        `(norm(x) * d).sum() == (x * norm.transposed(d)).sum()` for every term `x`.
        """
        if self.weight is not None:
            directions = directions * self.weight.to(directions.device)
        if self.centred:
            directions = directions - directions.mean(-1, keepdim=True)
        return directions if self.scale is None else directions / self.scale.to(directions.device)


def norm_module(model: Any, norm: str) -> nn.Module:
    """The norm of that name; an identity where the network has none there."""
    if norm == FINAL:
        module: nn.Module = model.ln_final
        return module
    layer, part = norm.split(".")
    module = getattr(model.blocks[int(layer)], part, nn.Identity())
    return module


def frozen_norm(model: Any, norm: str | None, scale: Tensor | None = None) -> FrozenNorm:
    """The norm of that name (`0.ln1`, …, `ln_final`) with this scale; does nothing where the network has none there."""
    cfg: HookedTransformerConfig = model.cfg
    if norm is None or norm not in norms_of(cfg):
        return FrozenNorm()
    module = norm_module(model, norm)
    weight, bias = (getattr(module, name, None) for name in "wb")
    centred = str(cfg.normalization_type).startswith("LN") and not (norm == FINAL and cfg.final_rms)
    return FrozenNorm(weight, bias, centred, scale)
