"""The engine of a sweep: clean runs of as many examples as fit, then chunk after chunk of cells.

The plan of a sweep (which examples, which cells together) is settled before anything runs and is all that decides how
numbers round, so that an interrupted sweep that follows the same plan ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cutaway.errors import OutOfMemory
from cutaway.runs.edits import Bound, Put
from cutaway.runs.grids import label_of
from cutaway.runs.lazy_logits import NotComputed
from cutaway.runs.metrics import Metric
from cutaway.runs.sweep.cells import Cell, Sweep, bind, bytes_per_token, chunks, kept_sites, own_means, room_for
from cutaway.runs.sweep.clean import Clean, plain_pass, run_clean
from cutaway.runs.sweep.entering import Changed
from cutaway.runs.sweep.execute import run_chunk
from cutaway.runs.sweep.keeping import Keeping, where_kept
from cutaway.runs.sweep.measure import Measure, Opaque
from cutaway.runs.sweep.regions import Region, Rules
from cutaway.runs.values import summed_over

if TYPE_CHECKING:
    from cutaway.runs.sweep.keyed import Keyed
    from cutaway.runs.sweep.saved import Saved

Progress = Callable[[float, float], None]
CLEAN = -1  # stands for the clean run among the chunks of a batch
ROOM = 5 * 2**16  # numbers in one layer's stream that run at once, where nobody says how much memory there is
SAID = "can't allocate memory"  # in the error of Torch's allocator on a CPU, which has no class of its own
ROOM_CUDA = 2**25  # the same on a GPU, which small products leave idle


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which examples run together, and for each such batch which cells."""

    cells: list[Cell]
    batches: list[tuple[int, int]]
    chunks: list[list[list[Cell]]]  # batch, chunk, cell

    @property
    def passes(self) -> int:
        return sum(map(len, self.chunks))

    @property
    def numbers(self) -> list[list[list[int]]]:
        """The chunks, with cells by their numbers."""
        return [[[cell.number for cell in chunk] for chunk in batch] for batch in self.chunks]

    def following(self, batches: list[tuple[int, int]], numbers: list[list[list[int]]]) -> Schedule | None:
        """The same cells as a plan that was kept has them; None: it does not have each example and each cell once."""
        rows = [row for first, last in batches if 0 <= first < last for row in (first, last)]
        whole = len(rows) == 2 * len(batches) == 2 * len(numbers) and rows[1:-1:2] == rows[2::2]
        every = list(range(len(self.cells)))
        if not whole or not rows or (rows[0], rows[-1]) != (self.batches[0][0], self.batches[-1][1]):
            return None
        if any(sorted(number for chunk in batch for number in chunk) != every for batch in numbers):
            return None
        return Schedule(self.cells, batches, [[[self.cells[one] for one in chunk] for chunk in batch] for batch in numbers])


def schedule(task: Sweep) -> Schedule:
    """Settle what runs when.

    Raises:
        ConfigError: not even one cell fits into the memory.
    """
    cfg = task.model.cfg
    cells = bind(task)
    whole = not isinstance(task.metric, Metric) or task.skip == "layers"
    whole = whole or any(not bound.change.declared for cell in cells for bound in cell.bounds)
    smallest = task.length * (task.batch if whole else 1)
    usual = ROOM_CUDA if task.tokens.device.type == "cuda" else ROOM
    room = room_for(cfg, smallest, task.memory, max(64, usual // cfg.d_model))
    step = task.batch if whole else min(task.batch, room // task.length)
    count = -(-task.batch // step)
    step = -(-task.batch // count)  # batches of about equal size
    batches = [(first, min(first + step, task.batch)) for first in range(0, task.batch, step)]
    return Schedule(cells, batches, [chunks(cells, last - first, task.length, room) for first, last in batches])


class Engine:
    """Runs a task. `values` (`[cell, …]`) and `clean` hold what is known so far.

    Args:
        kept: a folder of what is known from earlier, interrupted runs, whose plan is followed.
    """

    def __init__(self, task: Sweep, kept: Saved | Keyed | None = None):
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
            one = self.batch(number)
            for index, chunk in enumerate([[], *self.plan.chunks[number]], CLEAN):
                values = None if self.kept is None else self.kept.known(number, index)
                if values is None:
                    values = one.in_parts(index)
                    if self.kept is not None:
                        self.kept.keep(number, index, values)
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
            store = run_clean(self.task.model, tokens, list(wanted), mask=mask, first=first, share=self.task.skip == "all").store
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
        return run_clean(task.model, tokens, sites, mask=mask, first=first, share=task.skip == "all", keep=keep)

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
        changed = [] if nothing else run_chunk(self.task.model, self.clean, self.rules, cells, self.task.between)
        return self.measure.of_cells(cells, changed)

    def _alone(self, cell: Cell) -> Tensor:
        """A cell in a batch of its own, at full length, from the layer of its first edit."""
        task, model = self.task, self.task.model
        whole = task.skip == "layers" or isinstance(self.measure, Opaque)
        whole = whole or any(bound.site.startswith("ln_final.") for bound in cell.bounds)
        with model.hooks(hooks_of(cell.bounds, self.clean, self.clean.first, self.clean.first + self.clean.batch)):
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


def keeping_of(task: Sweep, plan: Schedule, number: int) -> Keeping:
    """Where the clean run of a batch is kept."""
    cfg, (first, last) = task.model.cfg, plan.batches[number]
    running = max((last - first) * sum(task.length - cell.start for cell in chunk) for chunk in plan.chunks[number])
    sites = len(kept_sites(task.model, plan.cells))
    tokens = (last - first) * task.length
    return where_kept(cfg, tokens, sites, running * bytes_per_token(cfg), task.memory, task.tokens.device)


def _work(task: Sweep, chunk: Sequence[Cell], first: int, last: int) -> float:
    """How much a chunk costs, roughly: tokens times layers."""
    layers = task.model.cfg.n_layers
    return float(sum((last - first) * (task.length - cell.start) * (layers - cell.layer + 0.5) for cell in chunk))


# Cells on their own.


def hooks_of(bounds: Sequence[Bound], clean: Clean | None, first: int, last: int) -> list[tuple[str, Any]]:
    """Hooks that make these edits in a run of the examples `first` to `last` at full length."""

    def hook_of(bound: Bound) -> Any:
        def edit(x: Tensor, hook: Any) -> Tensor:
            kept = None if clean is None else clean.store.get(bound.site)
            return bound.applied(x, kept)

        edit.order = bound.change.order  # type: ignore[attr-defined]
        return edit

    local = [bound.local(first, last) for bound in bounds]
    return [(bound.site, hook_of(bound)) for bound in local if bound is not None]


def run_plain(task: Sweep, cell: Cell | None, clean: Clean | None, first: int, last: int) -> Tensor:
    """Logits of a full forward pass of some examples with a cell's edits attached: what sweeps are held to."""
    model = task.model
    tokens, mask = task.rows(first, last)
    with model.hooks(hooks_of(cell.bounds, clean, first, last) if cell is not None else []):
        model.runs += 1
        return model.logits_of(plain_pass(model, tokens, mask))


def plain_values(task: Sweep, cell: Cell, first: int, last: int) -> tuple[Tensor, float]:
    """A cell's values for some examples by a full forward pass, `[batch]`, `[batch, pos]`, or `[]`; and its largest logit."""
    metric = task.metric
    tokens, mask = task.rows(first, last)
    sites = kept_sites(task.model, [Cell(cell.number, cell.bounds, cell.layer, 0, "alone")])
    clean = run_clean(task.model, tokens, sites, mask=mask, first=first) if sites else None
    logits = run_plain(task, cell, clean, first, last)
    if not isinstance(metric, Metric):
        return metric(logits), 0.0
    clean_logits = run_plain(task, None, None, first, last) if metric.compares else None
    return by_plain(task, logits, clean_logits, first), float(logits.abs().max())


def by_plain(task: Sweep, logits: Tensor, clean: Tensor | None, first: int) -> Tensor:
    """A metric from whole logits of some examples, without any shortening."""
    metric = task.metric
    assert isinstance(metric, Metric)
    return metric.of_examples(logits, metric.wanted(task.batch, task.length)[first : first + len(logits)], clean, first)
