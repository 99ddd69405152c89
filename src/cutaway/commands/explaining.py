"""The command `cutaway explain`: a trained model as a program, tested inside the model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.commands import console
from cutaway.commands.prompt_options import SHARED, Request, shared_options
from cutaway.commands.shared import REPLACE, facts
from cutaway.errors import ExplainError

READ_OUTS = ("most-likely", "above")


@shared_options(without=("text", *(SHARED.keys() - {"behaviour", "count", "allow_first_token"}), "top", "all_rows"))
def explain(
    request: Request,
    out: Annotated[Path, typer.Option(help="Folder for program.py, explanation.json and explanation.html.")],
    examples: Annotated[
        Path | None, typer.Option(help='JSON lines: {"tokens": […], "answers": {position: token or [tokens]}}.')
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Examples to test on. By default a quarter of the others.")] = None,
    enumerate_all: Annotated[
        bool, typer.Option("--enumerate", help="Test on all inputs of the examples' form, at most 200,000.")
    ] = False,
    read_out: Annotated[
        str | None, typer.Option(help="most-likely: one token; above: all with a logit above 0. By default as the answers are.")
    ] = None,
    count: Annotated[int, typer.Option(min=20, help="How many examples of the behaviour.")] = 2000,
) -> None:
    """Say how a small trained model computes its answers, as a program that is tested against the model.

    Examples come from a file, or are drawn from a behaviour. Prints the verdict with its scores, and writes the program (it runs
    alone), the evidence, and a page.
    """
    from cutaway import explain as room
    from cutaway.explain.ranging import enumerated
    from cutaway.explain.subject import check_size
    from cutaway.prompts import Prompts
    from cutaway.weights.canonical import shapes
    from cutaway.writing import check_folder, write

    if read_out is not None and read_out not in READ_OUTS:
        raise ExplainError(f"--read-out {read_out!r} is not known; there are {' and '.join(READ_OUTS)}")
    if (examples is None) == (request.behaviour is None):
        raise ExplainError("explain needs examples: give either --examples FILE or --behaviour NAME")
    if request.options["model"] is None:  # the usual one is too large
        raise ExplainError("explain needs a model; name one, such as first-unique-char, a small bundled one, or give a file")
    check_folder(out, room.FILES, replace=request.replace, option=REPLACE)
    request.look = lambda cfg: check_size(sum(math.prod(shape) for shape in shapes(cfg).values()), cfg.d_vocab)
    request.rewrites["center_unembed"] = False  # which shifts logits, and a threshold would read others
    network, seed = request.network, request.seed
    request.options["count"] = count
    first = {"allow_first_token": request.allow_first_token}
    given = request.behaviour_prompts() if examples is None else Prompts.read(examples, network.tokenizer, **first)
    unseen = None if test is None else Prompts.read(test, network.tokenizer, **first)
    if enumerate_all:
        unseen = enumerated(given)
        if unseen is None:
            raise ExplainError("--enumerate needs examples of one length and at most 200,000 inputs of their form; leave it out")
    several = None if read_out is None else read_out == "above"
    with status(request.as_json) as say:
        found = room.explain(network, given, unseen, name=Path(request.model).name, seed=seed, several=several, progress=say)
    page_facts = facts(network, given)
    written = room.save(found, out, page_facts, replace=True)
    if request.html is not None:
        write(request.html, room.html(found, page_facts))
    if request.as_json:
        console.echo(json.dumps(room.numbers(found), indent=2, ensure_ascii=False))
    else:
        console.echo(room.summary(found) + "\n\n" + "\n".join(map(str, written)))


def status(quiet: bool) -> Any:
    """What is being done, on stderr, where that is a terminal."""
    from contextlib import contextmanager

    from rich.console import Console

    @contextmanager
    def shown() -> Any:
        shown_on = Console(stderr=True)
        if quiet or not shown_on.is_terminal:
            yield lambda what: None
            return
        with shown_on.status("reading") as line:
            yield line.update

    return shown()
