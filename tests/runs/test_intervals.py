"""Intervals cover what they say, and controls are null where nothing is there: by simulation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cutaway.runs import estimates
from cutaway.runs.intervals import interval_of_mean, interval_of_ratio, t_quantile
from cutaway.runs.results import Labelled, grouped

TIMES = 40_000  # the standard error of a share near 95% is 0.1%


def drawn(kind: str, examples: int, times: int = TIMES) -> tuple[Tensor, Tensor]:
    """Samples `[example, time]`, and the mean that each is drawn from."""
    draw = torch.Generator().manual_seed(examples)
    if kind == "normal":
        return torch.randn(examples, times, generator=draw).double(), torch.zeros(times)
    if kind == "exponential":
        return -torch.rand(examples, times, generator=draw).double().log(), torch.ones(times)
    share = torch.rand(times, generator=draw).double()
    return (torch.rand(examples, times, generator=draw) < share).double(), share


def covered(interval: Tensor, truth: Tensor) -> float:
    low, high = interval
    return float(((low <= truth) & (truth <= high)).double().mean())


@pytest.mark.parametrize("examples", [4, 6, 8, 16, 100])
@pytest.mark.parametrize("kind", ["normal", "exponential", "binary"])
def test_95_percent_intervals_cover_93_to_97_percent(kind: str, examples: int) -> None:
    samples, truth = drawn(kind, examples, TIMES if kind != "binary" or examples < 100 else 4000)
    assert 0.93 <= covered(interval_of_mean(samples), truth) <= 0.97


def test_skew_to_the_left_is_covered_as_well() -> None:
    samples, truth = drawn("exponential", 6)
    assert covered(interval_of_mean(-samples), -truth) == covered(interval_of_mean(samples), truth)


def test_two_numbers_have_the_interval_of_student() -> None:
    pairs = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).double()
    half = 12.7062 * (pairs[0] - pairs[1]).abs() / 2
    wanted = torch.stack([pairs.mean(0) - half, pairs.mean(0) + half])
    torch.testing.assert_close(interval_of_mean(pairs), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("examples", [4, 8, 30])
def test_means_over_positions_of_different_number_are_covered(examples: int) -> None:
    draw = torch.Generator().manual_seed(examples)
    counts = torch.randint(1, 9, (examples, TIMES), generator=draw).double()
    own = torch.randn(examples, TIMES, generator=draw).double()  # positions of one text depend on each other
    assert 0.92 <= covered(interval_of_mean(own * counts, counts), torch.zeros(TIMES)) <= 0.975


def test_the_t_quantiles_of_tables() -> None:
    table = {(0.975, 1): 12.7062, (0.975, 2): 4.3027, (0.975, 3): 3.1824, (0.975, 10): 2.2281, (0.995, 4): 4.6041}
    for (p, freedom), value in table.items():
        assert t_quantile(p, freedom) == pytest.approx(value, abs=1e-4)
    assert t_quantile(0.975, 10**6) == pytest.approx(1.96, abs=0.01)


def test_one_known_number_has_no_interval() -> None:
    assert bool(interval_of_mean(torch.ones(1, 3)).isnan().all())
    column = torch.tensor([[2.0, 2.0], [math.nan, 3.0], [math.nan, math.nan], [math.nan, math.nan], [math.nan, math.nan]])
    low, high = interval_of_mean(column)
    assert low.isnan().tolist() == [True, False] and high.isnan().tolist() == [True, False]
    sums, counts = torch.tensor([[3.0], [0.0]]), torch.tensor([[2.0], [0.0]])
    assert bool(interval_of_mean(sums, counts).isnan().all())


def test_shares_of_few_are_within_0_and_1_and_have_a_width() -> None:
    low, high = interval_of_mean(torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0]]))
    assert low.tolist()[0] == 0 and high.tolist()[1] == 1 and bool((high - low > 0.4).all())
    assert bool((low >= 0).all() and (high <= 1).all())


def test_effects_of_0_and_1_are_no_shares() -> None:
    effects = torch.tensor([[0.0, 1.0, 2.5], [0.0, 0.0, 1.5]])  # of a head that does nothing, of one that sometimes does, of one
    low, high = interval_of_mean(effects)
    assert low[0] == high[0] == 0 and low[1] < 0
    logits = Labelled(torch.zeros(2, 1), ("batch", "head"), unit="logits").means()
    assert logits.high.item() == 0
    assert Labelled(torch.zeros(2, 1), ("batch", "head"), unit="").means().high.item() > 0.5
    assert estimates.means(["off"], torch.zeros(1, 2), shares=False)["off"].high == 0


def test_intervals_come_from_examples_not_positions() -> None:
    by_example = torch.randn(30, 1, generator=torch.Generator().manual_seed(1)).expand(30, 50)
    means = grouped(Labelled(by_example, ("batch", "pos")), torch.zeros(30, 50, dtype=torch.long), ["all"])
    low, high = interval_of_mean(by_example[:, :1].contiguous())
    assert torch.allclose(means.low.data, low) and torch.allclose(means.high.data, high)


@pytest.mark.parametrize("examples", [4, 8, 30])
def test_shares_of_a_difference_are_covered_when_both_parts_vary(examples: int) -> None:
    draw = torch.Generator().manual_seed(examples)
    below = 4 + torch.randn(examples, TIMES, generator=draw).double()
    above = 0.3 * below + 0.5 * torch.randn(examples, TIMES, generator=draw).double()
    interval = interval_of_ratio(above, below)
    known = ~interval[0].isnan()
    assert known.double().mean() > 0.95
    assert 0.93 <= covered(interval[:, known], torch.full((int(known.sum()),), 0.3)) <= 0.97


def test_a_share_of_a_difference_that_may_be_nothing_has_no_interval() -> None:
    draw = torch.Generator().manual_seed(0)
    nothing = torch.randn(8, 2000, generator=draw)
    assert interval_of_ratio(torch.randn(8, 2000, generator=draw), nothing)[0].isnan().double().mean() > 0.9
