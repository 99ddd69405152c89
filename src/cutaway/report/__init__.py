"""Reports: a trained model goes in; what it does and how comes out, as one page, as numbers and as a few lines.

A report on a task is a list of sections, each a function from a study (the model and its runs) to a `Part`.
`REPORTS` names them; what they share is in `parts`, and what is about one task is in that task's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from cutaway import tasks
from cutaway.errors import ConfigError, UnknownTask, nearest
from cutaway.report.parts import HTML, JSON, LettersReport, Part

__all__ = ["HTML", "JSON", "REPORTS", "LettersReport", "Part", "make"]

REPORTS = {"first-unique-char": "cutaway.report.first_unique_char"}
"""Task → the module whose `report(checkpoint, size, seed, watch)` makes its report."""

LARGEST = 20_000  # sequences: beyond that, activations of all of them no longer fit a small machine

Watch = Callable[[str, int, int], None]
"""Told what is being worked on, how many sections are done, and of how many."""


def _silent(doing: str, done: int, of: int) -> None:
    pass


def make(
    task: str,
    *,
    checkpoint: str | Path | None = None,
    size: int = 1000,
    seed: int = 42,
    watch: Watch = _silent,
) -> LettersReport:
    """The report on a model of a task.

    Args:
        task: its name; `REPORTS` has them.
        checkpoint: a file of weights, `.pt` or `.safetensors`; the bundled model without.
        size, seed: how many sequences are drawn to run on, and from which seed.

    Raises:
        UnknownTask: there is no report on this task; says on which there is.
        ConfigError: `size` is not between 2 and 20,000, or the model is of another shape than the report reads.
        CheckpointError, WeightsMismatch: the file is missing, damaged, unsafe or holds other weights.
    """
    if task not in REPORTS:
        kind = "report on the task" if task in tasks.names() else "task called"
        raise UnknownTask(f"there is no {kind} {task!r}{nearest(task, REPORTS)}; there are reports on {', '.join(REPORTS)}")
    if not 2 <= size <= LARGEST:  # of one sequence, the mean over sequences is that sequence
        raise ConfigError(f"size={size} must be between 2 and {LARGEST:,} sequences")
    if seed < 0:
        raise ConfigError(f"seed={seed} must not be negative")
    found: LettersReport = import_module(REPORTS[task]).report(checkpoint, size, seed, watch)
    return found
