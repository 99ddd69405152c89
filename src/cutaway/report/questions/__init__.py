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
    """A heading; `ask`, the findings; why it cannot be asked, or nothing; how many forward passes over the prompts it takes."""

    heading: str
    ask: Callable[[Study], list[Finding]]
    lacks: Callable[[Study], str]
    passes: Callable[[Study], float]


def nothing(study: Study) -> str:
    """Nothing is lacking."""
    return ""


QUESTIONS = {
    "performance": Question("How well it does", performance.ask, nothing, lambda _: 1.0),
    "examples": Question("Examples", examples.ask, nothing, lambda _: 0.0),
    "norms": Question("What norms divide by", norms.ask, norms.lacks, lambda _: 0.0),
    "attention": Question("Who attends to what", attention.ask, attention.lacks, lambda _: 0.1),
    "attribution": Question("What each component adds to the answer", attribution.ask, attribution.lacks, lambda _: 0.7),
    "ablation": Question("What is needed", ablation.ask, ablation.lacks, ablation.passes),
    "patching": Question("Where the answer is carried", patching.ask, patching.lacks, patching.passes),
    "paths": Question("Who writes the answer", paths.ask, paths.lacks, paths.passes),
    "circuit": Question("The circuit", circuit.ask, circuit.lacks, circuit.passes),
    "lens": Question("When the answer is there", lens.ask, nothing, lens.passes),
    "weights": Question("What the weights say", weights.ask, weights.lacks, lambda _: 1.0),
    "roles": Question("Which head is for which token", roles.ask, roles.lacks, lambda _: 20.0),
    "probes": Question("What is linearly there", probes.ask, probes.lacks, lambda _: 1.0),
    "embeddings": Question("How tokens are embedded", embeddings.ask, embeddings.lacks, lambda _: 0.1),
    "failures": Question("Where it fails", failures.ask, nothing, failures.passes),
    "sets": Question("Special prompts", sets.ask, sets.lacks, lambda _: 1.0),
    "steering": Question("Steering from one answer to another", steering.ask, steering.lacks, steering.passes),
}
"""Name → question, in the order in which one would find things out."""
