"""Heads that rest

A head that has nothing to do attends to the first token: its probabilities must go somewhere. Write
`resting(cache)`: a tensor `[layer, head]` with each head's attention to the first position, averaged over the batch and
over all positions but the first (which can look nowhere else).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, tokens_for, words

FUNCTION = "resting"
STARTER = '''
import torch


def resting(cache):
    """The mean attention of each head to the first position, [layer, head], from all positions but the first."""
    ...
'''
HINT = """
cache.stack_activation("pattern") is [layer, batch, head, dest, src]. Leave out dest 0, take src 0, and average what is
left over batch and dest.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Several models."""
    for model in (bundled(), random_network(draw), random_network(draw, attn_only=True), random_network(draw)):
        name = "the bundled model" if model.tokenizer is not None else words(model)
        yield Case(name, (model.run_with_cache(tokens_for(draw, model, 3))[1],))


def solution(cache: Any) -> Tensor:
    """Layer by layer, position by position."""
    rows = []
    for layer in range(cache.model.cfg.n_layers):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        seen = [pattern[:, :, dest, 0].mean(0) for dest in range(1, pattern.shape[2])]
        rows.append(sum(seen[1:], seen[0]) / len(seen))
    return torch.stack(rows)
