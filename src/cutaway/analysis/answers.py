"""Answers of a model to prompts: which are right, how far they lead, and what a constant or a fixed order of answers would reach.

Answers are numbered in the order of their places (example by example, position by position); `[answer]` is that axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts
from cutaway.runs.answer_metrics import sets_of
from cutaway.runs.estimates import Value, ratio

ROOM = 2**24  # logits at a time


class ModelAnswers:
    """The answers of a model to prompts; subclasses have these fields and say where their `logits` come from.

    With `above` the answer is every token whose logit is above 0; else it is the likeliest token.
    """

    model: Transformer
    prompts: Prompts
    above: bool

    @property
    def logits(self) -> Float[Tensor, "answer d_vocab"]:
        """The model's logits at its answers."""
        raise TypeError(f"{type(self).__name__} has no logits")  # subclasses do

    @cached_property
    def places(self) -> tuple[Int[Tensor, "answer"], Int[Tensor, "answer"]]:
        """Example and position of each answer."""
        rows, at = self.prompts.answered.nonzero(as_tuple=True)
        return rows, at

    @cached_property
    def right(self) -> Bool[Tensor, "answer d_vocab"]:
        """Which tokens are right."""
        return self._sets_of(self.prompts.right)

    @cached_property
    def wrong(self) -> Bool[Tensor, "answer d_vocab"]:
        """Which tokens an answer is compared with: those given, else all that are not right."""
        given = self._sets_of(self.prompts.wrong) if self.prompts.wrong else torch.zeros_like(self.right)
        return torch.where(given.any(1, keepdim=True), given, ~self.right)

    @cached_property
    def paired(self) -> Bool[Tensor, "answer"]:
        """Which answers have wrong ones to be compared with."""
        return torch.tensor([at in (self.prompts.wrong[row] if self.prompts.wrong else ()) for row, at in self._at])

    @property
    def _at(self) -> list[tuple[int, int]]:
        return list(zip(*(one.tolist() for one in self.places), strict=True))

    def _sets_of(self, answers: Sequence[Mapping[int, tuple[int, ...]]]) -> Bool[Tensor, "answer d_vocab"]:
        return sets_of([tuple(answers[row].get(at, ())) for row, at in self._at], self.model.cfg.d_vocab_out)

    def logits_at(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "answer d_vocab"]:
        """Logits of a residual stream where answers are."""
        step = max(1, ROOM // self.model.cfg.d_vocab_out)
        with torch.no_grad():
            return torch.cat([self.model.logits_of(part[None])[0].float() for part in resid[self.places].split(step)])

    def hits(self, logits: Float[Tensor, "answer d_vocab"]) -> Bool[Tensor, "answer"]:
        """Which answers are right, read from these logits."""
        if self.above:
            return ((logits > 0) == self.right).all(1)
        return self.right.gather(1, logits.argmax(1, keepdim=True))[:, 0]

    @cached_property
    def correct(self) -> Bool[Tensor, "answer"]:
        return self.hits(self.logits)

    def over(
        self, values: Shaped[Tensor, "answer"], where: Bool[Tensor, "answer"] | None = None, *, shares: bool = True
    ) -> Value:
        """The mean over answers (some of them), with an interval over examples; `shares`: of yes and no."""
        chosen = torch.ones(len(values)) if where is None else where.float()
        values = torch.where(chosen > 0, values.float(), 0)
        rows = self.places[0]
        sums, counts = (torch.zeros(len(self.prompts)).index_add(0, rows, one) for one in (values, chosen))
        return ratio(sums, counts, shares=shares)

    @cached_property
    def accuracy(self) -> Value:
        return self.over(self.correct)

    @cached_property
    def chance(self) -> Value:
        """The accuracy of the best answer that is always the same."""
        if not self.above:
            return self.over(self.right[:, int(self.right.sum(0).argmax())])
        kinds, each = self.right.unique(dim=0, return_inverse=True)
        return self.over(each == each.bincount(minlength=len(kinds)).argmax())

    @cached_property
    def preference(self) -> Value | None:
        """How often the right tokens' mean logit is above that of the wrong ones given; None where none are."""
        return self.over(self.lead > 0, self.paired) if bool(self.paired.any()) else None

    @cached_property
    def coin(self) -> Value:
        """How often one fixed order of all answers would put the right ones above the wrong ones, at least a half.

        The order is by how often each is right and not wrong, counted in one half of the prompts and tried on the other.
        """
        hit = torch.full((len(self.right),), 0.5)
        odd = self.places[0] % 2 == 1
        for half in (odd, ~odd):
            score = (self.contrast[half & self.paired]).sum(0)
            hit[~half] = ((self.contrast[~half] @ score).sign() + 1) / 2
        found = self.over(hit, self.paired)
        return found if found.value > 0.5 else Value(0.5)

    @cached_property
    def telling(self) -> Value | None:
        """How often an answer is likelier where it is right than where it is wrong, over all pairs of such prompts.

        Where sets of right answers share one, a constant is always right; any fixed distribution gives a half here. None where
        no constant is right nearly everywhere.
        """
        shared = self.prompts.several and not self.above and bool(self.paired.any()) and self.chance.value > 0.9
        return self.telling_of(self.logits) if shared else None

    def telling_of(self, logits: Float[Tensor, "answer d_vocab"]) -> Value | None:
        """The same, read from these logits; None where no answer is right at one place and wrong at another."""
        logs = logits.log_softmax(1)
        sums, counts = torch.zeros(len(logs)), torch.zeros(len(logs))
        wrong = self.wrong & self.paired[:, None]
        for token in (self.right.any(0) & wrong.any(0)).nonzero().flatten().tolist():
            here, there = self.right[:, token].nonzero().flatten(), logs[wrong[:, token], token]
            above = logs[here, token, None] - there
            sums[here] += ((above.sign() + 1) / 2).mean(1)
            counts[here] += 1
        return self.over(sums / counts.clamp(min=1), counts > 0) if bool(counts.any()) else None

    @cached_property
    def lead(self) -> Float[Tensor, "answer"]:
        """The mean logit of the right tokens less that of the others."""
        return (self.logits * self.contrast).sum(1)

    @cached_property
    def contrast(self) -> Float[Tensor, "answer d_vocab"]:
        """Weights on logits: the mean of the right tokens less the mean of the others."""
        return _shares(self.right) - _shares(self.wrong)

    @cached_property
    def losses(self) -> Float[Tensor, "answer"]:
        """Of each answer: minus the log of the right tokens' probability, or the mean cross-entropy of all decisions."""
        if self.above:
            return binary_cross_entropy_with_logits(self.logits, self.right.float(), reduction="none").mean(1)
        return self.logits.logsumexp(1) - self.logits.masked_fill(~self.right, -torch.inf).logsumexp(1)


def _shares(sets: Bool[Tensor, "answer d_vocab"]) -> Float[Tensor, "answer d_vocab"]:
    return sets.float() / sets.sum(1, keepdim=True).clamp(min=1)
