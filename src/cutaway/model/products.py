"""Activations times weights, by the faster of the two libraries that Torch brings along for processors.

Torch gives float32 products to MKL, which on processors of other makers than Intel uses half of their vector units; oneDNN,
which Torch has as well and keeps for half precision, uses them all and is about twice as fast there. Both round in the
last place only, and differently. Where somebody watches, transforms or compiles Torch's operations, products go the usual way.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
SMALLEST = 2**18  # multiplications below which the call costs more than it saves


def linear(x: Float[Tensor, "*rest d_in"], W: Float[Tensor, "d_in d_out"], b: Float[Tensor, "d_out"] | None = None) -> Tensor:
    """`x @ W + b`, `[..., d_out]`."""
    if x.numel() * W.shape[1] < SMALLEST or not _plain(x, W) or (kernel := onednn()) is None:
        return F.linear(x, W.T, b)
    W = _dense(W)
    if torch.is_grad_enabled() and (x.requires_grad or W.requires_grad or (b is not None and b.requires_grad)):
        out: Tensor = _Product.apply(x, W, b)
        return out
    return kernel(x, W.T, b)


def linear_by_head(x: Float[Tensor, "*rest head d_in"], W: Float[Tensor, "head d_in d_out"]) -> Float[Tensor, "*rest head d_out"]:
    """`x @ W` of each head by itself."""
    if x.numel() * W.shape[2] < SMALLEST * len(W) or not _plain(x, W) or onednn() is None:
        return torch.einsum("...hi,hio->...ho", x, W)
    return torch.stack([linear(of_head, own) for of_head, own in zip(x.unbind(-2), W, strict=True)], -2)


def _plain(x: Tensor, W: Tensor) -> bool:
    """Whether this is a float32 product on the processor, with nobody watching, transforming or compiling Torch's operations."""
    return (
        not torch.compiler.is_compiling()
        and x.dtype is torch.float32
        and W.dtype is torch.float32
        and x.device.type == "cpu"
        and x.ndim > 1
        and torch._C._get_mkldnn_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def _dense(W: Tensor) -> Tensor:
    """The weights without gaps in memory, copied if need be: oneDNN is a thousand times slower on a part of a larger matrix."""
    return W if W.is_contiguous() or W.T.is_contiguous() else W.contiguous()


class _Product(torch.autograd.Function):
    """The product and its derivatives, which are products again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        kernel = onednn()
        assert kernel is not None
        to_x, to_W, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if to_W else None, W if to_x else None)
        return kernel(x, W.T, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,), (x, W) = grads, ctx.saved_tensors
        to_x, to_W, to_b = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            linear(grad, W.T) if to_x else None,
            linear(x.flatten(0, -2).T, rows) if to_W else None,
            rows.sum(0) if to_b else None,
        )


@cache
def onednn() -> Product | None:
    """oneDNN's product `x @ Wt.T + b`, where this Torch has one and it gives the right numbers."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return None
    kernel = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if kernel is None:
        return None

    def product(x: Tensor, Wt: Tensor, b: Tensor | None) -> Tensor:
        out: Tensor = kernel(x, Wt, b, "none", [], "")
        return out

    x, W, b = torch.arange(12.0).view(3, 4), torch.arange(20.0).view(4, 5), torch.arange(5.0)
    try:
        right = torch.equal(product(x, W.T, b), F.linear(x, W.T, b))
    except (RuntimeError, TypeError):  # an older Torch, whose kernel takes other arguments
        return None
    return product if right else None
