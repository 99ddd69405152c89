"""Modular addition: `a b =`, and the answer is (a + b) mod p, read at `=` (https://arxiv.org/abs/2301.05217).

A model is trained on a fixed share of all pairs and validated on the rest, since it is what makes it find the general
solution: with weight decay it first learns the pairs by heart, then the rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway.axes import Tokens
from cutaway.prompts import UNCOUNTED, Prompts
from cutaway.tasks.behaviour import Algorithmic, Numbers, Sources, Where, column, uniform
from cutaway.tasks.task import Examples

Pairs = Int[Tensor, "_ 3"]
SPLIT_SEED = 598


@dataclass(frozen=True)
class ModularAddition(Algorithmic):
    """Pairs of numbers below `p`; `share` of all pairs are for training."""

    p: int = 113
    share: float = 0.5

    name = "modular-addition"
    summary = "the sum of two numbers, modulo a prime"
    length = 3

    @property
    def vocabulary(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*(str(number) for number in range(self.p)), "=")

    def framed(self, a: Numbers, b: Numbers) -> Tokens:
        """`a b =` of columns `a` and `b`."""
        return torch.cat([a, b, column(len(a), self.p)], 1)

    def draw(self, count: int, generator: torch.Generator) -> Tokens:
        return self.framed(*(uniform(0, self.p, (count, 1), generator) for _ in range(2)))

    def all_pairs(self) -> Tokens:
        """Every input there is."""
        a, b = (grid.reshape(-1, 1) for grid in torch.meshgrid(torch.arange(self.p), torch.arange(self.p), indexing="ij"))
        return self.framed(a, b)

    def parts(self) -> tuple[Pairs, Pairs]:
        """The pairs to train on, and the rest."""
        pairs = self.all_pairs()
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(SPLIT_SEED))
        cut = round(self.share * len(pairs))
        return pairs[order[:cut]], pairs[order[cut:]]

    def batches(self, epoch: int, steps: int, size: int, generator: torch.Generator) -> Iterator[Examples]:
        """The pairs to train on, all of them or `size` drawn from them, `steps` times."""
        pairs = self.parts()[0]
        labels = self.answers(pairs)
        for _ in range(steps):
            chosen = slice(None) if size >= len(pairs) else torch.randint(0, len(pairs), (size,), generator=generator)
            yield Examples(pairs[chosen], labels[chosen])

    def validation(self) -> Examples:
        """The pairs that are not trained on."""
        pairs = self.parts()[1]
        return Examples(pairs, self.answers(pairs))

    def answers(self, tokens: Tokens) -> Tokens:
        labels = torch.full_like(tokens, UNCOUNTED)
        labels[:, -1] = (tokens[:, 0] + tokens[:, 1]) % self.p
        return labels

    def corrupt(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """Another second number."""
        b = (tokens[:, 1:2] + uniform(1, self.p, (len(tokens), 1), generator)) % self.p
        return self.framed(tokens[:, :1], b)

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        over = (prompts.tokens[:, 0] + prompts.tokens[:, 1] >= self.p)[:, None]
        return {"below p": prompts.answered & ~over, "p or more": prompts.answered & over}

    def sources(self, prompts: Prompts) -> dict[str, Sources]:
        at = torch.arange(3)
        return {name: (at == number).expand(len(prompts), 3, 3) for number, name in enumerate(("a", "b", "="))}

    def features(self, prompts: Prompts) -> dict[str, Tokens]:
        return {"the sum": self.answers(prompts.tokens)}

    def mistakes(self, prompts: Prompts, predicted: Tokens) -> dict[str, Where]:
        wrong = prompts.answered & (predicted != prompts.labels)
        near = ((predicted - prompts.labels) % self.p).minimum((prompts.labels - predicted) % self.p) == 1
        return {"one off": wrong & near, "further off": wrong & ~near}
