"""What a sweep gives back: the metric of every cell, its audit, its baseline; tables, figures and sentences of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import NotFinite, ShapeError
from cutaway.runs.grids import label_of
from cutaway.runs.metrics import Metric
from cutaway.runs.results import Labelled, Means, Result
from cutaway.runs.sweep.baseline import Baseline
from cutaway.runs.sweep.engine import Engine
from cutaway.runs.sweep.options import Sweep
from cutaway.view import Figure, bar_chart, sweep_grid


@dataclass(frozen=True)
class Audit:
    """Cells that ran again as plain full forward passes.

    Args:
        cells: their labels.
        examples: how many examples of each, at most.
        difference: the largest difference, relative to the largest value of the whole sweep (or to 1e-4, if that is larger);
            NaN where nothing was checked.
    """

    cells: tuple[str, ...]
    examples: int
    difference: float

    def __str__(self) -> str:
        if not self.cells:
            return "no cell was run again, so nothing was checked"
        again = f"{len(self.cells)} cell{'s' * (len(self.cells) != 1)} run again in full"
        return f"{again}: largest relative difference {self.difference:.1e}"


@dataclass(frozen=True, eq=False)
class SweepResult(Result):
    """The metric of every cell.

    Args:
        values: `[*cells, batch]`, or `[*cells, batch, pos]` by position, or `[*cells]` for a function of the whole batch.
        clean: the metric without any edit, with the same last axes.
        audit: how far cells are from plain full forward passes.
        method: how the values were computed.
        exact: after a screen, the numbers of the cells that were computed exactly.
        task, options: what was asked, for records.
        baseline: what random changes of the same size do, where it was asked for.
    """

    values: Labelled
    clean: Labelled
    audit: Audit
    method: str = "exact"
    notes: tuple[str, ...] = field(default=())
    exact: tuple[int, ...] = field(default=())
    task: Sweep | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    baseline: Baseline | None = None

    @property
    def effects(self) -> Labelled:
        """What each edit changes: its value minus the clean run's."""
        values = self.values
        return Labelled(values.data - self.clean.data, values.axes, values.labels, f"change of {values.what}", values.unit)

    def mean(self, *, effects: bool = False) -> Means:
        """Means over examples, with intervals."""
        values = self.effects if effects else self.values
        if "batch" not in values.axes:
            raise ShapeError("the metric gave one number for all examples; there is no mean over them")
        return values.means("batch")

    def averages(self, *, effects: bool = False) -> Labelled:
        """Means over examples and positions, one number per cell."""
        values = self.effects if effects else self.values
        over = values.axes[len(values.axes) - self.clean.data.ndim :]
        return values.mean(*over) if over else values

    def table(self, *, effects: bool = False) -> Tensor:
        """The same, as a plain tensor in the shape of the grid."""
        return self.averages(effects=effects).data

    def figure(self) -> Figure:
        """What each edit changes: bars for one axis, a grid for two, panels for three."""
        shown = self.averages(effects=True)
        label = f"{shown.what}{f' ({shown.unit})' if shown.unit else ''}"
        if shown.data.ndim == 1:
            high = None if self.baseline is None else self.baseline.high
            marks = None if high is None else {"95% of random changes": high, "and below zero": -high}
            names = shown.names(shown.axes[0])
            return bar_chart(names, {shown.what: shown.data}, value_name=label, title=label, references=marks)
        if shown.data.ndim == 0:
            raise ShapeError("one number is no figure; print its summary()")
        data = shown.data.reshape(-1, *shown.shape[-2:])
        kinds = None
        if len(data) > 1:
            kinds = [" ".join(one) for one in itertools.product(*(shown.names(axis) for axis in shown.axes[:-2]))]
        row, column = shown.axes[-2:]
        return sweep_grid(
            data if kinds else data[0], shown.names(row), shown.names(column), kinds=kinds, row_name=row, column_name=column,
            value_name=label, title=label,
        )  # fmt: skip

    def top(self, count: int = 10) -> list[tuple[str, float]]:
        """The cells that change the metric most: label and mean change."""
        shown = self.averages(effects=True)
        names = [" ".join(f"{axis} {one}" for axis, one in zip(shown.axes, place, strict=True) if axis != "cell") or place[0]
                 for place in itertools.product(*(shown.names(axis) for axis in shown.axes))]  # fmt: skip
        return [(names[index], value) for index, value in shown.largest(count)]

    def summary(self) -> str:
        unit = f" {self.values.unit}" if self.values.unit else ""
        clean = float(self.clean.data.nanmean()) if self.clean.data.numel() else math.nan
        lines = [f"{self.values.what}: {clean:.4g}{unit} in the clean run; the largest changes of {self._count()} edits:"]
        lines += [f"  {name}: {value:+.4g}{unit}" for name, value in self.top(8)]
        lines += [] if self.baseline is None else [self.baseline.summary()]
        return "\n".join([*lines, str(self.audit), *self.notes])

    def _count(self) -> int:
        return math.prod(self.values.shape[: self.values.data.ndim - self.clean.data.ndim])


def finished(
    task: Sweep,
    engine: Engine,
    audit: Audit,
    method: str = "exact",
    notes: tuple[str, ...] = (),
    exact: tuple[int, ...] = (),
) -> SweepResult:
    """The result of a sweep.

    Raises:
        NotFinite: a value is not a finite number.
    """
    assert engine.values is not None and engine.clean is not None
    metric, cells = task.metric, task.cells
    values, clean = engine.values, engine.clean
    check_finite(task, values, clean)
    rest = ("batch", "pos")[: clean.ndim]
    clash = {"pos": "position"} if "pos" in cells.axes and "pos" in rest else {}
    axes = (*cells.axes, *(clash.get(axis, axis) for axis in rest))
    labels = {axis: names for axis, names in zip(cells.axes, cells.labels, strict=True) if axis not in ("pos", "layer")}
    labels |= {axis: names for axis, names in zip(cells.axes, cells.labels, strict=True) if names != _numbers(len(names))}
    shaped = values.reshape(*cells.shape, *values.shape[1:])
    return SweepResult(
        Labelled(shaped, axes, labels, metric.name, metric.unit),
        Labelled(clean, axes[len(cells.axes) :], {}, metric.name, metric.unit),
        audit, method, notes + _split(engine), exact, task,
    )  # fmt: skip


def _split(engine: Engine) -> tuple[str, ...]:
    """A note where memory ran out and chunks ran in parts, which round differently from the planned ones."""
    some = f"{engine.split} chunk{'s' * (engine.split != 1)}"
    return (f"memory ran out in {some} of cells, which ran in smaller ones",) if engine.split else ()


def _numbers(count: int) -> list[str]:
    return list(map(str, range(count)))


def check_finite(task: Sweep, values: Tensor, clean: Tensor) -> None:
    wanted = torch.ones_like(clean, dtype=torch.bool)
    if isinstance(task.metric, Metric):
        mask = task.metric.wanted(task.batch, task.length).to(clean.device)
        wanted = mask if clean.ndim == 2 else mask.any(1)
    if not bool((clean.isfinite() | ~wanted).all()):
        raise NotFinite(f"the {task.metric.name} of the clean run is not a finite number; look at the model and the tokens")
    bad = (~values.isfinite() & wanted).reshape(len(values), -1).any(1)
    if found := bad.nonzero().flatten().tolist():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise NotFinite(
            f"the {task.metric.name} of the cell '{label_of(task.cells.edits[found[0]])}'{more} is not a finite number; "
            "look at the values that its edit puts in"
        )
