"""The command `cutaway across`: one question to many models, checkpoints and behaviours; answers are kept by what they are."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.commands import choices, console
from cutaway.commands.progress import bar
from cutaway.commands.prompt_options import FirstToken
from cutaway.commands.shared import Device, Json, Replace, located
from cutaway.errors import ConfigError, UnknownName, nearest

QUESTIONS = {
    "patch": "analysis.patching:patch", "ablate": "analysis.ablation:ablate", "heads": "analysis.ablation:ablate_heads",
    "edges": "circuits.effects:edge_effects", "circuit": "circuits.finding:circuit_for", "report": "report.reporting:make",
}  # fmt: skip


def across(
    question: Annotated[str, typer.Argument(help="What to ask: patch, ablate, heads, edges, circuit or report.")],
    models: Annotated[list[str], typer.Argument(help="Names, files or folders of models; NAME@STEP is a checkpoint.")],
    results: Annotated[Path, typer.Option(help="A folder of answers by what they are: what is there is not computed again.")],
    behaviour: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompts of a behaviour: ioi, greater-than, …; several by commas, or repeated.",
            callback=choices.names(choices.known_behaviour),
        ),
    ] = None,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(help="JSON lines of pairs: clean, corrupted, answer, wrong.", callback=choices.prompts_file),
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="How many prompts of a behaviour.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts.")] = 0,
    allow_first_token: FirstToken = False,
    rows: Annotated[int | None, typer.Option(min=1, help="Take prompts in parts of so many, each kept by itself.")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", help="Of the question: NAME=JSON, such as size=20.")] = None,
    executor: Annotated[
        str,
        typer.Option(help="Where to compute: local, processes:N, ray, ray:ADDRESS, or ranks.", callback=choices.executor),
    ] = "local",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each worker.")] = 1,
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(help="Of reports: a folder for report.html and report.json of each.")] = None,
    replace: Replace = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would cost and what is kept; try few prompts.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Ask many models about many behaviours; the same command again goes on, and a wider one computes what is new.

    A report is asked question by question, so that they are computed side by side.
    """
    from cutaway import many
    from cutaway.many.job import function_of
    from cutaway.report.questions import QUESTIONS as REPORTED

    if question not in QUESTIONS:
        raise UnknownName(f"no question called {question!r}{nearest(question, QUESTIONS)}; there are {', '.join(QUESTIONS)}")
    if not behaviour and not pairs:
        raise ConfigError("say what to ask about: --behaviour NAME or --pairs FILE; both may be repeated")
    if out is not None and question != "report":
        raise ConfigError(f"--out is for reports; answers of {question} are in {results}, and --json prints them")
    options = _options(option or [])
    sets: dict[str, Any] = {name: name for name in behaviour or []} | {str(path): path for path in pairs or []}
    each = None
    if question == "report":
        options.setdefault("anyway", True)
        questions = options.pop("questions", list(REPORTED))
        each = {name: {"questions": [name]} for name in questions}
    function = function_of(f"cutaway.{QUESTIONS[question]}")
    named = {name: located(name) for name in models}
    options |= {
        "results": results, "executor": executor, "each": each, "count": count, "seed": seed, "rows": rows, "device": device,
        "threads": threads, "allow_first_token": allow_first_token,
    }  # fmt: skip
    say = partial(console.echo, err=True)
    if plan:
        with bar("measuring") as progress:
            counted = many.plan(function, named, sets, progress=progress, say=say, **options)
        console.echo(json.dumps(counted.to_json(), indent=2) if as_json else counted.summary())
        return
    with bar("answering") as progress:
        found = many.across(function, named, sets, progress=progress, say=say, **options)
    written = [] if question != "report" else _reports(found, out, replace)
    console.echo(json.dumps(found.to_json(), indent=2) if as_json else "\n".join([found.summary(), *written]))


def _options(given: list[str]) -> dict[str, Any]:
    """The question's own options.

    Raises:
        ConfigError: one is not NAME=JSON.
    """
    found: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        try:
            found[name.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            equals = ""
        if not equals or not name.isidentifier():
            raise ConfigError(f"--option {one!r} is not NAME=JSON, such as target=0.8, method='\"greedy\"' or kinds='[\"z\"]'")
    return found


def _reports(found: Any, out: Path | None, replace: bool) -> list[str]:
    """Reports of all questions, one for each model and set of prompts; which files were written."""
    from cutaway.report import joined

    wholes: dict[tuple[str, str], list[Any]] = {}
    for (model, prompts, _), one in found.answers.items():
        wholes.setdefault((model, prompts), []).append(one)
    if out is None:
        return []
    written: list[str] = []
    for (model, prompts), parts in wholes.items():
        place = out / f"{Path(model).stem}-{Path(prompts).stem}".replace("/", "-")
        written += map(str, joined(parts).save(place, replace=replace))
    return written


COMMANDS = (across,)
