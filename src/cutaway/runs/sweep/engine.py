"""The engine of a sweep: clean runs of as many examples as fit, then chunk after chunk of cells.

The plan of a sweep (which examples, which cells together) is settled before anything runs and is all that decides how
numbers round, so that an interrupted sweep that follows the same plan ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import OutOfMemory
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Bound, Put
from cutaway.runs.metrics import Metric
from cutaway.runs.sweep.cells import Cell, Sweep, bind, bytes_per_token, chunks, kept_sites, label_of, own_means, room_for
from cutaway.runs.sweep.clean import Clean, run_clean
from cutaway.runs.sweep.execute import Ended, run_chunk
from cutaway.runs.sweep.keeping import Keeping, where_kept
from cutaway.runs.sweep.logits import NotComputed
from cutaway.runs.sweep.measure import Measure, Opaque
from cutaway.runs.sweep.regions import Region, Rules
from cutaway.runs.values import summed_over

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
    def steps(self) -> int:
        return sum(map(len, self.chunks))


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
    """Runs a task. `values` (`[cell, …]`) and `clean` hold what is known so far."""

    def __init__(self, task: Sweep, plan: Schedule | None = None):
        self.task = task
        self.plan = schedule(task) if plan is None else plan
        self.cells = self.plan.cells  # with the means of these examples, where edits ask for them, once it has run
        self.values: Tensor | None = None
        self.clean: Tensor | None = None
        self.split = 0  # chunks that ran in smaller ones, since memory ran out

    def run(
        self,
        progress: Progress | None = None,
        known: Callable[[int, int], Tensor | None] = lambda batch, chunk: None,
        keep: Callable[[int, int, Tensor], None] = lambda batch, chunk, values: None,
    ) -> None:
        """Compute every cell.

        Args:
            progress: called with (work done, all work) after every chunk.
            known: (batch, chunk) → values from an earlier, interrupted run, or None; chunk `CLEAN` is the clean run's metric.
            keep: called with (batch, chunk, values) when a chunk is done.

        Raises:
            OutOfMemory: not even one cell of a chunk can run; what was done before was given to `keep`.
        """
        task = self.task
        self.settled()
        total = float(sum(_work(task, chunk, *rows) for rows, some in zip(self.plan.batches, self.plan.chunks, strict=True)
                          for chunk in some))  # fmt: skip
        done = 0.0
        for number, (first, last) in enumerate(self.plan.batches):
            one = self.batch(number)
            for index, chunk in enumerate([[], *self.plan.chunks[number]], CLEAN):
                values = known(number, index)
                if values is None:
                    values = one.in_parts(index)
                    keep(number, index, values)
                if index == CLEAN:
                    self._store_clean(values, first, last)
                    continue
                self._store(chunk, values, first, last)
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

    def _store_clean(self, values: Tensor, first: int, last: int) -> None:
        if self.clean is None:
            self.clean = values.new_zeros((self.task.batch, *values.shape[1:]) if values.ndim else ())
        if values.ndim:
            self.clean[first:last] = values
        else:
            self.clean = values

    def _store(self, chunk: Sequence[Cell], values: Tensor, first: int, last: int) -> None:
        count = len(self.plan.cells)
        if self.values is None:
            rest = (self.task.batch, *values.shape[2:]) if values.ndim > 1 else ()
            self.values = values.new_zeros((count, *rest))
        numbers = torch.tensor([cell.number for cell in chunk], device=values.device)
        if values.ndim > 1:
            self.values[numbers, first:last] = values
        else:
            self.values[numbers] = values


def _mean_of(parts: list[tuple[Tensor, Tensor]], whole: bool) -> Tensor:
    """A mean from sums and counts of several batches, of all examples together or of each."""
    if not whole:
        return torch.cat([total / count for total, count in parts])
    totals, counts = zip(*parts, strict=True)
    return sum(totals[1:], totals[0]) / sum(counts[1:], counts[0]).clamp(min=1)


class BatchRun:
    """Some examples of an engine. The clean run is made when the first value is asked for that needs it."""

    def __init__(self, engine: Engine, number: int):
        self.engine, self.number = engine, number
        self.one: _OneBatch | None = None

    def values(self, chunk: int) -> Tensor:
        """The metric of a chunk's cells, `[cell, …]`, or of the clean run, with `CLEAN`."""
        one = self._begun()
        return one.measure.clean_values if chunk == CLEAN else one.values_of(self._cells(chunk))

    def in_parts(self, chunk: int) -> Tensor:
        """The same; where memory runs out, by halves of the chunk, which round differently.

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
        task = self.engine.task
        label = label_of(task.cells.edits[cells[0].number])
        try:
            with memory_named(f"'{label}' ran on {self._examples}"):
                return [self._begun().values_of(cells)]
        except OutOfMemory:
            if len(cells) == 1:
                raise
        middle = len(cells) // 2
        return [*self._halved(cells[:middle]), *self._halved(cells[middle:])]

    @property
    def _examples(self) -> str:
        first, last = self.engine.plan.batches[self.number]
        return f"{last - first} example{'s' * (last - first != 1)} of {self.engine.task.length} tokens"

    def _begun(self) -> _OneBatch:
        engine = self.engine
        if self.one is None:
            keep = keeping_of(engine.task, engine.plan, self.number).how
            self.one = _OneBatch(engine.task, engine.cells, *engine.plan.batches[self.number], keep)
        return self.one

    def _cells(self, chunk: int) -> list[Cell]:
        return [self.engine.cells[cell.number] for cell in self.engine.plan.chunks[self.number][chunk]]


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


class _OneBatch:
    """A clean run of some examples and the cells that start from it."""

    def __init__(self, task: Sweep, cells: list[Cell], first: int, last: int, keep: str):
        self.task = task
        self.rules: Rules | None = None
        tokens, mask = task.rows(first, last)
        kept = kept_sites(task.model, cells)
        self.clean = run_clean(task.model, tokens, kept, mask=mask, first=first, share=task.skip == "all", keep=keep)
        self.measure: Measure | Opaque
        if isinstance(task.metric, Metric):
            wanted = task.metric.wanted(task.batch, task.length)[first:last].to(tokens.device)
            self.measure = Measure(task.model, self.clean, task.metric, wanted)
            asked = wanted.any(0).nonzero().flatten()
            self.asked = None if len(asked) == task.length else asked
        else:
            self.measure = Opaque.tried(task.model, self.clean, task.metric)
            self.asked = self.measure.asked

    def values_of(self, chunk: Sequence[Cell]) -> Tensor:
        """The metric of these cells, `[cell, …]`."""
        rows = {cell.number: row for row, cell in enumerate(chunk)}
        if chunk[0].way == "alone":
            return torch.stack([self._alone(cell) for cell in chunk])
        try:
            return self.measure.of_cells(self._ended(chunk), len(chunk), rows)
        except NotComputed:  # the function's trial did not show what it looks at
            assert isinstance(self.measure, Opaque)
            measure = Opaque(self.task.model, self.clean, self.measure.metric, self.measure.value, None)
            self.measure, self.asked = measure, None
            return measure.of_cells(self._ended(chunk), len(chunk), rows)

    def _ended(self, chunk: Sequence[Cell]) -> list[Ended]:
        if self.asked is not None and not len(self.asked):
            return []
        return run_chunk(self.task.model, self.clean, self._rules(), chunk, self.task.between)

    def _rules(self) -> Rules:
        if self.rules is None or self.rules.asked is not self.asked:
            programs = [self.task.model.program_of(layer) for layer in range(self.task.model.cfg.n_layers)]
            self.rules = Rules.of(self.task.model.cfg, self.task.length, self.asked, programs)
        return self.rules

    def _alone(self, cell: Cell) -> Tensor:
        """A cell in a batch of its own, at full length, from the layer of its first edit."""
        task, model = self.task, self.task.model
        whole = task.skip == "layers" or isinstance(self.measure, Opaque)
        whole = whole or any(bound.site.startswith("ln_final.") for bound in cell.bounds)
        with model.hooks(hooks_of(cell.bounds, self.clean, self.clean.first, self.clean.first + self.clean.batch)):
            model.runs += 1
            resid = _resumed(model, self.clean, cell.layer)
            logits = model.logits_of(resid) if whole else None
        if logits is None:
            assert isinstance(self.measure, Measure)
            every = Region.of_places(None, len(resid), torch.arange(task.length, device=resid.device), task.length)
            return self.measure.of_cells([Ended(cell, every, resid)], 1, {cell.number: 0})[0]
        if not isinstance(task.metric, Metric):
            return task.metric(logits)
        clean = model.logits_of(self.clean.resid[-1]) if task.metric.compares else None
        return by_plain(task, logits, clean, self.clean.first)


def _resumed(model: Transformer, clean: Clean, layer: int) -> Tensor:
    """The stream after the last layer, from the clean run's before this one (-1: from the tokens)."""
    if layer >= 0:
        return model.run_blocks(clean.resid[layer], clean.stream, layer)
    stream = model.prepare(clean.tokens, clean.mask)
    resid, stream = model.embed_tokens(clean.tokens, stream)
    return model.run_blocks(resid, stream)


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
        stream = model.prepare(tokens, mask)
        resid, stream = model.embed_tokens(tokens, stream)
        return model.logits_of(model.run_blocks(resid, stream))


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
