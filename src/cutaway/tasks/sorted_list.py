"""Sorted lists: ten distinct numbers, SEP, then the same numbers in ascending order, each predicted from those before.

The sequences and the model are those of a published problem (ARENA, October 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cutaway.axes import Tokens
from cutaway.prompts import UNCOUNTED, Prompts
from cutaway.tasks.behaviour import Algorithmic, Numbers, Sources, Where, column, equal_tokens


@dataclass(frozen=True)
class SortedList(Algorithmic):
    """Lists of `list_len` distinct numbers from 0 to `max_value`, and the sorted list behind SEP."""

    list_len: int = 10
    max_value: int = 50

    name = "sorted-list"
    summary = "the numbers of a list in ascending order"

    @property
    def vocabulary(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*(str(number) for number in range(self.max_value + 1)), "SEP")

    @property
    def length(self) -> int:  # type: ignore[override]
        return 2 * self.list_len + 1

    def draw(self, count: int, generator: torch.Generator) -> Tokens:
        order = torch.rand(count, self.max_value + 1, generator=generator).argsort(1)
        return self.with_sorted(order[:, : self.list_len])

    def with_sorted(self, numbers: Numbers) -> Tokens:
        """Lists, SEP, and the sorted lists."""
        return torch.cat([numbers, column(len(numbers), self.max_value + 1), numbers.sort(1).values], 1)

    def answers(self, tokens: Tokens) -> Tokens:
        labels = torch.full_like(tokens, UNCOUNTED)
        labels[:, self.list_len : -1] = tokens[:, : self.list_len].sort(1).values
        return labels

    def corrupt(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """One number of the list replaced by one that is not in it; the sorted part stays what a right answer would write."""
        scores = torch.rand(len(tokens), self.max_value + 1, generator=generator)
        numbers = tokens[:, : self.list_len].clone()
        new = scores.scatter(1, numbers, -1.0).argmax(1)
        at = torch.randint(0, self.list_len, (len(tokens),), generator=generator)
        numbers[torch.arange(len(tokens)), at] = new
        return self.with_sorted(numbers)

    def _first(self, prompts: Prompts) -> Where:
        return (torch.arange(self.length) == self.list_len).expand(len(prompts), -1)

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        last = (torch.arange(self.length) == self.length - 2).expand(len(prompts), -1)
        return {
            "the smallest": prompts.answered & self._first(prompts),
            "in between": prompts.answered & ~self._first(prompts) & ~last,
            "the largest": prompts.answered & last,
        }

    def sources(self, prompts: Prompts) -> dict[str, Sources]:
        tokens, unsorted = prompts.tokens, torch.arange(self.length) < self.list_len
        larger = (tokens[:, None, :] > tokens[:, :, None]) & unsorted
        larger[:, self.list_len] = unsorted
        return {
            "the answer": (prompts.labels[:, :, None] == tokens[:, None, :]) & unsorted,
            "same number": equal_tokens(tokens) & unsorted,
            "larger numbers": larger,
        }

    def features(self, prompts: Prompts) -> dict[str, Tokens]:
        numbers = prompts.tokens[:, : self.list_len]
        rank = torch.full_like(prompts.tokens, UNCOUNTED)
        rank[:, : self.list_len] = numbers.argsort(1).argsort(1)
        return {"rank in the list": rank}

    def mistakes(self, prompts: Prompts, predicted: Tokens) -> dict[str, Where]:
        wrong = prompts.answered & (predicted != prompts.labels)
        there = (prompts.tokens[:, None, : self.list_len] == predicted[:, :, None]).any(2)
        again = predicted <= prompts.tokens.masked_fill(prompts.tokens > self.max_value, -1)
        return {
            "a number that is not in the list": wrong & ~there,
            "a number that was skipped to": wrong & there & ~again,
            "a number that was already written": wrong & there & again,
        }
