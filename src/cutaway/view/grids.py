"""Heat maps: one, several with a common scale, and the named grids built from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.errors import ShapeError
from cutaway.numbers_given import options
from cutaway.view.arrays import Array, Labels, Values, as_array, as_labels, color_range, number, top_cells
from cutaway.view.figure import Figure

SCALES = ("diverging", "sequential", "viridis")
WIDEST = 4_096  # rows or columns of one heat map


@dataclass(frozen=True, eq=False)
class Panel:
    """One heat map of several. Labels that are None are taken from the figure; `text` is written into the cells."""

    name: str
    values: Values
    x_labels: Labels | None = None
    y_labels: Labels | None = None
    marks: Iterable[Labels] | None = None
    text: Iterable[Labels] | None = None


def heat_map(
    values: Values,
    x_labels: Labels | None = None,
    y_labels: Labels | None = None,
    *,
    x_name: str = "column",
    y_name: str = "row",
    value_name: str = "value",
    title: str = "",
    marks: Iterable[Labels] | None = None,
    scale: str = "diverging",
    range: Values | None = None,
    splits: Mapping[str, Values] | None = None,
    text: Iterable[Labels] | None = None,
    absent: str = "",
) -> Figure:
    """A matrix as colours, rows downwards.

    Args:
        values: [row, column].
        marks: cells to outline: (row, column) or (row, column, what it means).
        scale: "diverging" (blue to orange around 0), "sequential" (cividis) or "viridis".
        range: values at the two ends of the colour scale; by default what the data span.
        splits: lines between quadrants: {"x": [columns], "y": [rows]}, each before that index.
        text: a string for each cell.
        absent: what a cell that is NaN stands for ("no such edge"): it stays blank, and the legend says so.

    Raises:
        ShapeError: shapes, labels or marks do not fit.
    """
    panels = [Panel("", values, marks=marks, text=text)]
    return small_multiples(
        panels, x_labels, y_labels, x_name=x_name, y_name=y_name, value_name=value_name, title=title, scale=scale,
        range=range, splits=splits, absent=absent,
    )  # fmt: skip


@options(columns=1)
def small_multiples(
    panels: Sequence[Panel] | Mapping[str, Values],
    x_labels: Labels | None = None,
    y_labels: Labels | None = None,
    *,
    x_name: str = "column",
    y_name: str = "row",
    value_name: str = "value",
    title: str = "",
    scale: str = "diverging",
    range: Values | None = None,
    splits: Mapping[str, Values] | None = None,
    common: bool = True,
    columns: int | None = None,
    absent: str = "",
) -> Figure:
    """Several heat maps side by side: one selection, and one colour scale unless `common` is off.

    Args:
        panels: `Panel`s, or a mapping from name to values [row, column].
        columns: panels in a row; as many as fit without, and fewer than asked for where the page is too narrow for them.
        absent: as `heat_map`.

    Raises:
        ShapeError: nothing to draw, or shapes and labels do not fit.
    """
    known = [Panel(str(name), values) for name, values in panels.items()] if isinstance(panels, Mapping) else list(panels)
    if not known:
        raise ShapeError("there is no heat map to draw: panels is empty")
    if scale not in SCALES:
        raise ShapeError(f"scale={scale!r} is not known; there are {', '.join(SCALES)}")
    arrays = [as_array(panel.values, f"values of {panel.name!r}" if panel.name else "values", ndim=2) for panel in known]
    parts = [_panel(panel, array, x_labels, y_labels) for panel, array in zip(known, arrays, strict=True)]
    for part, array in zip(parts, arrays, strict=True):
        part["range"] = color_range([array], scale, range)
    meta: dict[str, Any] = {
        "panels": parts,
        "x": None if x_labels is None else [str(label) for label in x_labels],
        "y": None if y_labels is None else [str(label) for label in y_labels],
        "xName": x_name, "yName": y_name, "valueName": value_name, "scale": scale,
        "range": color_range(arrays, scale, range), "common": common, "columns": columns, "absent": absent,
        "splits": {axis: [int(at) for at in (splits or {}).get(axis, [])] for axis in ("x", "y")},
    }  # fmt: skip
    named = {f"p{index}": array for index, array in enumerate(arrays)}
    return Figure("grid", title, named, (), meta, _words(meta, arrays), _height(meta, arrays))


def _panel(panel: Panel, array: Array, x_labels: Labels | None, y_labels: Labels | None) -> dict[str, Any]:
    rows, columns = array.shape
    if max(rows, columns) > WIDEST:
        raise ShapeError(
            f"a heat map of {rows} × {columns} cells cannot be read; draw at most {WIDEST} a side: "
            "choose the rows and columns with the largest values, or a window"
        )
    x = as_labels(panel.x_labels, columns, "x_labels", "columns")
    y = as_labels(panel.y_labels, rows, "y_labels", "rows")
    if x is None:
        as_labels(x_labels, columns, "x_labels", "columns")
    if y is None:
        as_labels(y_labels, rows, "y_labels", "rows")
    marks = []
    for mark in map(list, panel.marks if panel.marks is not None else ()):
        row, column = int(mark[0]), int(mark[1])
        if not (0 <= row < rows and 0 <= column < columns):
            raise ShapeError(f"the mark {tuple(mark)!r} is outside the {rows} × {columns} cells (row, column)")
        marks.append([row, column, str(mark[2]) if len(mark) > 2 else "marked"])
    text = None
    if panel.text is not None:
        text = [as_labels(line, columns, "a row of text", "columns") for line in panel.text]
        if len(text) != rows:
            raise ShapeError(f"text has {len(text)} rows, but values has {rows}")
    return {"name": panel.name, "x": x, "y": y, "marks": marks, "text": text}


def _words(meta: Mapping[str, Any], arrays: Sequence[Array], most: int = 5) -> str:
    low, high = meta["range"]
    lines = [f"{meta['yName']} × {meta['xName']}, {meta['valueName']}; colours from {number(low)} to {number(high)}"]
    cells = [(index, *cell) for index, array in enumerate(arrays[:50]) for cell in top_cells(array, most)]
    cells.sort(key=lambda cell: -abs(float(np.nan_to_num(arrays[cell[0]][cell[1], cell[2]]))))
    for index, row, column in cells[:most]:
        panel = meta["panels"][index]
        x, y = panel["x"] or meta["x"], panel["y"] or meta["y"]
        where = f"{meta['yName']} {y[row] if y else row}, {meta['xName']} {x[column] if x else column}"
        value = number(float(arrays[index][row, column]))
        lines.append(f"{panel['name'] + ': ' if panel['name'] else ''}{where}: {value}")
    return "\n".join(lines)


def _height(meta: Mapping[str, Any], arrays: Sequence[Array]) -> int:
    """About what the browser will need in a column of 900 CSS pixels."""
    rows = max(array.shape[0] for array in arrays)
    wide = max(array.shape[1] for array in arrays)
    longest = {axis: max((len(label) for label in (meta[axis] or [])[:500]), default=3) for axis in ("x", "y")}
    above = 40 + (7 * min(16, longest["x"]) if longest["x"] > 3 else 0)
    if len(arrays) == 1:
        return 180 + above + min(900, max(40, rows * max(2, min(28, 830 // wide))))
    panel = min(900, 48 + 7 * min(16, longest["y"]) + wide * (8 if wide > 30 else 18))
    beside = max(1, min(meta["columns"] or len(arrays), 916 // panel))
    cell = min(24, max(2, (900 // beside - 60) // wide))
    return 150 + -(-len(arrays) // beside) * (40 + above + min(720, rows * cell))


def sweep_grid(
    values: Values,
    row_labels: Labels | None = None,
    column_labels: Labels | None = None,
    *,
    kinds: Labels | None = None,
    row_name: str = "layer",
    column_name: str = "position",
    value_name: str = "recovered",
    title: str = "Patching",
    marks: Iterable[Labels] | None = None,
    range: Values | None = None,
    scale: str = "diverging",
    absent: str = "",
) -> Figure:
    """What a sweep of edits did: layer × position or layer × head, one panel for each kind of edit.

    Args:
        values: [row, column], or [kind, row, column] with `kinds` named.
        absent: as `heat_map`.

    Raises:
        ShapeError: shapes and labels do not fit.
    """
    array = as_array(values, "values", ndim=(2, 3))
    array = array[None] if array.ndim == 2 else array
    names = as_labels(kinds, len(array), "kinds", "kinds", default="") or []
    rows = as_labels(row_labels, array.shape[1], "row_labels", "rows", default="")
    columns = as_labels(column_labels, array.shape[2], "column_labels", "columns", default="")
    panels = [Panel(name if len(array) > 1 else "", one, marks=marks) for name, one in zip(names, array, strict=True)]
    return small_multiples(
        panels, columns, rows, x_name=column_name, y_name=row_name, value_name=value_name, title=title, scale=scale,
        range=range, absent=absent,
    )  # fmt: skip


def lens_grid(
    tokens: Labels,
    values: Values,
    predictions: Iterable[Labels],
    *,
    layer_names: Labels | None = None,
    title: str = "What each layer would predict",
    value_name: str = "probability",
    range: Values | None = None,
) -> Figure:
    """The logit lens: layers × positions, each cell coloured by a value and holding the predicted token.

    Args:
        values: [layer, pos], for example the probability of the prediction.
        predictions: a token for each layer and position.

    Raises:
        ShapeError: shapes and labels do not fit.
    """
    array = as_array(values, "values", ndim=2)
    rows = as_labels(layer_names, array.shape[0], "layer_names", "layers", default="")
    columns = as_labels(tokens, array.shape[1], "tokens", "positions")
    panel = Panel("", array, text=predictions)
    return small_multiples(
        [panel], columns, rows, x_name="position", y_name="layer", value_name=value_name, title=title, scale="sequential",
        range=range,
    )  # fmt: skip


@options(top=1)
def circuit(
    values: Values,
    x_labels: Labels | None = None,
    y_labels: Labels | None = None,
    *,
    names: Labels | None = None,
    x_name: str = "to (key) token",
    y_name: str = "from (query) token",
    value_name: str = "score",
    title: str = "Circuit",
    splits: Mapping[str, Values] | None = None,
    range: Values | None = None,
    common: bool = True,
    top: int = 64,
) -> Figure:
    """Circuit matrices (QK, OV, composed), one panel for each; quadrants with `splits`.

    A matrix with more than 512 rows or columns is shown by the `top` rows and columns that hold its largest values.

    Args:
        values: [row, column] or [matrix, row, column].

    Raises:
        ShapeError: shapes and labels do not fit.
    """
    array = as_array(values, "values", ndim=(2, 3))
    array = array[None] if array.ndim == 2 else array
    count, rows, columns = array.shape
    heads = as_labels(names, count, "names", "matrices", default="") or []
    x = as_labels(x_labels, columns, "x_labels", "columns", default="") or []
    y = as_labels(y_labels, rows, "y_labels", "rows", default="") or []
    panels = []
    note = ""
    for name, one in zip(heads, array, strict=True):
        keep_y, keep_x = _largest(one, top) if max(rows, columns) > 512 else (np.arange(rows), np.arange(columns))
        if len(keep_y) < rows or len(keep_x) < columns:
            note = f" (the {len(keep_y)} × {len(keep_x)} rows and columns with the largest of {rows} × {columns} values)"
        label = name if count > 1 else ""
        panels.append(Panel(label, one[np.ix_(keep_y, keep_x)], [x[i] for i in keep_x], [y[i] for i in keep_y]))
    if not note:
        panels = [Panel(panel.name, panel.values) for panel in panels]
    return small_multiples(
        panels, None if note else x, None if note else y, x_name=x_name, y_name=y_name, value_name=value_name,
        title=title + note, range=range, splits=None if note else splits, common=common,
    )  # fmt: skip


def _largest(array: Array, top: int) -> tuple[Array, Array]:
    size = np.abs(np.nan_to_num(array))
    rows = np.sort(np.argsort(-size.max(1), kind="stable")[:top])
    columns = np.sort(np.argsort(-size[rows].max(0), kind="stable")[:top])
    return rows, columns
