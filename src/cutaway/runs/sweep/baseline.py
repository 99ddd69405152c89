"""The random baseline of a sweep: what random changes of the same size at the same places do to the metric.

An edit that changes the metric may do so because of what it puts in, or because any change that large would. So cells are
drawn at random and run with every change replaced by a random one (`edits.Random`): for each example and position as
large as the change that it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.runs.edits import Change, Edit, Put, Random
from cutaway.runs.grids import Cells, label_of
from cutaway.runs.kept_sweeps.interrupted import Saved
from cutaway.runs.results import Labelled, Means, Result
from cutaway.runs.sweep.cells import Cell
from cutaway.runs.sweep.engine import Engine
from cutaway.runs.sweep.gradient import estimate
from cutaway.runs.sweep.options import Progress, Sweep
from cutaway.view import Figure, bar_chart


@dataclass(frozen=True, eq=False)
class Baseline(Result):
    """Random changes of the same size as some cells'.

    Args:
        values: what each changes, `[cell, batch]` (and `pos` where the metric keeps positions).
        median, high: of the sizes of mean changes, the median and the 95th percentile.
        larger: how many cells of the sweep change the metric by more than `high`, in the mean.
        cells: of how many.
    """

    values: Labelled
    median: float
    high: float
    larger: int
    cells: int

    def mean(self) -> Means:
        """Means over examples, with intervals."""
        return self.values.means("batch")

    def figure(self) -> Figure:
        """A bar for each random change."""
        sizes = _means(self.values.data)
        return bar_chart(self.values.names("cell"), sizes, value_name=self.values.what, title="random changes of the same size")

    def summary(self) -> str:
        unit = f" {self.values.unit}" if self.values.unit else ""
        return (
            f"{self.values.shape[0]} random changes of the same size: median {self.median:.4g}{unit}, 95th percentile "
            f"{self.high:.4g}{unit}; {self.larger} of {self.cells} edits change more than that"
        )


def random_cells(cells: Cells, bound: Sequence[Cell], count: int, seed: int) -> Cells:
    """Random cells, every change of theirs replaced by a random one; where there are fewer cells than draws, some again.

    Args:
        bound: the same cells, settled: with the means that their edits ask for.
    """
    order = torch.randperm(len(bound), generator=torch.Generator().manual_seed(seed)).tolist()
    edits, labels = [], []
    for draw in range(count):
        again, at = divmod(draw, len(order))
        number = order[at]
        changes = [one.edit.change for one in bound[number].bounds]
        edits.append(_randomly(cells.edits[number], changes, (seed, number, again)))
        labels.append(label_of(edits[-1]) + (f" ({again + 1})" if again else ""))
    return Cells(tuple(edits), ("cell",), (count,), [labels])


def _randomly(edits: Sequence[Edit], changes: Sequence[Change], seed: tuple[int, ...]) -> tuple[Edit, ...]:
    """A cell's edits with random changes. What it only holds still beside its changes is still held."""
    frozen = [isinstance(change, Put) and change.word == "freeze" for change in changes]
    if all(frozen):
        frozen = [isinstance(change, Put) and change.values is None for change in changes]
    out = []
    for number, (edit, change, kept) in enumerate(zip(edits, changes, frozen, strict=True)):
        plain = change.change if isinstance(change, Random) else change
        out.append(replace(edit, change=change if kept else Random(plain, (*seed, number))))
    return tuple(out)


def run(task: Sweep, cells: Sequence[Cell], progress: Progress | None) -> tuple[Sweep, Engine]:
    """Run the baseline of a sweep; that of estimates is estimated.

    Args:
        cells: the sweep's cells, settled.
    """
    count, seed, resume = task.options.baseline, task.options.seed, task.options.resume
    estimated = task.options.method == "gradient"
    random_task = replace(task, cells=random_cells(task.cells, cells, count, seed))
    saved = None if resume is None or estimated else Saved(Path(resume) / f"baseline-{count}-{seed}", random_task)
    engine = Engine(random_task, saved)
    if estimated:
        engine.values, engine.clean = estimate(random_task, engine.settled(), engine.plan.batches)
        return random_task, engine
    with torch.no_grad():
        engine.run(progress)
    return random_task, engine


def baseline_of(task: Sweep, engine: Engine, effects: Labelled, clean: Labelled) -> Baseline:
    """The result.

    Args:
        task, engine: of the baseline, as it ran.
        effects: the mean change of each cell of the sweep.
        clean: the sweep's clean run, which says which axes values have.
    """
    assert engine.values is not None and engine.clean is not None
    changes = engine.values - engine.clean
    if changes.ndim > 1 + clean.data.ndim:  # a screen keeps means over positions
        changes = changes.nanmean(-1)
    sizes = _means(changes).double().abs()
    high = float(sizes.quantile(0.95))
    larger = int((effects.data.double().abs() > high).sum())
    axes = ("cell", *("batch", "pos")[: clean.data.ndim])
    values = Labelled(changes, axes, {"cell": task.cells.labels[0]}, f"change of {task.metric.name}", task.metric.unit)
    return Baseline(values, float(sizes.median()), high, larger, effects.data.numel())


def _means(changes: Tensor) -> Tensor:
    """Means over examples and positions."""
    return changes.flatten(1).nanmean(1) if changes.ndim > 1 else changes


def share(progress: Progress | None, before: float | int, own: float | int, whole: float | int) -> Any:
    """Progress of one of several parts, as part of the whole."""
    if progress is None or own == whole:
        return progress
    return lambda done, total: progress(before + own * (done / total if total else 1), whole)
