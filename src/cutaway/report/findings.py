"""Findings: what one analysis measured, as data that a sentence, a figure and `report.json` are made from.

A finding has values with intervals over examples, and the baseline that they are held against. It claims something only
where an interval lies outside that baseline; what was not measured is a finding too, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cutaway.runs.estimates import Value
from cutaway.runs.results import plain
from cutaway.view import Figure

KINDS = ("largest", "share", "comparison", "trend", "count", "none")


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
