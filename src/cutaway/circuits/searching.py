"""From scores to a circuit: the smallest that recovers what is wanted, by the scores' order, by exact removal, or by both.

    greedy    edges in the order of their scores; the smallest number that reaches the target, by bisection
    backward  from a greedy circuit that is more than enough, edges are removed from the weakest up, each removal checked by a run
    both      greedy, then backward from twice as many edges; the smaller of the two

Scores are ordered by their size whatever their sign, or the most helpful first: edges that work against the behaviour come last
then, and often far fewer are needed. The default tries both.

Edges on no way from an embedding to the logits are left out: where ablated edges carry another run's activations, that changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cutaway.circuits.attribution import EdgeScores, largest
from cutaway.circuits.circuit import Circuit
from cutaway.circuits.graph import Edges
from cutaway.circuits.measuring import CircuitRunner
from cutaway.errors import ConfigError, ShapeError
from cutaway.numbers_given import options
from cutaway.runs.hashes import model_hash
from cutaway.runs.sweep.baseline import share

METHODS = ("greedy", "backward", "both")
ORDERS = ("best", "absolute", "signed")


@options(target=(0, 1), size=0, checks=0)
def find_circuit(
    runner: CircuitRunner, scores: EdgeScores, *, target: float = 0.9, size: int | None = None, method: str = "both",
    order: str = "best", checks: int = 60, progress: Callable[[float, float], None] | None = None,
) -> Circuit:  # fmt: skip
    """The smallest circuit that recovers `target` of the metric's difference, or the circuit of `size` edges with the largest
    scores.

    Args:
        runner: the model on its prompts, with the metric and the ablation.
        order: of scores: "absolute" (by size), "signed" (the most helpful first), or "best", whichever needs fewer edges
            (of a given size, recovers more).
        checks: how many runs backward elimination may take.

    Raises:
        ConfigError: an unknown method or order, a target outside 0 to 1, a negative size or number of checks.
        ShapeError: scores of another model.
    """
    if target == 0:
        raise ConfigError("target=0 is reached without an edge; give a share above 0, or size=")
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is not known; there are {', '.join(METHODS)}")
    if order not in ORDERS:
        raise ConfigError(f"order={order!r} is not known; there are {', '.join(ORDERS)}")
    values = scores.values.data.cpu()
    if values.shape != runner.graph.mask.shape:
        raise ShapeError(f"scores {tuple(values.shape)} of another model: this one has {tuple(runner.graph.mask.shape)}")
    sign, count = _ordered(runner, values, target, size, order)
    edges = _used(runner, largest(values, count, sign))
    if size is None and method != "greedy":
        wide = _used(runner, largest(values, min(2 * count, runner.graph.size), sign))
        begins = [wide] if method == "backward" else [edges, wide]
        steps = [share(progress, number, 1, len(begins)) for number in range(len(begins))]
        fewer = [eliminated(runner, one, values, target, checks, step) for one, step in zip(begins, steps, strict=True)]
        edges = min((*fewer, edges), key=lambda one: int(one.sum()))
    about: dict[str, Any] = {
        "scores": scores.method, "metric": runner.metric.name, "method": "size" if size is not None else method,
        "target": None if size is not None else target, "sign": sign, "prompts": len(runner.tokens),
        "recovered": runner.recovered(edges),
    }  # fmt: skip
    prompts = {"clean": runner.tokens} | ({} if runner.source is None else {"corrupted": runner.source})
    prompts |= {"over": runner.over} if runner.ablation.startswith("mean") else {}
    return Circuit(runner.graph, edges, values, model_hash(runner.model), runner.ablation, about, prompts)


def _used(runner: CircuitRunner, edges: Edges) -> Edges:
    return runner.graph.connected(edges) if runner.ablation == "resample" else edges & runner.graph.mask


def _ordered(runner: CircuitRunner, scores: Tensor, target: float, size: int | None, order: str) -> tuple[int, int]:
    """The sign by which edges are taken (see `largest`), and how many."""
    signs = {"absolute": [0], "signed": [runner.sign], "best": [runner.sign, 0]}[order]
    if size is not None:
        by = {sign: runner.recovered(largest(scores, size, sign)) if len(signs) > 1 else 0.0 for sign in signs}
        return max(by, key=lambda sign: by[sign]), size
    best = signs[0], smallest_greedy(runner, scores, target, signs[0])
    for sign in signs[1:]:
        if runner.recovered(largest(scores, best[1] - 1, sign)) >= target:
            best = sign, smallest_greedy(runner, scores, target, sign)
    return best


def smallest_greedy(runner: CircuitRunner, scores: Tensor, target: float, sign: int = 0) -> int:
    """The smallest number of edges, in the order of their scores, that recovers the target: bisection, then a last check."""
    low, high = 0, 1
    while high < runner.graph.size and runner.recovered(largest(scores, high, sign)) < target:
        low, high = high, min(2 * high, runner.graph.size)
    while high - low > max(1, high // 64):
        middle = (low + high) // 2
        if runner.recovered(largest(scores, middle, sign)) < target:
            low = middle
        else:
            high = middle
    return high


def eliminated(
    runner: CircuitRunner,
    edges: Edges,
    scores: Tensor,
    target: float,
    checks: int,
    progress: Callable[[float, float], None] | None = None,
) -> Edges:
    """Remove edges from the weakest up, many at once, for as long as a run shows that the target is still recovered.

    A block of edges that cannot go is halved; single edges that cannot go stay.
    """
    kept = edges.clone()
    places = sorted(kept.nonzero().tolist(), key=lambda place: float(scores[place[0], place[1]].abs()))
    blocks = [places[: len(places) // 2], places[len(places) // 2 :]]
    done = 0
    while blocks and done < checks:
        block = [place for place in blocks.pop(0) if kept[place[0], place[1]]]
        if not block:
            continue
        less = kept.clone()
        less[tuple(torch.tensor(block).T)] = False
        less = _used(runner, less)
        done += 1
        if progress is not None:
            progress(done, checks)
        if runner.recovered(less) >= target:
            kept = less
        elif len(block) > 1:
            blocks[:0] = [block[: len(block) // 2], block[len(block) // 2 :]]
    return kept
