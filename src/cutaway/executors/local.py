"""The executor of one process: this one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from cutaway.errors import CutawayError
from cutaway.executors.driving import FATAL, Done, Job, SetAside, failed

EXPECTED = (CutawayError, RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError, OSError)
"""What a chunk may fail with without stopping the others."""


@dataclass(frozen=True)
class Local:
    """Chunk after chunk in this process."""

    leader: ClassVar[bool] = True
    travels: ClassVar[bool] = False
    workers: ClassVar[int] = 1

    def __str__(self) -> str:
        return "this process"

    def run(self, job: Job, units: Iterable[Any], done: Done) -> list[SetAside]:
        """See `Executor.run`."""
        return run_here(job, units, done)


def run_here(job: Job, units: Iterable[Any], done: Done) -> list[SetAside]:
    """Run units one after the other, each up to three times."""
    compute = None
    tries: Counter[int] = Counter()
    aside: list[SetAside] = []
    for unit in units:
        waiting = deque([unit])
        while waiting:
            one = waiting.popleft()
            if compute is None:  # loaded with the first chunk: where nothing is left to do, nothing is loaded
                compute = job.start()
            try:
                receipt = compute(one)
            except FATAL:
                raise
            except EXPECTED as error:
                failed(one, error, tries, waiting, aside)
            else:
                done(one, receipt)
    return aside
