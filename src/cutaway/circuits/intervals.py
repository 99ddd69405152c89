"""Intervals of means of few examples, and of shares, which are ratios of two means.

t intervals for means of data that are about normal; BCa bootstrap (Efron 1987, https://doi.org/10.2307/2289144) where they are
skewed and there are more than a few; Fieller's theorem (1954) for ratios. None of them covers 95% for strongly skewed data at n
below ten: that is measured in the tests, and said where intervals are shown.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import ShapeError

LEVEL = 0.95
Ends = tuple[Float[Tensor, "*of"], Float[Tensor, "*of"]]


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The number that Student's t exceeds in size with probability 1 − level, by bisection on its distribution function.

    The distribution function is the finite sum for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    if freedom < 1:
        raise ShapeError("an interval of a mean needs two examples at least")
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t)."""
    angle = math.atan(t / freedom**0.5)
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine if freedom > 1 else 0.0) if odd else (1.0, 1.0)
    for step in range(2 + odd, freedom - 1, 2):
        term *= (step - 1) / step * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def t_interval(values: Float[Tensor, "example *of"], level: float = LEVEL) -> Ends:
    """The t interval of the mean over the first axis (Student 1908)."""
    mean, error = values.mean(0), values.std(0) / len(values) ** 0.5
    far = t_quantile(len(values) - 1, level) * error
    return mean - far, mean + far


def bca_interval(
    values: Float[Tensor, "example"], level: float = LEVEL, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval of the mean."""
    values, count = values.double(), len(values)
    if count < 3:
        raise ShapeError(f"{count} examples are too few to draw from again; give at least 3")
    mean = float(values.mean())
    generator = torch.Generator().manual_seed(seed)
    means = values[torch.randint(count, (draws, count), generator=generator)].mean(1)
    below = float(((means < mean).double() + (means == mean).double() / 2).mean())
    bias = NormalDist().inv_cdf(min(max(below, 1 / draws), 1 - 1 / draws))
    without = (values.sum() - values) / (count - 1)
    off = without.mean() - without
    spread = float(off.pow(2).sum()) ** 1.5
    bend = 0.0 if spread == 0 else float(off.pow(3).sum()) / (6 * spread)
    ends = []
    for side in ((1 - level) / 2, (1 + level) / 2):
        z = bias + NormalDist().inv_cdf(side)
        ends.append(NormalDist().cdf(bias + z / (1 - bend * z)))
    low, high = means.quantile(torch.tensor(ends, dtype=torch.float64)).tolist()
    return low, high


def fieller_interval(
    above: Float[Tensor, "example"], below: Float[Tensor, "example"], level: float = LEVEL
) -> tuple[float, float]:
    """The interval of mean(above) / mean(below), of paired examples; the whole line where the lower mean may be 0."""
    above, below, count = above.double(), below.double(), len(above)
    t = t_quantile(count - 1, level)
    both = torch.cov(torch.stack([above, below])) / count
    a, b = float(above.mean()), float(below.mean())
    curved = b * b - t * t * float(both[1, 1])
    if curved <= 0:
        return -math.inf, math.inf
    middle = a * b - t * t * float(both[0, 1])
    root = math.sqrt(max(middle**2 - curved * (a * a - t * t * float(both[0, 0])), 0.0))
    return (middle - root) / curved, (middle + root) / curved
