"""Circuits over a vocabulary: too many cells to draw, so each row keeps its largest, and rows are searched."""

from __future__ import annotations

import numpy as np

from cutaway.errors import ShapeError
from cutaway.numbers_given import options
from cutaway.view.arrays import Array, Labels, Values, as_array, as_labels, color_range, number
from cutaway.view.figure import Figure

CHUNK = 1_024  # rows multiplied at a time


@options(k=1)
def vocabulary_circuit(
    left: Values,
    right: Values | None,
    row_labels: Labels,
    column_labels: Labels | None = None,
    *,
    k: int = 8,
    row_name: str = "source token",
    column_name: str = "token",
    value_name: str = "score",
    title: str = "Circuit over the vocabulary",
) -> Figure:
    """A circuit between vocabularies: search a row's token, read the columns it raises and lowers most.

    Starts with the rows that hold the largest values. The whole matrix is never kept: 50,000 × 50,000 is computed in
    strips from its two factors.

    Args:
        left: [row, column] when `right` is None; otherwise [row, rank].
        right: [rank, column], so that the matrix is left @ right; or None.
        row_labels: a token for each row.
        column_labels: a token for each column; `row_labels` without.
        k: columns kept at either end of each row.

    Raises:
        ShapeError: factors or labels do not fit.
    """
    first = as_array(left, "left", ndim=2)
    second = None if right is None else as_array(right, "right", ndim=2)
    if second is not None and second.shape[0] != first.shape[1]:
        raise ShapeError(f"left {list(first.shape)} and right {list(second.shape)} must share their inner axis: left @ right")
    rows, columns = first.shape[0], first.shape[1] if second is None else second.shape[1]
    words = as_labels(row_labels, rows, "row_labels", "rows") or []
    others = words if column_labels is None else as_labels(column_labels, columns, "column_labels", "columns") or []
    if len(others) != columns:
        raise ShapeError(f"there are {columns} columns, but {len(others)} rows; give column_labels for the columns")
    k = min(k, columns)
    index = np.empty((2, rows, k), np.int32)
    value = np.empty((2, rows, k), np.float32)
    for start in np.arange(0, rows, CHUNK):
        part = first[start : start + CHUNK]
        strip = part if second is None else part @ second
        for side, sign in enumerate((1.0, -1.0)):
            index[side, start : start + CHUNK], value[side, start : start + CHUNK] = _most(strip * sign, k)
            value[side, start : start + CHUNK] *= sign
    size = np.abs(np.nan_to_num(value)).max((0, 2))
    order = np.argsort(-size, kind="stable")[:200].astype(np.int32)
    meta = {
        "rows": words, "columns": None if column_labels is None else others, "rowName": row_name, "columnName": column_name,
        "valueName": value_name, "range": color_range([value], "diverging", None),
    }  # fmt: skip
    lines = [f"{rows} × {columns}; the rows with the largest values:"]
    lines += [f"{words[row]!r} → {others[index[0, row, 0]]!r} {number(float(value[0, row, 0]))}" for row in order[:5]]
    return Figure("search", title, {"index": index, "value": value, "order": order}, (), meta, "\n".join(lines), 360 + 26 * k)


def _most(strip: Array, k: int) -> tuple[Array, Array]:
    """The k largest columns of each row, largest first; NaN counts as the least."""
    known = np.where(np.isnan(strip), -np.inf, strip)
    some = np.argpartition(-known, k - 1, axis=1)[:, :k] if k < strip.shape[1] else np.tile(np.arange(k), (len(strip), 1))
    values = np.take_along_axis(known, some, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(some, order, 1), np.take_along_axis(values, order, 1)
