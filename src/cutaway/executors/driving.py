"""The loop that all executors share: one chunk in each worker, a new worker for one that died, three tries for a chunk.

A worker is a lane with one chunk in it, so that when it dies there is exactly one chunk to suspect.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from cutaway.errors import ConfigError, NotWritten, WorkerRefused

TRIES = 3  # of a chunk, before it is set aside
FATAL = (ConfigError, NotWritten, WorkerRefused)  # what no second try mends
STARTS = 5  # workers that die one after another before any chunk is done, each in another chunk: then it is not the chunks


@runtime_checkable
class Job(Protocol):
    """What workers are told once. It travels by pickle, so it holds names and options rather than weights."""

    def start(self) -> Callable[[Any], Any]:
        """Load what all chunks need, once in each worker: a function from a chunk to its receipt."""
        ...


@runtime_checkable
class Unit(Protocol):
    """A chunk of a plan."""

    @property
    def name(self) -> str: ...

    @property
    def number(self) -> int: ...


@dataclass(frozen=True)
class SetAside:
    """A chunk that failed `TRIES` times, and why it failed last."""

    name: str
    number: int
    why: str

    def __str__(self) -> str:
        return f"chunk {self.number} ({self.name}): {self.why}"


Done = Callable[[Any, Any], None]


@runtime_checkable
class Executor(Protocol):
    """Runs the chunks of a job."""

    @property
    def leader(self) -> bool:
        """Whether this process writes what belongs to the whole."""
        ...

    @property
    def travels(self) -> bool:
        """Whether the job goes to other processes, which load the model themselves."""
        ...

    @property
    def workers(self) -> int | None:
        """How many compute at once; None where only the cluster knows."""
        ...

    def run(self, job: Job, units: Iterable[Any], done: Done) -> list[SetAside]:
        """Compute every unit and call `done(unit, receipt)` for each, in any order; returns those set aside.

        Raises:
            NotWritten, WorkerRefused: at once, since no other try would help; what is finished is kept.
        """
        ...


class Died(Exception):
    """A worker ended before its chunk did."""


Lane = TypeVar("Lane")
Ticket = TypeVar("Ticket")


@runtime_checkable
class Workers(Protocol, Generic[Lane, Ticket]):
    """What the loop needs of a kind of workers."""

    def open(self) -> Lane:
        """A new worker."""
        ...

    def submit(self, lane: Lane, unit: Any) -> Ticket:
        """Begin a unit."""
        ...

    def wait(self, tickets: list[Ticket]) -> list[Ticket]:
        """Block until some have ended."""
        ...

    def outcome(self, ticket: Ticket) -> tuple[Any, BaseException | None]:
        """The receipt, or what went wrong; `Died` where the worker ended."""
        ...

    def close(self, lane: Lane) -> None:
        """End a worker, whatever it does."""
        ...


def drive(workers: Workers[Lane, Ticket], count: int, units: Iterable[Any], done: Done) -> list[SetAside]:
    """Keep `count` workers busy until every unit is done or set aside."""
    source: Iterator[Any] = iter(units)
    again: deque[Any] = deque()
    tries: Counter[int] = Counter()
    aside: list[SetAside] = []
    running: dict[Ticket, tuple[Lane, Any]] = {}
    idle: list[Lane] = []
    opened, deaths = 0, 0
    try:
        while True:
            while len(running) < count:  # a worker is opened when there is work for it, and not before
                unit = again.popleft() if again else next(source, None)
                if unit is None:
                    break
                if not idle:
                    idle.append(workers.open())
                    opened += 1
                lane = idle.pop()
                running[workers.submit(lane, unit)] = lane, unit
            if not running:
                return aside
            for ticket in workers.wait(list(running)):
                lane, unit = running.pop(ticket)
                receipt, error = workers.outcome(ticket)
                if error is None:
                    deaths = 0  # counted in a row: a worker that dies now and then on a bad unit is no reason to stop
                    idle.append(lane)
                    done(unit, receipt)
                    continue
                if isinstance(error, Died):  # its lane is of no more use; after any other error it is as good as before
                    workers.close(lane)
                    deaths += 1
                else:
                    idle.append(lane)
                if isinstance(error, FATAL):  # would meet every other unit, too
                    raise error
                failed(unit, error, tries, again, aside)
                if deaths >= STARTS * count:
                    raise WorkerRefused(f"{deaths} workers in a row ended before any chunk was done; the last: {error}")
    finally:
        for lane in itertools.chain(idle, (lane for lane, _ in running.values())):
            workers.close(lane)


def failed(unit: Any, error: BaseException, tries: Counter[int], again: deque[Any], aside: list[SetAside]) -> None:
    """Another try for a unit, or none after the third."""
    tries[unit.number] += 1
    if tries[unit.number] < TRIES:
        again.append(unit)
    else:
        message = str(error).strip().split("\n")[0] or type(error).__name__
        aside.append(SetAside(unit.name, unit.number, message))
