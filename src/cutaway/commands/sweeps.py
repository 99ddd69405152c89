"""Commands that change a model and run it again: ablate, patch, paths, edges, plan; replay and compare for what they recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.commands import choices, console
from cutaway.commands.choices import SORTS, among, layers_of, names, some_among
from cutaway.commands.progress import bar, say_cost
from cutaway.commands.prompt_options import SCREEN, Layers, Positions, Request, positions_of, shared_options
from cutaway.commands.shaded import grid
from cutaway.commands.shared import Device, Json, Record, lines, load
from cutaway.errors import ConfigError, PromptError

DIFFERENT = 1  # the exit code of numbers that are not those recorded
Baseline = Annotated[int, typer.Option(min=0, help="Also run this many random changes of the same size, to compare with.")]
Memory = Annotated[
    str | None, typer.Option(help="What the sweep may take beside the weights: '512 MiB', '2 GiB'; a number alone is MiB.",
                             callback=choices.size_of("--memory")),
]  # fmt: skip
Results = Annotated[Path | None, typer.Option(help="A folder of results by what they are: what is there is not computed again.")]
Executor = Annotated[
    str | None,
    typer.Option(help="Where to compute, with --results: local, processes:N, ray, ray:ADDRESS, or ranks (torchrun).",
                 callback=choices.executor),
]  # fmt: skip
STREAMS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # by layer and position; others by layer and head
PLANNED = (*STREAMS, "z", "q", "k", "v", "result", "pattern")
ABLATED = some_among("cutaway.analysis.ablation:KINDS", "kind of ablation")
EDGE_ABLATIONS = among("cutaway.circuits.pairs:ABLATIONS", "ablation of edges")


def metric_of(request: Request) -> Any:
    """What is measured: what the prompts' answers say, else None, which stands for the loss of the next token."""
    from cutaway.runs.metrics import settled

    prompts = request.given_prompts
    return settled(None, request.network, prompts) if prompts.right else None


@shared_options()
def ablate(
    request: Request,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", "--kinds", "--ablation", help="zero or mean, or both by a comma. By default zero.", callback=ABLATED
        ),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            "--sites",
            help="z (what a head has seen), q, k, v or pattern; several by commas. By default z.",
            callback=some_among("cutaway.analysis.ablation:SITES", "site to ablate"),
        ),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(
            "--component",
            "--components",
            "--head",
            "--heads",
            help="In place of all heads: mlps, attentions, heads, or labels, 0.mlp, 0.mlp.17, 1.3; several by commas.",
            callback=names(choices.ablated),
        ),
    ] = None,
    layers: Layers = None,
    positions: Positions = None,
    baseline: Baseline = 0,
    memory: Memory = None,
    record: Record = None,
) -> None:
    """Replace heads, MLPs or neurons by zero or by a mean, and say what that changes.

    Of heads, the output, queries, keys or values are replaced, and the same is done to all heads of a layer at once. Measured is
    the loss of the texts, or their answers: the logit difference, or the log-probability where there is no wrong answer. A mean
    is over prompts and positions.
    """
    from cutaway import records
    from cutaway.analysis import ablation

    if record is not None:
        records.check_free(record)
    network, prompts = request.network, request.given_prompts
    kinds, sites, places = kind or ["zero"], site or ["z"], positions_of(positions)
    chosen = layers_of(layers, network.cfg.n_layers)
    options: dict[str, Any] = {
        "over": ("batch", "pos"), "positions": places, "seed": request.seed, "memory": memory, "baseline": baseline,
    }  # fmt: skip
    with bar("ablating") as progress:
        if component is not None:
            labels = _components(network.cfg, component, chosen)
            found: Any = ablation.ablate(
                network, prompts, metric_of(request), components=labels, kinds=kinds, progress=progress, **options
            )
        else:
            found = ablation.ablate_heads(
                network,
                prompts,
                metric_of(request),
                kinds=kinds,
                sites=sites,
                layers=chosen,
                progress=progress,
                say=say_cost("--layers, --component and --count"),
                **options,
            )
    if component is not None:
        rows = [[which, name, change] for which in kinds for name, change in found.changes(which).items()]
        columns = ["kind", "component", found.values.what]
        numbers: dict[str, Any] = {"components": {which: found.changes(which) for which in kinds}}
        figures = [("Ablation", found.figure())]
    else:
        rows, numbers = _head_rows(found, kinds, sites)
        columns = ["kind", "of", "head", found.values.what]
        figures = [(f"{which} ablation", found.figure(which)) for which in kinds]
    shown, more = request.rows(rows)
    text = lines(columns, shown) + (f"\n{more}" if more else "")
    if record is not None:
        records.write(record, found.sweep, request.model)
    numbers |= {"metric": found.clean.what, "clean": float(found.clean.data.nanmean()), "audit": found.audit.difference}
    if (random := found.sweep.baseline) is not None:
        text, numbers["baseline"] = f"{text}\n{random.summary()}", random.to_json()
    text += f"\n{found.clean.what} {numbers['clean']:.4g} without; {found.audit}"
    request.show(text, numbers, figures, f"Ablation of {request.model}", found)


def _head_rows(found: Any, kinds: list[str], sites: list[str]) -> tuple[list[list[Any]], dict[str, Any]]:
    """Rows of heads and of whole layers, and the same as numbers; the largest changes of each kind and site first."""
    heads = {which: {where: found.increases(which, where) for where in sites} for which in kinds}
    whole = {which: {where: found.layer_increases(which, where) for where in sites} for which in kinds}
    rows = [
        [which, where, head, change]
        for which in kinds
        for where in sites
        for head, change in sorted(
            [*heads[which][where].items(), *((f"all of layer {layer}", one) for layer, one in whole[which][where].items())],
            key=lambda item: -abs(item[1]),
        )
    ]
    return rows, {"heads": heads, "layers": whole}


def _components(cfg: Any, given: list[str], layers: list[int]) -> list[str]:
    """The labels that `--component` names: all of a sort, in some layers, or labels."""
    mlps, attentions = ([f"{layer}.{part}" for layer in layers] for part in ("mlp", "attn"))
    heads = [f"{layer}.{head}" for layer in layers for head in range(cfg.n_heads)]
    sorts = dict(zip(SORTS, (mlps, attentions, heads), strict=True))
    return list(dict.fromkeys(label for one in given for label in sorts.get(one, [one])))


@shared_options(pairs=True)
def patch(
    request: Request,
    what: Annotated[
        list[str] | None,
        typer.Option("--what", "--kinds", "--kind", "--site", "--sites",
                     help="resid_pre, resid_mid, attn_out, mlp_out, z, q, k, v, pattern; several by commas. By default the "
                          "stream, what attention and MLP add to it, and z.",
                     callback=some_among("cutaway.analysis.patching:GRIDS", "kind of patch")),
    ] = None,
    direction: Annotated[
        str, typer.Option(help="denoising (clean into corrupted) or noising.",
                          callback=among("cutaway.analysis.patching:DIRECTIONS", "direction")),
    ] = "denoising",
    layers: Layers = None,
    positions: Positions = None,
    baseline: Baseline = 0,
    memory: Memory = None,
    results: Results = None,
    executor: Executor = None,
    record: Record = None,
) -> None:  # fmt: skip
    """Take one activation after another from another prompt, and say how far the answer moves.

    Prompts of different lengths are patched at their roles, each prompt at its own place.
    """
    from cutaway import records
    from cutaway.analysis import patching

    kinds = what or ["resid_pre", "attn_out", "mlp_out", "z"]
    if record is not None:
        records.check_free(record, kinds)
    check_pairs(request)
    network, prompts = request.network, in_pairs(request)
    if positions is None and len(prompts.roles) < 2 and len(set(prompts.lengths.tolist())) > 1:
        note = "the prompts differ in length and name no roles, so a position holds another word in each; give 'roles' in the"
        console.echo(f"{note} pairs file, or --positions (from the end: -1)", err=True)
    with bar("patching") as progress:
        found = patching.patch(
            network, prompts, metric=metric_of(request), kinds=kinds, positions=positions_of(positions), direction=direction,
            layers=None if layers is None else layers_of(layers, network.cfg.n_layers), seed=request.seed, memory=memory,
            progress=progress,
            say=say_cost("--kind, --layers, --positions and --count"), baseline=baseline, results=results,
            executor=executor,
        )  # fmt: skip
    if record is not None:
        records.write(record, found.sweeps, request.model)
    numbers = {
        "direction": direction, "clean": found.clean, "corrupted": found.corrupted,
        "audit": found.audit.difference, "tokens": [list(one) for one in found.tokens],
        "recovered": {kind: found.normalised(kind).to_json() for kind in found.sweeps},
        "by_pair": {
            "clean": found.by_example[0].tolist(), "corrupted": found.by_example[1].tolist(),
            "patched": {kind: one.values.to_json() for kind, one in found.sweeps.items()},
        },
    }  # fmt: skip
    if baseline:
        numbers["baseline"] = {kind: one.baseline.to_json() for kind, one in found.sweeps.items() if one.baseline is not None}
    summary = found.summary(None if request.all_rows else request.top or 3)
    text, figures = "\n".join([*_grids(found, request), summary]), [(kind, found.figure(kind)) for kind in found.sweeps]
    request.show(text, numbers, figures, f"Patching of {request.model}", found, page_text=summary)  # its figures are whole grids


def _grids(found: Any, request: Request) -> list[str]:
    """The first kind of patch as a grid; with `--all` each."""
    grids = []
    for kind in list(found.sweeps)[: None if request.all_rows else 1]:
        share = found.normalised(kind)
        shares = share.data if found.direction == "denoising" else 1 - share.data
        names = [found.labels(share, axis) for axis in share.axes]
        done = "restored" if found.direction == "denoising" else "destroyed"
        title = f"{kind}, share {done}, {share.axes[0]} by {'position' if share.axes[1] == 'pos' else share.axes[1]}"
        grids.append(f"{title}\n{grid(shares, names[0], names[1], share.axes[0], whole=request.all_rows)}\n")
    return grids


def in_pairs(request: Request) -> Any:
    """The prompts, with counterparts and answers.

    Raises:
        PromptError: they lack either.
    """
    prompts = request.given_prompts
    _paired(request, prompts.corrupted is not None, bool(prompts.right))
    return prompts


def check_pairs(request: Request) -> None:
    """Make sure that texts of the command line have counterparts and answers, which needs no model.

    Raises:
        PromptError: they lack either.
    """
    if request.sources in (["--clean"], ["--file"], ["--prompts"]):
        _paired(request, bool(request.options.get("corrupted")), bool(request.answer))


def _paired(request: Request, pairs: bool, answers: bool) -> None:
    if not pairs:
        raise PromptError(f"{request.command} needs pairs: give --corrupted for each --clean, --pairs FILE or --behaviour NAME")
    if not answers:
        raise PromptError(f"{request.command} needs answers: give --answer (and --wrong), or pairs that have them")


@shared_options(pairs=True)
def paths(
    request: Request,
    sender: Annotated[
        list[str] | None,
        typer.Option(
            "--sender",
            "--senders",
            help="0.3, 0.mlp, embed …; several by commas. By default every head.",
            callback=names(choices.writer),
        ),
    ] = None,
    receiver: Annotated[
        list[str] | None,
        typer.Option(
            "--receiver",
            "--receivers",
            help="1.4.k, 1.mlp, logits; several by commas. By default logits.",
            callback=names(choices.reader),
        ),
    ] = None,
    layers: Layers = None,
    positions: Positions = None,
    memory: Memory = None,
) -> None:
    """Let one direct path after another carry the other prompt's activations, and say what that changes."""
    from cutaway.analysis.paths import path_patch

    check_pairs(request)
    network, prompts = request.network, in_pairs(request)
    senders = sender or _components(network.cfg, ["heads"], layers_of(layers, network.cfg.n_layers))
    with bar("patching paths") as progress:
        found = path_patch(
            network, prompts, metric=metric_of(request), senders=senders, receivers=receiver or ["logits"],
            positions=positions_of(positions), seed=request.seed, memory=memory, progress=progress,
        )  # fmt: skip
    top = found.top(found.averages().data.numel())
    shown, more = request.rows([[f"{one} → {other}", change] for one, other, change in top])
    text = lines(["path", found.values.what], shown) + (f"\n{more}" if more else "")
    clean = float(found.clean.data.nanmean())
    text += f"\n{found.clean.what} {clean:.4g} without; {found.audit}" + (f"\n{found.note}" if found.note else "")
    numbers = {"metric": found.clean.what, "clean": clean, "audit": found.audit.difference, "paths": [list(one) for one in top]}
    request.show(text, numbers, [("Direct paths", found.figure())], f"Paths in {request.model}", found)


@shared_options(pairs=True)
def edges(
    request: Request,
    exact: Annotated[int, typer.Option(min=0, help="Also ablate this many of the strongest edges exactly.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Runs that each edge's gradient is a mean over.")] = 5,
    ablation: Annotated[
        str, typer.Option(help="What an ablated edge carries: resample, mean or zero.", callback=EDGE_ABLATIONS)
    ] = "resample",
) -> None:
    """Score every edge by integrated gradients: what its writer adds for its reader alone. `circuit find` searches among them."""
    from cutaway.circuits.attribution import edge_attribution
    from cutaway.circuits.effects import edge_effects

    if ablation == "resample":
        check_pairs(request)
    network, prompts = request.network, in_pairs(request) if ablation == "resample" else request.given_prompts
    metric = metric_of(request)
    with bar("scoring edges") as progress:
        found = edge_attribution(network, prompts, None, metric, steps=steps, ablation=ablation, progress=progress)
    count = int((~found.values.data.isnan()).sum())
    top = found.top(count if request.all_rows else max(request.top or SCREEN, exact))
    effects = {}
    if exact:
        with bar("ablating edges") as progress:
            chosen = [(one, other) for one, other, _ in top[:exact]]
            done = edge_effects(network, prompts, None, metric, edges=chosen, ablation=ablation, progress=progress)
        effects = {(one, other): change for one, other, change in done.top(exact)}
    rows = [[f"{one} → {other}", score, effects.get((one, other), "")] for one, other, score in top]
    columns = ["edge", "score", "when ablated"]
    text = lines(columns, rows) if exact else lines(columns[:2], [row[:2] for row in rows])
    rest = f"; {count - len(rows):,} more than are shown: --top N or --all" if len(rows) < count else ""
    text += f"\n{found.method}; {count:,} edges{rest}"
    edges_ = [{"writer": one, "reader": other, "score": score, "ablated": effects.get((one, other))} for one, other, score in top]
    numbers = {"method": found.method, "count": count, "metric": found.values.what, "edges": edges_}
    request.show(text, numbers, [("As a graph", found.graph(max(len(top), 1) if request.top else 40)), ("Edges", found.figure())],
               f"Edges of {request.model}", found)  # fmt: skip


@shared_options()
def plan(
    request: Request,
    what: Annotated[
        str,
        typer.Option(
            "--what",
            "--kind",
            "--site",
            help="resid_pre, attn_out, mlp_out, z, q, k, v, pattern.",
            callback=among("cutaway.commands.sweeps:PLANNED", "site to plan for"),
        ),
    ] = "z",
    by_position: Annotated[bool, typer.Option("--by-position", help="Heads at every position by itself.")] = False,
    layers: Layers = None,
    positions: Positions = None,
    baseline: Baseline = 0,
    memory: Memory = None,
    results: Results = None,
) -> None:
    """Count what ablating or patching would cost, without running it.

    Measured is the loss of the texts, or, with answers, what is read at the end only.
    """
    from cutaway.analysis.shared import real_tokens
    from cutaway.runs import metrics
    from cutaway.runs.edits import zero
    from cutaway.runs.grids import Grid
    from cutaway.runs.sweep.planning import plan as count

    if bool(request.answer) and not request.wrong:
        raise ConfigError("give both --answer and --wrong, or neither, for the loss of the text")
    network, prompts = request.network, request.given_prompts
    tokens, real = real_tokens(network, prompts)
    metric = metric_of(request) or metrics.loss(tokens, mask=real)
    axes = ("layer", "pos") if what in STREAMS else ("layer", "pos", "head") if by_position else ("layer", "head")
    only: dict[str, Any] = {} if layers is None else {"layer": layers_of(layers, network.cfg.n_layers)}
    where: dict[str, Any] = {}
    if (places := positions_of(positions)) is not None:
        (only if "pos" in axes else where)["pos" if "pos" in axes else "positions"] = places
    cells = Grid(zero(), what, axes, only=only, where=where)
    found = count(network, prompts, cells, metric, memory=memory, baseline=baseline, seed=request.seed, results=results)
    request.show(found.summary(), found.to_json(), [], f"A plan for {request.model}")


def replay(
    folder: Annotated[Path, typer.Argument(help="The folder of a record, or of several.")],
    model: Annotated[str | None, typer.Option(help="Where the model is now, if not where the record says.")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Run a record again, and say how far the numbers are from those recorded; exit code 1 where they are others."""
    from cutaway import records
    from cutaway.circuits import recording

    done: list[Any] = []
    if (folder / recording.CIRCUIT).is_file():
        with bar(f"replaying {folder.name}"):
            done.append(recording.replay(folder, load(recording.model_of(folder) if model is None else model, device)))
    found = records.records_in(folder) if not done else []
    names = {record.about["model"]["name"] if model is None else model for record in found}
    networks = {name: load(name, device) for name in names}
    for record in found:
        with bar(f"replaying {record.folder.name}") as progress:
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


COMMANDS = (ablate, patch, paths, edges, plan, replay, compare)
