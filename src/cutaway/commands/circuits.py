"""`cutaway circuit find`: the edges that carry a behaviour. Anything else after `circuit` is a path through weights."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cutaway.commands import choices
from cutaway.commands.progress import bar, say_cost
from cutaway.commands.prompt_options import Request, shared_options
from cutaway.commands.questions import circuit as weights
from cutaway.commands.shared import Record, lines
from cutaway.commands.sweeps import EDGE_ABLATIONS, check_pairs, in_pairs
from cutaway.errors import ConfigError, PromptError, nearest

METRICS = ("logit-difference", "log-probability", "probability", "probability-difference")
AGREE = ("resample", "mean", "zero")  # ablations whose circuits are compared
RUNS, SEARCH = 30, 0.25  # runs of circuits that bisection takes about, and what one takes beside a full pass


class PathsToo(TyperGroup):
    """A group whose first word may also be what its command `weights` takes: a model, or a path."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Send what is no command to `weights`."""
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["weights", *args]
        return super().parse_args(ctx, args)


group = typer.Typer(cls=PathsToo, no_args_is_help=True, help="Circuits: the edges that carry a behaviour; paths through weights.")
group.command("weights")(weights)


@group.callback()
def circuit() -> None:
    """Find the circuit of a behaviour (`find`), or show what weights do along a path (`cutaway circuit MODEL PATH`)."""


Method = Annotated[
    str,
    typer.Option(help="greedy, backward, or both.", callback=choices.among("cutaway.circuits.searching:METHODS", "method")),
]  # fmt: skip
Order = Annotated[
    str,
    typer.Option(
        help="Of scores: absolute, signed (the most helpful first), or best of both.",
        callback=choices.among("cutaway.circuits.searching:ORDERS", "order of scores"),
    ),
]  # fmt: skip


@shared_options(pairs=True)
def circuit_find(
    request: Request,
    metric: Annotated[
        str | None,
        typer.Option(
            help="logit-difference, log-probability, probability, or probability-difference (of all right answers and all wrong "
            "ones). By default the logit difference; the last, where several answers are right.",
            callback=choices.each(lambda one: _known_metric(one)),
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=0, help="How many edges, less those that lead nowhere; without, as few as recover TARGET.")
    ] = None,
    target: Annotated[float, typer.Option(help="How much of the difference the circuit has to recover.")] = 0.9,
    ablation: Annotated[
        str, typer.Option(help="What other edges carry: resample, mean, mean over positions, zero.", callback=EDGE_ABLATIONS)
    ] = "resample",
    method: Method = "both",
    order: Order = "best",
    steps: Annotated[int, typer.Option(min=1, help="Runs that each edge's gradient is a mean over.")] = 5,
    checks: Annotated[int, typer.Option(min=1, help="How many runs removal may take.")] = 60,
    record: Record = None,
) -> None:
    """Find the edges that carry a behaviour, and say how sure they are.

    Scores every edge by integrated gradients, searches for the smallest circuit, runs it beside random ones, draws
    prompts again, and compares with the circuits of other ablations. `cutaway replay` runs a record again.
    """
    from cutaway.circuits import recording
    from cutaway.circuits.attribution import edge_attribution
    from cutaway.circuits.measuring import CircuitRunner
    from cutaway.circuits.roles import attention_to_roles
    from cutaway.circuits.scoring import curve
    from cutaway.circuits.searching import find_circuit
    from cutaway.circuits.stable_edges import stability
    from cutaway.runs.sweep.baseline import share
    from cutaway.runs.sweep.planning import forward_cost, rate

    folder = None if record is None else recording.check_free(record)
    if ablation == "resample":
        check_pairs(request)
    network = request.network
    given = in_pairs(request) if ablation == "resample" else request.given_prompts
    if not given.right:
        raise PromptError("circuit find needs answers: give --answer (and --wrong), or pairs or a behaviour that have them")
    measure = _metric(metric, given)
    tokens = given.tokens.to(network.W_U.device)
    if network.cfg.attention_dir == "bidirectional" and not bool(given.mask.all()):
        raise PromptError("this model's attention sees all positions, padding too; give prompts of one length")
    source = None if given.corrupted is None else given.corrupted.tokens.to(network.W_U.device)
    seed, agree = request.seed, [one for one in AGREE if one != ablation and (one != "resample" or source is not None)]
    runner = CircuitRunner(network, tokens, source, measure, ablation=ablation)
    search = 0 if size is not None else SEARCH * (RUNS + 2 * checks * (method != "greedy"))  # in full passes, as scores are
    whole = steps * (1 + len(agree)) + search
    cost = whole * len(tokens) * forward_cost(network, tokens.shape[1]) / rate(network)
    say_cost("--count, --steps, --checks and --size", "edges")(runner.graph.size, 0, cost)
    with bar("finding the circuit") as progress:
        given_steps = {"steps": steps, "progress": share(progress, 0, steps, whole)}
        scores = edge_attribution(network, tokens, source, measure, ablation=ablation, **given_steps)
        step = share(progress, steps, search, whole)
        found = find_circuit(runner, scores, target=target, size=size, method=method, order=order, checks=checks, progress=step)
        controls = curve(runner, scores.values.data, sizes=[found.size], sign=found.about["sign"], seed=seed)
        others = {}
        for number, other in enumerate(agree):
            given_steps["progress"] = share(progress, search + steps * (1 + number), steps, whole)
            others[other] = edge_attribution(network, tokens, source, measure, ablation=other, **given_steps)
    sure = stability(found, scores, seed=seed, others=others) if len(tokens) >= 4 else None
    values = runner.values(found.edges)
    recovered, interval = runner.share(values), runner.interval(values)
    numbers = {
        **found.to_json(), "recovered": recovered, "interval": interval, "clean": controls.clean, "ablated": controls.corrupted,
        **{name: float(controls.values.sel(curve=name).data[0]) for name in ("random", "shuffled", "without")},
        "halves": None if sure is None else list(sure.halves), "seed": seed,
        "ablations": {} if sure is None else dict(sure.ablations), "stable": None if sure is None else sure.stable,
    }  # fmt: skip
    heads = [node for node in found.nodes() if node[-1].isdigit()][:12]
    reads = attention_to_roles(network, given, heads) if len(given.roles) > 1 else []
    numbers["heads"] = [vars(one) for one in reads]
    looks = "" if not reads else "where the heads with the largest edges look:\n" + "\n".join(f"  {one}" for one in reads)
    text = "\n".join(filter(None, [None if sure is None else sure.summary(), _found_text(request, found, numbers, sure), looks]))
    figures: list[tuple[str, Any]] = []
    if request.html is not None:
        figures.append(("The circuit", found.figure(network, None if sure is None else sure.values.data)))
        figures += [] if sure is None else [("How sure its edges are", sure.figure())]
    if folder is not None:
        recording.write(folder, found, measure, values, request.model, {**numbers, "prompts": len(tokens)})
    request.show(text, numbers, figures, f"A circuit of {request.model}")


group.command("find")(circuit_find)


def _known_metric(name: str) -> None:
    if name not in METRICS:
        raise ConfigError(f"--metric {name!r} is not known{nearest(name, METRICS)}; there are {', '.join(METRICS)}")


def _metric(name: str | None, given: Any) -> Any:
    from cutaway.runs import metrics

    name = ("probability-difference" if given.several else METRICS[0]) if name is None else name
    _known_metric(name)
    if name == "probability-difference":
        return metrics.probability_difference(given.answer_sets(), given.answer_sets(wrong=True), given.at)
    if name in ("log-probability", "probability"):
        return (metrics.log_probability if name == "log-probability" else metrics.probability)(given.answers, given.at)
    if given.wrong_answers is None:
        raise PromptError("a logit difference needs a wrong answer for each prompt; give them, or --metric log-probability")
    return metrics.logit_difference(given.answers, given.wrong_answers, given.at)


def _found_text(request: Request, found: Any, numbers: dict[str, Any], sure: Any) -> str:
    from cutaway.circuits.finding import recovery_text

    measures = {name: numbers[name] for name in ("interval", "clean", "ablated", "recovered", "random", "shuffled")}
    head = recovery_text(found.size, found.graph.size, found.about["metric"], found.ablation, **measures)
    rows = []
    shown, more = request.rows(found.pairs())
    for writer, reader in shown:
        place = found.graph.edge(writer, reader)
        often = "" if sure is None else f"{float(sure.values.data[place]):.0%}"
        rows.append([f"{writer} → {reader}", float(found.effects[place]), often])
    nodes = ", ".join(list(found.nodes())[:12])
    table = lines(["edge", "score", "chosen"], rows) + (f"\n{more}" if more else "")
    return "\n".join([head, table, f"nodes by the size of their edges' scores: {nodes}"])


GROUPS = {"circuit": group}
