"""Special prompts that the behaviour names: how well, who attends to what and who adds what, on each of them."""

from __future__ import annotations

from typing import Any

from cutaway.report.findings import Finding
from cutaway.report.questions import attention, attribution, performance
from cutaway.report.study import Study


def lacks(study: Study) -> str:
    """Prompts that are worth a look of their own."""
    return "" if study.behaviour.sets() else "the behaviour names none"


def ask(study: Study) -> list[Finding]:
    """Accuracy on each set, beside the same constant answer."""
    values, always, numbers = {}, {}, {}
    for name, prompts in study.behaviour.sets().items():
        part = Study(study.model, prompts, study.behaviour, study.vocab, study.above, study.seed)
        values[name], always[name] = part.accuracy, part.chance
        numbers[name] = {"text": part.text(0)}
        for question in (performance, attention, attribution):
            for one in question.ask(part):
                merge(numbers[name], one.numbers)
    what, against = "accuracy on special prompts", "always the same answer"
    return [Finding("comparison", what, values, "share", always, against, numbers={"sets": numbers})]


def merge(into: dict[str, Any], tree: Any) -> None:
    """Put a tree into another, branch by branch."""
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
