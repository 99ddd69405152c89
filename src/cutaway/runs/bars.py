"""A progress bar that comes by itself: where something takes longer than two seconds, and somebody looks on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 2.0  # seconds


class DelayedBar:
    """Called with (work done, all work); shows a bar on stderr once two seconds have passed, and takes it away at the end."""

    def __init__(self, what: str, watched: bool | None = None):
        self.what, self.begun = what, time.monotonic()
        self.watched = _watched() if watched is None else watched
        self._shown: Any = None
        self._task: Any = None

    def __call__(self, done: int | float, total: int | float) -> None:
        """Move the bar."""
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
