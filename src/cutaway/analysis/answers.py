"""Answers of a model to prompts: which are right, how far they lead, what constants reach, and what their tokens are called.

Answers are numbered in the order of their places (example by example, position by position); `[answer]` is that axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from cutaway.errors import ContextTooLong, PromptError, TokenError
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts
from cutaway.runs.answer_metrics import sets_of
from cutaway.runs.estimates import Value, ratio

ROOM = 2**24  # logits at a time
TABLE, SHOWN = 1000, 64  # tokens of a vocabulary, and of its content, for tables by token


class ModelAnswers:
    """The answers of a model to prompts; subclasses have these fields and say where their `logits` come from.

    With `above` the answer is every token whose logit is above 0; else it is the likeliest token.
    """

    model: Transformer
    prompts: Prompts
    vocab: Sequence[str] | None
    above: bool

    def check(self) -> None:
        """Make sure that the model can run on these prompts, and answer them.

        Raises:
            PromptError: they have no answers.
            ContextTooLong, TokenError: they do not fit the model.
        """
        cfg, tokens = self.model.cfg, self.prompts.tokens
        if not self.prompts.right or not bool(self.prompts.answered.any()):
            raise PromptError("a report needs right answers; give them in the examples ('answers') or pairs ('answer')")
        if tokens.shape[1] > cfg.n_ctx:
            raise ContextTooLong(f"the prompts have up to {tokens.shape[1]} tokens, and the model's context is {cfg.n_ctx}")
        bad = (self.prompts.mask & (tokens >= cfg.d_vocab)).nonzero()
        if len(bad):
            row, at = bad[0].tolist()
            raise TokenError(f"prompt {row} has the token {int(tokens[row, at])}; the model's vocabulary has {cfg.d_vocab}")
        for row, answers in enumerate(self.prompts.right):
            for at, right in answers.items():
                if any(token >= cfg.d_vocab_out for token in right):
                    raise TokenError(
                        f"prompt {row} has the answer {max(right)} at position {at}; the model answers with the "
                        f"{cfg.d_vocab_out} tokens from 0"
                    )

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

    # Tokens, and what they are called.

    @cached_property
    def varied(self) -> Bool[Tensor, "batch pos"]:
        """Positions at which prompts differ."""
        tokens, mask = self.prompts.tokens, self.prompts.mask
        several = torch.tensor([len(tokens[:, at][mask[:, at]].unique()) > 1 for at in range(tokens.shape[1])])
        return several.expand_as(mask)

    @property
    def content(self) -> list[int]:
        """Tokens that prompts vary in: the longest run of numbers among those that vary."""
        used = self.prompts.tokens[self.varied & self.prompts.mask].unique().tolist()
        runs: list[list[int]] = [[]]
        for token in used:
            if runs[-1] and token != runs[-1][-1] + 1:
                runs.append([])
            runs[-1].append(token)
        return max(runs, key=len)

    @cached_property
    def single(self) -> bool:
        """Whether each answer is one token, of a vocabulary small enough for tables by token."""
        return not self.prompts.several and not self.above and self.model.cfg.d_vocab_out <= TABLE

    @property
    def by_token(self) -> bool:
        """Whether there is so little content that tables by token can be read."""
        return self.model.cfg.d_vocab <= TABLE and len(self.content) <= SHOWN

    @cached_property
    def words(self) -> list[str]:
        """What all tokens are called; numbered where a name stands for two."""
        names = [self.word(token) for token in range(self.model.cfg.d_vocab)]
        return names if len(set(names)) == len(names) else [f"{name} ({token})" for token, name in enumerate(names)]

    @property
    def answer_words(self) -> list[str]:
        """What answers are called."""
        cfg = self.model.cfg
        return self.words if cfg.d_vocab_out == cfg.d_vocab else [str(one) for one in range(cfg.d_vocab_out)]

    @cached_property
    def occurrences(self) -> Int[Tensor, "batch pos token"]:
        """How often each token has occurred up to each position."""
        return one_hot(self.prompts.tokens, self.model.cfg.d_vocab).cumsum(1)

    def word(self, token: int) -> str:
        """What a token is called."""
        if self.vocab is not None:
            return self.vocab[token] if token < len(self.vocab) else str(token)
        decode: Any = getattr(self.model.tokenizer, "decode", None)
        return str(token) if decode is None else str(decode([token]))

    def answer_word(self, token: int) -> str:
        """What an answer is called: tokens, or classes by their numbers."""
        return self.word(token) if self.model.cfg.d_vocab_out == self.model.cfg.d_vocab else str(token)

    def answers_text(self, tokens: Sequence[int]) -> str:
        """Answers as one text."""
        return self.joined(tokens) if self.model.cfg.d_vocab_out == self.model.cfg.d_vocab else " ".join(map(str, tokens))

    def text(self, row: int) -> str:
        """A prompt in words."""
        return self.joined(self.prompts.tokens[row, : int(self.prompts.lengths[row])].tolist())

    def joined(self, tokens: Sequence[int]) -> str:
        """Tokens as one text; with spaces where words have none of their own."""
        letters = self.vocab is not None and all(len(word) == 1 for word in self.vocab)
        between = "" if letters or (self.vocab is None and self.model.tokenizer is not None) else " "
        return between.join(map(self.word, tokens))


def _shares(sets: Bool[Tensor, "answer d_vocab"]) -> Float[Tensor, "answer d_vocab"]:
    return sets.float() / sets.sum(1, keepdim=True).clamp(min=1)
