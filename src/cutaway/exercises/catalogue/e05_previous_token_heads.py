"""Heads that look one token back

A previous-token head attends, from each position, to the one before it. Such heads are half of how models copy. Write
`previous_token_heads(cache, threshold)`: the pairs `(layer, head)` whose attention to the position before, averaged
over all positions that have one and over the batch, is above `threshold`, in the order of layers and heads.

`cache` is what `model.run_with_cache(tokens)` gives; `cache["pattern", layer]` is `[batch, head, dest, src]`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, tokens_for, words

FUNCTION = "previous_token_heads"
STARTER = '''
def previous_token_heads(cache, threshold):
    """A list of (layer, head): those whose mean attention to the position before is above the threshold."""
    found = []
    for layer in range(cache.model.cfg.n_layers):
        pattern = cache["pattern", layer]  # [batch, head, dest, src]
        ...
    return found
'''
HINT = """
pattern.diagonal(-1, dim1=-2, dim2=-1) holds the attention of positions 1, 2, … to the one before: [batch, head, pos - 1].
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """A threshold in the middle of what the heads have."""
    for model in (bundled(), random_network(draw), random_network(draw, attn_only=True), random_network(draw)):
        name = "the bundled model" if model.tokenizer is not None else words(model)
        _, cache = model.run_with_cache(tokens_for(draw, model, 3))
        scores = sorted(_scores(cache).values())
        middle = len(scores) // 2
        yield Case(name, (cache, (scores[middle - 1] + scores[middle]) / 2))


def _scores(cache: Any) -> dict[tuple[int, int], float]:
    scores: dict[tuple[int, int], float] = {}
    for layer in range(cache.model.cfg.n_layers):
        pattern = cache["pattern", layer]
        length = pattern.shape[-1]
        for head in range(pattern.shape[1]):
            seen = [float(pattern[row, head, dest, dest - 1]) for row in range(len(pattern)) for dest in range(1, length)]
            scores[layer, head] = sum(seen) / len(seen)
    return scores


def solution(cache: Any, threshold: float) -> list[tuple[int, int]]:
    """Number by number."""
    return [pair for pair, score in _scores(cache).items() if score > threshold]
