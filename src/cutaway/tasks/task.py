"""What a task is: a configuration, examples to draw, examples to validate on, a vocabulary, and a recipe.

Each task is a small frozen class that has these; training asks for nothing else. Every position of a sequence
has one right answer, or none that counts (`UNCOUNTED`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.axes import Logits, Tokens
from cutaway.config import HookedTransformerConfig
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options
from cutaway.prompts import UNCOUNTED


class Examples(NamedTuple):
    """Sequences and the right answer at each of their positions (`UNCOUNTED` where none counts)."""

    tokens: Tokens
    labels: Tokens


@dataclass(frozen=True)
class Recipe:
    """How a task is trained: fresh examples in batches, AdamW, warm-up, then a decay in a straight line to zero.

    An epoch is `steps` batches; after each the model is validated and the state of the training written.
    """

    epochs: int = 32
    steps: int = 250
    batch_size: int = 512
    lr: float = 2e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 200
    clip: float | None = None


@runtime_checkable
class Task(Protocol):
    """A task that can be trained. `batches` takes all of its randomness from the generator that it is given."""

    @property
    def name(self) -> str:
        """What the command line calls it."""

    @property
    def summary(self) -> str:
        """One line on what the model learns."""

    @property
    def recipe(self) -> Recipe:
        """How it is trained unless told otherwise."""

    @property
    def stored(self) -> torch.dtype:
        """The precision of the weights on disk."""

    def config(self) -> HookedTransformerConfig:
        """The model to train."""

    def prepare(self, model: Transformer) -> None:
        """What is done to the fresh weights before training; parameters that are to stay lose their gradient."""

    def batches(self, epoch: int, steps: int, size: int, generator: torch.Generator) -> Iterator[Examples]:
        """Batches of fresh examples to train on, of the work of `size` sequences each; epochs count from 1."""

    def validation(self) -> Examples:
        """Examples kept aside, the same each time."""

    def tokenizer(self) -> Any:
        """What turns text into the model's tokens and back, to be kept beside its weights."""

    def fingerprint(self) -> dict[str, Any]:
        """What the examples depend on beside the seed, in plain values: a resumed training must have the same."""

    def arguments(self) -> list[str]:
        """What the command line needs beside the task's name."""

    def notes(self, model: Transformer) -> list[str]:
        """Lines for the card: the data, baselines, what this model does."""


@options(at_once=1)
@torch.no_grad()
def evaluate(model: Transformer, examples: Examples, *, at_once: int = 256) -> tuple[float, float]:
    """Mean loss and accuracy over the positions that count."""
    loss, right = 0.0, 0
    for tokens, labels in zip(*(part.split(at_once) for part in examples), strict=True):
        counted = labels != UNCOUNTED
        logits = model(tokens)
        loss += float(loss_of(logits, labels)) * int(counted.sum())
        right += int((logits.argmax(-1) == labels)[counted].sum())
    count = int((examples.labels != UNCOUNTED).sum())
    return loss / count, right / count


def loss_of(logits: Logits, labels: Tokens) -> Tensor:
    """Mean cross-entropy, in nats, over the positions that count."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNCOUNTED)
