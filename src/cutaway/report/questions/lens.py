"""The logit lens: from which layer on the stream would give the right answer."""

from __future__ import annotations

from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value


def ask(study: Study) -> list[Finding]:
    """Accuracy of the stream before each layer and after the last, read by the final norm and the unembedding."""
    names = [*(f"before {layer}" for layer in range(study.model.cfg.n_layers)), "the end"]
    values: dict[str, Value] = {}
    for name, site in zip(names, study.streams, strict=True):
        values[name] = study.over(study.hits(study.logits_at(study.cache[site])))
    what = "the accuracy that the stream would have through the unembedding"
    return [Finding("trend", what, values, "share", study.chance, "always the same answer", study.on, axis="layers")]
