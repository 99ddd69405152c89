"""Behaviours: what a model does, as data. How prompts are drawn, what is right, and words for what may explain it.

A behaviour says nothing of models or analyses. Reports, circuits and commands ask it for prompts (with minimal pairs),
for classes of answers, for named sources of attention, for features that may be encoded, and for kinds of mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.axes import Tokens
from cutaway.config import HookedTransformerConfig
from cutaway.errors import PromptError
from cutaway.model.transformer import Transformer
from cutaway.prompts import UNCOUNTED, Answers, Prompts
from cutaway.tasks.recipes import MODELS, RECIPES
from cutaway.tasks.task import Examples, Recipe
from cutaway.tokens import CharTokenizer

Where = Bool[Tensor, "batch pos"]
Numbers = Int[Tensor, "batch number"]  # a part of each sequence
Sources = Bool[Tensor, "batch dest src"]


class Behaviour:
    """One behaviour. Subclasses set `name` and `summary`, draw prompts, and name what is worth naming."""

    name: str
    summary: str
    vocabulary: tuple[str, ...] = ()  # its own tokens; empty: words, in whatever tokens the model has
    content: Sequence[int] | None = None  # tokens that prompts vary in; None: those that are seen to

    def prompts(self, count: int, seed: int = 0, tokenizer: Any = None) -> Prompts:
        """`count` prompts with answers and counterparts, the same for the same seed.

        Raises:
            PromptError: the vocabulary of `tokenizer` lacks the words that the behaviour needs.
        """
        raise TypeError(f"{type(self).__name__} draws no prompts")  # subclasses do

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        """Classes of answers, by name; each position that counts is in one."""
        return {}

    def sources(self, prompts: Prompts) -> dict[str, Sources]:
        """Named sources of attention: for each position, the earlier ones that bear the name."""
        return {}

    def features(self, prompts: Prompts) -> dict[str, Int[Tensor, "batch pos"]]:
        """Quantities that the model may represent, `UNCOUNTED` where a position has none."""
        return {}

    def mistakes(self, prompts: Prompts, predicted: Tokens) -> dict[str, Where]:
        """Kinds of wrong answers, by name, from the predicted token of each position."""
        return {}

    def measures(self, prompts: Prompts) -> Mapping[str, Tensor]:
        """Quantities by which failures are compared with ordinary inputs: `[batch, pos]` each, NaN where there is none."""
        known = self.features(prompts).items()
        return {name: values.float().masked_fill(values == UNCOUNTED, torch.nan) for name, values in known}

    def sets(self) -> dict[str, Prompts]:
        """Special prompts that are worth a look of their own, by name."""
        return {}


class Algorithmic(Behaviour):
    """A behaviour over a vocabulary of its own whose right answers can be computed, so that a model can be trained for it.

    Subclasses are frozen dataclasses of the sequences' parameters. They say `draw` and `answers`; `corrupt` gives minimal pairs.
    `recipes` has the network that is trained and how.
    """

    length: int  # positions of each sequence
    free: Sequence[int] = ()  # positions where any content may stand
    stored = torch.float32

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return RECIPES[self.name]

    @property
    def d_vocab_out(self) -> int:
        """How many answers the model chooses from."""
        return len(self.vocabulary)

    def draw(self, count: int, generator: torch.Generator) -> Tokens:
        """Fresh sequences."""
        raise TypeError(f"{type(self).__name__} draws no sequences")  # subclasses do

    def answers(self, tokens: Tokens) -> Tokens:
        """The right answer at every position, `UNCOUNTED` where none counts."""
        raise TypeError(f"{type(self).__name__} has no answers")  # subclasses do

    def corrupt(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """Sequences that differ little and have another answer somewhere."""
        raise TypeError(f"{type(self).__name__} has no counterparts")  # subclasses do

    def prompts(self, count: int, seed: int = 0, tokenizer: Any = None) -> Prompts:
        """`count` sequences with every answer that counts, and the minimal pair of each.

        Raises:
            PromptError: `count` is less than 1.
        """
        check_count(count)
        generator = torch.Generator().manual_seed(seed)
        tokens = self.draw(count, generator)
        return self.known(tokens, self.known(self.corrupt(tokens, generator)))

    def known(self, tokens: Tokens, corrupted: Prompts | None = None) -> Prompts:
        """Prompts of given sequences, with their right answers (and, with counterparts, theirs as the wrong ones)."""
        right = _by_position(self.answers(tokens))
        wrong: Answers = ()
        if corrupted is not None:
            other = self.answers(corrupted.tokens)
            wrong = _by_position(other.where(other != self.answers(tokens), torch.tensor(UNCOUNTED)))
        return Prompts(tokens, torch.ones_like(tokens, dtype=torch.bool), right=right, wrong=wrong, corrupted=corrupted)

    # What training asks of a task.

    def config(self) -> HookedTransformerConfig:
        """The model to train."""
        sizes = {"n_ctx": self.length, "d_vocab": len(self.vocabulary), "d_vocab_out": self.d_vocab_out}
        return HookedTransformerConfig.from_dict({**MODELS[self.name], **sizes, "seed": None, "model_name": self.name})

    def prepare(self, model: Transformer) -> None:
        """Nothing: the weights start as the configuration says."""

    def batches(self, epoch: int, steps: int, size: int, generator: torch.Generator) -> Iterator[Examples]:
        """Batches of fresh sequences, drawn at once."""
        tokens = self.draw(steps * size, generator)
        yield from map(Examples, tokens.split(size), self.answers(tokens).split(size))

    def validation(self) -> Examples:
        """Two thousand sequences of a seed that training never uses."""
        tokens = self.draw(2000, torch.Generator().manual_seed(2_000_042))
        return Examples(tokens, self.answers(tokens))

    def tokenizer(self) -> CharTokenizer:
        """One token for each word of the vocabulary."""
        return CharTokenizer(self.vocabulary)

    def fingerprint(self) -> dict[str, Any]:
        """What the examples depend on beside the seed."""
        return {"vocabulary": list(self.vocabulary), "length": self.length}

    def arguments(self) -> list[str]:
        """The command line needs nothing beside the name."""
        return []

    def notes(self, model: Transformer) -> list[str]:
        """How often every answer of a sequence is right, on fresh sequences."""
        tokens = self.draw(2000, torch.Generator().manual_seed(3_000_042))
        labels = self.answers(tokens)
        with torch.no_grad():
            wrong = (torch.cat([model(part).argmax(-1) for part in tokens.split(250)]) != labels) & (labels != UNCOUNTED)
        return [f"On 2,000 fresh sequences, all answers of {float((~wrong.any(1)).float().mean()):.4f} of them are right."]


def check_count(count: int) -> None:
    """There is at least one prompt to draw.

    Raises:
        PromptError: there is none.
    """
    if count < 1:
        raise PromptError(f"asked for {count} prompts; at least one is needed")


def _by_position(labels: Tokens) -> tuple[dict[int, tuple[int, ...]], ...]:
    """Labels as `Prompts` holds them."""
    return tuple({at: (label,) for at, label in enumerate(row) if label != UNCOUNTED} for row in labels.tolist())


def uniform(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> Int[Tensor, "..."]:
    """Whole numbers from `low` up to and without `high`."""
    return torch.randint(low, high, shape, generator=generator)


def column(count: int, token: int) -> Numbers:
    """The same token in one column of `count` rows."""
    return torch.full((count, 1), token)


def replaced_once(tokens: Tokens, low: int, high: int, first: int, last: int, generator: torch.Generator) -> Tokens:
    """Each row with one entry of the columns `first` to `last` (without) replaced by another of the numbers `low` to `high`."""
    out, rows = tokens.clone(), torch.arange(len(tokens))
    at = uniform(first, last, (len(tokens),), generator)
    shift = uniform(1, high - low, (len(tokens),), generator)
    out[rows, at] = low + (out[rows, at] - low + shift) % (high - low)
    return out


def equal_tokens(tokens: Tokens) -> Sources:
    """Where the token looked at equals the one that looks, earlier or later."""
    return tokens[:, :, None] == tokens[:, None, :]
