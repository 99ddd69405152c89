"""Activations times weights, by the kernel that is fastest on this processor (see `kernels.py`).

Kernels round in the last place only, and differently. Where somebody watches, transforms or compiles Torch's operations,
for small products, on other devices and in float64, products are `F.linear`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cutaway.model.kernels import HALVES, KERNELS, TORCHS, free, kernel_for

MANY_ROWS = 16  # from as many on, looking whether a bias is zero takes less time than adding it
SMALLEST = 2**18  # multiplications below which the call costs more than it saves


def linear(x: Float[Tensor, "*rest d_in"], W: Float[Tensor, "d_in d_out"], b: Float[Tensor, "d_out"] | None = None) -> Tensor:
    """`x @ W + b`, `[..., d_out]`."""
    size = x.numel()
    if size * W.shape[1] < SMALLEST:
        return F.linear(x, W.T, b)
    gradient = torch.is_grad_enabled() and (x.requires_grad or W.requires_grad or (b is not None and b.requires_grad))
    if b is not None and not gradient and size >= MANY_ROWS * len(W) and free(x, W) and not b.any():
        b = None  # adding zeros takes two passes over what may be a large output; models without biases have zeros
    kernel = kernel_for(x, W, gradient=gradient)
    if kernel not in TORCHS and not free(x, W):
        kernel = "linear"
    if gradient and kernel != "linear":
        out: Tensor = _Product.apply(x, W, b, kernel)
        return out
    return KERNELS[kernel](x, W, b)


def empty_weights(d_in: int, d_out: int, dtype: torch.dtype) -> Float[Tensor, "d_in d_out"]:
    """Room for weights, in the memory order that products read fastest (see `outputs_first`)."""
    return torch.empty(d_out, d_in, dtype=dtype).T if outputs_first(dtype) else torch.empty(d_in, d_out, dtype=dtype)


def outputs_first(dtype: torch.dtype) -> bool:
    """Whether each output's weights lie side by side in memory, rather than each input's.

    In half precision Torch multiplies a few rows nine times slower the other way on processors without instructions for it.
    """
    return dtype in HALVES


def linear_by_head(x: Float[Tensor, "*rest head d_in"], W: Float[Tensor, "head d_in d_out"]) -> Float[Tensor, "*rest head d_out"]:
    """`x @ W` of each head by itself."""
    large = x.numel() * W.shape[2] >= SMALLEST * len(W) and free(x, W)
    if large and kernel_for(x[..., 0, :], W[0], gradient=False) not in TORCHS:
        return torch.stack([linear(of_head, own) for of_head, own in zip(x.unbind(-2), W, strict=True)], -2)
    return torch.einsum("...hi,hio->...ho", x, W)


class _Product(torch.autograd.Function):
    """The product and its derivatives, which are products again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, kernel: str) -> Tensor:
        to_x, to_W, _, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if to_W else None, W if to_x else None)
        return KERNELS[kernel](x, W, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,), (x, W) = grads, ctx.saved_tensors
        to_x, to_W, to_b, _ = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            linear(grad, W.T) if to_x else None,
            linear(x.flatten(0, -2).T, rows) if to_W else None,
            rows.sum(0) if to_b else None,
            None,
        )
