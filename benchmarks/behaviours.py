"""Circuits of three behaviours in SmolLM2-135M: how few edges carry them, how sure that is, and what their heads attend to.

Run: python benchmarks/behaviours.py [indirect-objects|induction|greater-than]. It stops where a circuit of at most 2% of the
edges recovers less than nine tenths under resampling, or random circuits of its size do as well.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch

from cutaway import CircuitRunner, HookedTransformer, behaviour, edge_attribution, find_circuit, metrics, run, stability
from cutaway.circuits.attribution import EdgeScores, largest
from cutaway.circuits.circuit import jaccard
from cutaway.circuits.roles import attention_to_roles
from cutaway.circuits.scoring import curve
from cutaway.prompts import Prompts

NAMES = ("indirect-objects", "induction", "greater-than")
PROMPTS, STEPS, MOST, TARGET = 64, 5, 0.02, 0.9


def metric_of(prompts: Prompts) -> Any:
    """Logit difference; of sets of answers, the difference of their probabilities."""
    if prompts.several:
        return metrics.probability_difference(prompts.answer_sets(), prompts.answer_sets(wrong=True), prompts.at)
    return metrics.logit_difference(prompts.answers, prompts.wrong_answers, prompts.at)


def runner_of(model: HookedTransformer, prompts: Prompts) -> CircuitRunner:
    """Circuits on these prompts, all other edges resampled."""
    assert prompts.corrupted is not None
    return CircuitRunner(model, prompts.tokens, prompts.corrupted.tokens, metric_of(prompts))


def halves(model: HookedTransformer, prompts: Prompts, scores: EdgeScores, size: int, sign: int) -> str:
    """Circuits of as many edges from each half of the prompts, and what each recovers on the other."""
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0))
    parts = order[: len(order) // 2], order[len(order) // 2 :]
    found = [largest(scores.each[part].mean(0), size, sign) for part in parts]
    crossed = [runner_of(model, prompts[part]).recovered(edges) for part, edges in zip(parts, reversed(found), strict=True)]
    return f"halves share {jaccard(*found):.0%} of their edges; each recovers {crossed[1]:.2f}, {crossed[0]:.2f} on the other"


def measure(model: HookedTransformer, name: str) -> None:
    """Find the circuit of a behaviour, and print what is known of it."""
    prompts = behaviour(name).prompts(PROMPTS, 0, model.tokenizer)
    assert prompts.corrupted is not None
    begun = time.process_time()
    scores = edge_attribution(model, prompts.tokens, prompts.corrupted.tokens, metric_of(prompts), steps=STEPS)
    scored = time.process_time() - begun
    runner = runner_of(model, prompts)
    circuit = find_circuit(runner, scores, target=TARGET)
    found = time.process_time() - begun - scored
    controls = curve(runner, scores.values.data, sizes=[circuit.size], sign=circuit.about["sign"], draws=2)
    row = {one: float(controls.values.sel(curve=one).data[0]) for one in ("without", "random", "shuffled")}
    recovered, interval = circuit.about["recovered"], runner.interval(runner.values(circuit.edges))
    print(f"{name}: {PROMPTS} pairs, {runner.metric.name} {controls.clean:.2f}, corrupted {controls.corrupted:.2f}")
    print(f"  {circuit.size} of {circuit.graph.size} edges ({circuit.share:.2%}) recover {recovered:.2f} "
          f"({interval[0]:.2f} to {interval[1]:.2f}); without them {row['without']:.2f}, random {row['random']:.2f}, "
          f"shuffled scores {row['shuffled']:.2f}")  # fmt: skip
    print(f"  {stability(circuit, scores, draws=50).summary()}".replace("\n", "\n  "))
    print(f"  {halves(model, prompts, scores, circuit.size, circuit.about['sign'])}")
    value = run(model, prompts.tokens, edits=circuit, metric=runner.metric).value
    assert value is not None and abs(runner.share(value.double()) - recovered) < 0.01
    heads = [node for node in circuit.nodes() if node[-1].isdigit()][:16]
    for one in sorted(attention_to_roles(model, prompts, heads), key=lambda one: -one.weight):
        print(f"  {one}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  scores {scored:.0f} s of processor time, search {found:.0f} s, peak memory {peak:.1f} GiB")
    assert recovered >= TARGET and circuit.share <= MOST and row["random"] < 0.1, "no small circuit"


def main() -> None:
    """Each behaviour, or those named."""
    model = HookedTransformer.from_pretrained("smollm2-135m-instruct")
    for name in sys.argv[1:] or NAMES:
        measure(model, name)


if __name__ == "__main__":
    main()
