"""Slices: which positions (or examples, or neurons) are wanted, said in the dialect's way.

A number takes one entry and drops the axis, a tuple is the arguments of Python's `slice`, a list or
array picks entries in that order, None takes everything. `Slice.unwrap` keeps the axis where a
number is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import ShapeError

SliceInput = int | tuple[Any, ...] | slice | Sequence[int] | np.ndarray | Tensor | None


class Slice:
    """What to take along one axis.

    `mode` says what was given: `int`, `slice` (a tuple or a slice), `array` (a list, array or
    tensor of indices, or a mask) or `identity` (None). `slice` is the index itself.

    Raises:
        ShapeError: the input is none of these.
    """

    slice: int | slice | np.ndarray
    mode: str

    def __init__(self, input_slice: SliceInput | Slice = None) -> None:
        if isinstance(input_slice, Slice):
            self.slice, self.mode = input_slice.slice, input_slice.mode
            return
        if isinstance(input_slice, Tensor):
            input_slice = input_slice.detach().cpu().numpy()
        if isinstance(input_slice, np.ndarray) and input_slice.ndim == 0:
            input_slice = input_slice[()]
        if input_slice is None:
            self.slice, self.mode = slice(None), "identity"
        elif isinstance(input_slice, int | np.integer) and not isinstance(input_slice, bool):
            self.slice, self.mode = int(input_slice), "int"
        elif isinstance(input_slice, tuple) and 1 <= len(input_slice) <= 3:
            self.slice, self.mode = slice(*input_slice), "slice"
        elif isinstance(input_slice, slice):
            self.slice, self.mode = input_slice, "slice"
        elif isinstance(input_slice, list | range | np.ndarray):
            self.slice, self.mode = _as_indices(input_slice), "array"
        else:
            raise ShapeError(
                f"{input_slice!r} is not a slice; give a number, a tuple of one to three (as for Python's slice), "
                "a slice, a list or array of indices, or None"
            )

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """`tensor` with only the wanted entries of axis `dim`; a number drops that axis."""
        if not -tensor.ndim <= dim < tensor.ndim:
            raise ShapeError(f"axis {dim} of a tensor with {tensor.ndim} axes: {tuple(tensor.shape)}")
        index: Any = self.slice
        if self.mode == "array":
            index = torch.as_tensor(self.slice, device=tensor.device)
        elif isinstance(index, slice) and index.step is not None and index.step < 0:  # torch has no such slices
            index = torch.tensor(self.indices(tensor.shape[dim]).tolist(), device=tensor.device)
        return tensor[(slice(None),) * (dim % tensor.ndim) + (index,)]

    def indices(self, max_ctx: int | None = None) -> np.ndarray:
        """The wanted entries of an axis of `max_ctx` entries, as numbers; one number needs no `max_ctx`."""
        if self.mode == "int":
            return np.array([self.slice], dtype=np.int64)
        if max_ctx is None:
            raise ShapeError("max_ctx is needed, unless the slice is one number: how long is the axis?")
        return np.arange(max_ctx, dtype=np.int64)[self.slice]

    @classmethod
    def unwrap(cls, slice_input: SliceInput | Slice) -> Slice:
        """A `Slice` of whatever is given, where a plain number keeps its axis."""
        if isinstance(slice_input, int) and not isinstance(slice_input, bool):
            slice_input = [slice_input]
        return slice_input if isinstance(slice_input, Slice) else cls(slice_input)

    def __repr__(self) -> str:
        return f"Slice: {self.slice} Mode: {self.mode} "


def _as_indices(given: list[Any] | range | np.ndarray) -> np.ndarray:
    """Whole numbers or a mask, checked."""
    array = np.asarray(given, dtype=np.int64 if len(given) == 0 else None)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise ShapeError(f"a slice by a list needs whole numbers (or a mask) in one row, not {given!r}")
    return array if array.dtype == bool else array.astype(np.int64)
