"""Sums: two numbers of four digits, `+` and `=` between them, then the digits of their sum, each predicted in turn.

First digits are below 5, so that sums have four digits, too. The sequences are those of a published problem (ARENA,
September 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cutaway.axes import Tokens
from cutaway.prompts import UNCOUNTED, Prompts
from cutaway.tasks.behaviour import Algorithmic, Numbers, Sources, Where, column, uniform

PLUS, EQUALS = 10, 11


@dataclass(frozen=True)
class SumOfTwo(Algorithmic):
    """`a + b = c` with `num_digits` digits each."""

    num_digits: int = 4

    name = "sum-of-two"
    summary = "the digits of the sum of two numbers"
    vocabulary = (*"0123456789", "+", "=")

    @property
    def length(self) -> int:  # type: ignore[override]
        return 3 * self.num_digits + 2

    def draw(self, count: int, generator: torch.Generator) -> Tokens:
        return self.with_sum(*(self._number(count, generator) for _ in range(2)))

    def _number(self, count: int, generator: torch.Generator) -> Numbers:
        rest = uniform(0, 10, (count, self.num_digits - 1), generator)
        return torch.cat([uniform(0, 5, (count, 1), generator), rest], 1)

    def with_sum(self, a: Numbers, b: Numbers) -> Tokens:
        """Sequences of the digits of two numbers."""
        return torch.cat([a, column(len(a), PLUS), b, column(len(a), EQUALS), self.sum_of(a, b)[0]], 1)

    def sum_of(self, a: Numbers, b: Numbers) -> tuple[Numbers, Numbers]:
        """The digits of the sum, and the carry into each of them."""
        digits, carries, carry = [], [], torch.zeros(len(a), dtype=torch.long)
        for x, y in zip(a.flip(1).unbind(1), b.flip(1).unbind(1), strict=True):
            carries.append(carry)
            digits.append((x + y + carry) % 10)
            carry = (x + y + carry) // 10
        return torch.stack(digits[::-1], 1), torch.stack(carries[::-1], 1)

    def parts(self, tokens: Tokens) -> tuple[Numbers, Numbers]:
        """The digits of both numbers."""
        return tokens[:, : self.num_digits], tokens[:, self.num_digits + 1 : 2 * self.num_digits + 1]

    def answers(self, tokens: Tokens) -> Tokens:
        return self._in_place(tokens, self.sum_of(*self.parts(tokens))[0])

    def _in_place(self, tokens: Tokens, of_digits: Numbers) -> Tokens:
        """What belongs to each digit of the sum, at the position that predicts it."""
        grid = torch.full_like(tokens, UNCOUNTED)
        grid[:, -self.num_digits - 1 : -1] = of_digits
        return grid

    def corrupt(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """One digit of the second number changed, and with it the sum."""
        a, b = (part.clone() for part in self.parts(tokens))
        rows = torch.arange(len(tokens))
        at = uniform(0, self.num_digits, (len(tokens),), generator)
        base = torch.full_like(at, 10).where(at > 0, torch.tensor(5))
        b[rows, at] = (b[rows, at] + 1 + uniform(0, 4, (len(tokens),), generator)) % base
        return self.with_sum(a, b)

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        a, b = self.parts(prompts.tokens)
        carry = self._in_place(prompts.tokens, self.sum_of(a, b)[1])
        nines = self._in_place(prompts.tokens, torch.cat([(a + b)[:, 1:] == 9, column(len(a), 0) > 0], 1).long())
        return {
            "no carry comes in": carry == 0,
            "a carry comes in": (carry == 1) & (nines == 0),
            "a carry comes in through a sum of nine": (carry == 1) & (nines == 1),
        }

    def sources(self, prompts: Prompts) -> dict[str, Sources]:
        at, n = torch.arange(self.length), self.num_digits
        digit = (at - 2 * n - 1)[:, None]  # of the sum, that a position predicts
        place = (at % (n + 1)).masked_fill((at == n) | (at > 2 * n), -1)  # of a digit in its number
        named = {"its digits": place == digit, "the digits to their right": place == digit + 1}
        return {name: (where & (digit >= 0)).expand(len(prompts), -1, -1) for name, where in named.items()}

    def features(self, prompts: Prompts) -> dict[str, Tokens]:
        a, b = self.parts(prompts.tokens)
        known = {"carry": self.sum_of(a, b)[1], "sum of its digits": a + b}
        return {name: self._in_place(prompts.tokens, values) for name, values in known.items()}

    def mistakes(self, prompts: Prompts, predicted: Tokens) -> dict[str, Where]:
        wrong = prompts.answered & (predicted != prompts.labels)
        off = (predicted - prompts.labels) % 10
        fewer, more = (wrong & (predicted < 10) & (off == by) for by in (9, 1))
        return {"a carry forgotten": fewer, "a carry too many": more, "another": wrong & ~fewer & ~more}
