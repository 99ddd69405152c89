"""The command line: each command asks one thing of the rooms below and prints the answer.

Commands import what they need when they run, so that `cutaway --help` is quick. Whatever goes wrong on purpose
(`CutawayError`), or with a file, ends in one sentence on stderr and exit code 2; an interrupt ends with 130.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cutaway import commands
from cutaway.errors import CutawayError

DIFFERENT, FAILED, INTERRUPTED = 1, 2, 130


def complain(message: str) -> None:
    """One line on stderr."""
    typer.echo(message, err=True)


class Commands(TyperGroup):
    """The group of all commands: turns errors into sentences."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CutawayError as error:
            complain(f"cutaway: {error}")
            raise typer.Exit(FAILED) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            complain(f"cutaway: {error.filename or 'a file'}: {error.strerror or error}")
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt as error:
            complain(f"interrupted{f': {error}' if error.args else ''}")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Open transformers up: read any activation, change any activation, find out which parts did the work.",
)

# Options that several commands have.
Device = Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1 …; by default cuda where there is one.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


def _version(wanted: bool) -> bool:
    """Print the version and stop."""
    if wanted:
        from cutaway import __version__

        typer.echo(f"cutaway {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """What all commands share."""


@app.command()
def train(
    task: Annotated[str, typer.Argument(help="Which task: first-unique-char, attn-only-2l.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its card and the state of the training.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="How many epochs. By default the task's own.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the weights and the data. By default 42.")] = None,
    device: Device = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences in a batch. By default the task's own.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Batches in an epoch. By default the task's own.")] = None,
    lr: Annotated[float | None, typer.Option(min=1e-9, help="Largest learning rate. By default the task's own.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Text file, for tasks of language; may be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted training in OUT.")] = False,
) -> None:
    """Train a small model on a task, keep the best epoch, and write a card that says how to do it again.

    Interrupt it at any moment and continue with --resume: the weights come out the same.
    """
    from rich.console import Console

    from cutaway import tasks
    from cutaway.tasks import progress, training

    chosen = tasks.find(task, text=text or [])
    given: dict[str, Any] = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
    console = Console(highlight=False, soft_wrap=True)
    try:
        with progress.shown(console) as watch:
            done = training.train(chosen, out, **given, device=device, resume=resume, watch=watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("finished epochs are kept; the same command with --resume continues") from None
    best = done.best
    console.print(
        f"best: epoch {best.number}, loss {best.loss:.4f}, accuracy {best.accuracy:.4f} → {done.folder / training.MODEL}"
    )


@app.command()
def report(
    task: Annotated[str, typer.Argument(help="Which task: first-unique-char.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of a model of this task, .pt or .safetensors. By default the bundled model.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html and report.json. By default out/TASK.")] = None,
    size: Annotated[int, typer.Option(help="How many sequences to run on.")] = 1000,
    seed: Seed = 42,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the summary.")] = False,
) -> None:
    """Say how well a trained model does its task and how it does it, with evidence.

    Prints a summary, and writes report.html (one page that needs nothing else) and report.json (the numbers).
    """
    from rich.console import Console

    from cutaway import report as reports
    from cutaway.report import progress

    folder = reports.check_folder(out or Path("out") / task)
    with progress.shown(Console(stderr=True)) as watch:
        made = reports.make(task, checkpoint=checkpoint, size=size, seed=seed, watch=watch)
    html, numbers = made.save(folder)
    if as_json:
        typer.echo(made.json(), nl=False)
    else:
        typer.echo(f"{made.text()}\n\n{html}\n{numbers}")


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="An id or a short name of the Hugging Face hub, or a folder.")],
    text: Annotated[str | None, typer.Option(help="What both read. By default a few sentences.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest difference allowed, relative to the largest number.")] = 2e-5,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 …")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the summary.")] = False,
) -> None:
    """Compare our numbers with those of transformers, layer by layer; exit code 1 where they differ."""
    import json

    from cutaway import verify as verification

    result = verification.verify(model, text=text or verification.TEXT, tolerance=tolerance, device=device)
    typer.echo(json.dumps(result.to_json(), indent=2) if as_json else result.summary())
    if not result.passed:
        raise typer.Exit(DIFFERENT)


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List what can be loaded: families, bundled models, and short names of models on the Hugging Face hub."""
    import json

    from cutaway.verify import known_models

    known = known_models()
    if as_json:
        typer.echo(json.dumps(known, indent=2))
        return
    typer.echo("Families (any model of these, from the hub, a folder or a live object):")
    for family in known["families"]:
        typer.echo(f"  {family['name']:<14} {', '.join(family['examples'])}")
    typer.echo(f"\nBundled: {', '.join(known['bundled'])}")
    typer.echo("\nShort names:")
    for name, repo in known["aliases"].items():
        typer.echo(f"  {name:<28} {repo}")


@app.command()
def notebook(
    file: Annotated[Path, typer.Argument(help="The notebook, .ipynb.")],
    out: Annotated[Path | None, typer.Option(help="Where to write it with its outputs. By default FILE.run.ipynb.")] = None,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Go on after a cell that failed.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds that a cell may take. By default any time.")] = None,
) -> None:
    """Run a notebook in which `transformer_lens` and `circuitsvis` are cutaway, and keep its outputs.

    Stops at the first cell that fails and says why. An interrupt keeps the outputs so far.
    """
    from cutaway import notebooks

    def say(cell: notebooks.Cell) -> None:
        mark = "failed" if cell.problem else f"{cell.seconds:6.1f} s"
        typer.echo(f"[{cell.number}/{cell.of}] {mark}  {cell.first_line[:90]}")

    ran = notebooks.run(file, out, keep_going=keep_going, timeout=timeout, watch=say)
    if ran.failed:
        raise notebooks.NotebookError(ran.summary())
    typer.echo(ran.summary())


kernels = typer.Typer(no_args_is_help=True, help='The Jupyter kernel "Python (cutaway)".')
app.add_typer(kernels, name="kernel")


@kernels.command("install")
def install_kernel(
    prefix: Annotated[Path | None, typer.Option(help="Install under this prefix instead of for the user.")] = None,
    sys_prefix: Annotated[bool, typer.Option("--sys-prefix", help="Install into this Python's environment.")] = False,
) -> None:
    """Make Jupyter offer the kernel, in which `transformer_lens` and `circuitsvis` are cutaway."""
    from cutaway import notebooks

    typer.echo(f"installed in {notebooks.install_kernel(prefix=Path(sys.prefix) if sys_prefix else prefix)}")


@kernels.callback()
def kernel() -> None:
    """The Jupyter kernel in which `transformer_lens` and `circuitsvis` are cutaway."""


for question in commands.COMMANDS:
    app.command()(question)


def main() -> None:
    """The entry point `cutaway`."""
    try:
        app()
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
