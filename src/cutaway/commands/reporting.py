"""The command `cutaway report`: how well a model does a behaviour and how, as a page of evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.commands import choices, console
from cutaway.commands.prompt_options import AnswerWords, Dtype, FirstToken, PromptsFile, Request, WrongWords
from cutaway.commands.shared import REPLACE, Device, Html, Json, Record, Replace, facts
from cutaway.errors import ConfigError, PromptError

TASK = "first-unique-char"  # the first report: of a task, with a checkpoint of its own and keys that others read
READ_OUTS = ("most-likely", "above")


def report(
    model: Annotated[str, typer.Argument(help="A model: bundled, of the hub, a folder, a file; or the task first-unique-char.")],
    behaviour: Annotated[
        str | None, typer.Option(help="Prompts of a behaviour: ioi, greater-than, induction, …", callback=choices.behaviour)
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help='JSON lines: {"tokens" or "text": …, "answers": {position: token or [tokens]}}.')
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="JSON lines of pairs: clean, corrupted, answer, wrong, roles.", callback=choices.prompts_file),
    ] = None,
    prompts: PromptsFile = None,
    answer: AnswerWords = None,
    wrong: WrongWords = None,
    allow_first_token: FirstToken = False,
    questions: Annotated[
        list[str] | None,
        typer.Option(
            "--questions",
            "--question",
            help="Ask only this, such as ablation; more by commas. A wrong one lists them.",
            callback=choices.names(),
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Of the task first-unique-char: weights, .pt or .safetensors. By default bundled ones.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html and report.json. By default out/MODEL.")] = None,
    size: Annotated[
        int | None, typer.Option("--count", "--size", help="How many prompts, at most. By default 300, or 48 of a large model.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    read_out: Annotated[
        str | None, typer.Option(help="most-likely: one token; above: all with a logit above 0. By default as the answers are.")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Go on with a model at chance; nothing is claimed then.")] = False,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: Json = False,
    html: Html = None,
    replace: Replace = False,
    record: Record = None,
) -> None:
    """Say how well a model does something and how it does it, with evidence.

    Prints what was found, and writes report.html (one page that needs nothing else) and report.json (the findings). What is done
    is kept when it is interrupted.
    """
    from rich.console import Console

    from cutaway import records
    from cutaway.commands import report_progress as progress
    from cutaway.report import first_report, reporting
    from cutaway.writing import check_folder, write

    folder = check_folder(out or Path("out") / Path(model).name, reporting.FILES, replace=replace, option=REPLACE)
    made: Any
    if (answer or wrong) and prompts is None:
        raise ConfigError("--answer and --wrong belong to the texts of --prompts FILE; other prompts have answers of their own")
    request = Request("report", {
        "model": model, "prompts": prompts, "answer": answer, "wrong": wrong, "allow_first_token": allow_first_token,
        "dtype": dtype, "device": device,
    })  # fmt: skip
    if model == TASK and not (behaviour or examples or pairs or prompts or questions or dtype):
        of_task = {name: value for name, value in (("size", size), ("seed", seed)) if value is not None}
        with progress.shown(Console(stderr=True)) as watch:
            made = first_report.make(checkpoint, watch=watch, **of_task)
    else:
        if checkpoint is not None:
            raise ConfigError(f"--checkpoint is for the report on the task {TASK}; give the file or folder as the model")
        if (size is not None and size < 2) or (seed is not None and seed < 0):
            raise ConfigError(f"--size {size} must be at least 2, and --seed {seed} not negative")
        reporting.chosen(questions)  # before the model is loaded
        if record is not None:
            records.check_free(record)
        network, given = _given(request, behaviour, examples, pairs, size, seed or 0, read_out)
        with progress.kept(Console(stderr=True), folder) as callbacks:
            made = reporting.make(network, **given, name=Path(model).name, questions=questions, anyway=anyway, **callbacks)
        if record is not None and made.study.sweeps:
            records.write(record, made.study.sweeps, model)
    how = facts(made.study.model, made.study.prompts)
    written = made.save(folder, how, replace=True)
    if html is not None:
        write(html, made.html(how))
    if as_json:
        console.echo(made.json(), nl=False)
    else:
        console.echo("\n".join([made.text(), "", *map(str, written)]))


def _given(
    request: Request, name: str | None, examples: Path | None, pairs: Path | None, size: int | None, seed: int,
    read_out: str | None,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """The network, and what it is asked about: prompts, their behaviour, the words of tokens, the read-out.

    Raises:
        ConfigError: none, or several, of a behaviour, examples, pairs and texts; a read-out that there is not.
        PromptError: pairs that are none; texts without answers.
    """
    from cutaway.prompts import Prompts
    from cutaway.tasks import behaviour_names, given

    if read_out is not None and read_out not in READ_OUTS:
        raise ConfigError(f"--read-out {read_out!r} is not known; there are {' and '.join(READ_OUTS)}")
    if sum(one is not None for one in (name, examples, pairs, request.prompts_file)) > 1:
        raise ConfigError("give one of --behaviour NAME, --examples FILE, --pairs FILE and --prompts FILE")
    network, model = request.network, request.model
    file = examples or pairs or request.prompts_file
    if file is None:
        name = name or (network.cfg.model_name if network.cfg.model_name in behaviour_names() else None)
        if name is None:
            raise ConfigError(
                f"say what {Path(model).name} should be asked to do: --behaviour NAME ({', '.join(behaviour_names())}), "
                "--examples FILE, --pairs FILE or --prompts FILE with --answer"
            )
        chosen, prompts = given.of_behaviour(name, network, size, seed, prepend_bos=not request.no_bos)
        return network, {"prompts": prompts, "behaviour": chosen, "vocab": chosen.vocabulary or None, "size": size, "seed": seed}
    if request.prompts_file is not None and not request.answer:
        raise PromptError("texts of --prompts need answers: give --answer WORD, one for all or one for each (and --wrong)")
    prompts = (
        request.given_prompts
        if request.prompts_file
        else Prompts.read(file, network, allow_first_token=request.allow_first_token)
    )
    if pairs is not None and prompts.corrupted is None:
        raise PromptError(f"{pairs} holds examples, not pairs; give it with --examples")
    above = read_out == "above" if read_out else prompts.several and not prompts.wrong
    if above:  # centring the unembedding shifts logits, and a threshold would read others
        request.rewrites["center_unembed"] = False
        del request.network  # made again
        network = request.network
    words = None if network.tokenizer is not None else given.vocabulary(Path(model), file.parent)
    same = network.cfg.d_vocab == network.cfg.d_vocab_out
    found = {"behaviour": given.Given(same), "vocab": words, "above": above, "size": size, "seed": seed}
    return network, {"prompts": given.with_pairs(prompts, seed), **found}
