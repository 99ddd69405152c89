"""Cumulative sums: at each position of a list of numbers, is the sum so far negative (0), zero (1) or positive (2)?

The question and the kind of model are those of a published problem (ARENA, November 2023): one head, one MLP, no norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cutaway.axes import Tokens
from cutaway.prompts import Prompts
from cutaway.tasks.behaviour import Algorithmic, Sources, Where, replaced_once, uniform


@dataclass(frozen=True)
class CumulativeSum(Algorithmic):
    """Lists of `seq_len` numbers from `-max_value` to `max_value`; token `i` is the number `i - max_value`."""

    max_value: int = 5
    seq_len: int = 20

    name = "cumulative-sum"
    summary = "whether the sum of the numbers so far is negative, zero or positive"
    d_vocab_out = 3  # negative, zero, positive

    @property
    def vocabulary(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"{number:+d}" if number else "0" for number in range(-self.max_value, self.max_value + 1))

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.seq_len

    def draw(self, count: int, generator: torch.Generator) -> Tokens:
        return uniform(0, 2 * self.max_value + 1, (count, self.seq_len), generator)

    def sums(self, tokens: Tokens) -> Tokens:
        """The sum so far at each position."""
        return (tokens - self.max_value).cumsum(1)

    def answers(self, tokens: Tokens) -> Tokens:
        return self.sums(tokens).sign() + 1

    def corrupt(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """One number of the first half changed."""
        return replaced_once(tokens, 0, 2 * self.max_value + 1, 0, max(self.seq_len // 2, 1), generator)

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        return {"negative": prompts.labels == 0, "zero": prompts.labels == 1, "positive": prompts.labels == 2}

    def sources(self, prompts: Prompts) -> dict[str, Sources]:
        signs = (prompts.tokens - self.max_value).sign()
        earlier = torch.ones(self.seq_len, self.seq_len, dtype=torch.bool).tril()
        return {
            "all so far": earlier.expand(len(prompts), -1, -1),
            "negative numbers": (signs == -1)[:, None, :] & earlier,
            "positive numbers": (signs == 1)[:, None, :] & earlier,
        }

    def features(self, prompts: Prompts) -> dict[str, Tokens]:
        return {"running sum": self.sums(prompts.tokens).clamp(-12, 12)}

    def mistakes(self, prompts: Prompts, predicted: Tokens) -> dict[str, Where]:
        wrong, sums = predicted != prompts.labels, self.sums(prompts.tokens)
        return {
            "zero, called something else": wrong & (sums == 0),
            "one from zero": wrong & (sums.abs() == 1),
            "further from zero": wrong & (sums.abs() > 1),
        }
