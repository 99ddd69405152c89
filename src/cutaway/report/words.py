"""Words around numbers: sentences are made from what was measured, and say so where there was nothing to measure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NOTHING = "no value"


def num(value: Any, digits: int = 3) -> str:
    """A number with a few significant digits."""
    value = float(value)
    if not math.isfinite(value):
        return NOTHING
    return f"{value:.{digits}g}".replace("-", "−")


def fixed(value: Any, digits: int = 3) -> str:
    """A number with so many decimals."""
    value = float(value)
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else NOTHING


def signed(value: Any, digits: int = 2) -> str:
    """A number with its sign and so many decimals."""
    value = float(value)
    return f"{value:+.{digits}f}".replace("-", "−") if math.isfinite(value) else NOTHING


def percent(value: Any, digits: int = 0) -> str:
    """A share."""
    value = float(value)
    return f"{100 * value:.{digits}f}%".replace("-", "−") if math.isfinite(value) else NOTHING


def share(part: float, whole: float) -> str:
    """` (93%)`; nothing where a part of the whole cannot be said so, because the parts cancel."""
    return f" ({percent(part / whole)})" if whole and 0 <= part / whole <= 1 else ""


def listed(names: Iterable[Any], last: str = "and") -> str:
    """`a, b and c`; `none` where there are none."""
    known = [str(name) for name in names]
    if not known:
        return "none"
    return known[0] if len(known) == 1 else f"{', '.join(known[:-1])} {last} {known[-1]}"


def by_head(tokens: Mapping[str, Sequence[str]]) -> str:
    """`0.1: bcd, 0.2: a`; heads without tokens are left out."""
    return ", ".join(f"{head}: {''.join(found)}" for head, found in tokens.items() if found) or "none"


def count(number: int, one: str, many: str = "") -> str:
    """`1 sequence`, `2,000 sequences`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def mean_of(values: Tensor, where: Tensor | None = None) -> float:
    """The mean of the chosen numbers that are finite; NaN where there are none."""
    chosen = values if where is None else values[where]
    chosen = chosen[chosen.isfinite()].float()
    return float(chosen.mean()) if chosen.numel() else math.nan


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of two lists of numbers; NaN where one does not vary or there are fewer than three."""
    a, b = a.double().flatten(), b.double().flatten()
    keep = a.isfinite() & b.isfinite()
    a, b = a[keep], b[keep]
    if len(a) < 3 or float(a.std()) == 0 or float(b.std()) == 0:
        return math.nan
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def slope(x: Tensor, y: Tensor) -> float:
    """The slope of the straight line through points; NaN where there are fewer than two different x."""
    x, y = x.double().flatten(), y.double().flatten()
    keep = x.isfinite() & y.isfinite()
    x, y = x[keep], y[keep]
    spread = (x - x.mean()).square().sum() if len(x) else torch.zeros(())
    return float(((x - x.mean()) * (y - y.mean())).sum() / spread) if float(spread) > 0 else math.nan


def largest(values: Mapping[str, float], most: int = 3) -> list[tuple[str, float]]:
    """The entries that are largest in size, largest first; NaN last."""
    return sorted(values.items(), key=lambda one: -(abs(one[1]) if math.isfinite(one[1]) else -1))[:most]
