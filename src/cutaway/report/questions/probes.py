"""What is linearly there: probes for each feature, on held-out prompts, layer by layer, beside probes of shuffled labels."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway.analysis.probes import held_out
from cutaway.prompts import UNCOUNTED
from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value

MOST, CLASSES = 4000, 30  # places that a probe reads, values of a feature


def features(study: Study) -> dict[str, Int[Tensor, "batch pos"]]:
    """The behaviour's features, and the right answer (of sets, which set it is)."""
    found = dict(study.behaviour.features(study.prompts))
    answers = torch.full_like(study.prompts.tokens, UNCOUNTED)
    answers[study.places] = study.right.unique(dim=0, return_inverse=True)[1]
    found["the answer"] = answers
    return {name: values for name, values in found.items() if 2 <= len(_values(study, values)) <= CLASSES}


def _values(study: Study, grid: Tensor) -> list[int]:
    return grid[(grid != UNCOUNTED) & study.prompts.mask].unique().tolist()


def lacks(study: Study) -> str:
    """Features with a few values each, and prompts to hold out."""
    if len(study.prompts) < 20:
        return f"{len(study.prompts)} prompts are too few to hold some out"
    return "" if features(study) else f"no feature has 2 to {CLASSES} values"


def ask(study: Study) -> list[Finding]:
    """Held-out accuracy by layer."""
    found = []
    generator = torch.Generator().manual_seed(study.seed)
    test = torch.rand(len(study.prompts), generator=generator) < 0.3
    names = [*(f"before {layer}" for layer in range(study.model.cfg.n_layers)), "the end"]
    for feature, grid in features(study).items():
        where = ((grid != UNCOUNTED) & study.prompts.mask).nonzero()
        where = where[torch.randperm(len(where), generator=generator)[:MOST]]
        rows, labels = where[:, 0], grid[where[:, 0], where[:, 1]].unique(return_inverse=True)[1]
        dealt = labels[torch.randperm(len(labels), generator=generator)]
        values, base = {}, {}
        for name, site in zip(names, study.streams, strict=True):
            x = study.cache[site][where[:, 0], where[:, 1]].double()
            values[name] = held_out(x, labels, test[rows], rows, len(study.prompts))
            base[name] = held_out(x, dealt, test[rows], rows, len(study.prompts))
        often = float(labels[test[rows]].bincount().max()) / max(int(test[rows].sum()), 1)
        base = {name: max(one, Value(often), key=lambda v: v.value) for name, one in base.items()}
        what = f"the accuracy of linear probes for {feature}"
        against = "shuffled labels or the commonest value"
        found.append(Finding("trend", what, values, "share", base, against, f"{len(where):,} places", axis="layers"))
    return found
