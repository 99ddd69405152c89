"""Balanced brackets: START, brackets, END: is every bracket closed in the right order? Class 1 (yes) or 0, read at START.

A third of the sequences are balanced, a third have equal counts and are not, and a third have one bracket turned. Shorter
ones are followed by PAD, a token like others (of the published model of this kind, ARENA's 1.5.1, it was hidden from attention).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from cutaway.axes import Tokens
from cutaway.prompts import UNCOUNTED, Prompts
from cutaway.tasks.behaviour import Algorithmic, Numbers, Sources, Where, uniform

Inside = Bool[Tensor, "batch number"]  # which places hold brackets

START, PAD, END, OPEN, CLOSE = range(5)


@dataclass(frozen=True)
class BalancedBrackets(Algorithmic):
    """Up to `most` brackets, an even number of them."""

    most: int = 40

    name = "balanced-brackets"
    summary = "whether a sequence of brackets is balanced"
    vocabulary = ("START", "PAD", "END", "(", ")")
    d_vocab_out = 2  # no and yes

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.most + 2

    def draw(self, count: int, generator: torch.Generator) -> Tokens:
        pairs = uniform(1, self.most // 2 + 1, (count, 1), generator)
        # Long ones are more telling than short ones: half of the sequences are of the full length.
        pairs = pairs.where(uniform(0, 2, (count, 1), generator).bool(), torch.tensor(self.most // 2))
        inside = torch.arange(self.most) < 2 * pairs
        ranks = torch.rand(count, self.most, generator=generator).masked_fill(~inside, 2.0).argsort(1).argsort(1)
        steps = torch.where(ranks < pairs, 1, -1) * inside  # equal counts in a random order
        kind = uniform(0, 3, (count, 1), generator)
        steps = torch.where(kind == 0, self._balanced(steps, inside), steps)
        flipped = (torch.rand(count, 1, generator=generator) * 2 * pairs).long()
        near = self._balanced(steps, inside)
        near = near.scatter(1, flipped, -near.gather(1, flipped))
        return self._tokens(torch.where(kind == 2, near, steps), inside)

    @staticmethod
    def _balanced(steps: Numbers, inside: Inside) -> Numbers:
        """Equal counts made balanced: rotate each sequence to begin after its (first) lowest point."""
        heights = steps.cumsum(1)
        begin = heights.masked_fill(~inside, 10**6).argmin(1, keepdim=True) + 1
        sizes = inside.sum(1, keepdim=True)
        order = (torch.arange(steps.shape[1]) + begin) % sizes
        return steps.gather(1, order) * inside

    @staticmethod
    def _tokens(steps: Numbers, inside: Inside) -> Tokens:
        count, sizes = len(steps), inside.sum(1)
        brackets = torch.where(steps == 1, OPEN, CLOSE).where(inside, torch.tensor(PAD))
        tokens = torch.cat([torch.full((count, 1), START), brackets, torch.full((count, 1), PAD)], 1)
        tokens[torch.arange(count), sizes + 1] = END
        return tokens

    def heights(self, tokens: Tokens) -> Tokens:
        """Open brackets minus closed ones, so far."""
        return ((tokens == OPEN).long() - (tokens == CLOSE).long()).cumsum(1)

    def failures(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether counts differ, and whether somewhere more are closed than were open: `[batch]` each."""
        heights = self.heights(tokens)
        return heights[:, -1] != 0, (heights < 0).any(1)

    def answers(self, tokens: Tokens) -> Tokens:
        labels = torch.full_like(tokens, UNCOUNTED)
        counts, below = self.failures(tokens)
        labels[:, 0] = (~counts & ~below).long()
        return labels

    def corrupt(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """Balanced sequences get two neighbouring parts exchanged or one bracket turned; the others are made balanced."""
        inside = ((tokens == OPEN) | (tokens == CLOSE))[:, 1:-1]
        sizes = inside.sum(1, keepdim=True)
        steps = torch.where(tokens[:, 1:-1] == OPEN, 1, -1) * inside
        at = (torch.rand(len(tokens), 1, generator=generator) * sizes).long()
        flipped = steps.scatter(1, at, -steps.gather(1, at))
        excess = steps.sum(1, keepdim=True) // 2  # so many must be turned before counts are equal
        order = torch.where(steps == excess.sign(), torch.arange(self.most), self.most).argsort(1).argsort(1)
        equal = torch.where((order < excess.abs()) & inside, -steps, steps)
        mended = self._balanced(equal, inside)
        return self._tokens(torch.where(self.answers(tokens)[:, :1] == 1, flipped, mended), inside)

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        counts, below = (failed[:, None] for failed in self.failures(prompts.tokens))
        kinds = {"balanced": ~counts & ~below, "counts differ": counts & ~below, "closed too early": ~counts & below}
        return {name: prompts.answered & where for name, where in {**kinds, "both": counts & below}.items()}

    def sources(self, prompts: Prompts) -> dict[str, Sources]:
        named = {"open brackets": OPEN, "closed brackets": CLOSE, "START": START, "END": END}
        return {name: (prompts.tokens == one)[:, None, :].expand(-1, self.length, -1) for name, one in named.items()}

    def features(self, prompts: Prompts) -> dict[str, Tokens]:
        elsewhere = (prompts.tokens != OPEN) & (prompts.tokens != CLOSE)
        depth = self.heights(prompts.tokens)
        known = {"depth": depth.clamp(-8, 8), "below zero here": (depth < 0).long()}
        return {name: values.masked_fill(elsewhere, UNCOUNTED) for name, values in known.items()}

    def mistakes(self, prompts: Prompts, predicted: Tokens) -> dict[str, Where]:
        wrong = prompts.answered & (predicted != prompts.labels)
        return {f"{name}, called the other": wrong & where for name, where in self.classes(prompts).items()}
