"""The engine of a sweep: clean runs of as many examples as fit, then chunk after chunk of cells.

The plan of a sweep (which examples, which cells together) is settled before anything runs and is all that decides how
numbers round, so that an interrupted sweep that follows the same plan ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import OutOfMemory
from cutaway.runs.edits import Put
from cutaway.runs.grids import label_of
from cutaway.runs.lazy_logits import NotComputed
from cutaway.runs.metrics import Metric
from cutaway.runs.plain_runs import hooks_of, plain_pass
from cutaway.runs.sweep.cells import Cell, bind, kept_sites
from cutaway.runs.sweep.clean import Clean, run_clean
from cutaway.runs.sweep.entering import Changed
from cutaway.runs.sweep.execute import run_chunk
from cutaway.runs.sweep.measure import Measure, Opaque
from cutaway.runs.sweep.options import Progress, Sweep, own_means
from cutaway.runs.sweep.regions import Region, Rules
from cutaway.runs.sweep.scheduling import CLEAN, KnownChunks, keeping_of, schedule
from cutaway.runs.values import summed_over

SAID = "can't allocate memory"  # in the error of Torch's allocator on a CPU, which has no class of its own


class Engine:
    """Runs a task. `values` (`[cell, …]`) and `clean` hold what is known so far.

    Args:
        kept: what is known from earlier, interrupted runs, whose schedule is followed.
    """

    def __init__(self, task: Sweep, kept: KnownChunks | None = None):
        self.task, self.kept = task, kept
        self.plan = schedule(task) if kept is None else kept.schedule
        self.cells = self.plan.cells  # with the means of these examples, where edits ask for them, once it has run
        self.values: Tensor | None = None
        self.clean: Tensor | None = None
        self.split = 0  # chunks that ran in smaller ones, since memory ran out

    def run(self, progress: Progress | None = None) -> None:
        """Compute every cell.

        Args:
            progress: called with (work done, all work) after every chunk.

        Raises:
            OutOfMemory: not even one cell of a chunk can run; what was done before is kept.
        """
        task = self.task
        self.settled()
        total = float(sum(_work(task, chunk, *rows) for rows, some in zip(self.plan.batches, self.plan.chunks, strict=True)
                          for chunk in some))  # fmt: skip
        done = 0.0
        for number, (first, last) in enumerate(self.plan.batches):
            one = self.batch(number)  # its clean run is not made where all of its values are known
            for index, chunk in enumerate([[], *self.plan.chunks[number]], CLEAN):
                values = None if self.kept is None else self.kept.known(number, index)
                if values is None:
                    values = one.in_parts(index)
                    if self.kept is not None:  # before the next one: a killed sweep loses one chunk at most
                        self.kept.keep(number, index, values)
                # Values are one number for all examples where the metric is a function of the batch, which then is the only one.
                if index == CLEAN:
                    rest = (task.batch, *values.shape[1:]) if values.ndim else ()
                    self.clean = _put(self.clean, values, rest, slice(first, last) if values.ndim else ())
                    continue
                numbers = torch.tensor([cell.number for cell in chunk], device=values.device)
                rest = (task.batch, *values.shape[2:]) if values.ndim > 1 else ()
                where = (numbers, slice(first, last)) if values.ndim > 1 else numbers
                self.values = _put(self.values, values, (len(self.plan.cells), *rest), where)
                done += _work(task, chunk, first, last)
                if progress is not None:
                    progress(done, total)

    def batch(self, number: int) -> BatchRun:
        """The cells of some examples, which run when their values are asked for."""
        return BatchRun(self, number)

    def put(self, part: Engine, rows: Tensor, cells: Sequence[int]) -> None:
        """Take over what another engine computed for some examples, up to a column; other cells change nothing there.

        Args:
            rows, cells: the numbers of its examples and cells here.
        """
        assert part.clean is not None
        wide = () if part.clean.ndim == 1 else (self.task.length,)
        if self.values is None or self.clean is None:
            self.clean = part.clean.new_full((self.task.batch, *wide), torch.nan)
            self.values = part.clean.new_full((len(self.plan.cells), self.task.batch, *wide), torch.nan)
        clean, values = (torch.nn.functional.pad(x, (0, wide[0] - x.shape[-1]), value=torch.nan) if wide else x
                         for x in (part.clean, part.clean if part.values is None else part.values))  # fmt: skip
        self.clean[rows], self.values[:, rows] = clean, clean
        if part.values is not None:
            self.values[torch.tensor(cells, device=rows.device)[:, None], rows] = values
        self.split += part.split

    def settled(self) -> list[Cell]:
        """The cells, with the means that their edits ask for."""
        means, task = self._means(), self.task
        if means is not None:
            self.cells = bind(task, means)
        return self.cells

    @torch.no_grad()
    def _means(self) -> dict[str, Tensor] | None:
        """Means over the sweep's own examples, where edits ask for them."""
        wanted = own_means(self.task.cells, self.task.model.cfg)
        if not wanted:
            return None
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {site: [] for site in wanted}
        changes = (edit.change for one in self.task.cells.edits for edit in one)
        real = next((one.real for one in changes if isinstance(one, Put) and one.real is not None), None)
        for first, last in self.plan.batches:
            tokens, mask = self.task.rows(first, last)
            share = self.task.options.skip == "all"
            store = run_clean(self.task.model, tokens, list(wanted), mask=mask, first=first, share=share).store
            for site, axes in wanted.items():
                parts[site].append(summed_over(store[site], site, axes, real if real is None else real[first:last]))
        return {site: _mean_of(some, "batch" in wanted[site]) for site, some in parts.items()}


def _put(into: Tensor | None, values: Tensor, shape: tuple[int, ...], where: Any) -> Tensor:
    """Some values in their place among all."""
    into = values.new_zeros(shape) if into is None else into
    into[where] = values
    return into


def _mean_of(parts: list[tuple[Tensor, Tensor]], whole: bool) -> Tensor:
    """A mean from sums and counts of several batches, of all examples together or of each."""
    if not whole:
        return torch.cat([total / count for total, count in parts])
    totals, counts = zip(*parts, strict=True)
    return sum(totals[1:], totals[0]) / sum(counts[1:], counts[0]).clamp(min=1)


class BatchRun:
    """Some examples of an engine: their clean run, which is made when it is first needed, and the cells that start from it."""

    def __init__(self, engine: Engine, number: int):
        self.engine, self.task, self.number = engine, engine.task, number

    @cached_property
    def clean(self) -> Clean:
        task, (first, last) = self.task, self.engine.plan.batches[self.number]
        tokens, mask = task.rows(first, last)
        sites, keep = kept_sites(task.model, self.engine.cells), keeping_of(task, self.engine.plan, self.number).how
        return run_clean(task.model, tokens, sites, mask=mask, first=first, share=task.options.skip == "all", keep=keep)

    @cached_property
    def measure(self) -> Measure | Opaque:
        task, clean = self.task, self.clean
        if not isinstance(task.metric, Metric):
            return Opaque.tried(task.model, clean, task.metric)
        wanted = task.metric.wanted(task.batch, task.length)[clean.first : clean.first + clean.batch]
        return Measure(task.model, clean, task.metric, wanted.to(clean.tokens.device))

    @cached_property
    def rules(self) -> Rules:
        return Rules.of(self.task.model, self.task.length, self.measure.read_at)

    def values(self, chunk: int) -> Tensor:
        """The metric of a chunk's cells, `[cell, …]`, or of the clean run, with `CLEAN`."""
        return self.measure.clean_values if chunk == CLEAN else self._values_of(self._cells(chunk))

    def in_parts(self, chunk: int) -> Tensor:
        """The same as `values`; where memory runs out, by halves of the chunk, which round differently.

        Raises:
            OutOfMemory: for the clean run or for one cell alone.
        """
        if chunk == CLEAN:
            with memory_named(f"the clean run of {self._examples} ran"):
                return self.values(chunk)
        found = self._halved(self._cells(chunk))
        self.engine.split += len(found) > 1
        return torch.cat(found)

    def _halved(self, cells: Sequence[Cell]) -> list[Tensor]:
        label = label_of(self.task.cells.edits[cells[0].number])
        try:
            with memory_named(f"'{label}' ran on {self._examples}"):
                return [self._values_of(cells)]
        except OutOfMemory:
            if len(cells) == 1:
                raise
        middle = len(cells) // 2
        return [*self._halved(cells[:middle]), *self._halved(cells[middle:])]

    @property
    def _examples(self) -> str:
        first, last = self.engine.plan.batches[self.number]
        return f"{last - first} example{'s' * (last - first != 1)} of {self.task.length} tokens"

    def _cells(self, chunk: int) -> list[Cell]:
        return [self.engine.cells[cell.number] for cell in self.engine.plan.chunks[self.number][chunk]]

    def _values_of(self, cells: Sequence[Cell]) -> Tensor:
        if cells[0].way == "alone":
            return torch.stack([self._alone(cell) for cell in cells])
        try:
            return self._together(cells)
        except NotComputed:  # the function's trial did not show what it looks at
            assert isinstance(self.measure, Opaque)
            self.measure, self.rules = replace(self.measure, read_at=None), Rules.of(self.task.model, self.task.length, None)
            return self._together(cells)

    def _together(self, cells: Sequence[Cell]) -> Tensor:
        read_at = self.measure.read_at
        nothing = read_at is not None and not len(read_at)
        changed = [] if nothing else run_chunk(self.task.model, self.clean, self.rules, cells, self.task.options.between)
        return self.measure.of_cells(cells, changed)

    def _alone(self, cell: Cell) -> Tensor:
        """A cell in a batch of its own, at full length, from the layer of its first edit."""
        task, model = self.task, self.task.model
        whole = task.options.skip == "layers" or isinstance(self.measure, Opaque)
        whole = whole or any(bound.site.startswith("ln_final.") for bound in cell.bounds)
        with model.hooks(hooks_of(cell.bounds, self.clean.store, self.clean.first, self.clean.first + self.clean.batch)):
            model.runs += 1
            if cell.layer < 0:
                resid = plain_pass(model, self.clean.tokens, self.clean.mask)
            else:
                resid = model.run_blocks(self.clean.resid[cell.layer], self.clean.stream, cell.layer)
            logits = model.logits_of(resid) if whole else None
        if logits is None:
            assert isinstance(self.measure, Measure)
            every = Region.of_places(None, len(resid), torch.arange(task.length, device=self.clean.tokens.device), task.length)
            return self.measure.of_cells([cell], [(cell, Changed(every, resid))])[0]
        if not isinstance(task.metric, Metric):
            return task.metric(logits)
        clean = model.logits_of(self.clean.last) if task.metric.compares else None
        return by_plain(task, logits, clean, self.clean.first)


@contextmanager
def memory_named(what: str) -> Iterator[None]:
    """Say of an allocator's error what ran.

    Raises:
        OutOfMemory: the device has no memory left.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemory) or not (isinstance(error, MemoryError | torch.OutOfMemoryError) or SAID in str(error)):
            raise
        raise OutOfMemory(
            f"memory ran out while {what}; run fewer or shorter examples at once, or a smaller model. What was finished is kept "
            "where resume= or results= names a folder"
        ) from error


def _work(task: Sweep, chunk: Sequence[Cell], first: int, last: int) -> float:
    """How much a chunk costs, roughly: tokens times layers."""
    layers = task.model.cfg.n_layers
    return float(sum((last - first) * (task.length - cell.start) * (layers - cell.layer + 0.5) for cell in chunk))


# Cells on their own.


def run_plain(task: Sweep, cell: Cell | None, store: Mapping[str, Tensor], first: int, last: int) -> Tensor:
    """Logits of a full forward pass of some examples with a cell's edits attached: what sweeps are held to."""
    model = task.model
    tokens, mask = task.rows(first, last)
    with model.hooks(hooks_of(cell.bounds, store, first, last) if cell is not None else []):
        model.runs += 1
        return model.logits_of(plain_pass(model, tokens, mask))


def plain_values(task: Sweep, cell: Cell, first: int, last: int) -> tuple[Tensor, float]:
    """A cell's values for some examples by a full forward pass, `[batch]`, `[batch, pos]`, or `[]`; and its largest logit."""
    metric = task.metric
    tokens, mask = task.rows(first, last)
    sites = kept_sites(task.model, [Cell(cell.number, cell.bounds, cell.layer, 0, "alone")])
    store = run_clean(task.model, tokens, sites, mask=mask, first=first).store if sites else {}
    logits = run_plain(task, cell, store, first, last)
    if not isinstance(metric, Metric):
        return metric(logits), 0.0
    clean_logits = run_plain(task, None, {}, first, last) if metric.compares else None
    return by_plain(task, logits, clean_logits, first), float(logits.abs().max())


def by_plain(task: Sweep, logits: Tensor, clean: Tensor | None, first: int) -> Tensor:
    """A metric from whole logits of some examples, without any shortening."""
    metric = task.metric
    assert isinstance(metric, Metric)
    return metric.of_examples(logits, metric.wanted(task.batch, task.length)[first : first + len(logits)], clean, first)
