"""Where it fails: kinds of mistakes, the worst answers, and a search for hard inputs by small changes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cutaway.analysis import answer_numbers
from cutaway.analysis.hill_climbing import hill_climb, in_common
from cutaway.axes import Tokens
from cutaway.prompts import UNCOUNTED
from cutaway.report.findings import Finding
from cutaway.report.questions.examples import COLUMNS, row_of
from cutaway.report.study import Study
from cutaway.runs.estimates import Value
from cutaway.tasks.behaviour import Algorithmic
from cutaway.view import table

WORST, CHAINS, ROUNDS = 12, 24, 12


def passes(study: Study) -> float:
    """The search runs a few sequences many times."""
    return ROUNDS * 12 * CHAINS / max(len(study.prompts), 1) if isinstance(study.behaviour, Algorithmic) else 0.2


def ask(study: Study) -> list[Finding]:
    """Mistakes by kind, the worst, and the search where right answers can be computed."""
    wrong, total = int((~study.correct).sum()), len(study.correct)
    order = study.losses.argsort(descending=True)[:WORST].tolist()
    shown = table(COLUMNS, [row_of(study, answer) for answer in order], title="The answers with the highest loss")
    rows = study.places[0][~study.correct].unique().tolist()
    named = {f"prompt {row}": Value(1.0) for row in rows}
    kinds = {} if study.above else study.behaviour.mistakes(study.prompts, _predicted(study))
    numbers = {
        "mistakes_by_kind": {name: int(where.sum()) for name, where in kinds.items()},
        "worst": [answer_numbers.answer(study, answer, kinds) for answer in order],
        "loss_in_mistakes": float(study.losses[~study.correct].sum() / study.losses.sum()),
    }
    what = "prompts that the model answers wrongly"
    found = [Finding("count", what, named, total=len(study.prompts), on=study.on, figures=[shown], numbers=numbers)]
    if wrong and kinds:
        shares = {name: study.over(where[study.places], ~study.correct) for name, where in kinds.items()}
        even = Value(1 / len(kinds))
        found.append(Finding("largest", "the share of mistakes of a kind", shares, "share", even, "kinds equally often",
                             f"{wrong} mistakes of {total:,} answers"))  # fmt: skip
    if isinstance(study.behaviour, Algorithmic) and not study.above:
        found.append(search(study, study.behaviour))
    return found


def search(study: Study, behaviour: Algorithmic) -> Finding:
    """From random sequences, the hardest of many small changes again and again: how many end in a mistake, what they share."""
    start = behaviour.draw(CHAINS, torch.Generator().manual_seed(study.seed + 1))

    def part(tokens: Tokens) -> Study:
        return Study(study.model, behaviour.known(tokens), behaviour, study.vocab)

    def hardness(tokens: Tokens) -> Tensor:
        labels = behaviour.answers(tokens)
        losses = cross_entropy(study.model(tokens).flatten(0, 1), labels.flatten(), ignore_index=UNCOUNTED, reduction="none")
        return losses.view(labels.shape).amax(1)

    if behaviour.free:
        found = hill_climb(hardness, start, list(study.content), positions=list(behaviour.free), rounds=ROUNDS)
    else:
        found = hill_climb(hardness, start, behaviour.corrupt, rounds=3 * ROUNDS, neighbours=4)
    before, after = part(start), part(found.tokens)
    begin = len(before.places[0][~before.correct].unique())
    order = found.final.argsort(descending=True).tolist()
    worst = _grid(after, after.losses, -1.0).argmax(1)
    failed = _grid(after, ~after.correct) & (torch.arange(start.shape[1]) == worst[:, None])
    hardest = _grid(after, torch.arange(len(after.correct)))[torch.arange(CHAINS), worst].tolist()
    kinds = behaviour.mistakes(after.prompts, _predicted(after))
    numbers = {"wrong_at_start": begin, **answer_numbers.hard_inputs(found, after, failed, hardest, kinds)}
    numbers["in_common"]["features"] = in_common(
        behaviour.measures(after.prompts), behaviour.measures(study.prompts), failed, _grid(study, ~study.correct)
    )
    named = dict.fromkeys(after.text(row) for row in order if bool(failed[row].any()))
    what = f"sequences that a search by small changes made the model get wrong (at its start {begin})"
    shown = table(COLUMNS, [row_of(after, hardest[row]) for row in order[:WORST]], title="The hardest found")
    return Finding("count", what, dict.fromkeys(named, Value(1.0)), total=CHAINS, baseline=Value(float(begin)),
                   against="at the start", figures=[shown, found.figure()], numbers={"adversarial": numbers})  # fmt: skip


def _grid(study: Study, values: Tensor, fill: float = 0) -> Tensor:
    """Values of answers at their places."""
    grid = torch.full(study.prompts.tokens.shape, fill, dtype=values.dtype)
    grid[study.places] = values
    return grid


def _predicted(study: Study) -> Tokens:
    return _grid(study, study.logits.argmax(1))
