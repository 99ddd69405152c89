"""Findings: what one analysis measured, as data that a sentence, a figure and `report.json` are made from.

A finding has values with intervals over examples, and the baseline that they are held against. It claims something only
where an interval lies outside that baseline; what was not measured is a finding too, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from cutaway.runs.intervals import interval_of_mean
from cutaway.runs.results import plain
from cutaway.view import Figure

KINDS = ("largest", "share", "comparison", "trend", "count", "none")


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

    def to_json(self) -> list[float | None]:
        """The number and its bounds."""
        return [x if math.isfinite(x) else None for x in (self.value, self.low, self.high)]


@dataclass(frozen=True, eq=False)
class Finding:
    """What was measured.

    Args:
        kind: largest (of several things), share (of a whole), comparison (of two or more), trend (along an axis), count (of a
            number of things), none (nothing was measured: `reason`).
        what: the quantity in words that "is" can follow: "the attention of heads to the same letter".
        values: label → value, in the order of the axis for a trend. Of a count, the named things (1) among `total`.
        unit: "share" (shown in percent), "nats", "logits" or nothing.
        baseline, against: what chance or no effect gives (for each label its own, or one), and what it is.
        on: what it was measured on: "64 prompts, 64 answers".
        axis: of a trend, what changes along it.
        total: of a count, of how many.
        two_sided: whether a value below the baseline is a finding too.
        margin: how far beyond its baseline a value must be to matter.
        figures: pictures beyond the finding's own.
        numbers: a tree of what was measured beside the values (by position, by token, by head), for `report.json`.
        silent: a sentence is not made (the values stand in a table or a figure).
    """

    kind: str
    what: str
    values: Mapping[str, Value] = field(default_factory=dict)
    unit: str = ""
    baseline: Value | Mapping[str, Value] | None = None
    against: str = ""
    on: str = ""
    axis: str = ""
    total: int = 0
    two_sided: bool = False
    margin: float = 0.0
    reason: str = ""
    figures: Sequence[Figure] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    silent: bool = False

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    def baseline_of(self, label: str) -> Value | None:
        """What a label's value is held against."""
        return self.baseline.get(label) if isinstance(self.baseline, Mapping) else self.baseline

    def stands_out(self, label: str) -> bool:
        """Whether a value lies outside its baseline, intervals included. Without a baseline nothing does.

        Of several things at once the interval is widened, as Bonferroni has it, so that chance makes one of all stand out in 5%.
        """
        value, base = self.values[label].widened(len(self.values) if self.kind == "largest" else 1), self.baseline_of(label)
        if base is None or not math.isfinite(base.value):
            return False
        high = base.high if math.isfinite(base.high) else base.value
        low = base.low if math.isfinite(base.low) else base.value
        return value.above(high + self.margin) or (self.two_sided and value.below(low - self.margin))

    @property
    def claims(self) -> list[str]:
        """The labels that stand out, largest first."""
        found = [label for label in self.values if self.stands_out(label)]
        return sorted(found, key=lambda label: -abs(self.values[label].value))

    def to_json(self) -> dict[str, Any]:
        """Plain data: values as [number, lower, upper]."""
        base = self.baseline
        return {
            "kind": self.kind, "what": self.what, "unit": self.unit, "on": self.on,
            **({"reason": self.reason} if self.reason else {"values": {name: v.to_json() for name, v in self.values.items()}}),
            **({"numbers": plain(self.numbers)} if self.numbers else {}),
            **({"axis": self.axis} if self.axis else {}), **({"total": self.total} if self.kind == "count" else {}),
            **({} if base is None else {"against": self.against, "claims": self.claims, "baseline": (
                {k: v.to_json() for k, v in base.items()} if isinstance(base, Mapping) else base.to_json())}),
        }  # fmt: skip


def none(what: str, reason: str) -> Finding:
    """Nothing was measured, and why."""
    return Finding("none", what, reason=reason)


def without_claims(finding: Finding) -> Finding:
    """The same values with nothing to hold them against, so that nothing is claimed."""
    return replace(finding, baseline=None, against="")


# Values from numbers of examples.


def mean(each: Float[Tensor, "example"]) -> Value:
    """The mean over examples; NaN entries do not count."""
    each = each.double()
    low, high = interval_of_mean(each[:, None])[:, 0].tolist()
    return Value(float(each.nanmean()), low, high)


def ratio(sums: Shaped[Tensor, "example"], counts: Shaped[Tensor, "example"]) -> Value:
    """A mean over answers of examples that have several: the sum of each, and of how many."""
    counts = counts.double()
    if not float(counts.sum()):
        return Value(math.nan)
    if bool((counts <= 1).all()):
        return mean(sums.double()[counts > 0])
    low, high = interval_of_mean(sums.double()[:, None], counts[:, None])[:, 0].tolist()
    return Value(float(sums.double().sum() / counts.sum()), low, high)


def ratios(labels: Iterable[str], sums: Float[Tensor, "label example"], counts: Shaped[Tensor, "example"]) -> dict[str, Value]:
    """For each row a mean over answers of examples that have several."""
    whole = sums.double().sum(1) / counts.sum()
    low, high = interval_of_mean(sums.double().T, counts.double()[:, None].expand(-1, len(sums)))
    bounds = zip(whole.tolist(), low.tolist(), high.tolist(), strict=True)
    return {label: Value(*one) for label, one in zip(labels, bounds, strict=True)}


def means(labels: Iterable[str], rows: Float[Tensor, "label example"]) -> dict[str, Value]:
    """The mean of each row."""
    return {label: mean(row) for label, row in zip(labels, rows, strict=True)}


def spread(draws: Tensor) -> Value:
    """What chance gives: the mean of draws, and the range that 95% of them lie in (all of few)."""
    draws = draws.double().flatten()
    draws = draws[draws.isfinite()]
    if not len(draws):
        return Value(math.nan)
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Value(float(draws.mean()), low, high)
