"""Attribution: how much each component of the residual stream adds to each answer, and what is left over."""

from __future__ import annotations

from typing import Any

import numpy as np

from cutaway.errors import ShapeError
from cutaway.view.arrays import Labels, Values, as_array, as_labels, color_range, number
from cutaway.view.figure import Figure


def attribution(
    values: Values,
    components: Labels,
    positions: Labels | None = None,
    answers: Labels | None = None,
    *,
    total: Values | None = None,
    correct: Values | None = None,
    title: str = "Attribution",
    value_name: str = "logits",
    answer_name: str = "token",
    range: Values | None = None,
) -> Figure:
    """What each component adds: a heat map for the chosen one, bars over all of them for the chosen cell.

    The menu also offers their sum and, where `total` is given, what is left over (total − sum).

    Args:
        values: [component, pos, token]; or [component, pos], for one answer.
        components: the components' names.
        positions: labels of the positions, for example the tokens of the text.
        answers: labels of the tokens (answers, classes) of the last axis.
        total: [pos, token] (or [pos]): what the components should add up to, for example the logits.
        correct: for each position the index of the right answer, to be outlined; −1 for none.

    Raises:
        ShapeError: shapes and labels do not fit.
    """
    array = as_array(values, "values", ndim=(2, 3))
    array = array[..., None] if array.ndim == 2 else array
    count, length, width = array.shape
    names = as_labels(components, count, "components", "components") or []
    where = as_labels(positions, length, "positions", "positions", default="")
    what = as_labels(answers, width, "answers", f"{answer_name}s", default="" if width > 1 else answer_name)
    arrays = {"values": array}
    lines = [f"{count} components, {length} positions, {width} {answer_name}s"]
    if total is not None:
        whole = as_array(total, "total", ndim=(1, 2))
        whole = whole[:, None] if whole.ndim == 1 else whole
        if whole.shape != (length, width):
            raise ShapeError(f"total must be [{length}, {width}] like one component; its shape is {list(whole.shape)}")
        arrays["total"] = whole
        lines.append(f"largest left over by the sum: {number(float(np.abs(whole - array.sum(0)).max()))}")
    right = None
    if correct is not None:
        right = [int(index) for index in correct]
        if len(right) != length or not all(-1 <= index < width for index in right):
            raise ShapeError(f"correct must name one of {width} {answer_name}s (or −1) for each of {length} positions")
    size = np.abs(np.nan_to_num(array)).mean((1, 2))
    lines += [f"{names[i]}: mean size {number(float(size[i]))}" for i in np.argsort(-size, kind="stable")[:5]]
    meta: dict[str, Any] = {
        "components": names, "positions": where, "answers": what, "correct": right, "valueName": value_name,
        "answerName": answer_name, "hasTotal": total is not None, "range": color_range([array], "diverging", range),
    }  # fmt: skip
    height = 270 + min(800, 26 * (width if width > 1 else count)) + min(420, 21 * count)
    return Figure("attribution", title, arrays, (), meta, "\n".join(lines), height)
