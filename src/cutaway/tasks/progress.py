"""What the terminal shows while a task is trained: a bar with the loss, and a line for each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from cutaway.tasks.task import Recipe
from cutaway.tasks.training import Epoch, Watch

EVERY = 10  # steps between looks at the loss: each look waits for the device


@contextmanager
def shown(console: Console) -> Iterator[Watch]:
    """A watch that draws on this console; where it is no terminal, only the lines of the epochs appear."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    row = bar.add_task("training", total=None, loss="…", accuracy="…")
    total = 0
    passed = 0

    def begin(recipe: Recipe, done: int) -> None:
        nonlocal total, passed
        total, passed = recipe.epochs, done * recipe.steps
        bar.update(row, total=recipe.epochs * recipe.steps, completed=passed, description=f"epoch {done + 1}/{total}")
        if done:
            finished = f"all {total} epochs are" if total > 1 else "the one epoch is"
            console.print(f"resuming after epoch {done} of {total}" if done < total else f"{finished} done already")

    def step(number: int, loss: Tensor) -> None:
        nonlocal passed
        passed += 1
        if number % EVERY == 0:
            bar.update(row, completed=passed, loss=f"{float(loss):.4f}")

    def epoch(what: Epoch, best: bool) -> None:
        bar.update(
            row, completed=passed, description=f"epoch {min(what.number + 1, total)}/{total}", accuracy=f"{what.accuracy:.4f}"
        )
        console.print(
            f"epoch {what.number:>3}/{total}  training loss {what.training_loss:.4f}  "
            f"validation loss {what.loss:.4f}  accuracy {what.accuracy:.4f}{'  best' if best else ''}"
        )

    with bar:
        yield Watch(begin=begin, step=step, epoch=epoch)
