"""Prompts from files: names of what heads attend to mean one thing."""

from __future__ import annotations

import torch

from cutaway.analysis.heads import kind_mask
from cutaway.prompts import Prompts
from cutaway.tasks.given import Given


def test_the_mirrored_position_has_no_plainer_name() -> None:
    """From the last token the mirrored position is the first one; what heads do there is attend to the first token."""
    lengths = [4, 5, 7, 8]
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    prompts = Prompts(torch.arange(8).repeat(4, 1), mask, right=tuple({length - 1: (1,)} for length in lengths))
    mirrored = Given().sources(prompts)["the mirrored position"]
    for kind in ("first", "previous", "current"):
        plain = kind_mask(kind, prompts.tokens, 8, mask)
        assert not bool((mirrored & plain).any()), kind
    assert not any(bool(mirrored[row, length - 1].any()) for row, length in enumerate(lengths))
    assert bool(mirrored[3, 6, 1]) and bool(mirrored[2, 4, 2]) and int(mirrored.tril().sum()) == 5
