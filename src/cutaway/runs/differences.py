"""Two results beside each other: their difference, number by number, and both in one figure."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from cutaway.errors import ShapeError
from cutaway.runs.results import Labelled, Result, names_of_entries
from cutaway.view import Figure, bar_chart, sweep_grid


@dataclass(frozen=True, eq=False)
class ResultDifference(Result):
    """What one result has more than another, `values`, with the means of both over examples and positions.

    Args:
        values: one minus other, of means.
        one, other: the means.
    """

    values: Labelled
    one: Labelled
    other: Labelled

    def figure(self) -> Figure:
        """The difference: a map of layers × heads where there is a number for each head, else bars."""
        return difference_figure(self.values, f"difference of {self.values.what}")

    def overlay(self, top: int = 30) -> Figure:
        """Both beside each other, the entries that differ most first."""
        order = self.values.data.flatten().abs().nan_to_num(-1).argsort(descending=True)[:top].tolist()
        names = names_of_entries(self.values)
        pair = {"one": self.one.data.flatten()[order], "other": self.other.data.flatten()[order]}
        return bar_chart([names[at] for at in order], pair, value_name=_named(self.one), title=f"{self.one.what}, side by side")

    def summary(self) -> str:
        """How far apart the two are, and where most."""
        flat, names = self.values.data.flatten(), names_of_entries(self.values)
        order = flat.abs().nan_to_num(-1).argsort(descending=True)[:8].tolist()
        both = torch.stack([self.one.data.flatten().double(), self.other.data.flatten().double()])
        known = both[:, ~both.isnan().any(0)]
        alike = float(torch.corrcoef(known)[0, 1]) if known.shape[1] > 2 else float("nan")
        lines = [f"difference of {self.values.what} (correlation of the two {alike:.2f}); the largest:"]
        return "\n".join([*lines, *(f"  {names[at]}: {float(flat[at]):+.4g}" for at in order)])


def difference(one: Result, other: Result) -> ResultDifference:
    """What one result has more than another of the same kind, on means over examples and positions.

    Example: `difference(attribute(model, prompts), attribute(tuned, prompts)).summary()`

    Raises:
        ShapeError: the two do not have the same axes and labels.
    """
    first, second = (_means(result.values) for result in (one, other))
    if first.axes != second.axes or first.shape != second.shape or dict(first.labels) != dict(second.labels):
        raise ShapeError(f"{first!r} and {second!r} do not have the same axes and labels, so there is no difference of them")
    return ResultDifference(Labelled(first.data - second.data, first.axes, first.labels, first.what, first.unit), first, second)


def _means(values: Labelled) -> Labelled:
    over = [axis for axis in ("batch", "pos", "position") if axis in values.axes and axis not in values.labels]
    return values.mean(*over) if over else values


def difference_figure(values: Labelled, title: str) -> Figure:
    """Means as a figure: layers × heads where labels are heads, a grid of two axes, else bars of what is largest."""
    mapped = component_map(values, title)
    if mapped is not None:
        return mapped
    if values.data.ndim == 2:
        row, column = values.axes
        return sweep_grid(
            values.data, values.names(row), values.names(column), row_name=row, column_name=column, value_name=_named(values),
            title=title,
        )  # fmt: skip
    flat, names = values.data.flatten(), names_of_entries(values)
    order = flat.abs().nan_to_num(-1).argsort(descending=True)[:40].tolist()
    return bar_chart([names[at] for at in order], [float(flat[at]) for at in order], value_name=_named(values), title=title)


PART = re.compile(r"(\d+)\.(\d+|attn|mlp)")
FEWEST, MOST_ELSE = 12, 6  # heads that make a map; other components that its title can name


def component_map(values: Labelled, title: str) -> Figure | None:
    """One number for each component as a map: layers down, heads across, then MLPs; the embedding and the like in the title.

    None: too few heads for a map, or too much that is neither head nor layer.
    """
    if values.data.ndim != 1:
        return None
    found = [(PART.fullmatch(name), name, float(one)) for name, one in zip(names_of_entries(values), values.data, strict=True)]
    parts = [(int(at[1]), at[2], one) for at, _, one in found if at]
    heads = {int(part) for _, part, _ in parts if part.isdecimal()}
    rest = [f"{name} {one:+.3g}" for at, name, one in found if not at]
    if sum(part.isdecimal() for _, part, _ in parts) < FEWEST or len(rest) > MOST_ELSE:
        return None
    columns = [*map(str, range(max(heads) + 1)), *(one for one in ("attn", "mlp") if any(one == part for _, part, _ in parts))]
    grid = torch.full((1 + max(layer for layer, _, _ in parts), len(columns)), torch.nan)
    for layer, part, one in parts:
        grid[layer, columns.index(part)] = one
    return sweep_grid(
        grid, None, columns, row_name="layer", column_name="head or MLP", value_name=_named(values), absent="not among these",
        title=title + (f" ({', '.join(rest)})" if rest else ""),
    )  # fmt: skip


def _named(values: Labelled) -> str:
    return f"{values.what} ({values.unit})" if values.unit else values.what
