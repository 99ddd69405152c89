"""The last line taken off the answers: counts, existences and moved answers give their sources back, noise gives none."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.explain.batched import Batch
from cutaway.explain.determining import Determined, determine
from cutaway.explain.fitting import kinds_of
from cutaway.explain.mechanisms import Proposal, Setting
from cutaway.explain.peeling import Target, peeled
from cutaway.explain.ranging import short_inputs
from cutaway.prompts import Prompts

SETTING = Setting(d_vocab=3, d_answers=12, length=12, longest=12, n_ctx=12, content=(0, 1, 2), causal=True)
TOKENS = torch.randint(0, 3, (300, 12), generator=torch.Generator().manual_seed(0))
EVERYWHERE = torch.ones_like(TOKENS, dtype=torch.bool)


def known(target: Tensor, where: Tensor) -> Determined | None:
    """What tokens alone determine."""
    return determine(target, [Proposal((), 0.0)], {"tokens": TOKENS[where]}, {"tokens": 3})


def values(one: Proposal) -> Tensor:
    batch = Batch(TOKENS, EVERYWHERE, n_ctx=12, d_vocab=3)
    batch.add(one.lines, kinds_of(SETTING, one.lines))
    return batch.values[one.name]


def after_the_first(chosen: Tensor) -> Tensor:
    chosen = chosen.long().clone()
    chosen[:, 0] = 0
    return chosen


def moved(x: Tensor, back: int) -> Tensor:
    return x[:, (torch.arange(12) - back).clamp(min=0)]


WRITTEN = {
    "count": after_the_first(TOKENS == 1).cumsum(1),
    "existence": after_the_first((TOKENS[:, :] == 2) & (torch.arange(12) > 4)).cumsum(1).clamp(max=1),
    "moved": moved((TOKENS + 1) % 3, 2),
    "count of moved": after_the_first(moved((TOKENS == 0).long(), 3)).cumsum(1),
}


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "existence"])
def test_the_last_line_comes_off(name: str):
    found = list(peeled(Target(WRITTEN[name], EVERYWHERE, 12), known, causal=True))
    assert any(torch.equal(values(one), WRITTEN[name]) for one in found)


def test_what_nothing_determines_is_left():
    noise = torch.randint(0, 2, TOKENS.shape, generator=torch.Generator().manual_seed(1))
    counted = after_the_first(noise == 1).cumsum(1)
    assert not list(peeled(Target(noise, EVERYWHERE, 2), known, causal=True))
    assert not list(peeled(Target(counted, EVERYWHERE, 12), known, causal=True))
    assert not list(peeled(Target(WRITTEN["existence"], EVERYWHERE, 2), known, causal=True))  # it depends on the position, too


def examples(rows: list[list[int]]) -> Prompts:
    return Prompts.of_rows(rows, right=tuple(dict.fromkeys(range(len(row)), (1,)) for row in rows))


def test_all_short_inputs_are_made_where_any_tokens_make_one():
    rows = [[0, *tail] for length in (1, 2, 3) for tail in itertools.product((1, 2), repeat=length)]
    made = short_inputs(examples([*rows, [0, 1, 2, 2, 1]]), most=40)
    assert made is not None
    short = {tuple(row[:length]) for row, length in zip(made.tokens.tolist(), made.lengths.tolist(), strict=True)}
    assert short == {(0, *tail) for length in range(5) for tail in itertools.product((1, 2), repeat=length)}


@pytest.mark.parametrize("form", ["a separator", "never the same twice", "one length"])
def test_inputs_of_a_form_are_not_made_up(form: str):
    rows: Any = [[0, *tail] for length in (1, 2, 3, 4) for tail in itertools.product((1, 2), repeat=length)]
    if form == "a separator":
        rows = [[*row, 3] for row in rows]
    elif form == "never the same twice":
        rows = [row for row in rows if all(a != b for a, b in itertools.pairwise(row))]
    else:
        rows = [row for row in rows if len(row) == 3]
    assert short_inputs(examples(rows)) is None
