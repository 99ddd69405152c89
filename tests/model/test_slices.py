"""Slices: what the dialect's ways of naming a part of an axis take."""

from typing import Any

import numpy as np
import pytest
import torch

from cutaway.errors import ShapeError
from cutaway.model.slices import Slice

TENSOR = torch.arange(60).reshape(3, 5, 4)


@pytest.mark.parametrize(
    ("given", "mode", "taken"),
    [
        (None, "identity", [0, 1, 2, 3, 4]),
        ((3,), "slice", [0, 1, 2]),
        ((1, 4), "slice", [1, 2, 3]),
        ((1, 5, 2), "slice", [1, 3]),
        (slice(-2, None), "slice", [3, 4]),
        (slice(None, None, -1), "slice", [4, 3, 2, 1, 0]),
        ([4, 0, 0], "array", [4, 0, 0]),
        ([-1], "array", [4]),
        ([], "array", []),
        (range(2), "array", [0, 1]),
        (torch.tensor([2, 1]), "array", [2, 1]),
        (np.array([True, False, False, False, True]), "array", [0, 4]),
    ],
    ids=str,
)
def test_entries_are_taken_along_one_axis(given: Any, mode: str, taken: list[int]) -> None:
    part = Slice(given)
    assert part.mode == mode
    assert part.indices(5).tolist() == taken
    assert torch.equal(part.apply(TENSOR, dim=1), TENSOR[:, taken])
    assert torch.equal(part.apply(TENSOR, dim=-2), TENSOR[:, taken])
    assert torch.equal(Slice.unwrap(given).apply(TENSOR, dim=1), TENSOR[:, taken])


@pytest.mark.parametrize("number", [2, -1, np.int64(2), torch.tensor(2)], ids=repr)
def test_a_number_drops_the_axis(number: Any) -> None:
    part = Slice(number)
    assert part.mode == "int"
    assert torch.equal(part.apply(TENSOR, dim=1), TENSOR[:, int(number)])
    assert torch.equal(part.apply(TENSOR, dim=-1), TENSOR[..., int(number)])
    assert part.indices().tolist() == [int(number)]


def test_unwrapping_a_number_keeps_the_axis() -> None:
    assert torch.equal(Slice.unwrap(2).apply(TENSOR, dim=1), TENSOR[:, 2:3])
    assert torch.equal(Slice.unwrap(-1).apply(TENSOR, dim=1), TENSOR[:, -1:])
    part = Slice(2)
    assert Slice.unwrap(part) is part and Slice(part).mode == "int"


@pytest.mark.parametrize("given", ["1", 1.5, (), (1, 2, 3, 4), [[1]], [0.5], True, {}], ids=repr)
def test_what_is_no_slice_is_refused(given: Any) -> None:
    with pytest.raises(ShapeError, match="slice"):
        Slice(given)


def test_errors_say_what_is_missing() -> None:
    with pytest.raises(ShapeError, match="how long is the axis"):
        Slice([1]).indices()
    with pytest.raises(ShapeError, match="axis 3"):
        Slice(0).apply(TENSOR, dim=3)
    with pytest.raises(IndexError):
        Slice(7).apply(TENSOR, dim=1)
