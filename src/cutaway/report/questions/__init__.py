"""Questions: each says what it lacks, asks one analysis, and returns findings. A question is a module with these four names.

`HEADING`; `lacks(study)`, why it cannot be asked, or nothing; `passes(study)`, about how many forward passes over the prompts
it takes; `ask(study)`, the findings.
"""

from __future__ import annotations

from typing import Protocol, cast

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


class Question(Protocol):
    """What a module of this folder has."""

    HEADING: str

    def lacks(self, study: Study) -> str: ...
    def passes(self, study: Study) -> float: ...
    def ask(self, study: Study) -> list[Finding]: ...


_ORDER = (performance, examples, norms, attention, attribution, ablation, patching, paths, circuit, lens, weights, roles, probes,
          embeddings, failures, sets, steering)  # fmt: skip
QUESTIONS = {module.__name__.rsplit(".", 1)[-1]: cast(Question, module) for module in _ORDER}
"""Name → question, in the order in which one would find things out."""
