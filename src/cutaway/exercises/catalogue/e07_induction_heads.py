"""Induction heads

Say random tokens twice. An induction head, standing on a token of the second half, attends to the token *after* the one
it has seen before, and so knows what comes next. Write `induction_scores(model, tokens)`: a tensor `[layer, head]` with
the attention of each head, from every position of the second half, to the position after the same token in the first
half, averaged over those positions and the batch.

`tokens` is `[batch, 2 × n]`, and its second half repeats the first.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import random_network, repeated, words

FUNCTION = "induction_scores"
STARTER = '''
import torch


def induction_scores(model, tokens):
    """The induction score of each head, [layer, head], on tokens [batch, 2 n] whose second half repeats the first."""
    _, cache = model.run_with_cache(tokens)
    ...
'''
HINT = """
From position n + i of the second half, the same token was at i, and the one after it at i + 1: n - 1 positions back.
pattern.diagonal(1 - n, dim1=-2, dim2=-1) holds just these attentions, and one more at its start: the one from position
n - 1, which is still in the first half.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Random networks, and repeats of several lengths."""
    for fields, length in (({"attn_only": True}, 6), ({}, 5), ({"normalization_type": None}, 7), ({}, 2)):
        model = random_network(draw, **fields)
        yield Case(f"{words(model)}, {length} tokens twice", (model, repeated(draw, model, 3, length)))


def solution(model: Any, tokens: Tensor) -> Tensor:
    """By looking for each token where it was before."""
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    half = tokens.shape[1] // 2
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for layer in range(model.cfg.n_layers):
        for row, words_of_row in enumerate(tokens.tolist()):
            for dest in range(half, 2 * half):
                src = words_of_row.index(words_of_row[dest]) + 1
                scores[layer] += cache["pattern", layer][row, :, dest, src]
    return scores / (len(tokens) * half)
