"""Duplicate detectors

In the bundled model, which finds the first unique letter, some heads of layer 0 look for earlier copies of the letter
they stand on, and others look away from them. Their weights tell which do what for which letter. Write
`detectors(model, scale, above, below)`, which gives two lists of pairs `(head, token)`, as a dictionary:

- `duplicate`: from this token, the head of layer 0 gives the same token more than `above` of its attention,
- `anti_duplicate`: … less than `below`.

The attention that counts is what embeddings alone would give: the softmax, over all tokens but the last one (the null
character, which is left out on both sides), of query · key / √d_head, where queries and keys are those of the token
embeddings divided by `scale` (the typical scale of the first LayerNorm; biases are left out).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, words

FUNCTION = "detectors"
STARTER = '''
def detectors(model, scale, above, below):
    """A dictionary with two lists of (head, token): duplicate and anti_duplicate."""
    embeddings = model.W_E[:-1] / scale
    ...
'''
HINT = """
For each head: embeddings @ model.W_Q[0, head] @ model.W_K[0, head].T @ embeddings.T / model.cfg.d_head**0.5 is
[token, token]; after the softmax over the last axis, its diagonal is what each token gives to itself.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """The bundled model with the published thresholds, and random ones."""
    yield Case("the bundled model", (bundled(), 0.34, 0.30, 0.04))
    for _ in range(3):
        model = random_network(draw, attn_only=True)
        yield Case(words(model), (model, draw.uniform(0.2, 0.5), 0.085, 0.045))


def solution(model: Any, scale: float, above: float, below: float) -> dict[str, list[tuple[int, int]]]:
    """Token by token."""
    found: dict[str, list[tuple[int, int]]] = {"duplicate": [], "anti_duplicate": []}
    attention = model.blocks[0].attn
    count = len(model.embed.W_E) - 1
    for head in range(model.cfg.n_heads):
        keys = [model.embed.W_E[token] / scale @ attention.W_K[head] for token in range(count)]
        for token in range(count):
            query = model.embed.W_E[token] / scale @ attention.W_Q[head]
            weights = [float((query @ key / model.cfg.d_head**0.5).exp()) for key in keys]
            share = weights[token] / sum(weights)
            if share > above:
                found["duplicate"].append((head, token))
            if share < below:
                found["anti_duplicate"].append((head, token))
    return found
