"""Commands that change a model and run it again: ablate, patch, plan; and replay and compare for what they recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.commands import console
from cutaway.commands.shared import (
    DEFAULT,
    Device,
    File,
    Html,
    Json,
    Model,
    Record,
    Text,
    given_text,
    lines,
    load,
    one_token,
    show,
)
from cutaway.errors import ConfigError

DIFFERENT = 1  # the exit code of numbers that are not those recorded
Clean = Annotated[str, typer.Option(help="The prompt that gives the answer.")]
Corrupted = Annotated[str, typer.Option(help="The prompt that does not; of as many tokens.")]
Answer = Annotated[str, typer.Option(help="The token that the clean prompt should be followed by.")]
Wrong = Annotated[str, typer.Option(help="The token that the corrupted prompt should be followed by.")]
Seed = Annotated[int, typer.Option(help="Seed of the cells that the audit and the baseline draw.")]
Baseline = Annotated[int, typer.Option(min=0, help="Also run this many random changes of the same size, to compare with.")]
Memory = Annotated[float | None, typer.Option(min=0, help="MiB that running cells may take, beside the clean run.")]
Results = Annotated[Path | None, typer.Option(help="A folder of results by what they are: what is there is not computed again.")]
Executor = Annotated[
    str | None, typer.Option(help="Where to compute, with --results: local, processes:N, ray, ray:ADDRESS, or ranks (torchrun).")
]
Step = Callable[[float, float], None]


@contextmanager
def bar(what: str, quiet: bool) -> Iterator[Step | None]:
    """A progress bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as shown:
        task = shown.add_task(what, total=1.0)
        yield lambda done, total: shown.update(task, completed=done / total)


def ablate(
    model: Model = DEFAULT,
    text: Text = None,
    file: File = None,
    kind: Annotated[list[str] | None, typer.Option(help="zero or mean; may be repeated. By default zero.")] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="z (what a head has seen), q, k, v or pattern; may be repeated. By default z.")
    ] = None,
    answer: Annotated[str | None, typer.Option(help="Measure its log-probability at the end, in place of the loss.")] = None,
    baseline: Baseline = 0,
    memory: Memory = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
    html: Html = None,
    record: Record = None,
) -> None:
    """Replace each head's output, queries, keys or values by zero or by a mean, and say what that changes.

    The same is done to all heads of a layer at once. Measured is the loss of the text, or the log-probability of an answer
    after it. A mean is over the positions of the text.
    """
    from cutaway import records
    from cutaway.analysis.ablation import ablate_heads
    from cutaway.runs import metrics

    if record is not None:
        records.check_free(record)
    network = load(model, device)
    tokens, _ = network.tokens_and_mask(given_text(text, file, "ablate"), None, None)
    measured = None if answer is None else metrics.log_probability([one_token(network, answer, "--answer")])
    kinds, sites = kind or ["zero"], site or ["z"]
    with bar("ablating", as_json) as progress:
        found = ablate_heads(
            network, tokens, measured, kinds=kinds, sites=sites, over=("batch", "pos"), seed=seed, memory=in_bytes(memory),
            progress=progress, baseline=baseline,
        )  # fmt: skip
    rows = [
        [which, where, head, change]
        for which in kinds
        for where in sites
        for head, change in sorted(found.increases(which, where).items(), key=lambda item: -abs(item[1]))
    ]
    rows += [
        [which, where, f"all of layer {layer}", change]
        for which in kinds
        for where in sites
        for layer, change in found.layer_increases(which, where).items()
    ]
    said = lines(["kind", "of", "head", found.values.what], rows)
    if record is not None:
        records.write(record, found.sweep, model)
    numbers = {
        "model": model, "metric": found.clean.what, "clean": float(found.clean.data.nanmean()), "audit": found.audit.difference,
        "heads": {which: {where: found.increases(which, where) for where in sites} for which in kinds},
        "layers": {which: {where: found.layer_increases(which, where) for where in sites} for which in kinds},
    }  # fmt: skip
    figures = [(f"{which} ablation", found.figure(which)) for which in kinds]
    if (random := found.sweep.baseline) is not None:
        said, numbers["baseline"] = f"{said}\n{random.summary()}", random.to_json()
    show(f"{said}\n{found.audit}", numbers, figures, as_json=as_json, html=html, title=f"Ablation of {model}")


def patch(
    clean: Clean,
    corrupted: Corrupted,
    answer: Answer,
    wrong: Wrong,
    model: Model = DEFAULT,
    what: Annotated[
        list[str] | None,
        typer.Option(help="resid_pre, resid_mid, attn_out, mlp_out, z, q, k, v, pattern; may be repeated. By default the "
                          "stream, what attention and MLP add to it, and z."),
    ] = None,
    direction: Annotated[str, typer.Option(help="denoising (clean into corrupted) or noising.")] = "denoising",
    baseline: Baseline = 0,
    memory: Memory = None,
    results: Results = None,
    executor: Executor = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
    html: Html = None,
    record: Record = None,
) -> None:  # fmt: skip
    """Take one activation after another from another prompt, and say how far the answer moves."""
    from cutaway import records
    from cutaway.analysis import patching

    kinds = what or ["resid_pre", "attn_out", "mlp_out", "z"]
    if record is not None:
        records.check_free(record, kinds)
    network = load(model, device)
    metric = _difference(network, answer, wrong)
    with bar("patching", as_json) as progress:
        found = patching.patch(
            network,
            clean,
            corrupted,
            metric,
            kinds=kinds,
            direction=direction,
            seed=seed,
            memory=in_bytes(memory),
            progress=progress,
            baseline=baseline,
            results=results,
            executor=executor,
        )
    if record is not None:
        records.write(record, found.sweeps, model)
    numbers = {
        "model": model, "direction": direction, "clean": found.clean, "corrupted": found.corrupted,
        "audit": found.audit.difference, "tokens": [list(one) for one in found.tokens],
        "recovered": {kind: found.normalised(kind).to_json() for kind in found.sweeps},
    }  # fmt: skip
    if baseline:
        numbers["baseline"] = {kind: one.baseline.to_json() for kind, one in found.sweeps.items() if one.baseline is not None}
    figures = [(kind, found.figure(kind)) for kind in found.sweeps]
    show(found.summary(), numbers, figures, as_json=as_json, html=html, title=f"Patching of {model}")


def plan(
    model: Model = DEFAULT,
    text: Text = None,
    file: File = None,
    what: Annotated[str, typer.Option(help="resid_pre, attn_out, mlp_out, z, q, k, v, pattern.")] = "z",
    by_position: Annotated[bool, typer.Option("--by-position", help="Heads at every position by itself.")] = False,
    answer: Annotated[str | None, typer.Option(help="The metric reads the end only: this token …")] = None,
    wrong: Annotated[str | None, typer.Option(help="… against that one. By default the loss of the text.")] = None,
    baseline: Baseline = 0,
    memory: Memory = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Count what ablating or patching would cost, without running it."""
    from cutaway.runs import metrics
    from cutaway.runs.edits import zero
    from cutaway.runs.sweep.cells import Grid
    from cutaway.runs.sweep.planning import plan as count

    network = load(model, device)
    tokens, mask = network.tokens_and_mask(given_text(text, file, "plan"), None, None)
    if (answer is None) != (wrong is None):
        raise ConfigError("give both --answer and --wrong, or neither, for the loss of the text")
    metric: Any = metrics.loss(tokens, mask=mask)
    if answer is not None and wrong is not None:
        metric = _difference(network, answer, wrong)
    streams = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    axes = ("layer", "pos") if what in streams else ("layer", "pos", "head") if by_position else ("layer", "head")
    grid = Grid(zero(), what, axes)
    found = count(network, tokens, grid, metric, mask=mask, memory=in_bytes(memory), baseline=baseline, seed=seed)
    show(found.summary(), found.to_json(), [], as_json=as_json, html=None, title="")


def replay(
    folder: Annotated[Path, typer.Argument(help="The folder of a record, or of several.")],
    model: Annotated[str | None, typer.Option(help="Where the model is now, if not where the record says.")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Run a record again, and say how far the numbers are from those recorded; exit code 1 where they are others."""
    from cutaway import records

    done = []
    found = records.records_in(folder)
    names = {record.about["model"]["name"] if model is None else model for record in found}
    networks = {name: load(name, device) for name in names}
    for record in found:
        with bar(f"replaying {record.folder.name}", as_json) as progress:
            network = networks[record.about["model"]["name"] if model is None else model]
            done.append(records.replay(record, network, progress=progress))
    console.echo(json.dumps([one.to_json() for one in done], indent=2) if as_json else "\n".join(one.summary() for one in done))
    if not all(one.agrees for one in done):
        raise typer.Exit(DIFFERENT)


def compare(
    one: Annotated[Path, typer.Argument(help="The folder of a record.")],
    other: Annotated[Path, typer.Argument(help="The folder of another.")],
    as_json: Json = False,
) -> None:
    """Put two records beside each other, cell by cell."""
    from cutaway import records

    found = records.compare(records.read_record(one), records.read_record(other))
    console.echo(json.dumps(found.to_json(), indent=2) if as_json else found.summary())


def _difference(network: Any, answer: str, wrong: str) -> Any:
    from cutaway.runs import metrics

    return metrics.logit_difference([one_token(network, answer, "--answer")], [one_token(network, wrong, "--wrong")])


def in_bytes(mebibytes: float | None) -> int | None:
    """MiB as bytes."""
    return None if mebibytes is None else int(mebibytes * 2**20)


COMMANDS = (ablate, patch, plan, replay, compare)
