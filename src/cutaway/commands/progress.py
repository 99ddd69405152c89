"""How far a long command is, on stderr: a bar on a terminal, else a line after half a minute, one minute, two, four ….

What was finished before is no part of it: a resumed command goes from nothing to all of what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cutaway.commands import console
from cutaway.runs.bars import Lines, duration

Step = Callable[[float, float], None]
MORE = 4 / 3  # what a sweep takes, beside the matrix products that its plan counts
LONG = 60.0  # seconds from which on a command says beforehand how long it takes


def tell(line: str) -> None:
    """A line of progress."""
    console.echo(line, err=True)


@contextmanager
def bar(what: str) -> Iterator[Step]:
    """Something to call with (work done, all work)."""
    from rich.console import Console
    from rich.progress import Progress

    stderr = Console(stderr=True)
    if not stderr.is_terminal:
        yield Lines(what, tell)
        return
    with Progress(console=stderr, transient=True) as shown:
        task = shown.add_task(what, total=1.0)
        yield lambda done, total: shown.update(task, completed=done / total if total else 1.0)


def say_cost(fewer: str, what: str = "cells") -> Callable[[int, int, float], None]:
    """Something that says on stderr what a sweep has left to do, and, of a long one, the time and how to have less of it."""

    def say(cells: int, finished: int, seconds: float) -> None:
        left, takes = cells - finished, MORE * seconds
        said = [f"{finished:,} of {cells:,} {what} finished before, {left:,} left"] if finished else []
        if takes >= LONG and left:
            said += [] if finished else [f"{cells:,} {what}"]
            said.append(f"about {duration(takes)} on this machine; {fewer} make it shorter")
        if said:
            tell(", ".join(said))

    return say
