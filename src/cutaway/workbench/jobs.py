"""Work in threads: one that looks, one that answers what takes longer. What is out of date is dropped, and looking goes first.

A job is a function of `between`, which it calls between layers. `between` raises `Dropped` where the job was stopped or a newer
one of its kind waits. In the thread of long answers it also waits while somebody looks, so that a click does not share the
processor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cutaway.errors import CutawayError

Job = Callable[[Callable[[], None]], None]
Fail = Callable[[str], None]


class Dropped(CutawayError):
    """Nobody waits for this job any more."""


class Lane:
    """A thread that runs the newest job it was given."""

    def __init__(self, name: str, fail: Fail, wait: Callable[[], None] = lambda: None):
        self.fail, self.wait = fail, wait
        self._wakes = threading.Condition()
        self._next: Job | None = None
        self._number, self._ended = 0, False
        self.idle = threading.Event()
        self.idle.set()
        self.name = name
        self.thread = self._started()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name=f"cutaway-{self.name}", daemon=True)
        thread.start()
        return thread

    def submit(self, job: Job) -> None:
        """Run this job next, and drop the one under way. A thread that an unexpected error has ended is started again."""
        with self._wakes:
            if not self.thread.is_alive():
                self.thread = self._started()
            self._next, self._number = job, self._number + 1
            self.idle.clear()
            self._wakes.notify()

    def stop(self) -> None:
        """Drop whatever runs or waits."""
        with self._wakes:
            self._next, self._number = None, self._number + 1

    def end(self) -> None:
        """Drop everything and end the thread."""
        with self._wakes:
            self._next, self._number, self._ended = None, self._number + 1, True
            self._wakes.notify()
        self.thread.join(30)

    def _work(self) -> None:
        while True:
            with self._wakes:
                while self._next is None and not self._ended:
                    self.idle.set()
                    self._wakes.wait()
                if self._ended:
                    self.idle.set()
                    return
                job, number, self._next = self._next, self._number, None
            assert job is not None
            self._run(job, number)

    def _run(self, job: Job, number: int) -> None:
        def between() -> None:
            self.wait()
            if number != self._number:
                raise Dropped("a newer question took its place")

        message = "this failed unexpectedly; the terminal says more"
        try:
            job(between)
            message = ""
        except Dropped:
            message = ""
        except CutawayError as error:
            message = str(error)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            message = "out of memory; take shorter prompts, fewer heads at once, or a smaller model"
        finally:
            if message:
                self.fail(message)
                self.idle.set()


class Lanes:
    """The two threads of a workbench."""

    def __init__(self, fail: Fail):
        self.look = Lane("look", fail)
        self.ask = Lane("ask", fail, wait=lambda: None if self.look.idle.is_set() else _until(self.look.idle))

    def end(self) -> None:
        """End both."""
        self.ask.stop()
        self.look.end()
        self.ask.end()


def _until(idle: threading.Event) -> None:
    idle.wait(60)
