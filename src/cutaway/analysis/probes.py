"""Linear probes: whether a feature can be read from activations by ridge regression, on examples that were held out."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.runs.estimates import Value, ratio


def held_out(
    x: Float[Tensor, "place d"], labels: Int[Tensor, "place"], test: Bool[Tensor, "place"], rows: Tensor, count: int
) -> Value:
    """Of ridge regression onto the values' indicators, read on held-out prompts."""
    x = (x - x[~test].mean(0)) / x[~test].std(0).clamp(min=1e-6)
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    y = torch.nn.functional.one_hot(labels).double()
    fit = x[~test]
    weights = torch.linalg.solve(fit.T @ fit + len(fit) * 1e-3 * torch.eye(x.shape[1], dtype=x.dtype), fit.T @ y[~test])
    right = ((x @ weights).argmax(1) == labels) & test
    sums, counts = (torch.zeros(count).index_add(0, rows, one.float()) for one in (right, test))
    return ratio(sums, counts)
