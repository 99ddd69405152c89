"""The logit lens: from which layer on the stream would give the right answer."""

from __future__ import annotations

import math

from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value


def passes(study: Study) -> float:
    """A part of a pass for each layer: its stream is unembedded."""
    return 0.06 * study.model.cfg.n_layers


def ask(study: Study) -> list[Finding]:
    """Accuracy of the stream before each layer and after the last, read by the final norm and the unembedding.

    Where one answer is right everywhere: how often an answer is likelier where it is right than where it is wrong.
    """
    names = [*(f"before {layer}" for layer in range(study.model.cfg.n_layers)), "the end"]
    values: dict[str, Value] = {}
    shared = study.telling is not None
    for name, site in zip(names, study.streams, strict=True):
        logits = study.logits_at(study.cache[site])
        shares = study.telling_of(logits) if shared else study.over(study.hits(logits))
        values[name] = Value(math.nan) if shares is None else shares
    what = "the accuracy that the stream would have through the unembedding"
    base, against = study.chance, "always the same answer"
    if shared:
        what = "how often, read from the stream, an answer is likelier where it is right than where it is wrong"
        base, against = Value(0.5), "any fixed answer"
    return [Finding("trend", what, values, "share", base, against, study.on, axis="layers")]
