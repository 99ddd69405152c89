"""Some prompts, what is right and what the model says."""

from __future__ import annotations

from cutaway.analysis import answer_numbers
from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value
from cutaway.view import table

SHOWN = 6


def row_of(study: Study, answer: int) -> list[object]:
    """One answer: the prompt up to it, what is right, what is said, the right answer's probability."""
    row, at = (int(one[answer]) for one in study.places)
    tokens = study.prompts.tokens[row, : at + 1].tolist()
    text = study.joined(tokens[-60:])
    right = study.right[answer].nonzero().flatten().tolist()
    given = (study.logits[answer] > 0).nonzero().flatten().tolist() if study.above else [int(study.logits[answer].argmax())]
    probability = float(study.logits[answer].softmax(0)[right].sum())
    names = [", ".join(map(study.answer_word, some[:8])) + (" …" if len(some) > 8 else "") for some in (right, given)]
    return [("… " if len(tokens) > 60 else "") + text, *names, bool(study.correct[answer]), probability]


COLUMNS = ("prompt up to the answer", "right", "the model says", "is right", "probability of the right")


def ask(study: Study) -> list[Finding]:
    """The first answers of the first prompts."""
    rows = study.places[0]
    last = [int((rows == row).nonzero()[-1]) for row in rows.unique().tolist()[:SHOWN]]
    shown = table(COLUMNS, [row_of(study, answer) for answer in last], title="The last answer of some prompts")
    good = {study.text(int(rows[answer])): Value(1.0) for answer in last if bool(study.correct[answer])}
    return [Finding("count", "prompts shown whose answer is right", good, total=len(last), figures=[shown], silent=True,
                    numbers=answer_numbers.examples(study, SHOWN - 1) if study.single else {})]  # fmt: skip
