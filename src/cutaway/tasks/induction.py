"""Induction: a random list of words twice; what followed the last word the first time comes next (https://arxiv.org/abs/2209.11895).

The counterpart had another word there the first time.
"""

from __future__ import annotations

from typing import Any

import torch

from cutaway.errors import PromptError
from cutaway.prompts import Prompts
from cutaway.tasks.behaviour import check_count
from cutaway.tasks.language import FilledTemplate, Language, is_single, number, pick, single

WORDS = tuple(f" {word}" for word in (
    "apple", "river", "stone", "music", "green", "window", "paper", "summer", "bread", "horse", "light", "table", "cloud",
    "garden", "silver", "mountain", "letter", "water", "school", "engine", "forest", "island", "bridge", "winter", "orange",
    "market", "doctor", "yellow", "castle", "village", "dragon", "ticket", "circle", "shadow", "metal", "basket", "camera",
    "finger", "copper", "hammer", "planet", "rabbit", "ribbon", "saddle", "temple", "tunnel", "velvet", "valley", "wagon",
    "wisdom",
))  # fmt: skip


class Induction(Language):
    """What a repeated list goes on with."""

    name = "induction"
    summary = "what a list of words goes on with when it comes again"
    length = 12

    def one(self, tokenizer: Any, generator: torch.Generator) -> FilledTemplate:
        known = single(tokenizer, WORDS, self.length + 1, "words")
        *listed, other = pick(known, generator, self.length + 1)
        again = number(2, self.length - 1, generator)  # the number of the word that comes again last
        slots = [{again: "Earlier", again + 1: "Answer"}.get(n, f"w{n}") for n in range(self.length)]
        words = dict(zip(slots, listed, strict=True))
        repeated = [f"w{n}again" for n in range(again)]
        words |= dict(zip(repeated, listed, strict=False)) | {"Repeated": listed[again]}
        template = "".join(f"{{{slot}}}" for slot in [*slots, *repeated, "Repeated"])
        return FilledTemplate(template, words, {**words, "Answer": other}, (listed[again + 1],), (other,))

    def has_words(self, tokenizer: Any) -> bool:
        """Whether enough of the words are single tokens of this vocabulary."""
        return tokenizer is not None and sum(is_single(tokenizer, word) for word in WORDS) > self.length

    def tokens_prompts(self, count: int, d_vocab: int, seed: int = 0, *, first: int | None = None) -> Prompts:
        """The same in random tokens of a vocabulary, for models without a tokenizer; `first` goes in front of each row.

        Raises:
            PromptError: the vocabulary is too small, or `count` is less than 1.
        """
        check_count(count)
        if d_vocab < self.length + 2:
            raise PromptError(f"{self.length + 2} different tokens are needed, and the vocabulary has {d_vocab}")
        generator = torch.Generator().manual_seed(seed)
        rows, others, right, wrong, earlier = [], [], [], [], []
        front = [] if first is None else [first]
        for _ in range(count):
            *listed, other = [t for t in torch.randperm(d_vocab, generator=generator).tolist() if t != first][: self.length + 1]
            again = number(2, self.length - 1, generator)
            rows.append(front + listed + listed[: again + 1])
            others.append(front + listed[: again + 1] + [other] + listed[again + 2 :] + listed[: again + 1])
            right.append({len(rows[-1]) - 1: (listed[again + 1],)})
            wrong.append({len(rows[-1]) - 1: (other,)})
            earlier.append(len(front) + again)
        places = {"Earlier": torch.tensor(earlier), "Answer": torch.tensor(earlier) + 1}
        known: dict[str, Any] = {"right": tuple(right), "wrong": tuple(wrong), "roles": places}
        return Prompts.of_rows(rows, corrupted=Prompts.of_rows(others, roles=places), **known)
