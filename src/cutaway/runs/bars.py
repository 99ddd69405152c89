"""A progress bar that comes by itself: where something takes longer than two seconds, and somebody looks on.

Where nobody does, commands print a line after half a minute, one minute, two, four …; `TELL` says where to.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 2.0  # seconds
FIRST = 30.0  # seconds until the first line
TELL: ContextVar[Callable[[str], None] | None] = ContextVar("where lines of progress go", default=None)


class Lines:
    """Called with (work done, all work): tells at times how far it is, and how long the rest takes at the rate until now."""

    def __init__(self, what: str, tell: Callable[[str], None]):
        self.what, self.tell, self.begun, self.next = what, tell, time.monotonic(), FIRST

    def __call__(self, done: int | float, total: int | float) -> None:
        """Tell, if it is time to."""
        passed = time.monotonic() - self.begun
        if passed < self.next or not 0 < done < total:
            return
        self.next = 2 * passed
        left = duration(passed * (total - done) / done)
        self.tell(f"{self.what}: {done / total:.0%} after {duration(passed)}, about {left} left")


class DelayedBar:
    """Called with (work done, all work); shows a bar on stderr once two seconds have passed, and takes it away at the end."""

    def __init__(self, what: str, watched: bool | None = None):
        self.what, self.begun = what, time.monotonic()
        self.watched = _watched() if watched is None else watched
        self._shown: Any = None
        self._task: Any = None
        self._lines = None if self.watched or (tell := TELL.get()) is None else Lines(what, tell)

    def __call__(self, done: int | float, total: int | float) -> None:
        """Move the bar."""
        if self._lines is not None:
            self._lines(done, total)
        if not self.watched:
            return
        if done >= total:
            self.stop()
        elif self._shown is not None:
            self._shown.update(self._task, completed=done, total=total)
        elif time.monotonic() - self.begun > PATIENCE:
            from rich.console import Console
            from rich.progress import Progress

            self._shown = Progress(console=Console(stderr=True), transient=True)
            self._task = self._shown.add_task(self.what, total=total, completed=done)
            self._shown.start()

    def stop(self) -> None:
        """Take the bar away."""
        if self._shown is not None:
            self._shown.stop()
            self._shown = None

    def __del__(self) -> None:
        self.stop()


def watched(what: str, items: Sequence[T]) -> Iterator[T]:
    """The items one by one, with a bar that moves as they are done."""
    bar = DelayedBar(what)
    try:
        for number, item in enumerate(items, start=1):
            yield item
            bar(number, len(items))
    finally:
        bar.stop()


def _watched() -> bool:
    """Whether somebody looks on: a terminal, or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or hasattr(shell, "kernel")


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
