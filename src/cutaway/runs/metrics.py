"""Metrics as they are asked for: `logit_difference(" Mary", " John")`, `loss(tokens)`; what they are is in `measures`.

Answers are tokens or words, positions numbers or roles. What is said in words becomes a metric of tokens where a model and its
prompts are known (`settled`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway.errors import PromptError, ShapeError, TokenError, UnknownRole, suggest_names
from cutaway.numbers_given import several, whole
from cutaway.prompts import Prompts, word_token
from cutaway.runs.measures import (
    KL,
    Accuracy,
    Answers,
    AnyMetric,
    CustomMetric,
    LabelMetric,
    LogitDifference,
    LogitRows,
    LogProbability,
    Loss,
    Metric,
    Normalised,
    OfRows,
    PerToken,
    Positions,
    Probability,
    ProbabilityDifference,
    Rank,
    among_real,
)
from cutaway.runs.representation import ShortRepr
from cutaway.tokens import check_mask

__all__ = [
    "KL",
    "Accuracy",
    "Answers",
    "AnyMetric",
    "CustomMetric",
    "InWords",
    "LabelMetric",
    "LogProbability",
    "LogitDifference",
    "LogitRows",
    "Loss",
    "Metric",
    "Normalised",
    "OfNextTokens",
    "OfRows",
    "PerToken",
    "Positions",
    "Probability",
    "ProbabilityDifference",
    "Rank",
    "accuracy",
    "among_real",
    "as_metric",
    "by_position",
    "function",
    "kl",
    "log_probability",
    "logit_difference",
    "loss",
    "normalised",
    "probability",
    "probability_difference",
    "rank",
    "settled",
]  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Unsettled(ShortRepr):
    """A metric of a kind that `settled` makes one of a model's tokens."""

    kind: type[Metric]
    compares = False

    @property
    def name(self) -> str:
        return str(self.kind.name)

    @property
    def unit(self) -> str:
        return str(self.kind.unit)


@dataclass(frozen=True, eq=False, repr=False)
class InWords(Unsettled):
    """A metric whose answers are words, or whose positions are a role: `settled` makes it a metric of one model's tokens.

    Args:
        kind: which metric.
        answers, wrong: a word for all prompts, or one for each; None: those that the prompts have.
        positions: a role, positions, or None: where the prompts' answers stand, else each row's last token.
        allow_first_token: take the first token of a word that is several.
    """

    kind: type[Answers]
    answers: Any = None
    wrong: Any = None
    positions: Positions | str = None
    by_position: bool = False
    allow_first_token: bool = False

    def __call__(self, logits: Tensor) -> Tensor:
        """Refuses: nothing says which tokens and positions are meant.

        Raises:
            TokenError: always.
        """
        raise TokenError(
            f"the {self.name} of words, roles or the prompts' own answers needs a tokenizer and prompts, which logits lack; "
            "call metric.of(model.tokenizer, prompts)(logits), or give token ids in place of words"
        )

    def of(self, tokenizer: Any, prompts: Any = None) -> Answers:
        """The metric in a vocabulary, on some prompts.

        Raises:
            TokenError: a word is several tokens, or there is no tokenizer.
            PromptError: no answers are given, and the prompts have none; or not one for each.
            UnknownRole: a role that the prompts lack.
        """
        known = prompts if isinstance(prompts, Prompts) else None
        answers = self._ids(self.answers, tokenizer)
        wrong = self._ids(self.wrong, tokenizer)
        if answers is None:
            if known is None or not known.right:
                raise PromptError(f"the {self.name} needs answers: give words, or Prompts that have answers")
            answers = known.answers
        if wrong is None and self.kind is LogitDifference:
            wrong = None if known is None or not known.wrong else known.wrong_answers
            if wrong is None:
                raise PromptError(f"the {self.name} needs wrong answers: give words, or Prompts that have them")
        if wrong is not None and len(wrong) != len(answers) and 1 in (len(wrong), len(answers)):
            answers, wrong = torch.broadcast_tensors(answers, wrong)  # one for all beside one for each
        return self.kind(answers, wrong, self._places(known), self.by_position)

    def _ids(self, words: Any, tokenizer: Any) -> Int[Tensor, "batch"] | None:
        if words is None or not _in_words(words):
            return None if words is None else _tokens(words)
        listed = [words] if isinstance(words, str) else list(words)
        return torch.tensor([word_token(tokenizer, word, allow_first_token=self.allow_first_token) for word in listed])

    def _places(self, prompts: Prompts | None) -> Positions:
        if isinstance(self.positions, str):
            if prompts is None and self.positions != "end":
                raise UnknownRole(f"the metric reads the role {self.positions!r}, and roles are those of Prompts; give Prompts")
            return -1 if prompts is None else prompts.place(self.positions)
        if self.positions is None:
            single = prompts is not None and bool((prompts.answered.sum(1) == 1).all())
            return prompts.at if prompts is not None and single else prompts.place("end") if prompts is not None else -1
        return self.positions


@dataclass(frozen=True, eq=False, repr=False)
class OfNextTokens(Unsettled):
    """A metric of the next token at each position of whatever runs: `settled` makes it one of that run's tokens."""

    kind: type[Loss] | type[Accuracy]
    positions: Positions = None
    by_position: bool = False

    def __call__(self, logits: Tensor) -> Tensor:
        """Refuses: logits do not say which tokens come next.

        Raises:
            TokenError: always.
        """
        raise TokenError(
            f"the {self.name} of next tokens needs the tokens that run, and logits have none; "
            f"call metric.of(model, tokens)(logits), or metrics.{self.kind.name}(tokens)(logits)"
        )

    def of(self, model: Any, prompts: Any) -> Loss | Accuracy:
        """The metric on some tokens, texts or `Prompts`.

        Raises:
            ShapeError: nothing is there to run.
        """
        if prompts is None:
            raise ShapeError(f"the {self.name} of next tokens needs the tokens that run: metrics.{self.name}(tokens)")
        tokens, padding = model.tokens_and_padding(prompts, None, None)
        return self.kind(_labels(tokens, None, padding), self.positions, self.by_position)


def _in_words(given: Any) -> bool:
    return isinstance(given, str) or (isinstance(given, list | tuple) and bool(given) and isinstance(given[0], str))


def settled(metric: Any, model: Any, prompts: Any = None) -> Any:
    """A metric for one model and its input: words become tokens, roles positions, and None what the prompts say themselves.

    That is the logit difference where they have wrong answers, else the log-probability of their answers.

    Raises:
        ShapeError: no metric, and prompts without answers.
        TokenError, PromptError, UnknownRole: as `InWords.of`.
    """
    if metric is None:
        if not isinstance(prompts, Prompts) or not prompts.right:
            raise ShapeError(
                "a metric is needed, such as metrics.logit_difference(' Mary', ' John'); only Prompts with answers bring one"
            )
        contrast = bool(prompts.wrong) and prompts.wrong_answers is not None
        metric = InWords(LogitDifference if contrast else LogProbability)
    if isinstance(metric, Normalised) and isinstance(metric.metric, InWords | OfNextTokens):
        return replace(metric, metric=settled(metric.metric, model, prompts))
    if isinstance(metric, OfNextTokens):
        return metric.of(model, prompts)
    return metric.of(model.tokenizer, prompts) if isinstance(metric, InWords) else metric


def _answering(kind: type[Answers], answers: Any, wrong: Any, positions: Any, by_position: bool, first: bool = False) -> Any:
    """The metric, or one in words where a model has to say the tokens."""
    open_ = answers is None or _in_words(answers) or _in_words(wrong) or isinstance(positions, str)
    if open_ or (kind is LogitDifference and wrong is None):
        return InWords(kind, answers, wrong, positions, by_position, first)
    return kind(_tokens(answers), None if wrong is None else _tokens(wrong), -1 if positions is None else positions, by_position)


def logit_difference(
    answers: Any = None, wrong: Any = None, positions: Positions | str = None, *, by_position: bool = False,
    allow_first_token: bool = False,
) -> Any:  # fmt: skip
    """Logit of the answer minus logit of the wrong answer.

    Example: `logit_difference(" Mary", " John")`, or `logit_difference()` on `Prompts` that have answers.

    Args:
        answers, wrong: tokens or words, one for each example or one for all; None: those that the prompts have.
        positions: where; a role of the prompts, too. None: where the prompts' answers stand, else the last position.
        allow_first_token: take the first token of a word that is several.
    """
    return _answering(LogitDifference, answers, wrong, positions, by_position, allow_first_token)


def log_probability(
    answers: Any = None, positions: Positions | str = None, *, by_position: bool = False, allow_first_token: bool = False
) -> Any:
    """Log-probability of the answer (nats). Arguments as in `logit_difference`."""
    return _answering(LogProbability, answers, None, positions, by_position, allow_first_token)


def probability(
    answers: Any = None, positions: Positions | str = None, *, by_position: bool = False, allow_first_token: bool = False
) -> Any:
    """Probability of the answer. Arguments as in `logit_difference`."""
    return _answering(Probability, answers, None, positions, by_position, allow_first_token)


def probability_difference(
    right: Sequence[Sequence[int]] | Tensor, wrong: Sequence[Sequence[int]] | Tensor, positions: Positions = -1, *,
    by_position: bool = False,
) -> ProbabilityDifference:  # fmt: skip
    """Probability of a set of right tokens minus that of a set of wrong ones: for years that may follow, and the like.

    Args:
        right, wrong: for each example (or one for all) its token ids, as many as there are.

    Raises:
        TokenError: an example has none of one kind, or one that is of both.

    Source: Hanna et al. 2023 (https://arxiv.org/abs/2305.00586), section 2.2.
    """
    return ProbabilityDifference(_sets(right, "right"), _sets(wrong, "wrong"), positions, by_position)


def rank(
    answers: Any = None, positions: Positions | str = None, *, by_position: bool = False, allow_first_token: bool = False
) -> Any:
    """Rank of the answer; 0 is the top. Arguments as in `logit_difference`."""
    return _answering(Rank, answers, None, positions, by_position, allow_first_token)


def loss(
    tokens: Tensor | None = None, labels: Tensor | None = None, *, mask: Tensor | None = None, positions: Positions = None,
    by_position: bool = False,
) -> Any:  # fmt: skip
    """Cross-entropy (nats) of the next token, or of `labels` at every position (negative: not counted).

    Args:
        tokens: the tokens that run, `[batch, pos]`; None: those of the run that is measured.
        mask: true where a token is not padding; for the next token, both it and the present one must be.
    """
    return _labelled(Loss, tokens, labels, mask, positions, by_position)


def accuracy(
    tokens: Tensor | None = None, labels: Tensor | None = None, *, mask: Tensor | None = None, positions: Positions = None,
    by_position: bool = False,
) -> Any:  # fmt: skip
    """How often the next token, or the label, has the largest logit. Arguments as in `loss`."""
    return _labelled(Accuracy, tokens, labels, mask, positions, by_position)


def _labelled(kind: Any, tokens: Any, labels: Any, mask: Any, positions: Positions, by_position: bool) -> Any:
    if tokens is None and labels is None and mask is None:
        return OfNextTokens(kind, positions, by_position)
    if tokens is None and labels is None:
        raise ShapeError(f"a mask is that of tokens: give both, metrics.{kind.name}(tokens, mask=mask)")
    tokens = labels if tokens is None else tokens  # labels are read in place of the next tokens, and have their shape
    return kind(_labels(tokens, labels, mask), positions, by_position)


def kl(positions: Positions = -1, *, by_position: bool = False) -> KL:
    """KL divergence from the clean run (nats), at the last position unless told otherwise."""
    return KL(positions, by_position)


def normalised(metric: Metric, *, clean: float | Tensor, corrupted: float | Tensor) -> Normalised:
    """The metric on a scale where `corrupted` (its mean in that run) is 0 and `clean` is 1."""
    return Normalised(metric, *(float(torch.as_tensor(value, dtype=torch.float64).mean()) for value in (clean, corrupted)))


def function(function: Callable[[Tensor], Any], name: str = "metric", unit: str = "") -> CustomMetric:
    """Any function of logits."""
    return CustomMetric(function, name, unit)


def by_position(metric: Metric) -> Metric:
    """The same metric, with the value of each position kept."""
    return replace(metric, by_position=True)  # type: ignore[type-var]


def as_metric(metric: Any) -> AnyMetric:
    """A metric, from a metric or any function of logits.

    Raises:
        ShapeError: it is neither, or what makes metrics when it is called.
    """
    if isinstance(metric, Metric | CustomMetric):
        return metric
    if getattr(metric, "__module__", None) in (__name__, Metric.__module__) and hasattr(metric, "__name__"):
        example = {"kl": "", "loss": "", "accuracy": "", "logit_difference": "answers, wrong"}
        made = f"metrics.{metric.__name__}({example.get(metric.__name__, '…')})"
        raise ShapeError(f"{metric.__name__} makes a metric when it is called; give {made} instead")
    if not callable(metric):
        raise ShapeError(f"a metric is one of cutaway.runs.metrics or a function of logits, not {type(metric).__name__}")
    return CustomMetric(metric, getattr(metric, "__name__", "metric").replace("<lambda>", "metric"))


def _tokens(answers: Any) -> Int[Tensor, "batch"]:
    """One token id for each example.

    Raises:
        TokenError: an answer of several tokens.
    """
    try:
        tokens = torch.as_tensor(answers)
    except (RuntimeError, TypeError, ValueError):
        raise TokenError(f"an answer is one token id for each example, not {answers!r}") from None
    if tokens.ndim == 0:
        tokens = tokens[None]
    if tokens.ndim == 2 and tokens.shape[1] == 1:
        tokens = tokens[:, 0]
    if tokens.ndim != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise TokenError(
            f"an answer is one token id for each example, not {tuple(tokens.shape)} of {tokens.dtype}; an answer of "
            "several tokens has no one logit: use its first token, or a loss over labels"
        )
    return tokens.long()


def _sets(given: Sequence[Sequence[int]] | Tensor, what: str) -> Int[Tensor, "batch token"]:
    """Sets of tokens as rows, −1 where a row has fewer."""
    if not several(given) or not all(several(row) for row in given):
        raise TokenError(f"{what} tokens are a list of token ids for each example, or one list for all, not {given!r}")
    rows = [list(dict.fromkeys(whole(one, f"one of the {what} tokens") for one in row)) for row in given]
    lacking = [number for number, row in enumerate(rows) if not any(one >= 0 for one in row)]
    if lacking or not rows:
        raise TokenError(f"example {lacking[0] if lacking else 0} has no {what} tokens; a difference needs some of both kinds")
    width = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows])


def _labels(tokens: Tensor, labels: Tensor | None, mask: Tensor | None) -> Int[Tensor, "batch pos"]:
    tokens = torch.as_tensor(tokens)
    tokens = tokens if tokens.ndim > 1 else tokens[None]
    if mask is not None:
        mask = check_mask(mask if mask.ndim > 1 else mask[None], tokens).bool()
    if labels is not None:
        labels = torch.as_tensor(labels)
        labels = labels if labels.ndim > 1 else labels[None]
        if labels.shape != tokens.shape:
            raise ShapeError(f"labels of shape {tuple(labels.shape)} for tokens of shape {tuple(tokens.shape)}")
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise TokenError(f"labels are token ids, one at each position (negative: none), not {labels.dtype}")
        return labels.long() if mask is None else labels.long().masked_fill(~mask, -1)
    following = torch.cat([tokens[:, 1:], tokens.new_full((len(tokens), 1), -1)], 1).long()
    if mask is not None:
        following = following.masked_fill(~(mask & mask.roll(-1, 1)), -1)
    return following


suggest_names(__name__)
