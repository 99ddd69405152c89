"""Random numbers by place: normal, different everywhere, and the same for a part as within the whole."""

from __future__ import annotations

import pytest
import torch

from cutaway.runs import random_numbers
from cutaway.runs.random_numbers import normal


def test_a_part_has_the_numbers_that_it_has_within_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = normal((3, 1), range(20), range(7), range(4), range(5))
    assert whole.shape == (20, 7, 4, 5)
    part = normal((3, 1), [17, 2], [6, 0, 1], [3], range(5))
    assert torch.equal(part, whole[[17, 2]][:, [6, 0, 1]][:, :, [3]])
    monkeypatch.setattr(random_numbers, "PIECE", 300)
    assert torch.equal(normal((3, 1), range(20), range(7), range(4), range(5)), whole)


def test_they_are_normal_and_differ_by_seed_and_place() -> None:
    numbers = normal((0,), range(300), range(300)).double()
    assert len(numbers.unique()) > 0.99 * 300 * 300
    assert abs(numbers.mean()) < 0.01 and abs(numbers.std() - 1) < 0.01
    assert abs((numbers**4).mean() - 3) < 0.1  # 3 for the normal distribution
    for other in (normal((1,), range(300), range(300)), normal((-1,), range(300), range(300)), numbers.T, numbers.roll(1, 1)):
        assert abs(torch.corrcoef(torch.stack([numbers.flatten(), other.double().flatten()]))[0, 1]) < 0.02
