"""Proposals that are read off the answers: planted relations and mistakes are found, and answers without one give none."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway.explain.batched import Batch
from cutaway.explain.choosing import chosen
from cutaway.explain.fitting import kinds_of, values
from cutaway.explain.mechanisms import Proposal, Setting
from cutaway.explain.occurring import telling
from cutaway.explain.subject import InputSet
from cutaway.programs.language import Line
from cutaway.prompts import Prompts

SIZE, WIDTH, COUNT = 4, 7, 300
SETTING = Setting(SIZE, SIZE, WIDTH, WIDTH, WIDTH, (0, 1, 2, 3), causal=True)
PREFERRED = [{1}, {0, 2}, {3}, {1, 3}]


def drawn() -> list[list[int]]:
    return torch.randint(0, SIZE, (COUNT, WIDTH), generator=torch.Generator().manual_seed(0)).tolist()


def part_of(rows: list[list[int]], answers: list[list[int]], *, last: bool = False) -> InputSet:
    right = tuple(dict.fromkeys([WIDTH - 1] if last else range(WIDTH), (0,)) for _ in rows)
    return InputSet(Prompts.of_rows(rows, right=right), torch.tensor(answers))


def batch_of(part: InputSet) -> Batch:
    return Batch(part.prompts.tokens, part.prompts.mask, n_ctx=WIDTH, d_vocab=SIZE)


def relations(part: InputSet) -> list[Proposal]:
    batch = batch_of(part)

    def valued(line: Line) -> Int[Tensor, "item"]:
        found = values(batch, SETTING, Proposal((line,), 0.0))[part.counted]
        batch.forget(line.name)
        return found

    return list(chosen(SETTING, part, valued))


def test_a_planted_relation_between_tokens_is_found_and_random_answers_have_none():
    def copied(row: list[int], query: int) -> int:
        keys = [key for key in range(query + 1) if row[key] in PREFERRED[row[query]]]
        return row[keys[-1] if keys else query]

    rows = drawn()
    part = part_of(rows, [[copied(row, query) for query in range(WIDTH)] for row in rows])
    (found,) = relations(part)
    assert found.name == "related_latest"
    assert torch.equal(values(batch_of(part), SETTING, found)[part.counted], part.answers[part.counted])
    assert relations(part_of(rows, drawn()[::-1])) == []


def existences(part: InputSet) -> list[Proposal]:
    batch = batch_of(part)
    bank = [Proposal((), 0.0, answers=True)]

    def size(one: Proposal) -> int:
        return kinds_of(SETTING, one.lines)[one.name].size

    return list(telling(SETTING, part, bank, lambda one: values(batch, SETTING, one), size))


def test_a_planted_mistake_is_found_and_random_verdicts_have_none():
    rows = drawn()
    verdicts = [[int(2 in row[1:])] * WIDTH for row in rows]
    part = part_of(rows, verdicts, last=True)
    found = existences(part)
    told = [values(batch_of(part), SETTING, one)[part.counted] for one in found]
    assert any(torch.equal(one, part.answers[part.counted]) for one in told)
    dice = torch.Generator().manual_seed(3)
    assert existences(part_of(rows, torch.randint(0, 2, (COUNT, WIDTH), generator=dice).tolist(), last=True)) == []
