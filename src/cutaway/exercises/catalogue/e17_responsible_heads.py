"""Responsible heads

In the bundled model, each letter has one head of layer 1 that decides about it. Write `responsible(model)`: a list with,
for each token but the last one, the number of that head: the one for which the *diagonal* entries of its four circuits
for the token, taken together, are largest (the root of the sum of their squares).

The circuits of head h of layer 1 go from a token's embedding to its own logit: through the head's W_V and W_O alone, and
through W_V and W_O of each head of layer 0 before that. Norms and biases are left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, words

FUNCTION = "responsible"
STARTER = '''
import torch


def responsible(model):
    """For each token but the last, the head of layer 1 that is responsible for it: a list of whole numbers."""
    ...
'''
HINT = """
OV = model.W_V @ model.W_O is [layer, head, d_model, d_model]. The diagonal of W_E @ OV[1, h] @ W_U is the head alone, that
of W_E @ OV[0, g] @ OV[1, h] @ W_U goes through head g first. Stack them, take the norm, and argmax over the heads of
layer 1.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """The bundled model, and others of two layers."""
    yield Case("the bundled model", (bundled(),))
    for heads in (3, 2, 4):
        model = random_network(draw, attn_only=True, n_layers=2, n_heads=heads)
        yield Case(words(model), (model,))


def solution(model: Any) -> list[int]:
    """Vector by vector: each embedding is sent through the heads, and read along its own unembedding."""
    first, second = (block.attn for block in model.blocks[:2])
    answer = []
    for token in range(len(model.embed.W_E) - 1):
        start = model.embed.W_E[token]
        vectors = [start] + [start @ first.W_V[head] @ first.W_O[head] for head in range(model.cfg.n_heads)]
        sizes = []
        for head in range(model.cfg.n_heads):
            ends = [vector @ second.W_V[head] @ second.W_O[head] @ model.unembed.W_U[:, token] for vector in vectors]
            sizes.append(sum(float(end) ** 2 for end in ends))
        answer.append(sizes.index(max(sizes)))
    return answer
