"""Sweeps by executors: each chunk of the plan goes to a worker, which keeps its values in a folder of results."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cutaway.errors import WorkerFailed
from cutaway.executors import Executor
from cutaway.runs.kept_sweeps.by_key import Keyed, read_task
from cutaway.runs.model_source import ModelSource
from cutaway.runs.sweep.engine import BatchRun, Engine
from cutaway.runs.sweep.options import Progress
from cutaway.runs.sweep.scheduling import CLEAN

WEIGHTS = ".weights"


@dataclass(frozen=True)
class SweepChunk:
    """Some chunks of one batch of a sweep's plan, which go to one worker, as they start from one clean run."""

    number: int
    batch: int
    chunks: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its place in the plan."""
        return f"batch {self.batch}, chunks {self.chunks[0]} to {self.chunks[-1]}"

    @property
    def head(self) -> SweepChunk:
        """Itself: there is nothing large in it."""
        return self


@dataclass(frozen=True)
class SweepJob:
    """A sweep, as workers are told of it."""

    source: ModelSource
    folder: str
    name: str

    def start(self) -> Callable[[SweepChunk], int]:
        """Load the model and what is asked; see `Job`. A worker keeps the clean run of the batch that it was in last."""
        source, kept = self.source, read_task(self.folder, self.name, self.source.open())
        engine, batches = Engine(kept.task, kept), dict[int, BatchRun]()
        with source.computing():
            engine.settled()

        def compute(unit: SweepChunk) -> int:
            if unit.batch not in batches:
                batches.clear()
                batches[unit.batch] = engine.batch(unit.batch)
            for chunk in unit.chunks:
                if kept.known(unit.batch, chunk) is None:
                    with source.computing():
                        kept.keep(unit.batch, chunk, batches[unit.batch].values(chunk))
            return unit.number

        return compute


def units_of(kept: Keyed, workers: int) -> list[SweepChunk]:
    """What goes to workers: whole batches where there are twice as many as workers, else parts of them."""
    parts = -(-2 * workers // len(kept.schedule.batches))
    units: list[SweepChunk] = []
    for batch, chunks in enumerate(kept.schedule.chunks):
        every = range(CLEAN, len(chunks))
        step = -(-len(every) // parts)
        units += [SweepChunk(len(units) + n, batch, tuple(every[start : start + step]))
                  for n, start in enumerate(range(0, len(every), step))]  # fmt: skip
    return units


def fill(kept: Keyed, executor: Executor, progress: Progress | None = None) -> None:
    """Compute what a folder of results lacks of a sweep.

    Raises:
        WorkerFailed: a chunk failed three times; the others are kept.
        NotWritten, WorkerRefused: see `Executor.run`.
    """
    units = units_of(kept, executor.workers or 1)
    missing = [unit for unit in units if any(kept.known(unit.batch, chunk) is None for chunk in unit.chunks)]
    done = 0

    def note(unit: Any, receipt: Any) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(float(min(done, len(missing))), float(len(missing)))

    source = ModelSource.of(kept.task.model, threads=kept.threads)
    kept.tell()
    try:
        if executor.travels and missing:
            source = source.travelling(kept.folder / WEIGHTS)
        aside = executor.run(SweepJob(source, str(kept.folder.resolve()), kept.name), missing, note)
    finally:
        if executor.leader:
            kept.forget()
            shutil.rmtree(kept.folder / WEIGHTS, ignore_errors=True)
    if aside:
        raise WorkerFailed(
            f"{len(aside)} of {len(units)} chunks of the sweep failed three times; the others are kept in {kept.folder}: "
            + "; ".join(map(str, aside[:3]))
        )
