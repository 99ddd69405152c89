"""A circuit in one call: edges scored, the smallest circuit searched for, run beside random ones. What comes out is a result.

`find_circuit` does the search alone, of scores and a runner that the caller has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor

from cutaway.circuits.attribution import edge_attribution, strongest
from cutaway.circuits.circuit import Circuit
from cutaway.circuits.measuring import CircuitRunner
from cutaway.circuits.scoring import curve
from cutaway.circuits.searching import find_circuit
from cutaway.errors import ShapeError
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options
from cutaway.runs.hashes import model_hash
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result
from cutaway.view import Figure, heat_map


def recovery_text(
    size: int, of: int, metric: str, ablation: str, interval: tuple[float, float], *, clean: float, ablated: float,
    recovered: float, random: float, shuffled: float,
) -> str:  # fmt: skip
    """How much a circuit recovers, beside circuits of its size, in a sentence."""
    low, high = interval
    sure = (
        "no interval: the prompts are too few, or too unlike"
        if isnan(low) or isnan(high)
        else f"95% interval {low:.0%} to {high:.0%}"
    )
    chance, shuffle = (f"{round(share, 2) + 0.0:.0%}" for share in (random, shuffled))  # never −0%
    return (
        f"{size} of {of} edges ({size / of:.2%}) recover {recovered:.0%} of the {metric} ({sure}): {clean:.3g} in the whole "
        f"model, {ablated:.3g} with all edges ablated ({ablation}); as many edges drawn at random recover {chance}, "
        f"with shuffled scores {shuffle}"
    )


@dataclass(frozen=True, eq=False)
class CircuitSearch(Result):
    """A circuit that was searched for, and how much it does.

    Args:
        values: `[writer, reader]`, the scores of its edges; NaN for edges that are not in it.
        each: the metric of the circuit for each prompt, `[batch]`.
        size, of: how many edges it has, and how many there are.
        recovered, interval: of the metric's difference, with the 95% interval over prompts.
        clean, ablated: the metric of the whole model and of the empty circuit.
        random, shuffled: what as many edges recover that are drawn at random, and with the largest of shuffled scores.
        ablation: what all other edges carry.
        model: the hash of the model.
    """

    values: Labelled
    each: Tensor
    size: int
    of: int
    recovered: float
    interval: tuple[float, float]
    clean: float
    ablated: float
    random: float
    shuffled: float
    ablation: str
    metric: str
    model: str

    def circuit(self, model: Transformer) -> Circuit:
        """The circuit, to run, draw and compare.

        Raises:
            ShapeError: another model.
        """
        if model_hash(model) != self.model:
            raise ShapeError("this circuit was searched for in another model, as its hash says; load that one")
        scores = self.values.data
        about = {"metric": self.metric, "recovered": self.recovered}
        return Circuit.of(model, ~scores.isnan(), effects=scores, ablation=self.ablation, about=about)

    def pairs(self) -> list[tuple[str, str]]:
        """Its edges as writer and reader, the largest scores first."""
        return [(writer, reader) for writer, reader, _ in strongest(self.values, self.size)]

    def figure(self) -> Figure:
        """Writers down, readers across."""
        return heat_map(
            self.values.data, self.values.names("reader"), self.values.names("writer"), x_name="reader", y_name="writer",
            value_name=self.values.what, title="the edges of the circuit",
        )  # fmt: skip

    def summary(self) -> str:
        edges = ", ".join(f"{writer} → {reader}" for writer, reader in self.pairs()[:6])
        means = {"clean": self.clean, "ablated": self.ablated}
        shares = {"recovered": self.recovered, "random": self.random, "shuffled": self.shuffled}
        recovery = recovery_text(self.size, self.of, self.metric, self.ablation, self.interval, **means, **shares)
        return f"{recovery}\nlargest: {edges}"


@with_provenance
@options(target=(0, 1), size=0, steps=1, checks=0, seed=0)
def circuit_for(
    model: Transformer, clean: Any, corrupted: Any = None, metric: Any = None, *, target: float = 0.9, size: int | None = None,
    method: str = "both", order: str = "best", ablation: str = "resample", steps: int = 5, checks: int = 60, seed: int = 0,
    progress: Callable[[float, float], None] | None = None,
) -> CircuitSearch:  # fmt: skip
    """Search for the smallest circuit that carries a behaviour.

    Example: `circuit_for(model, behaviour("ioi").prompts(32, tokenizer=model.tokenizer)).summary()`

    Args:
        clean, corrupted, metric, steps: as `edge_attribution` takes them.
        target, size, method, order, checks: as `find_circuit` takes them.
        ablation: what edges outside the circuit carry: "resample", "mean", "mean over positions" or "zero".
        seed: of the random circuits beside it.

    Raises:
        ShapeError: prompts that do not align, a metric without a gradient, or nothing to recover.
        ConfigError: an unknown method, order or ablation.
    """
    scores = edge_attribution(model, clean, corrupted, metric, steps=steps, ablation=ablation, progress=progress)
    runner = CircuitRunner(model, clean, corrupted, metric, ablation=ablation)
    found = find_circuit(runner, scores, target=target, size=size, method=method, order=order, checks=checks)
    controls = curve(runner, scores.values.data, sizes=[found.size], sign=found.about["sign"], seed=seed)
    each, values = runner.values(found.edges), scores.values
    kept = values.data.cpu().masked_fill(~found.edges, torch.nan)
    random, shuffled = (float(controls.values.sel(curve=name).data[0]) for name in ("random", "shuffled"))
    return CircuitSearch(
        Labelled(kept, values.axes, values.labels, values.what, values.unit), each, found.size, found.graph.size,
        runner.share(each), runner.interval(each), float(controls.clean), float(controls.corrupted), random, shuffled, ablation,
        runner.metric.name, found.model,
    )  # fmt: skip
