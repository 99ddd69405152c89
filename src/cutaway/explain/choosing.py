"""Copies whose selector is read off the answers: for each token at the query, which tokens at keys are preferred.

Where heads are not sharp, a relation between tokens cannot be read from attention. Of few tokens all sets of preferred ones are
tried, for each token at the query by itself: the latest (or earliest) key with a preferred token is copied; where there is none,
the latest (or earliest) of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway.explain.mechanisms import CHOICE, Proposal, Setting
from cutaway.explain.subject import InputSet
from cutaway.programs.language import Attend, Selector, Term

FEW_TOKENS = 5
ROUGHLY = 0.9  # of the answers, at least, for a relation to be proposed
ORDERS = {"latest": Term("largest", "positions"), "earliest": Term("smallest", "positions")}
Valued = Callable[[Attend], Int[Tensor, "item"]]


def chosen(setting: Setting, part: InputSet, valued: Valued) -> Iterator[Proposal]:
    """The relation that gives most of the answers, for each order of keys; `valued` has a line's values at the answers."""
    size = setting.d_vocab
    if size > FEW_TOKENS:
        return
    target, query = part.answers[part.counted], part.prompts.tokens[part.counted]
    subsets = [subset for count in range(1, size + 1) for subset in itertools.combinations(range(size), count)]
    for name, order in ORDERS.items():
        tried = [Selector((Term("among", "tokens", values=subset), order)) for subset in subsets]
        hits = torch.stack([valued(Attend("tried", select, "tokens")) == target for select in tried])
        of_query = torch.stack([hits[:, query == token].sum(1) for token in range(size)])  # [token at the query, subset]
        if float(of_query.amax(1).sum()) < ROUGHLY * len(target):
            continue
        best = [subsets[number] for number in of_query.argmax(1).tolist()]  # of equal ones the smallest
        table = tuple(tuple(float(token in subset) for token in range(size)) for subset in best)
        if len(set(table)) == 1:
            continue  # the same for every token at the query: no relation
        selector = Selector((Term("table", "tokens", "tokens", table=table), order))
        yield Proposal((Attend(f"related_{name}", selector, "tokens"),), 2 * CHOICE + size**2, answers=True)
