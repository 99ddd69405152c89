"""Norms with a frozen scale: linear, so that what they do to a sum they do to each of its terms.

A stack holds terms of the residual stream, `[component, batch, pos, d_model]`; the scale of the whole stream,
`[batch, pos, 1]`, was kept by the run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cutaway.errors import ShapeError


def through_frozen(parts: Tensor, scale: Tensor, norm: Any, centred: bool) -> Tensor:
    """A norm with a given scale, applied to parts of its input; without its bias."""
    if centred:
        parts = parts - parts.mean(-1, keepdim=True)
    parts = parts / scale
    weight = getattr(norm, "w", None)
    return parts if weight is None else parts * weight


def dot(stack: Tensor, direction: Tensor) -> Tensor:
    """Each component's product with the direction of its example and position."""
    dtype = torch.promote_types(stack.dtype, direction.dtype)
    return torch.einsum("...d,...d->...", stack.to(dtype), direction.to(dtype))


def check_scale(stack: Tensor, scale: Tensor, has_batch_dim: bool) -> None:
    """Refuse a scale that would multiply the stack's axes, or meet its components instead of its examples."""
    fits = scale.ndim <= stack.ndim and all(
        mine in (1, theirs) for mine, theirs in zip(reversed(scale.shape[:-1]), reversed(stack.shape[:-1]), strict=False)
    )
    if not has_batch_dim and scale.ndim == stack.ndim > 2 and scale.shape[0] > 1:
        fits = False
    if not fits:
        raise ShapeError(
            f"a stack of shape {tuple(stack.shape)} does not fit the kept scale of shape {tuple(scale.shape)}; "
            "say which positions and examples the stack holds (pos_slice, batch_slice, has_batch_dim)"
        )


def check_direction(stack: Tensor, direction: Tensor, ids: Tensor) -> None:
    """Refuse directions (of the tokens `ids`) that would multiply the stack's axes."""
    try:
        fits = torch.broadcast_shapes(stack.shape, direction.shape) == stack.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(
            f"tokens of shape {tuple(ids.shape)} do not fit a stack of shape {tuple(stack.shape)}; give one token, "
            "one for each example that the stack holds, or one for each of its positions as well"
        )
