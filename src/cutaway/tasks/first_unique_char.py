"""First unique character as a behaviour, and as the task that `cutaway train` sees: which letter is the first not repeated?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.axes import Tokens
from cutaway.config import HookedTransformerConfig
from cutaway.model.transformer import Transformer
from cutaway.prompts import UNCOUNTED, Prompts
from cutaway.tasks.behaviour import Algorithmic, Sources, Where, equal_tokens, replaced_once
from cutaway.tasks.first_unique_dataset import LETTERS, NULL, FirstUniqueChar, first_unique, letters_of
from cutaway.tasks.task import loss_of
from cutaway.tokens import CharTokenizer


@dataclass(frozen=True)
class FirstUniqueCharTask(Algorithmic):
    """The task as `cutaway train` sees it, and as a behaviour."""

    vocab: tuple[str, ...] = LETTERS
    seq_len: int = 20

    name = "first-unique-char"
    summary = "at each position, the first letter so far that has not been repeated ('?' where there is none)"

    @property
    def vocabulary(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.vocab, NULL)

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.seq_len

    def config(self) -> HookedTransformerConfig:
        """The published model's configuration, without its global seed."""
        return FirstUniqueChar.config(self.vocab, self.seq_len, seed=None)

    def dataset(self, size: int = 1000, seed: int = 42) -> FirstUniqueChar:
        """A dataset of this task's letters and length."""
        return FirstUniqueChar(size, self.vocab, self.seq_len, seed)

    def draw(self, count: int, generator: torch.Generator) -> Tokens:
        null = len(self.vocab)
        letters = letters_of(count, self.seq_len - 1, null, generator)
        return torch.cat([torch.full((count, 1), null), letters], 1)

    def answers(self, tokens: Tokens) -> Tokens:
        return first_unique(tokens, len(self.vocab))

    def corrupt(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """One letter changed."""
        return replaced_once(tokens, 0, len(self.vocab), 1, self.seq_len, generator)

    @property
    def content(self) -> range:  # type: ignore[override]
        return range(len(self.vocab))

    @property
    def free(self) -> range:  # type: ignore[override]
        return range(1, self.seq_len)

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        """What the answer is: none, the letter just read (position 1, where it always is, apart), or an earlier one."""
        none, just_read = prompts.labels == len(self.vocab), prompts.labels == prompts.tokens
        late = torch.arange(prompts.tokens.shape[1]) > 1
        return {
            "the answer is ?": prompts.answered & none,
            "the answer is the letter just read": prompts.answered & just_read & ~none & late,
            "the answer is an earlier letter": prompts.answered & ~just_read & ~none,
            "the answer is the first letter": prompts.answered & just_read & ~none & ~late,
        }

    def sources(self, prompts: Prompts) -> dict[str, Sources]:
        at = torch.arange(prompts.tokens.shape[1])
        null, own = at == 0, (at[:, None] == at) & (at > 0)
        again = self._again(prompts.tokens)
        named = {
            "?": null, "the letter itself": own,
            "first instances": ~null & ~own & ~again[:, None], "repeats": ~own & again[:, None],
            "occurrences of a repeated letter": equal_tokens(prompts.tokens) & again[:, :, None],
            "earlier occurrences of the letter": equal_tokens(prompts.tokens) & (at < at[:, None]),
            "position 1, from itself": own & (at == 1),
            "the answer": (prompts.labels[:, :, None] == prompts.tokens[:, None, :]) & ~null,
        }  # fmt: skip
        return {name: mask.expand(len(prompts), len(at), len(at)) for name, mask in named.items()}

    @staticmethod
    def _again(tokens: Tokens) -> Where:
        return equal_tokens(tokens).tril(-1).any(2)

    def features(self, prompts: Prompts) -> dict[str, Tokens]:
        again = self._again(prompts.tokens).long()
        again[:, 0] = UNCOUNTED
        return {"read before": again}

    def measures(self, prompts: Prompts) -> dict[str, Float[Tensor, "batch pos"]]:
        """What can be counted at each position."""
        tokens, null = prompts.tokens, len(self.vocab)
        times = torch.nn.functional.one_hot(tokens, null + 1).cumsum(1)[..., :null]
        at = torch.arange(tokens.shape[1])
        here = tokens[:, None, :] == torch.arange(null)[:, None]
        first = torch.where(here, at, math.inf).amin(-1)
        alone = torch.where(times == 1, first[:, None], math.inf).sort(-1).values  # places of unique letters
        letter = prompts.labels != null
        lead = alone[..., 1] - alone[..., 0] if null > 1 else torch.full(tokens.shape, math.nan)
        return {
            "position": at.expand(tokens.shape).float(),
            "different letters so far": (times > 0).sum(-1).float(),
            "letters that are unique": (times == 1).sum(-1).float(),
            "letters that are repeated": (times > 1).sum(-1).float(),
            "most occurrences of one letter": times.amax(-1).float(),
            "the answer is ?": (~letter).float(),
            "the answer was just read": (letter & (prompts.labels == tokens)).float(),
            "how long ago the answer was read": torch.where(letter, at - alone[..., 0], math.nan).float(),
            "from the answer to the next unique letter": torch.where(letter & lead.isfinite(), lead, math.nan),
            "the letter just read is a repeat": self._again(tokens).float(),
        }

    def mistakes(self, prompts: Prompts, predicted: Tokens) -> dict[str, Where]:
        """By what is said instead."""
        wrong, null = prompts.answered & (predicted != prompts.labels), len(self.vocab)
        seen = torch.nn.functional.one_hot(prompts.tokens, null + 1).cumsum(1)
        times = seen.gather(-1, predicted[..., None])[..., 0].masked_fill(predicted == null, -1)
        return {
            "? although a letter is unique": wrong & (times == -1), "a later unique letter": wrong & (times == 1),
            "a repeated letter": wrong & (times > 1), "a letter that did not occur": wrong & (times == 0),
        }  # fmt: skip

    def sets(self) -> dict[str, Prompts]:
        """One letter, read at position 1; every letter twice in a row; five letters in pairs, from every second letter on."""
        null, count = len(self.vocab), len(self.vocab)
        one = [[null, letter] for letter in self.content]
        pairs = [null, *(letter for letter in self.content for _ in range(2))][: self.seq_len]
        some = [[null, *((start + n // 2) % count for n in range(2 * min(5, count)))] for start in range(0, min(10, count), 2)]
        return {
            "one letter": Prompts.of_rows(one, right=tuple({1: (letter,)} for _, letter in one)),
            "pairs of letters": self.known(torch.tensor([pairs])),
            "five letters in pairs": self.known(torch.tensor(some)[:, : self.seq_len]),
        }

    def tokenizer(self) -> CharTokenizer:
        """One token per character; text gets the null character in front."""
        return CharTokenizer(self.vocabulary, bos_token=NULL)

    def fingerprint(self) -> dict[str, Any]:
        """What the examples depend on beside the seed."""
        return {"vocab": list(self.vocab), "seq_len": self.seq_len}

    def notes(self, model: Transformer) -> list[str]:
        """For the card: the figures on the dataset of the published problem."""
        tokens, labels = (part.to(model.cfg.device) for part in self.dataset()[:])
        with torch.no_grad():
            logits = model(tokens)
        correct = logits.softmax(-1).gather(-1, labels[..., None])
        return [
            f"Letters: `{''.join(self.vocab)}`, and `{NULL}` at the start and where no letter is unique.",
            f"On `FirstUniqueChar(size=1000, seed=42)`: loss {float(loss_of(logits, labels)):.4f}, mean probability of the "
            f"right answer {float(correct.mean()):.4f}, smallest {float(correct.min()):.4f}.",
        ]
