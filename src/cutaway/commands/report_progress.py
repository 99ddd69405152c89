"""How far a report is and what remains, on a terminal; what is done is written at once: an interrupt loses one question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cutaway.report.reporting import Report
from cutaway.writing import write_json


@contextmanager
def shown(console: Console) -> Iterator[Callable[[str, float, float], None]]:
    """Something to give to `make` as `watch`; the bar vanishes when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=None)

        def watch(doing: str, done: int | float, of: int | float) -> None:
            bar.update(task, description=doing, completed=done, total=of)

        yield watch


@contextmanager
def kept(console: Console, folder: Path) -> Iterator[dict[str, Any]]:
    """`watch`, `say` and `each` for `reporting.make`: report.json is written after each question, the page at an interrupt."""
    last: list[Report] = []

    def each(so_far: Report) -> None:
        last[:] = [so_far]
        write_json(folder / "report.json", so_far.json())

    try:
        with shown(console) as watch:
            yield {"watch": watch, "say": lambda line: console.print(line, highlight=False), "each": each}
    except KeyboardInterrupt:
        if last and last[0].left:
            last[0].save(folder, replace=True)
            rest = ",".join(last[0].left)
            raise KeyboardInterrupt(
                f"{len(last[0].findings)} questions are answered in {folder}; the same command with --questions {rest} and "
                "another --out asks the others"
            ) from None
        raise
