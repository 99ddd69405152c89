"""Inputs that the laws of programs are checked on."""

from __future__ import annotations

import itertools
import random

import torch

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


def rows_of(program: Program, seed: int) -> torch.Tensor:
    """Inputs of one length that the program has something to say about, `[16, pos]`."""
    generator = torch.Generator().manual_seed(seed)
    length = min(10, program.n_ctx)
    tokens = torch.randint(0, len(program.vocabulary), (16, length), generator=generator)
    if program.bos is not None:
        tokens[:, 0] = program.bos
    if program.name == "mostly_a":
        tokens[torch.rand(tokens.shape, generator=generator) < 0.4] = 0
    if program.name == "modular_sum":
        tokens[:, 2::3] = 5
    if program.name == "palindrome":
        tokens[:, -1] = 5
        tokens[::2, 4:7] = tokens[::2, 1:4].flip(1)
    return tokens
