"""Layouts: prompts of different lengths are swept in groups of those that look alike, without what lies behind what is read.

Prompts whose edits are at other columns in each row (their roles) would run together at every position that any row needs. In
a group of rows with the same columns a cell is what it is without padding: one edit at few positions, entering where it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cutaway.model import sites
from cutaway.model.origins import Origin, Passed
from cutaway.runs.edits import Add, Change, Edit, ProjectOut, Put, Scale, Zero
from cutaway.runs.grids import Cells
from cutaway.runs.measures import Metric, OfRows
from cutaway.runs.places import numbers_of
from cutaway.runs.sweep.options import Sweep
from cutaway.runs.values import DerivedValues, Values

FIELDS: dict[type[Change], str] = {Add: "vector", ProjectOut: "direction"}  # where a change keeps its numbers
ALONG = ("pos", "dest", "src")  # axes of a site that are positions
FEWEST_CUDA = 4  # rows of a group on a GPU, at least on average: it is idle in small ones


@dataclass(frozen=True, eq=False)
class Part:
    """A group of a sweep's rows: a sweep of its own.

    Args:
        rows: the numbers of its examples.
        cells: for each of its cells its number in the whole; one that is edited nowhere here is left out.
    """

    rows: Tensor
    task: Sweep
    cells: list[int]


def parts_of(task: Sweep) -> list[Part]:
    """The groups of a sweep; none where it runs as it is: nothing is gained, or edits or metric may read across rows."""
    if not isinstance(task.metric, Metric) or task.options.skip == "layers" or task.batch == 1:
        return []
    if task.mask is None and not any(_by_rows(edits) for edits in task.cells.edits):
        return []
    groups = _groups(task)
    few = task.tokens.device.type == "cuda" and len(groups) * FEWEST_CUDA > task.batch
    if few or len(groups) == 1 or not all(map(_divides, _edits(task), _axes(task))):
        return []
    return [_part(task, rows, length) for (length, *_), rows in groups.items()]


def _by_rows(edits: tuple[Edit, ...]) -> bool:
    """Whether a cell is made of edits for some rows each."""
    return len(edits) > 1 and all(edit.examples is not None for edit in edits)


def _edits(task: Sweep) -> list[Edit]:
    return [edit for one in task.cells.edits for edit in one]


def _axes(task: Sweep) -> Iterator[tuple[str, tuple[str, ...], Sweep]]:
    """Of each edit the full name of its site, the words of its axes, and the task."""
    table = sites.table(task.model.cfg)
    for edit in _edits(task):
        name = sites.resolve(edit.site, table, task.model.cfg.n_layers)
        yield name, table[name], task


def _groups(task: Sweep) -> dict[tuple[Any, ...], list[int]]:
    """(how many columns, padding, which edits are made) → the rows of which that is so, in their order."""
    assert isinstance(task.metric, Metric)
    made: list[set[int]] = [set() for _ in range(task.batch)]
    known: dict[tuple[int, ...], int] = {}
    for edit in (edit for edits in task.cells.edits if _by_rows(edits) for edit in edits):
        rows = tuple(numbers_of(edit.examples, task.batch))
        if rows not in known:
            known[rows] = len(known)
            for row in rows:
                made[row].add(known[rows])
    wanted = task.metric.wanted(task.batch, task.length)
    lengths = task.length - wanted.long().flip(1).argmax(1)
    causal = task.model.cfg.attention_dir == "causal"
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row in range(task.batch):
        length = int(lengths[row]) if causal and bool(wanted[row].any()) else task.length
        padding = None if task.mask is None else tuple(task.mask[row, :length].tolist())
        groups.setdefault((length, padding, frozenset(made[row])), []).append(row)
    return groups


def _divides(edit: Edit, where: tuple[str, tuple[str, ...], Sweep]) -> bool:
    """Whether an edit is known to do to each row and position the same, whatever runs beside it; its values are cut by rows."""
    site, words, task = where
    change = edit.change
    if isinstance(change, Put):
        if change.values is None:
            return not change.mean_over
    elif not isinstance(change, Zero | Scale | Add | ProjectOut):
        return False
    source = change.source(site)
    if source is None:
        return True
    sizes = {"batch": task.batch, **dict.fromkeys(ALONG, task.length)}
    shape = (1,) * (len(words) - source.ndim) + tuple(source.shape)
    return all(have in (1, sizes.get(word, have)) for have, word in zip(shape, words, strict=True))


def _part(task: Sweep, rows: list[int], length: int) -> Part:
    metric, mask = task.metric, None if task.mask is None else task.mask[rows][:, :length]
    assert isinstance(metric, Metric)
    chosen = torch.tensor(rows, device=task.tokens.device)
    made, numbers, cells = _Cut(task, chosen, length), [], []
    for number, edits in enumerate(task.cells.edits):
        kept = tuple(one for edit in edits if (one := made.edit(edit)) is not None)
        if kept:
            numbers.append(number)
            cells.append(kept)
    own = Cells(tuple(cells), ("cell",), (len(cells),), [list(map(str, numbers))])
    part = replace(
        task,
        tokens=task.tokens[rows][:, :length],
        mask=None if mask is None or bool(mask.bool().all()) else mask,
        cells=own,
        metric=OfRows(metric, chosen.cpu(), (task.batch, task.length), length),
        options=replace(task.options, resume=None, baseline=0),
    )
    return Part(chosen, part, numbers)


class _Cut:
    """Edits of a whole sweep as those of a group of its rows, up to a column."""

    def __init__(self, task: Sweep, rows: Tensor, length: int):
        self.task, self.rows, self.length = task, rows, length
        self.table = sites.table(task.model.cfg)
        self.puts: dict[int, Put] = {}  # values are cut once for all edits that put them in

    def edit(self, edit: Edit) -> Edit | None:
        """An edit in the group; None: it is made in none of its rows or columns."""
        rows, examples = self.rows.tolist(), None
        if edit.examples is not None:
            chosen = set(numbers_of(edit.examples, self.task.batch))
            examples = [at for at, row in enumerate(rows) if row in chosen]
            examples = None if len(examples) == len(rows) else examples
        known = {name: getattr(edit, name) for name in ("positions", "sources")}
        cut: dict[str, Any] = {name: self._columns(given) for name, given in known.items() if given is not None}
        if examples == [] or not all(cut.values()):
            return None
        site = sites.resolve(edit.site, self.table, self.task.model.cfg.n_layers)
        return replace(edit, examples=examples, change=self._change(edit.change, site), **cut)

    def _columns(self, given: Any) -> list[int]:
        return [one for one in numbers_of(given, self.task.length) if one < self.length]

    def _change(self, change: Change, site: str) -> Change:
        if isinstance(change, Put) and change.values is not None:
            if id(change) not in self.puts:
                values = PartOfValues(change.values, self.rows, self.length, self.table)
                self.puts[id(change)] = replace(change, values=values, real=None)
            return self.puts[id(change)]
        source, field = change.source(site), FIELDS.get(type(change))
        if source is None or field is None:
            return change
        return replace(change, **{field: part_of(source, self.rows, self.length, self.table[site])})  # type: ignore[type-var]


class PartOfValues(DerivedValues):
    """Values of some rows, up to a column."""

    def __init__(self, values: Values, rows: Tensor, length: int, table: dict[str, tuple[str, ...]]):
        super().__init__(values)
        self.rows, self.length, self.table = rows, length, table

    @property
    def passed(self) -> Passed | None:
        return None

    def derive(self, site: str, tensor: Tensor) -> Tensor:
        return part_of(tensor, self.rows, self.length, self.table[site])

    def derived(self, origin: Origin, tensor: Tensor) -> Origin | None:
        return origin.rows(lambda x: part_of(x, self.rows, self.length, ("batch", "pos")))


def part_of(x: Tensor, rows: Tensor, length: int, axes: tuple[str, ...]) -> Tensor:
    """Some rows of a tensor, up to a column; an axis of one entry, which stands for all, stays."""
    x = x[(None,) * (len(axes) - x.ndim)]
    for axis, word in enumerate(axes):
        if x.shape[axis] > 1 and word == "batch":
            x = x[rows.to(x.device)]
        elif x.shape[axis] > 1 and word in ALONG:
            x = x.narrow(axis, 0, length)
    return x
