"""Palindromes: START, twenty numbers, END: does the list read the same backwards? Class 1 (yes) or 0 (no), read at END.

Half of the lists are palindromes. The others are one in which each number of the second half was replaced with
probability 1/2, so that few places differ. The sequences and the model are those of a published problem (ARENA, July 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cutaway.axes import Tokens
from cutaway.prompts import UNCOUNTED, Prompts
from cutaway.tasks.behaviour import Algorithmic, Numbers, Sources, Where, column, replaced_once, uniform


@dataclass(frozen=True)
class Palindromes(Algorithmic):
    """Lists of `2 * half_length` numbers from 0 to `max_value`."""

    max_value: int = 30
    half_length: int = 10

    name = "palindromes"
    summary = "whether a list of numbers reads the same backwards"
    d_vocab_out = 2  # no and yes

    @property
    def vocabulary(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*(f"{number:02}" for number in range(self.max_value + 1)), "START", "END")

    @property
    def length(self) -> int:  # type: ignore[override]
        return 2 * self.half_length + 2

    def draw(self, count: int, generator: torch.Generator) -> Tokens:
        shape, numbers = (count, self.half_length), self.max_value + 1
        half = uniform(0, numbers, shape, generator)
        other = uniform(0, numbers, shape, generator)
        change = uniform(0, 2, shape, generator).bool() & uniform(0, 2, (count, 1), generator).bool()
        return self.framed(torch.cat([half, other.where(change, half.flip(1))], 1))

    def framed(self, numbers: Numbers) -> Tokens:
        """Lists of numbers between START and END."""
        start = self.max_value + 1
        return torch.cat([column(len(numbers), start), numbers, column(len(numbers), start + 1)], 1)

    def answers(self, tokens: Tokens) -> Tokens:
        labels = torch.full_like(tokens, UNCOUNTED)
        labels[:, -1] = (tokens[:, 1:-1] == tokens[:, 1:-1].flip(1)).all(1).long()
        return labels

    def corrupt(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """One number changed in palindromes; of the others, the second half made the mirror of the first."""
        broken = replaced_once(tokens, 0, self.max_value + 1, self.half_length + 1, self.length - 1, generator)
        first = tokens[:, 1 : self.half_length + 1]
        mended = self.framed(torch.cat([first, first.flip(1)], 1))
        return broken.where(self.answers(tokens)[:, -1:] == 1, mended)

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        return {"palindrome": prompts.labels == 1, "no palindrome": prompts.labels == 0}

    def sources(self, prompts: Prompts) -> dict[str, Sources]:
        at = torch.arange(self.length)
        mirrored = (at[:, None] + at == self.length - 1) & (at > 0) & (at < self.length - 1)
        second = (at > self.half_length) & (at < self.length - 1)
        mirror = mirrored.expand(len(prompts), -1, -1)
        return {"mirrored position": mirror, "second half": second.expand(len(prompts), self.length, -1)}

    def features(self, prompts: Prompts) -> dict[str, Tokens]:
        inner = (prompts.tokens == prompts.tokens.flip(1)).long()
        inner[:, [0, -1]] = UNCOUNTED
        return {"equals its mirror": inner}

    def mistakes(self, prompts: Prompts, predicted: Tokens) -> dict[str, Where]:
        pairs = (prompts.tokens != prompts.tokens.flip(1))[:, 1 : self.half_length + 1].sum(1, keepdim=True)
        missed = (prompts.labels == 0) & (predicted == 1)
        return {
            "one pair differs, called a palindrome": missed & (pairs == 1),
            "several pairs differ, called a palindrome": missed & (pairs > 1),
            "a palindrome, called none": (prompts.labels == 1) & (predicted == 0),
        }
