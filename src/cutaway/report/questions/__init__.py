"""Questions: each says what it lacks, asks one analysis, and returns findings."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cutaway.report.findings import Finding
from cutaway.report.questions import (
    ablation,
    attention,
    attribution,
    circuit,
    embeddings,
    examples,
    failures,
    lens,
    norms,
    patching,
    paths,
    performance,
    probes,
    roles,
    sets,
    steering,
    weights,
)
from cutaway.report.study import Study


class Question(NamedTuple):
    """A heading; `ask`, the findings; how many forward passes over the prompts it takes; why it cannot be asked, or nothing."""

    heading: str
    ask: Callable[[Study], list[Finding]]
    passes: Callable[[Study], float]
    lacks: Callable[[Study], str] = lambda _: ""


QUESTIONS = {
    "performance": Question("How well it does", performance.ask, lambda _: 1.0),
    "examples": Question("Examples", examples.ask, lambda _: 0.0),
    "norms": Question("What norms divide by", norms.ask, lambda _: 0.0, norms.lacks),
    "attention": Question("Who attends to what", attention.ask, lambda _: 0.1, attention.lacks),
    "attribution": Question("What each component adds to the answer", attribution.ask, lambda _: 0.7, attribution.lacks),
    "ablation": Question("What is needed", ablation.ask, ablation.passes, ablation.lacks),
    "patching": Question("Where the answer is carried", patching.ask, patching.passes, patching.lacks),
    "paths": Question("Who writes the answer", paths.ask, paths.passes, paths.lacks),
    "circuit": Question("The circuit", circuit.ask, circuit.passes, circuit.lacks),
    "lens": Question("When the answer is there", lens.ask, lens.passes),
    "weights": Question("What the weights say", weights.ask, lambda _: 1.0, weights.lacks),
    "roles": Question("Which head is for which token", roles.ask, lambda _: 20.0, roles.lacks),
    "probes": Question("What is linearly there", probes.ask, lambda _: 1.0, probes.lacks),
    "embeddings": Question("How tokens are embedded", embeddings.ask, lambda _: 0.1, embeddings.lacks),
    "failures": Question("Where it fails", failures.ask, failures.passes),
    "sets": Question("Special prompts", sets.ask, lambda _: 1.0, sets.lacks),
    "steering": Question("Steering from one answer to another", steering.ask, steering.passes, steering.lacks),
}
"""Name → question, in the order in which one would find things out."""
