"""Lazy logits: any function gets what whole logits would give it, and picking by constants computes only what is picked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cutaway.runs.lazy_logits import LazyLogits

LOGITS = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 4], [5, 6], [1, 3]])
ROWS = torch.arange(3)


def lazy() -> tuple[LazyLogits, list[tuple[Any, Any]], set[int]]:
    asked: list[tuple[Any, Any]] = []
    wanted: set[int] = set()

    def compute(positions: Tensor | None, columns: Tensor | None) -> Tensor:
        asked.append((None if positions is None else positions.tolist(), None if columns is None else columns.tolist()))
        out = LOGITS if positions is None else LOGITS[:, positions]
        return out if columns is None else out[..., columns]

    return LazyLogits.make(compute, wanted, (3, 5, 11), LOGITS), asked, wanted


NARROW: list[tuple[Callable[[Tensor], Any], list[int], list[int] | None]] = [
    (lambda x: x[:, -1, IDS[:, 0]], [4], [1, 3, 5]),
    (lambda x: x[ROWS, -1, IDS[:, 0]], [4], [1, 3, 5]),
    (lambda x: x[:, -1].gather(-1, IDS), [4], [1, 3, 4, 5, 6]),
    (lambda x: x[:, -1, :].gather(dim=-1, index=IDS), [4], [1, 3, 4, 5, 6]),
    (lambda x: torch.gather(x[:, 2], 1, IDS), [2], [1, 3, 4, 5, 6]),
    (lambda x: x[0, -1, 4], [4], [4]),
    (lambda x: x[..., -1, 3], [4], [3]),
    (lambda x: x[:, 2:4, 7], [2, 3], [7]),
    (lambda x: x[:, [0, 2], 7].mean(), [0, 2], [7]),
    (lambda x: x[:, torch.tensor([0, 2, 2]), 3], [0, 2], [3]),
    (lambda x: x[ROWS, torch.tensor([0, 2, 4]), IDS[:, 1]], [0, 2, 4], [3, 4, 6]),
    (lambda x: x[1:, -1, [2, 3]], [4], [2, 3]),
    (lambda x: x[:, -1][:, -2], [4], [9]),
    (lambda x: x[:, -1].argmax(-1), [4], None),
    (lambda x: torch.nn.functional.cross_entropy(x[:, 1], IDS[:, 0]), [1], None),
    (lambda x: x[:, :-1].log_softmax(-1).mean((1, 2)), [0, 1, 2, 3], None),
]
WIDE: list[Callable[[Tensor], Any]] = [
    lambda x: x.log_softmax(-1)[:, -1, 3],
    lambda x: x[x[:, -1].argmax(-1) % 3],
    lambda x: x.shape[1] + x.sum(),
    lambda x: 1 - x,
    lambda x: x[None, :, -1],
    lambda x: x[x > 0],
    lambda x: torch.einsum("bpv->b", x),
    lambda x: torch.stack([one[-1, 3] for one in x]),
    lambda x: x.float().softmax(-1).max(-1).values,
    lambda x: x.clone().add_(1),
    lambda x: x[..., 0] - x[..., 1],
]


@pytest.mark.parametrize(("function", "positions", "columns"), NARROW)
def test_picking_by_constants_computes_only_that(function: Any, positions: list[int], columns: list[int] | None) -> None:
    logits, asked, wanted = lazy()
    assert torch.equal(function(logits), function(LOGITS))
    assert asked == [(positions, columns)]
    assert wanted == set(positions)


@pytest.mark.parametrize("function", WIDE)
def test_anything_else_sees_whole_logits(function: Any) -> None:
    logits, asked, wanted = lazy()
    torch.testing.assert_close(function(logits), function(LOGITS), rtol=0, atol=0)
    assert asked and wanted == set(range(5))


def test_it_passes_for_a_tensor_and_costs_nothing_until_it_is_looked_at() -> None:
    logits, asked, _ = lazy()
    assert isinstance(logits, Tensor)
    assert logits.shape == (3, 5, 11) and logits.ndim == 3 and logits.dtype == torch.float32 and len(logits) == 3
    assert logits.size(1) == 5 and logits.device == LOGITS.device
    assert isinstance(logits[:, -1], LazyLogits) and logits[:, -1].shape == (3, 11)
    assert "computed when looked at" in repr(logits)
    assert asked == []


INDEX = st.one_of(
    st.integers(-3, 2),
    st.slices(3),
    st.lists(st.integers(-3, 2), min_size=1, max_size=3),
    st.lists(st.integers(-3, 2), min_size=1, max_size=3).map(torch.tensor),
    st.just(Ellipsis),
    st.none(),
    st.lists(st.booleans(), min_size=3, max_size=3).map(torch.tensor),
)


def picked(index: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """What an index picks of small lazy logits, and of the same as a plain tensor."""
    whole = LOGITS[:, :3, :3]

    def compute(positions: Tensor | None, columns: Tensor | None) -> Tensor:
        out = whole if positions is None else whole[:, positions]
        return out if columns is None else out[..., columns]

    expected = whole[index]
    found = LazyLogits.make(compute, set(), (3, 3, 3), whole)[index]
    return found.whole() if isinstance(found, LazyLogits) else found, expected


def fits(index: tuple[Any, ...]) -> bool:
    """Whether a tensor takes this index."""
    try:
        LOGITS[:, :3, :3][index]
    except (IndexError, ValueError, RuntimeError):
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(index=st.lists(INDEX, max_size=3).map(tuple).filter(fits))
def test_any_index_gives_what_whole_logits_give(index: tuple[Any, ...]) -> None:
    found, expected = picked(index)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("index", [(0, slice(None, 0)), (slice(None), []), (0, slice(2, 2), [1])])
def test_nothing_chosen_is_nothing(index: tuple[Any, ...]) -> None:
    found, expected = picked(index)
    assert found.numel() == 0 and found.shape == expected.shape
