"""Ablation: how much the loss rises when a head or an MLP is replaced by its mean over the prompts."""

from __future__ import annotations

from cutaway.analysis.answer_numbers import ablations
from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs import edits
from cutaway.runs.estimates import Value, means, spread
from cutaway.runs.sweep import sweep

DRAWS = 12


def cells(study: Study) -> dict[str, edits.Edit]:
    """Every head and every MLP, replaced by its mean over prompts (and positions, where prompts differ in length)."""
    cfg = study.model.cfg
    even = bool(study.prompts.mask.all())
    change = edits.mean(over=("batch",) if even else ("batch", "pos"))
    found = {f"{l}.{h}": change.at(("z", l), heads=h) for l in range(cfg.n_layers) for h in range(cfg.n_heads)}
    if not cfg.attn_only:
        found |= {f"{layer}.mlp": change.at(("mlp_out", layer)) for layer in range(cfg.n_layers)}
    return found


def lacks(study: Study) -> str:
    """The mean over one prompt changes nothing."""
    return "" if len(study.prompts) > 1 else "the mean over one prompt is that prompt"


def passes(study: Study) -> float:
    """About half a pass for each cell; large models are screened by gradients first (35 measured, of SmolLM2)."""
    return 35 if study.large else (len(cells(study)) + DRAWS) * 0.6


def ask(study: Study) -> list[Finding]:
    """The rise of the loss for each, against random changes of the same size."""
    every = cells(study)
    found = sweep(
        study.model, study.prompts.tokens, list(every.values()), study.loss, mask=study.mask, seed=study.seed, baseline=DRAWS,
        method="screen" if study.large else "exact", top=12,
    )  # fmt: skip
    study.sweeps["ablation"] = found
    values = means(every, found.effects.data, shares=False)
    random = Value(0.0) if found.baseline is None else spread(found.baseline.mean().values.data)
    what, unit = f"the rise of the {study.loss.name} without a component", study.loss.unit
    note = " (the largest exactly, the others estimated from gradients)" if study.large else ""
    against = "random changes of the same size"
    numbers = {} if study.large else ablations(study, study.seed)
    return [Finding("largest", what + note, values, unit, random, against, study.on, numbers=numbers)]
