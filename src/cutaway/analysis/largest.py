"""The largest entries of a product of two matrices, without most of the product."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

STEP = 2**24  # entries looked at at once
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "size": lambda x: x.abs(), "largest": lambda x: x, "smallest": lambda x: -x,
}  # fmt: skip


def largest_entries(
    A: Float[Tensor, "row rank"], B: Float[Tensor, "rank column"], k: int, by: str,
    progress: Callable[[float, float], None] | None = None,
) -> list[tuple[int, int, float]]:  # fmt: skip
    """The largest entries of `A @ B`, as (row, column, value), without most of the product.

    No entry is larger than the norm of its row times that of its column (Cauchy and Schwarz), in a basis in which both factors
    have the product's singular directions at equal sizes. Rows are multiplied with the columns that may still hold one of the
    `k` largest, longest rows first; equal entries come in the order of rows and columns.
    """
    order_of = ORDERS[by]
    long_a, long_b = _norms(A, B)
    rows, columns = long_a.argsort(descending=True, stable=True), long_b.argsort(descending=True, stable=True)
    long_a, long_b, left, right = long_a[rows], long_b[columns], A[rows], B[:, columns]
    best: list[tuple[float, int, int, float]] = []
    bound, at, step = -math.inf, 0, 64
    while at < len(left):
        width = len(long_b) if bound <= 0 else int((long_b * float(long_a[at]) * (1 + 1e-3) >= bound).sum())
        if not width:
            break
        values = left[at : at + step] @ right[:, :width]
        keys = order_of(values)
        found = (keys >= bound).nonzero() if len(best) == k else keys.new_empty(0, 2).long()
        if len(best) < k or len(found) > 20 * k:
            flat = keys.flatten().topk(min(k, keys.numel())).indices
            found = torch.stack([flat // width, flat % width], 1)
        where = rows[at + found[:, 0]].tolist(), columns[found[:, 1]].tolist()
        at_found = found[:, 0], found[:, 1]
        best += list(zip(keys[at_found].tolist(), *where, values[at_found].tolist(), strict=True))
        best = sorted(best, key=lambda one: (-one[0], one[1], one[2]))[:k]
        bound = best[-1][0] if len(best) == k else -math.inf
        at += step
        step = max(64, STEP // width)
        if progress is not None:
            progress(min(at, len(left)), len(left))
    if progress is not None:
        progress(len(left), len(left))
    return [(row, column, value) for _, row, column, value in best]


def _norms(A: Float[Tensor, "row rank"], B: Float[Tensor, "rank column"]) -> tuple[Float[Tensor, "row"], Float[Tensor, "column"]]:
    """Norms of rows and columns whose products bound the entries of `A @ B`."""
    if A.shape[1] > 1024:  # a matrix that is no product of narrow ones
        return A.norm(dim=1), B.norm(dim=0)
    reduced_a, reduced_b = torch.linalg.qr(A.double()), torch.linalg.qr(B.double().T)
    U, S, V = torch.linalg.svd(reduced_a.R @ reduced_b.R.T)
    left, right = reduced_a.Q @ (U * S.sqrt()), reduced_b.Q @ (V.T * S.sqrt())
    return left.norm(dim=1).to(A.dtype), right.norm(dim=1).to(A.dtype)
