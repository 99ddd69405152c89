"""Weights alone, of small networks: which heads copy what they attend to."""

from __future__ import annotations

from cutaway.analysis import head_composition
from cutaway.report.findings import Finding, none
from cutaway.report.study import Study
from cutaway.runs.estimates import Value

LAYERS = 4


def lacks(study: Study) -> str:
    """Few layers."""
    layers = study.model.cfg.n_layers
    return "" if layers <= LAYERS else f"{layers} layers: weights are not read"


def ask(study: Study) -> list[Finding]:
    """Copying scores, against random heads."""
    found = []
    cfg = study.model.cfg
    if cfg.d_vocab == cfg.d_vocab_out:
        copies = head_composition.copying(study.model, seed=study.seed)
        values = {name: Value(float(one)) for name, one in zip(study.heads, copies.values.data, strict=True)}
        random = Value(copies.baseline, copies.baseline - 2 * copies.spread, copies.baseline + 2 * copies.spread)
        what = "the copying score of a head (how far it raises the logit of what it attends to)"
        found.append(Finding("largest", what, values, "", random, "random heads", "weights", two_sided=True))
    return found or [none("copying", "the network reads one vocabulary and answers in another")]
