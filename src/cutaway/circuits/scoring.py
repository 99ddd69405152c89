"""How good circuits are, as others compute it: faithfulness and completeness by size, CPR and CMD, areas under ROC.

Faithfulness is 0 for all edges ablated and 1 for the whole model. CPR and CMD are areas over the share of edges, by trapezoids
at the percentages of MIB (https://arxiv.org/abs/2504.13151): of faithfulness, and of its distance from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cutaway.circuits.attribution import EdgeScores, largest
from cutaway.circuits.graph import Edges, Graph
from cutaway.circuits.measuring import CircuitRunner
from cutaway.errors import ShapeError
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import at_least, options
from cutaway.runs.bars import DelayedBar
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result
from cutaway.view import Figure, line_chart

PERCENTAGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
CURVES = ("faithful", "without", "random", "shuffled")


@dataclass(frozen=True, eq=False)
class Faithfulness(Result):
    """How much circuits of growing size recover, 0 = all edges ablated and 1 = the whole model.

    Args:
        values: `[curve, size]`: `faithful` (the circuit alone), `without` (everything but the circuit: complete circuits
            leave nothing), `random` (as many edges drawn at random, mean), and `shuffled` (the same scores dealt to other edges
            of the same readers, mean).
        sizes: how many edges.
        edges: how many there are.
        clean, corrupted: the metric of the whole model and of all edges ablated.
        shares: the shares of edges that areas are over, each rounded down to one of the sizes; none: those that the sizes are.
    """

    values: Labelled
    sizes: tuple[int, ...]
    edges: int
    clean: float
    corrupted: float
    shares: tuple[float, ...] = ()

    def area(self, curve: str = "faithful", *, distance: bool = False) -> float:
        """The area under a curve over the share of edges, by trapezoids; with `distance`, of its distance from 1."""
        heights = self.values.sel(curve=curve).data.double()
        heights = (1 - heights).abs() if distance else heights
        shares = self.shares or [size / self.edges for size in self.sizes]
        places = [self.sizes.index(int(share * self.edges)) for share in self.shares] or range(len(self.sizes))
        return float(torch.trapezoid(heights[list(places)], torch.tensor(shares, dtype=torch.float64)))

    @property
    def cpr(self) -> float:
        """Integrated circuit performance ratio: the area under faithfulness. More is better."""
        return self.area()

    @property
    def cmd(self) -> float:
        """Integrated circuit-model distance: the area between faithfulness and 1. Less is better."""
        return self.area(distance=True)

    def smallest(self, target: float) -> int | None:
        """The smallest of the sizes from which on faithfulness stays at or above a target; None: there is none."""
        good = (self.values.sel(curve="faithful").data >= target).tolist()
        tail = len(good) - next((at for at, one in enumerate(reversed(good)) if not one), len(good))
        return self.sizes[tail] if tail < len(good) else None

    def figure(self) -> Figure:
        """The curves."""
        series = {name: self.values.sel(curve=name).data for name in self.values.names("curve")}
        label = "recovered, 0 = all edges ablated and 1 = the whole model"
        return line_chart(series, x=list(self.sizes), x_name="edges", y_name=label, title="what circuits recover")

    def summary(self) -> str:
        head = (
            f"whole model {self.clean:.4g}, all edges ablated {self.corrupted:.4g}; share recovered by the circuit, without it, "
        )
        lines = [head + "by random ones, by shuffled scores"]
        for at, size in enumerate(self.sizes):
            row = ", ".join(f"{float(self.values.sel(curve=name).data[at]):.2f}" for name in self.values.names("curve"))
            lines.append(f"  {size} edges ({size / self.edges:.2%}): {row}")
        return "\n".join([*lines, f"CPR {self.cpr:.3f}, CMD {self.cmd:.3f} over these sizes"])


def mib_sizes(edges: int) -> list[int]:
    """The sizes of circuits at MIB's percentages."""
    return sorted({int(share * edges) for share in PERCENTAGES})


@with_provenance
@options(draws=1, seed=0)
def faithfulness(
    model: Transformer, clean: Any, corrupted: Any, metric: Any, scores: EdgeScores, *, sizes: Sequence[int] | None = None,
    signed: bool = False, draws: int = 3, seed: int = 0, ablation: str = "resample", over: Any = None,
) -> Faithfulness:  # fmt: skip
    """Run the circuits of the largest scores, their complements, and random circuits of the same sizes.

    Args:
        sizes: numbers of edges; None: those of MIB's percentages.
        signed: take the most helpful edges first, not those with the largest scores whatever their sign.
        draws: how many random circuits, and how many shuffled ones, of each size.
        ablation, over: what other edges carry, as `run_circuit` takes them.

    Raises:
        ShapeError: the metric is the same with and without all edges, or a size is no number of edges.
    """
    runner = CircuitRunner(model, clean, corrupted, metric, ablation=ablation, over=over)
    return curve(runner, scores.values.data, sizes=sizes, sign=runner.sign if signed else 0, draws=draws, seed=seed)


def curve(
    runner: CircuitRunner, scores: Tensor, *, sizes: Sequence[int] | None = None, sign: int = 0, draws: int = 3, seed: int = 0
) -> Faithfulness:
    """The same, of a runner, with edges in an order that `largest` knows."""
    there = runner.graph.mask
    every = runner.graph.size
    shares = PERCENTAGES if sizes is None else ()
    sizes = mib_sizes(every) if sizes is None else [at_least(size, 0, "the size of a circuit") for size in sizes]
    generator = torch.Generator().manual_seed(seed)
    runner.share(runner.clean)
    bar = DelayedBar("running circuits")
    rows: list[list[float]] = [[] for _ in CURVES]
    for done, size in enumerate(sizes):
        bar(done, len(sizes))
        chosen = largest(scores, size, sign)
        rows[0].append(runner.recovered(chosen))
        rows[1].append(runner.recovered(there & ~chosen))
        for row, draw in ((rows[2], random_scores), (rows[3], shuffled_scores)):
            found = [
                runner.recovered(largest(draw(scores, runner.graph, generator), size, sign))
                for _ in range(draws if 0 < size < every else 1)
            ]
            row.append(sum(found) / len(found))
    bar.stop()
    labels = {"curve": list(CURVES), "size": list(map(str, sizes))}
    ends = float(runner.clean.nanmean()), float(runner.ablated.nanmean())
    values = Labelled(torch.tensor(rows, dtype=torch.float64), ("curve", "size"), labels, "recovered")
    return Faithfulness(values, tuple(sizes), every, *ends, shares)


def random_scores(scores: Tensor, graph: Graph, generator: torch.Generator) -> Tensor:
    """Scores drawn at random."""
    return torch.rand(graph.mask.shape, generator=generator).masked_fill(~graph.mask, torch.nan)


def shuffled_scores(scores: Tensor, graph: Graph, generator: torch.Generator) -> Tensor:
    """The scores of each reader dealt to other writers: a control that keeps which readers matter."""
    out = torch.full(graph.mask.shape, torch.nan, dtype=scores.dtype)
    for reader in range(len(graph.readers)):
        there = graph.mask[:, reader].nonzero()[:, 0]
        out[there, reader] = scores.cpu()[there[torch.randperm(len(there), generator=generator)], reader]
    return out


def roc_area(scores: Tensor, truth: Tensor) -> float:
    """The area under the ROC curve: how often a true one scores above a false one (ties count half).

    Raises:
        ShapeError: all are true, or all false.
    """
    scores, truth = scores.flatten().double().cpu(), truth.flatten().bool().cpu()
    positive, negative = scores[truth], scores[~truth].sort().values
    if not len(positive) or not len(negative):
        raise ShapeError("an area under ROC needs some that are true and some that are not")
    below = torch.searchsorted(negative, positive, right=False) + torch.searchsorted(negative, positive, right=True)
    return float(below.double().mean() / 2 / len(negative))


@dataclass(frozen=True)
class Recovery:
    """How well scores find a known circuit.

    Args:
        edges, nodes: areas under ROC of the scores' sizes; of a node, that of its largest edge. NaN where all are true, or none.
        unseen: true edges whose ablation changes nothing that their readers write on these prompts, which no score can see: left
            out.
    """

    edges: float
    nodes: float
    unseen: tuple[tuple[str, str], ...]


def recovery(graph: Graph, scores: Tensor, truth: Edges, unseen: Edges | None = None) -> Recovery:
    """Compare scores `[writer, reader]` with the true edges.

    Args:
        unseen: edges that these prompts cannot show, as `edge_effects` tells.
    """
    size = scores.abs().nan_to_num(0).cpu()
    hidden = torch.zeros_like(graph.mask) if unseen is None else unseen.cpu() & truth
    scored = graph.mask & ~hidden
    nodes = list(dict.fromkeys([*graph.writers, *map(graph.node_of, graph.readers)]))
    writes = torch.tensor([[name == node for name in graph.writers] for node in nodes])
    reads = torch.tensor([[graph.node_of(name) == node for name in graph.readers] for node in nodes])
    of_node = ((writes[:, :, None] | reads[:, None]) & scored).flatten(1)  # node, edge
    seen = of_node.any(1)
    by_node = (of_node * size.flatten()).amax(1)[seen], (of_node & truth.flatten()).any(1)[seen]
    names = tuple((graph.writers[writer], graph.readers[reader]) for writer, reader in hidden.nonzero().tolist())
    return Recovery(_area(size[scored], truth[scored]), _area(*by_node), names)


def _area(scores: Tensor, truth: Tensor) -> float:
    return float("nan") if bool(truth.all()) or not bool(truth.any()) else roc_area(scores, truth)
