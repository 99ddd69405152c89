"""How well the model does: accuracy against chance, by class of answer and by position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value
from cutaway.runs.results import mean_of

MOST_POSITIONS = 40


def ask(study: Study) -> list[Finding]:
    """Accuracy, preference over wrong answers, classes, positions."""
    chance = study.chance
    constant = "always the same answer"
    shared = study.telling is not None  # one answer is right everywhere, so that a fixed order of answers tells nothing
    found = [Finding("share", "the share of right answers", {"all": study.accuracy}, "share", chance, constant, study.on)]
    if study.telling is not None:
        what = "how often an answer is likelier where it is right than where it is wrong"
        found.append(Finding("share", what, {"all": study.telling}, "share", Value(0.5), "any fixed answer", study.on))
    if study.preference is not None:
        pairs = {"all": study.preference}
        what = "the share of answers with a higher logit than the wrong ones given"
        against = "a fixed order of answers"
        found.append(Finding("share", what, pairs, "share", study.coin, against, study.on, silent=shared))
    if study.response is not None:
        what = "the share of answers that lead by more than in the counterpart"
        found.append(Finding("share", what, {"all": study.response}, "share", Value(0.5), "a coin", study.on))
    rows, at = study.places
    classes = study.behaviour.classes(study.prompts)
    named = {name: where[rows, at] for name, where in classes.items()}
    by_class = {name: study.over(study.correct, where) for name, where in named.items() if bool(where.any())}
    if len(by_class) > 1:
        always = {
            name: study.over(study.right[:, int(study.right[where].sum(0).argmax())], where)
            for name, where in named.items()
            if name in by_class
        }
        what, against = "accuracy by class of answer", f"within the class {constant}"
        found.append(Finding("comparison", what, by_class, "share", always, against))
    positions = sorted(set(at.tolist()))
    if len(positions) > 1 and not study.prompts.texts:
        shown = positions if len(positions) <= MOST_POSITIONS else positions[:: -(-len(positions) // MOST_POSITIONS)]
        by_position = {str(one): study.over(study.correct, at == one) for one in shown}
        found.append(Finding("trend", "accuracy by position", by_position, "share", chance, constant, axis="position"))
    loss = study.losses
    whole = {"all": study.over(loss, shares=False)}
    found.append(Finding("share", f"the {study.loss.name}", whole, "nats", silent=True, numbers=_numbers(study, loss, named)))
    return found


def _numbers(study: Study, loss: Tensor, classes: Mapping[str, Tensor]) -> dict[str, Any]:
    """Loss, accuracy and the right answers' probability: over all, by position, by class."""
    (rows, at), right, probability = study.places, study.correct.float(), (-loss).exp()
    wrong = torch.zeros(len(study.prompts)).index_add(0, rows, 1 - right)
    series = {"loss": loss, "accuracy": right, "mean_correct_probability": probability}
    return {
        "loss": mean_of(loss), "accuracy": mean_of(right), "mean_correct_probability": mean_of(probability),
        "min_correct_probability": float(probability.min()), "mistakes": int(wrong.sum()), "positions": len(right),
        "sequences_without_mistake": mean_of((wrong == 0).float()),
        "by_position": {name: [mean_of(each, at == one) for one in range(study.prompts.tokens.shape[1])]
                        for name, each in series.items()},
        "by_kind": {name: {"positions": int(where.sum()), **{of: mean_of(each, where) for of, each in series.items()}}
                    for name, where in classes.items()},
    }  # fmt: skip
