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
    known = [(name, _last(name), tuple(tensor.shape), wanted[name]) for name, tensor in weights.items() if name in wanted]
    flat = any(last == "W_O" and len(shape) == 2 for _, last, shape, _ in known)
    inner = [(shape, expected) for _, last, shape, expected in known if last in (*INNER, "W_O")]
    if not any(_only_old(shape, expected) for shape, expected in inner):
        return weights
    mixed = [name for name, last, shape, expected in known if last in (*INNER, "W_O") and not _old(shape, expected)]
    if mixed:
        if not any(shape == expected for name, _, shape, expected in known if name in mixed):
            return weights  # (neither: the check of shapes says it better)
        raise WeightsMismatch(
            f"{mixed[0]} has today's shape, and other weights that of 2022 ([d_head, d_model]); save them in one layout"
        )
    modernised = {name: _turned(name, tensor, wanted, outer_too=not flat) for name, tensor in weights.items()}
    for name, shape in wanted.items():
        if name not in modernised and _last(name).lstrip("_").startswith("b"):
            modernised[name] = torch.zeros(shape, dtype=modernised["embed.W_E"].dtype)
    return modernised


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _flat(expected: Shape) -> Shape:
    """`W_O` of the first layout: `[d_model, head·d_head]`."""
    return (expected[2], expected[0] * expected[1])


def _old(shape: Shape, expected: Shape) -> bool:
    """Whether a shape is the old one of a matrix that is `expected` today."""
    return shape == (*expected[:-2], expected[-1], expected[-2]) or (len(expected) == 3 and shape == _flat(expected))


def _only_old(shape: Shape, expected: Shape) -> bool:
    return shape != expected and _old(shape, expected)


def _turned(name: str, tensor: Tensor, wanted: Mapping[str, Shape], *, outer_too: bool) -> Tensor:
    expected, last = wanted.get(name), _last(name)
    if expected is None or is_buffer(name) or last not in (*INNER, *OUTER, "W_O"):
        return tensor
    shape = tuple(tensor.shape)
    if last == "W_O" and tensor.ndim == 2:
        return tensor.T.reshape(expected)
    if last in OUTER and (shape == expected and not (outer_too and _old(shape, expected))):
        return tensor
    return tensor.transpose(-2, -1)
