"""Commands for notebooks and for learning: `notebook`, `kernel install`, `exercises list | start | check`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cutaway.commands import console
from cutaway.commands.shared import REPLACE, Replace
from cutaway.errors import ConfigError

WRONG = 1  # the exit code of an answer that is not right
Folder = Annotated[Path, typer.Option(help="Where your answers and your progress are.")]
kernels = typer.Typer(no_args_is_help=True, help='The Jupyter kernel "Python (cutaway)".')
exercises = typer.Typer(no_args_is_help=True, help="Exercises: write a function, have it checked.")
GROUPS = {"kernel": kernels, "exercises": exercises}


def notebook(
    file: Annotated[Path, typer.Argument(help="The notebook, .ipynb.")],
    out: Annotated[Path | None, typer.Option(help="Where to write it with its outputs. By default FILE.run.ipynb.")] = None,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Go on after a cell that failed.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds that a cell may take. By default any time.")] = None,
    replace: Replace = False,
) -> None:
    """Run a notebook in which `transformer_lens` and `circuitsvis` are cutaway, and keep its outputs.

    Stops at the first cell that fails and says why. An interrupt keeps the outputs so far.
    """
    from cutaway import notebooks

    def say(cell: notebooks.NotebookCell) -> None:
        mark = "failed" if cell.problem else f"{cell.seconds:6.1f} s"
        console.echo(f"[{cell.number}/{cell.of}] {mark}  {cell.first_line[:90]}")

    ran = notebooks.run(file, out, keep_going=keep_going, timeout=timeout, watch=say, replace=replace, option=REPLACE)
    if ran.failed:
        raise notebooks.NotebookError(ran.summary())
    console.echo(ran.summary())


@kernels.command("install")
def install_kernel(
    prefix: Annotated[Path | None, typer.Option(help="Install under this prefix instead of for the user.")] = None,
    sys_prefix: Annotated[bool, typer.Option("--sys-prefix", help="Install into this Python's environment.")] = False,
) -> None:
    """Make Jupyter offer the kernel, in which `transformer_lens` and `circuitsvis` are cutaway."""
    from cutaway import notebooks

    if prefix is not None and sys_prefix:
        raise ConfigError("give either --prefix or --sys-prefix")
    console.echo(f"installed in {notebooks.install_kernel(prefix=Path(sys.prefix) if sys_prefix else prefix)}")


@kernels.callback()
def kernel() -> None:
    """The Jupyter kernel in which `transformer_lens` and `circuitsvis` are cutaway."""


@exercises.command("list")
def list_exercises(folder: Folder = Path(".")) -> None:
    """The exercises, and how far you are."""
    from cutaway import exercises as room

    progress = room.Progress.read(folder)
    marks = {"passed": "✓", "tried": "…", "started": "…", "": " "}
    for name in room.names():
        console.echo(f"{marks[progress.state(name)]} {name:<36} {room.find(name).title}")
    where = "" if folder == Path(".") else f" --folder {folder}"
    following = next((name for name in room.names() if progress.state(name) != "passed"), room.names()[0])
    console.echo(f"\n`cutaway exercises start {following}{where}` writes a file; when the function in it is written,")
    console.echo(f"`cutaway exercises check {following}{where}` tries it.")


@exercises.command("start")
def start_exercise(
    name: Annotated[str, typer.Argument(help="Which exercise.")],
    folder: Folder = Path("."),
    force: Annotated[bool, typer.Option("--force", "--replace", help="Begin anew: what you wrote is lost.")] = False,
) -> None:
    """Write NAME.py: the task, a function to write, a hint."""
    from cutaway import exercises as room

    path = room.start(name, folder, force=force)
    where = "" if folder == Path(".") else f" --folder {folder}"
    then = f"cutaway exercises check {name}{where}"
    console.echo(f"{path}: read it, write the function {room.find(name).function}, then `{then}`")


@exercises.command("check")
def check_exercise(
    name: Annotated[str, typer.Argument(help="Which exercise.")],
    folder: Folder = Path("."),
    file: Annotated[Path | None, typer.Option(help="Your answer. By default NAME.py in the folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the hidden networks. By default others each time.")] = None,
    time_limit: Annotated[float | None, typer.Option(min=0.1, help="Seconds for everything.")] = None,
) -> None:
    """Try your function on known and hidden models, and say what differs. Exit code 1 where something does."""
    from cutaway import exercises as room

    verdict = room.check(name, folder, file=file, seed=seed, time_limit=time_limit)
    console.echo(f"{'✓' if verdict.passed else '✗'} {verdict.name}: {verdict.message}")
    if not verdict.passed:
        raise typer.Exit(WRONG)
