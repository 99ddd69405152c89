"""The verdict on an explanation: three scores, their controls, and what they allow to be said.

* M: how well program and model agree on unseen inputs, corrected for chance (Cohen's kappa of answers).
* S: how much of the loss is kept when activations are exchanged among inputs that the program calls equal.
* C: which share of the exact effect lies inside the graph of nodes that the program stands for.

*Explained* only if the lower end of the smallest score's 95% interval is at least 0.95, M at least 0.99, every control at
most 0.2, the description at most 5% of the parameters' bits, and the model does its task. Where S is below 0.97, each node that
matters by itself is exchanged alone and has to keep half of its effect: a last layer that holds what the program says can hide an
earlier one that does not. A false story is worse than ten refusals, so everything else is *partly explained* or *not explained*,
with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

EXPLAINED, PARTLY, NOT = "explained", "partly explained", "not explained"
LEAST, LEAST_MATCH, MOST_CONTROL, MOST_SHARE, LEAST_ACCURACY = 0.95, 0.99, 0.2, 0.05, 0.9
HALF = 0.5  # a score below it is no part of an explanation


def agreement(one: Int[Tensor, "item"], other: Int[Tensor, "item"], sets: Bool[Tensor, "answer token"] | None = None) -> float:
    """Cohen's kappa of two lists of answers; of the tokens in them, where all answers are the same set of several."""
    if sets is not None and len(one.unique()) == 1:
        yes, also = sets[one].flatten(), sets[other].flatten()
        return _kappa(yes.long(), also.long(), 2)
    return _kappa(one, other, int(torch.cat([one, other]).max()) + 1)


def _kappa(one: Int[Tensor, "item"], other: Int[Tensor, "item"], size: int) -> float:
    same = float((one == other).double().mean())
    shares = [x.bincount(minlength=size).double() / len(x) for x in (one, other)]
    chance = float((shares[0] * shares[1]).sum())
    return (same - chance) / (1 - chance) if chance < 1 else 0.0


@dataclass(frozen=True)
class Score:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(value: float, resampled: Tensor, sequences: int, *, whole: bool = False) -> Score:
    """A score with the bootstrap's interval; without a single failure, the low end is the rule of three's `1 - 3 / n`.

    Of the `whole` of all inputs there is nothing that was not drawn: the score is its own interval.
    """
    if whole:
        return Score(value, value, value)
    low, high = (float(x) for x in torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=resampled.dtype)))
    if low >= 1.0:
        low = 1 - 3 / max(sequences, 3)
    return Score(value, min(low, value), max(high, value))


@dataclass(frozen=True)
class Verdict:
    """What may be said."""

    verdict: str
    reasons: tuple[str, ...]
    match: Score
    scrubbed: Score
    graph: Score
    controls: dict[str, float]
    bits: float
    of_bits: float
    accuracy: float
    notes: tuple[str, ...] = field(default=())

    @property
    def headline(self) -> float:
        """The smallest of the three scores."""
        return min(self.match.value, self.scrubbed.value, self.graph.value)

    def to_json(self) -> dict[str, object]:
        """Everything, as plain data."""
        scores = {
            name: {"value": score.value, "low": score.low, "high": score.high}
            for name, score in (("M", self.match), ("S", self.scrubbed), ("C", self.graph))
        }
        return {
            "verdict": self.verdict, "reasons": list(self.reasons), "headline": self.headline, "scores": scores,
            "controls": self.controls, "description_bits": self.bits, "parameter_bits": self.of_bits,
            "task_accuracy": self.accuracy, "notes": list(self.notes),
        }  # fmt: skip


def judge(
    match: Score, scrubbed: Score, graph: Score, controls: dict[str, float], bits: float, of_bits: float, accuracy: float, *,
    weakest: tuple[str, float] | None = None, notes: tuple[str, ...] = (),
) -> Verdict:  # fmt: skip
    """The verdict that these numbers allow; `weakest` is a node with the S that it has when it is exchanged by itself."""
    reasons = []
    if accuracy < LEAST_ACCURACY:
        reasons.append(f"the model does not do its task: {accuracy:.1%} of its answers are those of the examples")
    if match.value < LEAST_MATCH:
        reasons.append(f"program and model agree in {match.value:.3f} of what chance leaves, and {LEAST_MATCH} is needed")
    names = {"M (agreement)": match, "S (scrubbed)": scrubbed, "C (graph)": graph}
    smallest = min(names, key=lambda name: names[name].low)
    if names[smallest].low < LEAST:
        reasons.append(f"the lower end of {smallest} is {names[smallest].low:.3f}, and {LEAST} is needed")
    if weakest is not None and weakest[1] < HALF:
        kept = f"{weakest[1]:.2f} of 1 ({HALF} is needed)"
        reasons.append(f"{weakest[0]}, exchanged by itself, keeps {kept}: it holds more than the program says")
    for name, value in controls.items():
        if value > MOST_CONTROL:
            reasons.append(f"the control '{name}' reaches {value:.2f}, and at most {MOST_CONTROL} is allowed")
    if bits > MOST_SHARE * of_bits:
        reasons.append(f"the program takes {bits:.0f} bits, more than {MOST_SHARE:.0%} of the parameters' {of_bits:.0f}")
    shares = [score.value for score in (match, scrubbed, graph)]
    broken = accuracy < LEAST_ACCURACY or max(controls.values(), default=0.0) > MOST_CONTROL or bits > MOST_SHARE * of_bits
    verdict = EXPLAINED if not reasons else NOT if broken or min(shares) < HALF else PARTLY
    return Verdict(verdict, tuple(reasons), match, scrubbed, graph, controls, bits, of_bits, accuracy, notes)
