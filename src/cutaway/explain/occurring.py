"""Existences read off the answers: "a mistake stands somewhere", where the mistakes are joint values of few variables.

A word outside a language has a place with a joint value (two letters in a row, a letter after an odd run, a depth below zero)
that no word of the language has anywhere. So for each answer the joint values that never occur in an input with that answer are
listed, and whether one of them occurs is a variable; the tree asks it, and what else the last place decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.explain.mechanisms import CHOICE, Proposal, Setting
from cutaway.explain.subject import InputSet
from cutaway.programs.language import Attend, Bucket, Line, Map, Selector, Term

MOST_VALUES = 256  # joint values
MOST_ANSWERS = 4
SEEN = 3  # inputs that hold a value, at least, for its absence elsewhere to tell something
SOME = 0.1  # of the inputs with other answers, at least, that the variable tells apart
KEPT = 6
SAMPLE = 800  # items on which sets of variables are compared
RUNS = ("run_mod_2", "run_2_before")
LOCAL = ("tokens", "previous", "back_2", *RUNS, "run_mod_3", "run_3_before")
Evaluated = Callable[[Proposal], Int[Tensor, "batch pos"]]
Sized = Callable[[Proposal], int]


def telling(setting: Setting, part: InputSet, bank: Sequence[Proposal], valued: Evaluated, size: Sized) -> Iterator[Proposal]:
    """The existences that tell most inputs apart, for each answer; none where there are many different answers."""
    answers = part.answers[part.counted].unique().tolist()
    if not 2 <= len(answers) <= MOST_ANSWERS:
        return
    local = [*(one for one in bank if one.name in LOCAL), *_depths(bank), *_before(bank)]
    search = _Presence(
        part, {one.name: valued(one) for one in local}, {one.name: size(one) for one in local}, causal=setting.causal
    )
    sets = [some for count in (1, 2, 3) for some in itertools.combinations(local, count) if search.size(some) <= MOST_VALUES]
    found = [(search.told(some, answer, SAMPLE)[1], some, answer) for some in sets for answer in answers]
    found.sort(key=lambda one: (-one[0], sum(v.bits for v in one[1])))
    for number, (share, some, answer) in enumerate(found[:KEPT]):
        bad, _ = search.told(some, answer)
        if share >= SOME and bad:
            yield _proposal(some, bad, search.size(some), number)


class _Presence:
    """Values of variables at every place, and which of them the keys of each answer hold."""

    def __init__(
        self, part: InputSet, columns: dict[str, Int[Tensor, "batch pos"]], sizes: dict[str, int], *, causal: bool
    ) -> None:
        self.columns, self.sizes, self.target = columns, sizes, part.answers[part.counted]
        self.rows, places = part.counted.nonzero(as_tuple=True)
        self.visible = part.prompts.mask[self.rows]
        if causal:
            self.visible = self.visible & (torch.arange(part.prompts.tokens.shape[1]) <= places[:, None])
        self.visible[:, 0] = False  # the first place is no key of an existence
        self.last: tuple[Any, Bool[Tensor, "item value"]] | None = None

    def size(self, some: Sequence[Proposal]) -> int:
        return prod(self.sizes[one.name] for one in some)

    def told(self, some: tuple[Proposal, ...], answer: int, most: int | None = None) -> tuple[list[int], float]:
        """Joint values that no item with this answer holds, and the share of the others that hold one; of at most some items."""
        step = 1 if most is None else max(1, len(self.target) // most)
        if self.last is None or self.last[0] != (some, step):
            self.last = (some, step), self._holds(some, step)
        holds, there = self.last[1], self.target[::step] == answer
        bad = ~holds[there].any(0) & (holds.sum(0) >= SEEN)
        return bad.nonzero().flatten().tolist(), float(holds[~there][:, bad].any(1).double().mean())

    def _holds(self, some: tuple[Proposal, ...], step: int) -> Bool[Tensor, "item value"]:
        """Which joint values the visible places of each item hold."""
        joint = torch.zeros_like(next(iter(self.columns.values())))
        for one in some:
            joint = joint * self.sizes[one.name] + self.columns[one.name]
        held = torch.zeros(len(self.rows[::step]), self.size(some))
        held.scatter_add_(1, joint[self.rows[::step]], self.visible[::step].float())
        return held > 0


def _proposal(some: tuple[Proposal, ...], bad: list[int], size: int, number: int) -> Proposal:
    lines: dict[str, Line] = {line.name: line for one in some for line in one.lines}
    odd = Map(f"odd_{number}", tuple(one.name for one in some), tuple(int(value in bad) for value in range(size)), 2)
    exists = Attend(f"some_odd_{number}", Selector((Term("among", odd.name, values=(1,)),)), how="exists")
    return Proposal((*lines.values(), odd, exists), sum(one.bits for one in some) + 3 * CHOICE + float(size))


def _depths(bank: Sequence[Proposal]) -> Iterator[Proposal]:
    """Differences of two counts as codes: below zero, zero, above."""
    for one in bank:
        if one.numeric and one.name.startswith("count_") and "_minus_" in one.name:
            sign = Bucket(f"{one.name}_sign", one.name, (-0.5, 0.5), 0.25)
            yield Proposal((*one.lines, sign), one.bits + CHOICE)


def _before(bank: Sequence[Proposal]) -> Iterator[Proposal]:
    """The run that ended where a token differs: what the place before holds of runs."""
    for one in bank:
        if one.name in RUNS:
            copied = Attend(f"previous_{one.name}", Selector((Term("offset", constant=1),)), one.name)
            yield Proposal((*one.lines, copied), one.bits + CHOICE)
