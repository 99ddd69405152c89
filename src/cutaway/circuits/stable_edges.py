"""How sure a circuit is: bootstrap over prompts, disjoint halves, and other ablations.

What is repeated is the choice of the largest scores: from the scores of prompts drawn again, and from each half. An edge's
inclusion frequency is how often it is chosen; a circuit whose halves share little is called unstable, first of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.circuits.attribution import EdgeScores, largest
from cutaway.circuits.circuit import Circuit, jaccard
from cutaway.circuits.graph import Edges
from cutaway.errors import ShapeError
from cutaway.numbers_given import options
from cutaway.runs.intervals import interval_of_mean
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result
from cutaway.view import Figure, heat_map

STABLE = 0.5  # halves that share less of their edges than this make an unstable circuit
OFTEN = 0.9


@dataclass(frozen=True, eq=False)
class Stability(Result):
    """How sure a circuit's edges are.

    Args:
        values: how often each edge is among the largest when prompts are drawn again, `[writer, reader]`.
        low, high: the 95% interval of each edge's score, `[writer, reader]`.
        circuit: the edges that it is about.
        halves: Jaccard of the circuits of disjoint halves of the prompts, one number for each way of halving.
        random_halves: the same of as many edges drawn at random: what chance gives.
        ablations: Jaccard with the circuits of other ablations, by their names.
    """

    values: Labelled
    low: Tensor
    high: Tensor
    circuit: Edges
    halves: tuple[float, ...]
    random_halves: float
    ablations: Mapping[str, float]

    @property
    def stable(self) -> bool:
        """Whether halves share at least half of their edges, on average."""
        return sum(self.halves) / len(self.halves) >= STABLE

    def figure(self) -> Figure:
        """How often each of the circuit's edges is chosen."""
        rows, columns = self.circuit.any(1).nonzero()[:, 0], self.circuit.any(0).nonzero()[:, 0]
        shown = self.values.data.masked_fill(~self.circuit, torch.nan)[rows][:, columns]
        names = self.values.names("writer"), self.values.names("reader")
        return heat_map(
            shown, [names[1][at] for at in columns.tolist()], [names[0][at] for at in rows.tolist()], x_name="reader",
            y_name="writer", value_name="how often chosen", title="how sure the edges are", absent="no such edge",
        )  # fmt: skip

    def summary(self) -> str:
        mean = sum(self.halves) / len(self.halves)
        verdict = "stable" if self.stable else "UNSTABLE"
        often = self.values.data[self.circuit]
        lines = [
            f"{verdict}: disjoint halves of the prompts share {mean:.0%} of their edges (chance {self.random_halves:.1%}); "
            f"{int((often >= OFTEN).sum())} of {int(self.circuit.sum())} edges are chosen in at least {OFTEN:.0%} of the draws"
        ]
        crossing = int(((self.low <= 0) & (self.high >= 0))[self.circuit].sum())
        if crossing:
            lines.append(f"the intervals of {crossing} edges' scores contain 0")
        lines += [f"ablation {name!r} chooses {share:.0%} of the same edges" for name, share in self.ablations.items()]
        return "\n".join(lines)


@with_provenance
@options(draws=1, halvings=1, seed=0)
def stability(
    circuit: Circuit,
    scores: EdgeScores,
    *,
    draws: int = 200,
    halvings: int = 10,
    seed: int = 0,
    others: Mapping[str, EdgeScores] | None = None,
) -> Stability:
    """Repeat the choice of a circuit's edges on prompts drawn again.

    Args:
        circuit: its size is the size of what is chosen, in the order in which it was.
        scores: those that it was chosen by, with the scores of each example.
        others: scores under other ablations, by their names.

    Raises:
        ShapeError: fewer than four examples.
        ConfigError: no draws.
    """
    there = circuit.graph.mask
    each = scores.each.cpu()[:, there].double()  # batch, edge
    count, size, sign = len(each), circuit.size, int(circuit.about.get("sign", 0))
    if count < 4:
        raise ShapeError(f"{count} examples are too few to draw from again; give at least 4")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(each.shape[1])
    for _ in range(draws):
        times = torch.bincount(torch.randint(count, (count,), generator=generator), minlength=count).double()
        chosen += largest(times @ each, size, sign)
    halves = []
    for _ in range(halvings):
        order = torch.randperm(count, generator=generator)
        one, other = (largest(each[part].mean(0), size, sign) for part in (order[: count // 2], order[count // 2 :]))
        halves.append(jaccard(one, other))
    low, high = interval_of_mean(each)
    edges = each.shape[1]
    shared = size * size / edges
    ablations = {
        name: jaccard(largest(other.values.data.cpu()[there], size, sign), largest(each.mean(0), size, sign))
        for name, other in (others or {}).items()
    }
    labels = {"writer": circuit.graph.writers, "reader": circuit.graph.readers}

    def spread(values: Tensor) -> Tensor:
        out = torch.full(there.shape, torch.nan, dtype=torch.float64)
        out[there] = values.double()
        return out

    values = Labelled(spread(chosen / draws), ("writer", "reader"), labels, "how often chosen")
    return Stability(
        values, spread(low), spread(high), circuit.edges, tuple(halves), shared / (2 * size - shared) if size else 1.0, ablations
    )
