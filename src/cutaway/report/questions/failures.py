"""Where it fails: kinds of mistakes, the worst answers, and a search for hard inputs by small changes."""

from __future__ import annotations

import torch

from cutaway.prompts import Prompts
from cutaway.report.findings import Finding, Value
from cutaway.report.questions.examples import COLUMNS, row_of
from cutaway.report.study import Study
from cutaway.tasks.behaviour import Algorithmic
from cutaway.view import table

HEADING = "Where it fails"
WORST, CHAINS, ROUNDS = 8, 24, 30


def lacks(study: Study) -> str:
    """Nothing: a model without mistakes has none to count."""
    return ""


def passes(study: Study) -> float:
    """The search runs a few sequences many times."""
    return ROUNDS * 4 * CHAINS / max(len(study.prompts), 1) if isinstance(study.behaviour, Algorithmic) else 0.2


def ask(study: Study) -> list[Finding]:
    """Mistakes by kind, the worst, and the search where right answers can be computed."""
    wrong, total = int((~study.correct).sum()), len(study.correct)
    order = study.lead.argsort()[:WORST].tolist()
    shown = table(COLUMNS, [row_of(study, answer) for answer in order], title="The answers with the smallest lead")
    rows = study.places[0][~study.correct].unique().tolist()
    named = {f"prompt {row + 1}": Value(1.0) for row in rows}
    found = [Finding("count", "prompts with a wrong answer", named, total=len(study.prompts), on=study.on, figures=[shown])]
    predicted = torch.zeros_like(study.prompts.tokens)
    predicted[study.places] = study.logits.argmax(1)
    kinds = {} if study.above else study.behaviour.mistakes(study.prompts, predicted)
    if wrong and kinds:
        shares = {name: study.over(where[study.places], ~study.correct) for name, where in kinds.items()}
        even = Value(1 / len(kinds))
        found.append(Finding("largest", "the share of mistakes of a kind", shares, "share", even, "kinds equally often",
                             f"{wrong} mistakes of {total:,} answers"))  # fmt: skip
    if isinstance(study.behaviour, Algorithmic) and not study.above:
        found.append(search(study, study.behaviour))
    return found


@torch.no_grad()
def search(study: Study, behaviour: Algorithmic) -> Finding:
    """From random sequences, the hardest of a few minimal changes again and again: how many end in a mistake."""
    generator = torch.Generator().manual_seed(study.seed + 1)
    tokens = behaviour.draw(CHAINS, generator)
    best, failed = _hardness(study, behaviour, tokens)
    begin = int(failed.sum())
    for _ in range(ROUNDS):
        for _ in range(4):
            other = behaviour.corrupt(tokens, generator)
            hard, fails = _hardness(study, behaviour, other)
            better = hard > best
            tokens, best, failed = (torch.where(better[:, None], other, tokens), torch.where(better, hard, best),
                                    torch.where(better, fails, failed))  # fmt: skip
    shown = ["".join(f"{study.word(token)} " for token in row).strip() for row in tokens[failed].tolist()]
    named = {text: Value(1.0) for text in dict.fromkeys(shown)}
    what = f"sequences that a search by minimal changes made the model get wrong (at its start {begin})"
    return Finding("count", what, named, total=CHAINS, baseline=Value(float(begin)), against="at the start")


def _hardness(study: Study, behaviour: Algorithmic, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest lead of a right answer in each sequence (negated), and whether some answer is wrong."""
    part = Study(study.model, Prompts.of_rows(tokens.tolist(), right=behaviour.known(tokens).right), behaviour, study.vocab)
    lead = torch.full(tokens.shape, torch.inf)
    other = part.logits.masked_fill(part.right, -torch.inf).amax(1)
    lead[part.places] = part.logits.masked_fill(~part.right, -torch.inf).amax(1) - other
    return -lead.amin(1), (lead <= 0).any(1)
