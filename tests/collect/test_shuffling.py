"""The global order is a permutation: every number once, the same with the same seed, and none of them where it was."""

from __future__ import annotations

import numpy as np
import pytest

from cutaway.collect import Permutation
from cutaway.errors import ConfigError


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 16, 17, 255, 256, 257, 1000, 65537])
def test_every_number_comes_once(count: int) -> None:
    for seed in (0, 1, -7):
        order = Permutation(count, seed)
        numbers = np.arange(count)
        found = order[numbers]
        assert np.array_equal(np.sort(found), numbers)
        assert np.array_equal(order.inverse(found), numbers)
        assert np.array_equal(Permutation(count, seed)[numbers], found)


def test_parts_of_a_huge_order_are_where_its_inverse_says() -> None:
    order = Permutation(10**15 + 7, 5)
    numbers = np.random.default_rng(0).integers(0, len(order), 1000)
    found = order[numbers]
    assert found.min() >= 0 and found.max() < len(order) and np.array_equal(order.inverse(found), numbers)


def test_the_order_is_mixed() -> None:
    count = 100_000
    found = Permutation(count, 0)[np.arange(count)]
    assert abs(np.corrcoef(np.arange(count), found)[0, 1]) < 0.02
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    # Where blocks of neighbours go: evenly over all parts, within what chance allows (chi-square, 99 degrees of freedom).
    counts = np.histogram(found[: count // 10], bins=100, range=(0, count))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 160
    assert np.mean(Permutation(count, 1)[np.arange(count)] == found) < 1e-3


def test_more_numbers_than_there_are_names_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="a permutation of"):
        Permutation(2**62)
    with pytest.raises(IndexError):
        Permutation(3)[np.array([3])]
