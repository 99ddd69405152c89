"""The circuit: the fewest edges that recover the difference of minimal pairs, beside as many drawn at random."""

from __future__ import annotations

from cutaway.circuits.attribution import edge_attribution
from cutaway.circuits.graph import Graph
from cutaway.circuits.measuring import CircuitRunner
from cutaway.circuits.scoring import curve
from cutaway.circuits.searching import find_circuit
from cutaway.errors import ConfigError, ShapeError
from cutaway.report.findings import Finding, none
from cutaway.report.questions import patching, paths
from cutaway.report.study import Study
from cutaway.runs.estimates import Value

MOST = 20_000  # edges
TARGET = 0.9


def lacks(study: Study) -> str:
    """Pairs, and a graph that is not too large."""
    edges = Graph(study.model.cfg).size if study.model.cfg.n_layers <= 12 else MOST + 1
    if edges > MOST:
        return f"{study.model.cfg.n_layers} layers have too many edges for a report; `cutaway circuit find` searches them"
    return paths.lacks(study)


def passes(study: Study) -> float:
    """Scores and a search."""
    return 60 * len(patching.some(study).prompts) / len(study.prompts)


def ask(study: Study) -> list[Finding]:
    """Scores by integrated gradients, the smallest circuit that recovers nine tenths, and random ones of its size."""
    small = patching.some(study)
    tokens, source = small.prompts.tokens, small.corrupted.tokens
    metric = patching.metric(small)
    try:
        scores = edge_attribution(study.model, tokens, source, metric)
        runner = CircuitRunner(study.model, tokens, source, metric)
        found = find_circuit(runner, scores, target=TARGET, method="greedy")
        controls = curve(runner, scores.values.data, sizes=[found.size], sign=found.about["sign"], seed=study.seed)
    except (ConfigError, ShapeError) as error:
        return [none("the circuit", str(error))]
    recovered = runner.values(found.edges)
    low, high = runner.interval(recovered)
    random = Value(float(controls.values.sel(curve="random").data[0]))
    on = f"{len(small.prompts):,} pairs"
    shown = {f"{writer} → {reader}": Value(1.0) for writer, reader in found.pairs()}
    share = {f"{found.size} edges": Value(runner.share(recovered), low, high)}
    return [
        Finding("count", "edges of the circuit", shown, total=found.graph.size, on=on),
        Finding("share", "the share of the difference that the circuit recovers", share, "share", random,
                "as many edges at random", on, figures=[found.figure()] if 0 < found.size <= 60 else []),
    ]  # fmt: skip
