"""State dicts of the dialect's first year (2022), whose matrices multiply on the left: recognised by shape and turned.

There were two: that of "Progress measures for grokking" (`W_O [d_model, head·d_head]`, no biases, `W_pos` and `W_U` as
today), and that of the library before its weights were turned (`W_O [head, d_model, d_head]`, all others transposed).
Where a matrix is square and could be either, it goes by what the others are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import WeightsMismatch
from cutaway.weights.canonical import Shape, is_buffer, shapes

INNER = ("W_E", "W_Q", "W_K", "W_V", "W_in", "W_out")
"""Matrices that both layouts transpose."""

OUTER = ("W_pos", "W_U")
"""Matrices that only the second layout transposes."""


def modern(weights: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> Mapping[str, Tensor]:
    """The weights as today's names and shapes have them; the same object where they already are.

    Biases that the first layout lacks are zero. Where every matrix fits as it is, nothing is turned.

    Raises:
        WeightsMismatch: some matrices are of the old layout and some of today's.
    """
    wanted = shapes(cfg)
    told = [(name, _last(name), tuple(tensor.shape), wanted[name]) for name, tensor in weights.items() if name in wanted]
    flat = any(last == "W_O" and len(shape) == 2 for _, last, shape, _ in told)
    inner = [(shape, want) for _, last, shape, want in told if last in (*INNER, "W_O")]
    if not any(_only_old(shape, want) for shape, want in inner):
        return weights
    mixed = [name for name, last, shape, want in told if last in (*INNER, "W_O") and not _old(shape, want)]
    if mixed:
        if not any(shape == want for name, _, shape, want in told if name in mixed):
            return weights  # (neither: the check of shapes says it better)
        raise WeightsMismatch(
            f"{mixed[0]} has today's shape, and other weights that of 2022 ([d_head, d_model]); save them in one layout"
        )
    turned = {name: _turned(name, tensor, wanted, outer_too=not flat) for name, tensor in weights.items()}
    for name, shape in wanted.items():
        if name not in turned and _last(name).lstrip("_").startswith("b"):
            turned[name] = torch.zeros(shape, dtype=turned["embed.W_E"].dtype)
    return turned


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _flat(want: Shape) -> Shape:
    """`W_O` of the first layout: `[d_model, head·d_head]`."""
    return (want[2], want[0] * want[1])


def _old(shape: Shape, want: Shape) -> bool:
    """Whether a shape is the old one of a matrix that is `want` today."""
    return shape == (*want[:-2], want[-1], want[-2]) or (len(want) == 3 and shape == _flat(want))


def _only_old(shape: Shape, want: Shape) -> bool:
    return shape != want and _old(shape, want)


def _turned(name: str, tensor: Tensor, wanted: Mapping[str, Shape], *, outer_too: bool) -> Tensor:
    want, last = wanted.get(name), _last(name)
    if want is None or is_buffer(name) or last not in (*INNER, *OUTER, "W_O"):
        return tensor
    shape = tuple(tensor.shape)
    if last == "W_O" and tensor.ndim == 2:
        return tensor.T.reshape(want)
    if last in OUTER and (shape == want and not (outer_too and _old(shape, want))):
        return tensor
    return tensor.transpose(-2, -1)
