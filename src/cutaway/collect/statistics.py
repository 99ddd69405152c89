"""Mean, covariance and norms of a site in one pass, in float64, shard by shard.

Parts are joined as Chan, Golub and LeVeque (1979) join means and sums of squares, so that a large mean costs no digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of the rows of a site.

    Args:
        count: how many rows.
        mean: `[*rest]`.
        covariance: `[n, n]` over all n numbers of a row, unbiased; None where it was not asked for.
        mean_norm, largest_norm: of the rows' Euclidean norms.
    """

    count: int
    mean: Float[Tensor, "*rest"]
    covariance: Float[Tensor, "n n"] | None
    mean_norm: float
    largest_norm: float

    def summary(self) -> str:
        """In words."""
        return f"{self.count:,} rows; norm {self.mean_norm:.4g} in the mean, {self.largest_norm:.4g} at most"


def statistics_of(parts: Iterable[Float[Tensor, "row *rest"]], *, covariance: bool = True) -> Statistics:
    """One pass over parts of the rows.

    Raises:
        ShapeError: there is no row.
    """
    count, total, largest = 0, 0.0, 0.0
    mean = spread = shape = None
    for part in parts:
        if not len(part):
            continue
        x, shape = part.double().flatten(1), part.shape[1:]
        norms = x.norm(dim=1)
        total, largest = total + float(norms.sum()), max(largest, float(norms.max()))
        own = x.mean(0)
        centred = x - own
        squares = centred.T @ centred if covariance else None
        if mean is None:
            count, mean, spread = len(x), own, squares
            continue
        shift = own - mean
        both = count + len(x)
        mean = mean + shift * (len(x) / both)
        if spread is not None and squares is not None:
            spread = spread + squares + torch.outer(shift, shift) * (count * len(x) / both)
        count = both
    if mean is None or shape is None:
        raise ShapeError("there is no row to take a mean of")
    if spread is not None:
        spread = spread / max(count - 1, 1)
    return Statistics(count, mean.view(shape), spread, total / count, largest)
