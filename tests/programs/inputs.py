"""Inputs that the laws of programs are checked on."""

from __future__ import annotations

import itertools
import random

from cutaway.programs import Program


def inputs(
    program: Program, *, upto: int, at_most: int | None = None, long: int = 20, length: int = 20, seed: int = 0
) -> list[list[int]]:
    """All inputs of up to `upto` tokens (a sample of `at_most`), and `long` random ones of `length`."""
    dice = random.Random(seed)
    start = [] if program.bos is None else [program.bos]
    size = len(program.vocabulary)
    found = [
        [*start, *rest]
        for count in range(1 - len(start), min(upto, program.n_ctx) + 1 - len(start))
        for rest in itertools.product(range(size), repeat=count)
    ]
    if at_most is not None and len(found) > at_most:
        found = dice.sample(found, at_most)
    length = min(length, program.n_ctx)
    return found + [[*start, *(dice.randrange(size) for _ in range(length - len(start)))] for _ in range(long)]
