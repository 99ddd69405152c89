"""How well the model does: accuracy against chance, by class of answer and by position."""

from __future__ import annotations

from cutaway.analysis import answer_numbers
from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value

MOST_POSITIONS = 40


def ask(study: Study) -> list[Finding]:
    """Accuracy, preference over wrong answers, classes, positions."""
    chance, constant = study.chance, "always the same answer"
    shared = study.telling is not None  # one answer is right everywhere, so that a fixed order of answers tells nothing
    found = [Finding("share", "the share of right answers", {"all": study.accuracy}, "share", chance, constant, study.on)]
    if study.telling is not None:
        what = "how often an answer is likelier where it is right than where it is wrong"
        found.append(Finding("share", what, {"all": study.telling}, "share", Value(0.5), "any fixed answer", study.on))
    if study.preference is not None:
        what, pairs = "the share of answers with a higher logit than the wrong ones given", {"all": study.preference}
        found.append(Finding("share", what, pairs, "share", study.coin, "a fixed order of answers", study.on, silent=shared))
    if study.response is not None:
        what = "the share of answers that lead by more than in the counterpart"
        found.append(Finding("share", what, {"all": study.response}, "share", Value(0.5), "a coin", study.on))
    at = study.places[1]
    named = {name: where[study.places] for name, where in study.behaviour.classes(study.prompts).items()}
    by_class = {name: study.over(study.correct, where) for name, where in named.items() if bool(where.any())}
    if len(by_class) > 1:
        common = {name: int(study.right[where].sum(0).argmax()) for name, where in named.items()}
        always = {name: study.over(study.right[:, common[name]], named[name]) for name in by_class}
        what, against = "accuracy by class of answer", f"within the class {constant}"
        found.append(Finding("comparison", what, by_class, "share", always, against))
    positions = sorted(set(at.tolist()))
    if len(positions) > 1 and not study.prompts.texts:
        shown = positions if len(positions) <= MOST_POSITIONS else positions[:: -(-len(positions) // MOST_POSITIONS)]
        by_position = {str(one): study.over(study.correct, at == one) for one in shown}
        found.append(Finding("trend", "accuracy by position", by_position, "share", chance, constant, axis="position"))
    whole, numbers = {"all": study.over(study.losses, shares=False)}, answer_numbers.performance(study, named)
    found.append(Finding("share", f"the {study.loss.name}", whole, "nats", silent=True, numbers=numbers))
    return found
