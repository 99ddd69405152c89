"""The executor of several processes on this machine, each a pool of one from `concurrent.futures`.

A pool of one means that a worker that is killed has one chunk to suspect and takes no other worker with it. Workers end
when their parent does, however it ends: a thread in each waits for that.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from cutaway.errors import ConfigError
from cutaway.executors.driving import Died, Done, Job, SetAside, drive


@dataclass(frozen=True)
class Processes:
    """`count` processes on this machine, each of which loads the model once.

    Raises:
        ConfigError: fewer than one.
    """

    count: int
    leader: ClassVar[bool] = True
    travels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"processes({self.count}): there must be one at least")

    @property
    def workers(self) -> int:
        """As many as there are processes."""
        return self.count

    def __str__(self) -> str:
        return f"{self.count} process{'es' * (self.count != 1)} on this machine"

    def run(self, job: Job, units: Iterable[Any], done: Done) -> list[SetAside]:
        """See `Executor.run`."""
        return drive(_Pools(job), self.count, units, done)


@dataclass(eq=False)
class _Lane:
    pool: ProcessPoolExecutor
    pid: int | None = None


class _Pools:
    def __init__(self, job: Job):
        self.job = job

    def open(self) -> _Lane:
        context = multiprocessing.get_context("spawn")  # a fork of a process with Torch's threads may hang
        return _Lane(ProcessPoolExecutor(1, mp_context=context, initializer=_follow_parent))

    def submit(self, lane: _Lane, unit: Any) -> Future[Any]:
        try:
            return lane.pool.submit(_work, self.job, unit)
        except BrokenProcessPool as error:  # killed between two chunks
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def wait(self, tickets: list[Future[Any]]) -> list[Future[Any]]:
        return list(wait(tickets, return_when=FIRST_COMPLETED).done)

    def outcome(self, ticket: Future[Any]) -> tuple[Any, BaseException | None]:
        error = ticket.exception()
        if isinstance(error, BrokenProcessPool):
            return None, Died("its worker was killed, or ran out of memory")
        return (None, error) if error is not None else (ticket.result(), None)

    def close(self, lane: _Lane) -> None:
        """Kill the worker: a chunk that it is in would be thrown away, and files appear whole or not at all."""
        for process in list((lane.pool._processes or {}).values()):
            with suppress(OSError):
                process.kill()
        lane.pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """End when the parent does; leave interrupts of the keyboard to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


@cache
def _started(job: Any) -> Callable[[Any], Any]:
    return job.start()


def _work(job: Any, unit: Any) -> Any:
    return _started(job)(unit)
