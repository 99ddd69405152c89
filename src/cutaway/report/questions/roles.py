"""How heads share the tokens, in two attention-only layers: detectors of repeats, responsible heads, ways through both."""

from __future__ import annotations

from dataclasses import replace

from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value


def lacks(study: Study) -> str:
    """A network of the shape that is read."""
    return "" if study.roles is not None else "the network has not two attention-only layers and a small vocabulary"


def ask(study: Study) -> list[Finding]:
    """Detectors and responsible heads, by token; the scores and circuits that make them; what positions are for."""
    roles = study.roles
    assert roles is not None
    marks, total = roles.detectors, len(study.content)
    sizes, first = roles.quadrants()
    full, through = roles.full_circuits()
    numbers = {
        "detectors": {**{kind: marks.of(kind) for kind in ("duplicate", "anti_duplicate")}, "above": marks.above,
                      "below": marks.below, "attention_to_same": marks.values.as_dict()},
        "responsible": roles.responsible.tokens_of, "qk_quadrants": sizes, "position_1_score": first,
        "pathways": roles.pathways(), "layer_1_scores": roles.key_scores(), "layer_0_outputs": roles.first_outputs(),
        "layer_1_outputs": roles.second_outputs(), "full_circuits": full, "circuits": through, "passed_over": roles.passed_over(),
    }  # fmt: skip
    if bool(study.prompts.answered.all()):
        last = study.logits.view(*study.prompts.tokens.shape, -1)[:, -1]
        numbers |= {"order": roles.order(last), "origins": roles.without_origins(study.prompts.labels)}
    kinds = {
        "tokens from which {} attends to the same token, by its weights": marks.duplicate,
        "tokens from which {} attends to anything but the same token, by its weights": marks.anti_duplicate,
        "tokens whose own logit {} moves most": roles.responsible.tokens_of,
    }
    found = [Finding("count", what.format(head), dict.fromkeys(words, Value(1.0)), total=total, on="weights")
             for what, heads in kinds.items() for head, words in heads.items()]  # fmt: skip
    ways = {"duplicate": "duplicate detectors and the responsible head", "anti_duplicate": "anti-duplicate detectors"}
    for name, label in ways.items():
        own = {word: Value(value) for word, value in full[name]["own_logit"].items()}
        what = f"what a token does to its own logit through its {label}"
        rest = Value(full[name]["other_letters_mean"])
        found.append(Finding("largest", what, own, "logits", rest, "to the others' logits", "weights", two_sided=True))
    found[0] = replace(found[0], numbers=numbers)
    return found
