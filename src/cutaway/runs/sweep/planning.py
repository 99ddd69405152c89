"""What a sweep will cost, before it runs: floating-point operations, memory, time, and how much is saved.

Only matrix products are counted, as 2 operations per multiplication. The audit is left out.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.executors import Executor, executor_of
from cutaway.model.products import linear
from cutaway.model.steps import FIRST, FROM_KEYS, LAST, Z
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options
from cutaway.runs.grids import Cells, Edits, Grid
from cutaway.runs.kept_sweeps.by_key import Keyed
from cutaway.runs.metrics import Metric
from cutaway.runs.model_source import ModelSource
from cutaway.runs.storage import RECOMPUTE, Keeping
from cutaway.runs.sweep.baseline import random_cells
from cutaway.runs.sweep.cells import Cell, bind, kept_sites
from cutaway.runs.sweep.clean import beginning
from cutaway.runs.sweep.layouts import parts_of
from cutaway.runs.sweep.measure import KEPT, positions_read
from cutaway.runs.sweep.options import Sweep, SweepOptions, own_means, task_of
from cutaway.runs.sweep.regions import Region, Rules, Way
from cutaway.runs.sweep.scheduling import Schedule, bytes_per_token, keeping_of, schedule


@dataclass(frozen=True)
class Plan:
    """The cost of a sweep.

    Args:
        cells: how many.
        ways: how many of them join the running batch in the middle of a layer, run packed, or run alone.
        operations: floating-point operations of the sweep and its baseline, their clean runs included.
        full_operations: of a full forward pass for each cell and each random change.
        memory: bytes at the largest, about: what a clean run holds in memory, and running tokens.
        keeping: where a clean run's activations are kept, and how many bytes they have.
        batches: into how many batches the examples are split.
        chunks: how many passes over the layers there are.
        rate: operations per second of a matrix product on this machine, measured; 0: not measured.
        baseline: how many random changes run beside the cells.
        reused: how many cells are in the folder of results already, and are only read; they count no operations.
        parts: of prompts that run in groups of those that look alike, the plan of each, and the numbers of its cells.
    """

    cells: int
    ways: dict[str, int]
    operations: int | float
    full_operations: int | float
    memory: int
    batches: int
    chunks: int
    keeping: Keeping
    rate: float = 0.0
    baseline: int = 0
    reused: int = 0
    schedule: Schedule | None = field(default=None, repr=False)
    rules: Sequence[Rules] = field(default=(), repr=False)
    parts: Sequence[tuple[Plan, Sequence[int]]] = field(default=(), repr=False)

    def steps(self) -> Iterator[tuple[int, int, Cell, int, str, Region]]:
        """The plan as data: (batch, pass, cell, layer, value, region) of every value that a cell changes and somebody needs.

        Cells that run alone have no regions; those of a baseline are not listed.
        """
        before = [0, *itertools.accumulate(one.batches for one, _ in self.parts)]
        for start, (part, cells) in zip(before, self.parts, strict=False):
            for number, turn, cell, layer, name, region in part.steps():
                yield start + number, turn, replace(cell, number=cells[cell.number]), layer, name, region
        if self.parts:
            return
        assert self.schedule is not None
        for number, (rows, rules) in enumerate(zip(self.schedule.batches, self.rules, strict=True)):
            for turn, chunk in enumerate(self.schedule.chunks[number]):
                for cell in chunk:
                    way = None if cell.way == "alone" else declared_way(cell, *rows, rules)
                    for layer, regions in (way or {}).items():
                        yield from ((number, turn, cell, layer, name, region) for name, region in regions.items())

    @property
    def saved(self) -> float:
        """How many times fewer operations than full forward passes."""
        return self.full_operations / self.operations

    @property
    def seconds(self) -> float | None:
        """The least time that the operations take at the measured rate; sweeps take a fifth to a third more."""
        return self.operations / self.rate if self.rate else None

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        shown = {name: value for name, value in self.__dict__.items() if name not in ("schedule", "rules", "parts")}
        shown["keeping"] = asdict(self.keeping)
        return {**shown, "saved": self.saved, "seconds": self.seconds}

    def summary(self) -> str:
        """In words."""
        ways = ", ".join(f"{count} {way}" for way, count in self.ways.items() if count)
        random = f" and {self.baseline} random change{'s' * (self.baseline != 1)}" if self.baseline else ""
        lines = [
            f"{self.cells} cell{'s' * (self.cells != 1)} ({ways}){random} in {self.chunks} pass{'es' * (self.chunks != 1)} over "
            f"{self.batches} batch{'es' * (self.batches != 1)}",
            *([f"{self.reused} of them are there already and only read"] if self.reused else []),
            f"{self.operations:.3g} operations, {self.saved:.1f} times fewer than the {self.full_operations:.3g} of full passes",
            f"about {self.memory / 2**20:.0f} MiB beside the weights; {self.keeping}",
        ]
        if self.seconds is not None:
            lines.append(f"at least {self.seconds:.1f} s at {self.rate / 1e9:.0f} GFLOP/s, the matrix products of this machine")
        return "\n".join(lines)


@options(baseline=0, seed=0, memory=1)
def plan(
    model: Transformer,
    tokens: Any,
    edits: Grid | Edits | Cells,
    metric: Any = None,
    *,
    mask: Tensor | None = None,
    skip: str = "all",
    memory: int | str | None = None,
    baseline: int = 0,
    seed: int = 0,
    measure: bool = True,
    results: Path | str | None = None,
    executor: str | Executor | None = None,
) -> Plan:
    """Count what `sweep` with the same arguments would cost, without running anything.

    A metric that is a plain function is taken to look at all logits; the sweep finds out whether it looks at fewer.

    Args:
        measure: time a matrix product for the estimate in seconds.
        results, executor: as `sweep` takes them: cells that are in this folder are only read, and each worker has one thread.
    """
    how = SweepOptions(skip=skip, memory=memory, baseline=baseline, seed=seed)
    task = task_of(model, tokens, edits, metric, mask=mask, options=how)
    speed = 0.0 if not measure else rate(model) if results is None else _rate_of_workers(model, executor)
    if results is None and (parts := parts_of(task)):
        own = _together([(plan_of(one.task, schedule(one.task), speed), one.cells) for one in parts], task)
    else:
        settled = schedule(task)
        own = plan_of(task, settled, speed, frozenset() if results is None else Keyed(results, task).whole(settled))
    if not baseline:
        return own
    beside = _baseline_of(task)
    more = plan_of(beside, schedule(beside), speed)
    return replace(
        own, operations=own.operations + more.operations, full_operations=own.full_operations + more.full_operations,
        memory=max(own.memory, more.memory), chunks=own.chunks + more.chunks, baseline=baseline,
    )  # fmt: skip


def _together(parts: list[tuple[Plan, Sequence[int]]], task: Sweep) -> Plan:
    """The plan of a sweep that runs in groups of its rows."""
    ways: dict[int, str] = {}
    for one, cells in parts:
        ways |= {number: cell.way for number, cell in zip(cells, one.schedule.cells if one.schedule else (), strict=True)}
    largest = max((one for one, _ in parts), key=lambda one: one.memory)
    cfg = task.model.cfg
    whole = task.batch * (forward_cost(task.model, task.length) + task.length * 2 * cfg.d_model * cfg.d_vocab_out)
    return replace(
        largest, cells=len(task.cells.edits), ways={way: [*ways.values()].count(way) for way in largest.ways},
        operations=sum(one.operations for one, _ in parts), full_operations=whole * len(task.cells.edits),
        batches=sum(one.batches for one, _ in parts), chunks=sum(one.chunks for one, _ in parts),
        schedule=None, rules=(), parts=parts,
    )  # fmt: skip


def _baseline_of(task: Sweep) -> Sweep:
    """The random changes that would run beside a sweep; means over its examples, which nobody knows yet, are taken for 0."""
    means = {site: torch.zeros(()) for site in own_means(task.cells, task.model.cfg)}
    settled = bind(task, means)
    return replace(task, cells=random_cells(task.cells, settled, task.options.baseline, task.options.seed))


def plan_of(task: Sweep, settled: Schedule, speed: float, reused: Collection[int] = frozenset()) -> Plan:
    """The cost of a schedule: the sum of what its steps cost, but for cells (by number) whose values are only read."""
    costs, cells, cfg = _Costs(task, settled), settled.cells, task.model.cfg
    most = max(last - first for first, last in settled.batches)
    running = max((sum(most * (task.length - cell.start) for cell in chunk) for chunk in settled.chunks[0]), default=0)
    largest = max(range(len(settled.batches)), key=lambda number: settled.batches[number][1] - settled.batches[number][0])
    kept = keeping_of(task, settled, largest)
    memory = kept.held + running * bytes_per_token(cfg)
    ways = {way: sum(cell.way == way for cell in cells) for way in ("join", "packed", "alone")}
    whole = task.batch * (forward_cost(task.model, task.length) + task.length * costs.column)
    runs = (cell.number not in reused for _ in settled.batches for cell in cells)
    operations = costs.clean() + sum(compress(costs.cells(), runs)) + (costs.again_read() if kept.how == RECOMPUTE else 0)
    return Plan(
        len(cells), ways, operations, whole * len(cells), memory, len(settled.batches), settled.passes, kept, speed,
        reused=len(reused), schedule=settled, rules=costs.rules,
    )  # fmt: skip


def forward_cost(model: Transformer, length: int, start: int = 0, *, keys: int | None = None) -> int:
    """The layers from one on, for one example; `keys`: how many positions it sees, where that is more than it runs."""
    total = 0
    for layer in range(start, model.cfg.n_layers):
        for step in model.program_of(layer).steps:
            total += sum(step.cost) * length * ((keys or length) if FROM_KEYS in step.spread else 1)
    return total


class _Costs:
    """Operations of a schedule, as Torch counts them: every query meets every key."""

    def __init__(self, task: Sweep, settled: Schedule):
        self.task, self.settled, self.cfg = task, settled, task.model.cfg
        self.column = 2 * self.cfg.d_model * self.cfg.d_vocab_out
        self.read, self.wanted = self.column, torch.ones(task.batch, task.length, dtype=torch.bool)
        self.again = 1  # how many times logits are computed for a cell's token: twice where the clean run's are not kept
        if isinstance(task.metric, Metric):
            columns = task.metric.columns()
            self.wanted = task.metric.wanted(task.batch, task.length)
            self.read = self.column if columns is None else 2 * self.cfg.d_model * len(columns)
            width = self.cfg.d_vocab_out if columns is None else len(columns)
            most = max(int(self.wanted[first:last].sum()) for first, last in settled.batches)
            self.again += task.metric.compares and most * width > KEPT
        self.rules = [Rules.of(task.model, task.length, positions_read(self.wanted[slice(*rows)])) for rows in settled.batches]

    def clean(self) -> int:
        """Clean runs, with the logits that the metric reads; and once more, where edits take means of these examples."""
        task, read = self.task, int(self.wanted.sum()) * self.read
        compares = isinstance(task.metric, Metric) and task.metric.compares
        means = own_means(task.cells, self.cfg)
        kept = [kept_sites(task.model, self.settled.cells), *([list(means)] if means else [])]
        runs = sum(self._clean_run(*rows, sites) for rows in self.settled.batches for sites in kept)
        return runs + read * (2 if compares else 1)

    def _clean_run(self, first: int, last: int, sites: Sequence[str]) -> int:
        """One run of some examples; what they all begin with runs once."""
        task = self.task
        shared = beginning(task.model, *task.rows(first, last), sites) if task.options.skip == "all" else 0
        rest = (last - first) * forward_cost(task.model, task.length - shared, keys=task.length)
        return rest + (forward_cost(task.model, shared) if shared else 0)

    def again_read(self) -> int:
        """What attention reads of the clean run, computed again in each pass, from the first layer of its cells on."""
        total = 0
        for (first, last), passes in zip(self.settled.batches, self.settled.chunks, strict=True):
            for cell in (chunk[0] for chunk in passes if chunk[0].way != "alone"):
                for layer in range(cell.layer, self.cfg.n_layers):
                    program = self.task.model.program_of(layer)
                    steps = program.between((FIRST,), program.writer(Z).reads).steps
                    total += (last - first) * self.task.length * sum(sum(step.cost) for step in steps)
        return total

    def cells(self) -> Iterator[int]:
        """Each cell, in each batch."""
        known: dict[tuple[int, int], int] = {}
        for (first, last), rules in zip(self.settled.batches, self.rules, strict=True):
            for cell in self.settled.cells:
                if cell.way == "alone":
                    yield self._alone(cell, first, last)
                    continue
                same = cell.number, last - first
                if any(bound.chosen[0] is not None for bound in cell.bounds) or same not in known:
                    known[same] = self._cell(cell, first, last, rules)
                yield known[same] + self._metric(cell, first, last, rules)

    def _cell(self, cell: Cell, first: int, last: int, rules: Rules) -> int:
        way = declared_way(cell, first, last, rules)
        return 0 if way is None else rules.cost(way)

    def _metric(self, cell: Cell, first: int, last: int, rules: Rules) -> int:
        """The logits that the metric reads of a cell."""
        way = declared_way(cell, first, last, rules)
        if way is None:
            return 0
        region = way[self.cfg.n_layers - 1][LAST]
        rows = self.wanted[first:last] if region.examples is None else self.wanted[first:last][region.examples.cpu()]
        return int(rows[:, region.places.cpu()].sum()) * self.read * self.again

    def _alone(self, cell: Cell, first: int, last: int) -> int:
        task, rows = self.task, last - first
        layers = rows * forward_cost(task.model, task.length, min(max(cell.layer, 0), self.cfg.n_layers))
        if task.options.skip == "layers" or not isinstance(task.metric, Metric) or cell.layer == self.cfg.n_layers:
            compares = isinstance(task.metric, Metric) and task.metric.compares
            return layers + rows * task.length * self.column * (2 if compares else 1)
        return layers + int(self.wanted[first:last].sum()) * self.read * self.again


def declared_way(cell: Cell, first: int, last: int, rules: Rules) -> Way | None:
    """Where a cell goes for some examples, by what its edits declare; None: nobody reads what it changes."""
    entered = cell.declared(first, last, torch.device("cpu"), apart=rules.cfg.positional_embedding_type != "alibi")
    if len(entered) == 1 and cell.way == "join":
        (((layer, name), region),) = entered.items()
        return rules.way_from(layer, name, region)
    return rules.way_of(entered) if entered else None


def _rate_of_workers(model: Transformer, executor: str | Executor | None) -> float:
    """Of all workers that fill a folder of results; of one where only the cluster knows how many there are."""
    with ModelSource.of(model).computing():
        return rate(model) * (executor_of(executor).workers or 1)


def rate(model: Transformer, seconds: float = 0.05) -> float:
    """Operations per second of a matrix product of the network's width on its device."""
    weight = model.unembed.W_U
    width, device = model.cfg.d_model, weight.device
    x, w = (
        torch.ones(1024, width, device=device, dtype=weight.dtype),
        torch.ones(width, 4 * width, device=device, dtype=weight.dtype),
    )

    def once() -> float:
        start = time.perf_counter()
        linear(x, w)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with torch.no_grad():
        once()
        times = [once()]
        while sum(times) < seconds:
            times.append(once())
    return 2 * 1024 * width * 4 * width / min(times)
