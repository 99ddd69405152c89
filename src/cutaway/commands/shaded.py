"""Grids in the terminal: numbers with a shade in front, layers down, positions or heads across, cut to the part that matters."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from cutaway.commands.console import visible

SHADES = " ░▒▓█"
BOUNDS = (0.05, 0.25, 0.5, 0.75)
ROWS = 14  # layers of a grid, beside what else stands on a screen
LONGEST = 9  # characters of a column's head


def shade(value: float) -> int:
    """How dark a share is, 0 to 4."""
    return sum(value >= bound for bound in BOUNDS)


def grid(values: Any, rows: Sequence[str], columns: Sequence[str], corner: str, *, whole: bool = False) -> str:
    """A grid of shares as text: one row a line, each cell a shade and a number.

    Of more rows than a screen has, the neighbouring ones are shown among which the numbers change most; of more columns than fit,
    those with the largest numbers.

    Args:
        values: `[row, column]`.
        corner: what rows are: "layer".
        whole: all rows and columns, however many.
    """
    size = values.abs().nan_to_num()
    first, count = (0, len(rows)) if whole else _busiest(values.nan_to_num(), min(len(rows), ROWS))
    width = max(len(corner), *(len(name) for name in rows)) + 1
    heads = [_head(name) for name in columns]
    room = shutil.get_terminal_size((100, 24)).columns - width
    largest = size[first : first + count].amax(0)
    shown = [at for at in range(len(columns)) if whole or len(columns) == 1 or float(largest[at]) >= BOUNDS[0]] or [
        int(largest.argmax())
    ]
    for at in [] if whole else sorted(shown, key=lambda one: float(largest[one])):
        if sum(len(heads[one]) for one in shown) <= room or len(shown) == 1:
            break
        shown.remove(at)
    lines = [f"{corner:<{width}}" + "".join(heads[at] for at in shown)]
    for row in range(first, first + count):
        cells = (_cell(float(values[row, at]), len(heads[at])) for at in shown)
        lines.append((f"{rows[row]:<{width}}" + "".join(cells)).rstrip())
    left = []
    if count < len(rows):
        left.append(f"{count} of {len(rows)} {corner}s, {rows[first]} to {rows[first + count - 1]}, where most changes")
    if (rest := len(columns) - len(shown)) > 0:
        left.append(f"{rest} of {len(columns)} columns left out, the smallest")
    return "\n".join([*lines, *([f"{'; '.join(left)}; --all prints all, --html draws them"] if left else [])])


def _busiest(values: Any, count: int) -> tuple[int, int]:
    """The first of so many neighbouring rows, among which the numbers change most, and how many these are."""
    steps = values.diff(dim=0).abs().sum(1)
    return max(range(len(values) - count + 1), key=lambda at: (float(steps[at : at + count - 1].sum()), -at)), count


def _head(name: str) -> str:
    """A column's head, as wide as its cells at least."""
    name = " ".join(visible(name).replace("\n", "⏎").split())
    return f" {name if len(name) <= LONGEST else name[: LONGEST - 1] + '…':<6}"


def _cell(value: float, width: int) -> str:
    text = " ·" if value != value else f"{SHADES[shade(abs(value))]}{value:.2f}"
    return f" {text:<{width - 1}}"
