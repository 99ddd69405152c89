"""Estimates: a number with its 95% interval over examples; of means, of means over answers, of what chance gives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from cutaway.runs.intervals import interval_of_mean, interval_of_ratio


@dataclass(frozen=True)
class Value:
    """A number with its 95% interval over examples; NaN bounds where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def widened(self, many: int) -> Value:
        """The same with an interval for `many` comparisons at once."""
        by = NormalDist().inv_cdf(0.975 + 0.025 * (1 - 1 / many)) / NormalDist().inv_cdf(0.975)
        return Value(self.value, self.value - by * (self.value - self.low), self.value + by * (self.high - self.value))

    def above(self, limit: float) -> bool:
        """Whether it lies above a limit, its interval included."""
        return math.isfinite(self.value) and (self.low if math.isfinite(self.low) else self.value) > limit

    def below(self, limit: float) -> bool:
        """Whether it lies below a limit, its interval included."""
        return math.isfinite(self.value) and (self.high if math.isfinite(self.high) else self.value) < limit

    def text(self, unit: str) -> str:
        """The number and its interval: `62.0% [58.1%, 65.7%]`."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return number_text(self.value, unit)
        low, high = (number_text(bound, unit if unit == "share" else "") for bound in (self.low, self.high))
        return f"{number_text(self.value, unit)} [{low}, {high}]"

    def to_json(self) -> list[float | None]:
        """The number and its bounds."""
        return [x if math.isfinite(x) else None for x in (self.value, self.low, self.high)]


def number_text(value: float, unit: str) -> str:
    """A number with its unit; a "share" in percent."""
    if not math.isfinite(value):
        return "no value"
    if unit == "share":
        return f"{100 * value:.1f}%".replace("-", "−")
    text = f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1 else f"{value:.3g}"
    return f"{text} {unit}".strip().replace("-", "−")


def mean(each: Float[Tensor, "example"], *, shares: bool | None = None) -> Value:
    """The mean over examples; NaN entries do not count; `shares` as in `interval_of_mean`."""
    each = each.double()
    low, high = interval_of_mean(each[:, None], shares=shares)[:, 0].tolist()
    return Value(float(each.nanmean()), low, high)


def ratio(sums: Shaped[Tensor, "example"], counts: Shaped[Tensor, "example"], *, shares: bool | None = None) -> Value:
    """A mean over answers of examples that have several: the sum of each, and of how many; `shares` as in `interval_of_mean`."""
    counts = counts.double()
    if not float(counts.sum()):
        return Value(math.nan)
    if bool((counts <= 1).all()):
        return mean(sums.double()[counts > 0], shares=shares)
    low, high = interval_of_mean(sums.double()[:, None], counts[:, None])[:, 0].tolist()
    return Value(float(sums.double().sum() / counts.sum()), low, high)


def ratios(labels: Iterable[str], sums: Float[Tensor, "label example"], counts: Shaped[Tensor, "example"]) -> dict[str, Value]:
    """For each row a mean over answers of examples that have several."""
    whole = sums.double().sum(1) / counts.sum()
    low, high = interval_of_mean(sums.double().T, counts.double()[:, None].expand(-1, len(sums)))
    bounds = zip(whole.tolist(), low.tolist(), high.tolist(), strict=True)
    return {label: Value(*one) for label, one in zip(labels, bounds, strict=True)}


def shares(labels: Iterable[str], parts: Float[Tensor, "label example"], whole: Float[Tensor, "example"]) -> dict[str, Value]:
    """What share of a difference each row is; both parts of the ratio are uncertain (Fieller)."""
    low, high = interval_of_ratio(parts.T, whole[:, None].expand_as(parts.T))
    found = zip((parts.mean(1) / whole.mean()).tolist(), low.tolist(), high.tolist(), strict=True)
    return {label: Value(*one) for label, one in zip(labels, found, strict=True)}


def means(labels: Iterable[str], rows: Float[Tensor, "label example"], *, shares: bool | None = None) -> dict[str, Value]:
    """The mean of each row; `shares` as in `interval_of_mean`."""
    return {label: mean(row, shares=shares) for label, row in zip(labels, rows, strict=True)}


def spread(draws: Tensor) -> Value:
    """What chance gives: the mean of draws, and the range that 95% of them lie in (all of few)."""
    draws = draws.double().flatten()
    draws = draws[draws.isfinite()]
    if not len(draws):
        return Value(math.nan)
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Value(float(draws.mean()), low, high)
