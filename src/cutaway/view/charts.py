"""Lines, bars and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.errors import ShapeError
from cutaway.view.arrays import Array, Labels, Values, as_array, as_labels, number
from cutaway.view.figure import Figure

Intervals = Mapping[str, Values]  # for each series its bounds [low or high, point]


def line_chart(
    series: Mapping[str, Values],
    x: Values | None = None,
    *,
    intervals: Intervals | None = None,
    x_name: str = "",
    y_name: str = "",
    title: str = "",
    references: Mapping[str, Any] | None = None,
    interval_name: str = "95% interval",
    log_x: bool = False,
    log_y: bool = False,
    points: bool | None = None,
    lines: bool = True,
) -> Figure:
    """Lines over a common x, with intervals as bands; without `lines`, a scatter of dots.

    Args:
        series: name → values [point]; NaN leaves a gap.
        x: numbers, or labels for a categorical axis; 0, 1, 2, … without.
        intervals: name → [2, point], lower and upper bounds.
        references: name → y of a horizontal line, for example chance.
        points: whether to draw dots too; by default up to 40 points, and always without `lines`.

    Raises:
        ShapeError: no series, or lengths that differ.
    """
    names, values = _series(series)
    count = values.shape[1]
    labels = None
    if x is not None and not hasattr(x, "detach") and any(isinstance(one, str) for one in x):
        labels = [str(one) for one in x]
    at = as_array(np.arange(count) if labels or x is None else x, "x", ndim=1)
    if len(labels or at) != count:
        raise ShapeError(f"x has {len(labels or at)} points, but the series have {count}")
    arrays = {"x": at, "y": values} | _bounds(intervals, names, count)
    meta = {
        "series": names, "x": labels, "xName": x_name, "yName": y_name, "intervalName": interval_name,
        "references": [[name, float(y)] for name, y in (references or {}).items()], "logX": log_x, "logY": log_y,
        "points": points if points is not None else not lines or count <= 40, "lines": lines,
    }  # fmt: skip
    words = [f"{y_name or 'values'} over {x_name or 'points'}"]
    for name, line in zip(names, values, strict=True):
        finite = line[np.isfinite(line)]
        trend = f"{number(float(finite[0]))} → {number(float(finite[-1]))}" if finite.size else "no finite value"
        extent = f" (lowest {number(float(finite.min()))}, highest {number(float(finite.max()))})" if finite.size else ""
        words.append(f"{name}: {trend}{extent}")
    return Figure("lines", title, arrays, (), meta, "\n".join(words), 400)


def bar_chart(
    groups: Labels,
    series: Mapping[str, Values] | Values,
    *,
    intervals: Intervals | Values | None = None,
    x_name: str = "",
    value_name: str = "value",
    title: str = "",
    interval_name: str = "95% interval",
    sort: bool = False,
    references: Mapping[str, Any] | None = None,
) -> Figure:
    """Bars: for each group one bar of each series, with whiskers where intervals are given.

    Args:
        series: name → values [group], or just the values of one series.
        intervals: name → [2, group], lower and upper ends (or just [2, group] for one series).
        sort: whether to order groups by the first series, largest size first.

    Raises:
        ShapeError: lengths that differ.
    """
    if not isinstance(series, Mapping):
        intervals = None if intervals is None or isinstance(intervals, Mapping) else {value_name: intervals}
        series = {value_name: series}
    names, values = _series(series)
    labels = as_labels(groups, values.shape[1], "groups", "groups") or []
    bounds = _bounds(intervals if isinstance(intervals, Mapping) else None, names, values.shape[1])
    if sort:
        order = np.argsort(-np.abs(np.nan_to_num(values[0])), kind="stable")
        labels, values = [labels[i] for i in order], values[:, order]
        bounds = {name: bound[:, order] for name, bound in bounds.items()}
    meta = {
        "groups": labels, "series": names, "xName": x_name, "valueName": value_name, "intervalName": interval_name,
        "references": [[name, float(y)] for name, y in (references or {}).items()],
    }  # fmt: skip
    largest = np.argsort(-np.abs(np.nan_to_num(values[0])), kind="stable")[:5]
    lines = [f"{value_name} by {x_name or 'group'} ({len(labels)}); the largest:"]
    lines += [
        f"{labels[i]}: " + ", ".join(f"{n} {number(float(v[i]))}" for n, v in zip(names, values, strict=True)) for i in largest
    ]
    return Figure("bars", title, {"y": values} | bounds, (), meta, "\n".join(lines), 400)


def steering_response(
    coefficients: Values,
    responses: Mapping[str, Values],
    *,
    intervals: Intervals | None = None,
    x_name: str = "steering coefficient",
    y_name: str = "response",
    title: str = "Steering response",
    references: Mapping[str, Any] | None = None,
) -> Figure:
    """How answers change with the strength of steering: one curve for each answer or direction.

    Raises:
        ShapeError: lengths that differ.
    """
    x = as_array(coefficients, "coefficients", ndim=1)
    return line_chart(
        responses, x, intervals=intervals, x_name=x_name, y_name=y_name, title=title, references=references, points=True
    )


def table(columns: Labels, rows: Iterable[Labels], *, title: str = "", note: str = "") -> Figure:
    """A table that readers can sort. Numbers are aligned and rounded for reading, and kept as they are underneath.

    Raises:
        ShapeError: a row that is longer or shorter than the columns.
    """
    names = [str(name) for name in columns]
    cells = []
    for index, row in enumerate(map(list, rows)):
        if len(row) != len(names):
            raise ShapeError(f"row {index} has {len(row)} cells, but there are {len(names)} columns ({', '.join(names)})")
        cells.append([_cell(cell) for cell in row])
    shown = [[number(cell) if isinstance(cell, float) else str(cell) for cell in row] for row in cells[:20]]
    widths = [max(len(line[i]) for line in [names, *shown]) for i in range(len(names))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in [names, *shown]]
    if len(cells) > 20:
        lines.append(f"… and {len(cells) - 20} more rows")
    meta = {"columns": names, "rows": cells, "note": note}
    return Figure("table", title, {}, (), meta, "\n".join(lines), 90 + 29 * min(len(cells), 30))


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else number(value)
    return value if isinstance(value, int) else str(value)


def _series(series: Mapping[str, Values]) -> tuple[list[str], Array]:
    if not series:
        raise ShapeError("there is nothing to draw: series is empty; give name → values")
    arrays = {str(name): as_array(values, f"series {name!r}", ndim=1) for name, values in series.items()}
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise ShapeError(f"the series differ in length: {lengths}")
    return list(arrays), np.stack(list(arrays.values()))


def _bounds(intervals: Intervals | None, names: Sequence[str], count: int) -> dict[str, Array]:
    if not intervals:
        return {}
    unknown = [str(name) for name in intervals if str(name) not in names]
    if unknown:
        raise ShapeError(f"intervals for {', '.join(unknown)}, but the series are {', '.join(names)}")
    low = np.full((len(names), count), np.nan, np.float32)
    high = low.copy()
    for name, bounds in intervals.items():
        pair = as_array(bounds, f"intervals of {name!r}", ndim=2)
        if pair.shape != (2, count):
            raise ShapeError(f"intervals of {name!r} must be [2, {count}] (lower, upper); the shape is {list(pair.shape)}")
        low[names.index(str(name))], high[names.index(str(name))] = pair
    return {"low": low, "high": high}
