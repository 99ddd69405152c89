"""The command line: each command asks one thing of the rooms below and prints the answer.

Commands import what they need when they run, so that `cutaway --help` is quick. Whatever goes wrong on purpose
(`CutawayError`), or with a file, ends in one sentence on stderr and exit code 2; an interrupt ends with 130.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cutaway.commands import (
    circuits,
    collecting,
    console,
    explaining,
    interrupts,
    learning,
    many,
    questions,
    reporting,
    scripts,
    shared,
    steering,
    sweeps,
    texts,
)
from cutaway.commands.opening import open_model
from cutaway.commands.progress import tell
from cutaway.errors import CutawayError, near_names, nearest
from cutaway.runs.bars import TELL

TASKS = (
    "Which task: first-unique-char, palindromes, sorted-list, sum-of-two, cumulative-sum, modular-addition, balanced-brackets, "
    "or attn-only-2l, which reads text."
)
DIFFERENT, FAILED, INTERRUPTED = 1, 2, 130


def complain(message: str) -> None:
    """One line on stderr."""
    console.echo(message, err=True)


UsageError: Any = typer.BadParameter.__base__  # Click's, or that of the Click inside Typer


def add_hint(error: Any) -> None:
    """Of options that are alike keep the nearest; say how a text is given to a command that takes none as an argument."""
    if getattr(error, "possibilities", None):
        error.possibilities = near_names(error.option_name, error.possibilities)
    words = error.message.partition("unexpected extra argument(s) (")[2].removesuffix(")")
    if words and error.ctx is not None and any("--text" in one.opts for one in error.ctx.command.params):
        error.message += f"; a text is given with --text: --text {shlex.quote(words)}"


class Commands(TyperGroup):
    """The group of all commands: turns errors into sentences, and keeps the words for pages that say how they were made."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        shared.WORDS.set(("cutaway", *args))
        TELL.set(tell)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except UsageError as error:  # Typer would name every command that is a little alike
            if args[0] not in self.commands:
                error.message = f"no command called {args[0]!r}{nearest(args[0], self.commands)}"
            raise

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            add_hint(error)
            raise
        except CutawayError as error:
            complain(f"cutaway: {error}")
            raise typer.Exit(FAILED) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            complain(f"cutaway: {error.filename or 'a file'}: {error.strerror or error}")
            raise typer.Exit(FAILED) from None
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            complain("cutaway: out of memory; take fewer or shorter texts, a smaller model, or --memory where the command has it")
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt as error:
            complain(f"interrupted{f': {error}' if error.args else ''}")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
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

        console.echo(f"cutaway {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """What all commands share."""


@app.command()
def about(as_json: shared.Json = False) -> None:
    """This machine: processor, threads, versions, and which kernels multiply here, with their measured rates."""
    from cutaway.commands.machine import about

    about(as_json=as_json)


@app.command()
def train(
    task: Annotated[str, typer.Argument(help=TASKS)],
    out: Annotated[Path, typer.Option(help="Folder for the model, its card and the state of the training.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="How many epochs. By default the task's own.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the weights and the data. By default 42.")] = None,
    device: Device = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences in a batch. By default the task's own.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Batches in an epoch. By default the task's own.")] = None,
    lr: Annotated[float | None, typer.Option(min=1e-9, help="Largest learning rate. By default the task's own.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Text file, for tasks of language; may be repeated.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted training in OUT, or begin where there is none.")
    ] = False,
) -> None:
    """Train a small model on a task, keep the best epoch, and write a card that says how to do it again.

    Interrupt it at any moment and continue with --resume: the weights come out the same.
    """
    from rich.console import Console

    from cutaway import tasks
    from cutaway.tasks import progress, training

    chosen = tasks.find(task, text=text or [])
    given: dict[str, Any] = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
    shown = Console(highlight=False, soft_wrap=True)
    with progress.shown(shown) as watch:
        done = training.train(chosen, out, **given, device=device, resume=resume, watch=watch)
    best = done.best
    shown.print(f"best: epoch {best.number}, loss {best.loss:.4f}, accuracy {best.accuracy:.4f} → {done.folder / training.MODEL}")


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="An id or a short name of the Hugging Face hub, a folder, or a GGUF file.")],
    text: Annotated[str | None, typer.Option(help="What both read. By default a few sentences.")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="How many times the float32 error of transformers, against its float64, ours may be.")
    ] = 2.0,
    device: shared.Device = "cpu",
    as_json: shared.Json = False,
) -> None:
    """Compare our numbers with those of transformers, layer by layer; exit code 1 where they differ."""
    import json

    from cutaway import verification

    result = verification.verify(model, text=text or verification.TEXT, tolerance=tolerance, device=device)
    console.echo(json.dumps(result.to_json(), indent=2) if as_json else result.summary())
    if not result.passed:
        raise typer.Exit(DIFFERENT)


@app.command()
def models(
    word: Annotated[str | None, typer.Argument(help="Only short names with this in them, such as pythia.")] = None,
    all_rows: Annotated[bool, typer.Option("--all", help="Print all short names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what can be loaded: families, bundled models, models on this machine, and short names of the Hugging Face hub."""
    import json

    from cutaway.verification import known_models

    known = known_models()
    if as_json:
        console.echo(json.dumps(known, indent=2))
        return
    if word is None:
        console.echo("Families (any model of these, from the hub, a folder or a live object):")
        for family in known["families"]:
            console.echo(f"  {family['name']:<14} {', '.join(family['examples'])}")
        console.echo(f"\nBundled: {', '.join(known['bundled'])}")
        here = [f"{one['name']} ({one['where']})" for one in known["on_this_machine"]]
        console.echo(f"On this machine: {', '.join(here) or 'no others'}\n")
    found = {name: repo for name, repo in known["aliases"].items() if word is None or word.lower() in f"{name} {repo}".lower()}
    shown = len(found) if all_rows or word is not None else 8
    console.echo("Short names:" if found else f"No short name has {word!r} in it; an id of the hub works, too.")
    for name, repo in sorted(found.items(), key=lambda pair: "/" in pair[0])[:shown]:
        console.echo(f"  {name:<28} {repo}")
    if len(found) > shown:
        console.echo(f"  {len(found) - shown} more; --all prints them, `cutaway models pythia` those with pythia in them")
    if word is None:
        names = ", ".join(list(known["unsupported"])[:4])
        console.echo(f"Known and not supported, since they are no language models of this kind: {names}, …")


for name, command in texts.COMMANDS.items():
    app.command(name)(command)
for question in (
    *questions.COMMANDS,
    *sweeps.COMMANDS,
    *collecting.COMMANDS,
    *many.COMMANDS,
    steering.steer,
    reporting.report,
    explaining.explain,
    learning.notebook,
):
    app.command()(question)
app.command(context_settings={"ignore_unknown_options": True})(scripts.run)
app.add_typer(scripts.stand_in, name="stand-in")
for name, group in {**learning.GROUPS, **circuits.GROUPS, **collecting.GROUPS}.items():
    app.add_typer(group, name=name)

app.command("open")(open_model)
interrupts.said_by_all(app)


def main() -> None:
    """The entry point `cutaway`."""
    console.show_warnings()
    console.show_messages()
    try:
        app()
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
