"""Metrics of prompts whose answers may be sets: the loss of the right ones, their lead over others, each token's own decision.

`AnswerMetric.of(prompts, read, d_vocab)` reads every position that has an answer (for a lead, one to compare it with).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.errors import PromptError, ShapeError, TokenError, nearest
from cutaway.prompts import Prompts
from cutaway.runs.metrics import LogitRows, Metric, PerToken

READS = {
    "loss": ("loss of the right answers", "nats"),
    "lead": ("lead of the right answers", "logits"),
    "decisions": ("loss of each token's decision", "nats"),
}


@dataclass(frozen=True, eq=False, repr=False)
class AnswerMetric(Metric):
    """A metric of sets of answers.

    Args:
        right, wrong: `[answer, d_vocab]`, which tokens are right, and which they are compared with.
        index: `[batch, pos]`, the number of the answer at a position; -1 where there is none.
        read: "loss", minus the log of the probability of all right tokens together; "lead", the log-sum-exp of their logits less
            that of the wrong ones (the logit difference where both are one token); "decisions", the mean over the vocabulary of
            the binary cross-entropy of "this token's logit is above 0".
    """

    right: Bool[Tensor, "answer d_vocab"]
    wrong: Bool[Tensor, "answer d_vocab"]
    index: Int[Tensor, "batch pos"]
    read: str = "loss"
    by_position: bool = False

    def __post_init__(self) -> None:
        if self.read not in READS:
            raise PromptError(f"read={self.read!r} is not known{nearest(self.read, READS)}; there are {', '.join(READS)}")
        right, wrong, index = self.right, self.wrong, self.index
        sets = right.dtype == wrong.dtype == torch.bool and right.ndim == 2 and right.shape == wrong.shape
        if not sets or index.ndim != 2 or index.dtype != torch.long or not bool((index < len(right)).all()):
            raise TokenError("answers are masks of the vocabulary, and an index of them by row and position")

    @property
    def name(self) -> str:  # type: ignore[override]
        """What is read, in words."""
        return READS[self.read][0]

    @property
    def unit(self) -> str:  # type: ignore[override]
        """Of the value."""
        return READS[self.read][1]

    @classmethod
    def of(cls, prompts: Prompts, read: str, d_vocab: int, *, by_position: bool = False) -> AnswerMetric:
        """The metric of all answers of some prompts; a lead over the wrong ones reads only positions that have some.

        Raises:
            PromptError: there is nothing to read, or no such reading.
        """
        index = torch.full(prompts.tokens.shape, -1)
        places: list[tuple[int, int]] = []
        right: list[tuple[int, ...]] = []
        wrong: list[tuple[int, ...]] = []
        for row, at in enumerate(prompts.right):
            others = prompts.wrong[row] if prompts.wrong else {}
            for position, tokens in at.items():
                if read != "lead" or position in others:
                    places.append((row, position))
                    right.append(tokens)
                    wrong.append(others.get(position, ()))
        if not right:
            raise PromptError(f"these prompts have no {'wrong answers to compare with' if read == 'lead' else 'answers'}")
        index[tuple(torch.tensor(places).unbind(1))] = torch.arange(len(places))
        return cls(sets_of(right, d_vocab), sets_of(wrong, d_vocab), index, read, by_position)

    def wanted(self, batch: int, length: int) -> Bool[Tensor, "batch pos"]:
        if tuple(self.index.shape) != (batch, length):
            raise ShapeError(f"the answers are those of {tuple(self.index.shape)} tokens, and these are {(batch, length)}")
        return self.index >= 0

    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        number = self.index.to(logits.device)[at.examples, at.positions]
        right = self.right.to(logits.device)[number]
        if self.read == "decisions":
            return F.binary_cross_entropy_with_logits(logits, right.to(logits.dtype), reduction="none").mean(-1)
        hit = logits.masked_fill(~right, -torch.inf).logsumexp(-1)
        if self.read == "loss":
            return logits.logsumexp(-1) - hit
        return hit - logits.masked_fill(~self.wrong.to(logits.device)[number], -torch.inf).logsumexp(-1)


def sets_of(rows: list[tuple[int, ...]], d_vocab: int) -> Bool[Tensor, "answer d_vocab"]:
    """Sets of tokens as masks."""
    found = torch.zeros(len(rows), d_vocab, dtype=torch.bool)
    places = [(number, token) for number, tokens in enumerate(rows) for token in tokens]
    if places:
        found[tuple(torch.tensor(places).unbind(1))] = True
    return found
