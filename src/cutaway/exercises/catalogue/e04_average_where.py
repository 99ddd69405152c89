"""Attention where a condition holds

Most kinds of heads can be told by where they look: at the token before, at the first one, at the same one. Write
`average_where(pattern, condition)`, which all of the next exercises can use:

- `pattern` is `[head, dest, src]`,
- `condition(dest, src)` says of two positions (whole numbers) whether they count,
- the answer is `[head]`: the mean of each head's attention over the pairs that count. Where none counts it is 0.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, tokens_for, words

FUNCTION = "average_where"
STARTER = '''
import torch


def average_where(pattern, condition):
    """The mean attention [head] over the pairs (dest, src) for which condition(dest, src) is true."""
    ...
'''
HINT = """
Make a table of true and false, [dest, src], with two loops, and use it as an index: pattern[:, table] is [head, pairs].
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Several conditions on several models, and one that nothing fulfils."""
    distance = draw.randrange(2, 4)
    conditions: list[tuple[str, Callable[[int, int], bool]]] = [
        ("the same position", same),
        ("the position before", before),
        (f"{distance} positions before", Back(distance)),
        ("a condition that nothing fulfils", never),
    ]
    models = [("the bundled model", bundled())]
    models += [(words(model), model) for model in (random_network(draw), random_network(draw, attn_only=True))]
    for name, model in models:
        cache: Any
        _, cache = model.run_with_cache(tokens_for(draw, model, 1), names_filter="blocks.1.attn.hook_pattern")
        for what, condition in conditions:
            yield Case(f"{what}, {name}", (cache["pattern", 1][0], condition))


def same(dest: int, src: int) -> bool:
    """A position and itself."""
    return dest == src


def before(dest: int, src: int) -> bool:
    """A position and the one before it."""
    return src == dest - 1


def never(dest: int, src: int) -> bool:
    """No pair."""
    return False


class Back:
    """A position and the one so many before it."""

    def __init__(self, distance: int):
        self.distance = distance

    def __call__(self, dest: int, src: int) -> bool:
        return dest - src == self.distance


def solution(pattern: Tensor, condition: Callable[[int, int], bool]) -> Tensor:
    """A running sum."""
    total, count = torch.zeros(len(pattern)), 0
    for dest in range(pattern.shape[1]):
        for src in range(pattern.shape[2]):
            if condition(dest, src):
                total, count = total + pattern[:, dest, src], count + 1
    return total / max(count, 1)
