"""Metrics: logits go in, one number per example comes out; each says which logits it needs.

A sweep asks a metric which positions of which examples it reads, and which columns of the vocabulary, and computes
no other logits. Each number is measured at one position and then averaged over the positions of its example.
A plain function of logits is a metric too: see `CustomMetric`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.errors import NotFinite, ShapeError, TokenError
from cutaway.numbers_given import EVERY, check_options, whole
from cutaway.runs.lazy_logits import LazyLogits, Padding
from cutaway.runs.representation import ShortRepr

Positions = int | Sequence[int] | Tensor | None
PerToken = Float[Tensor, "token"]


@dataclass(frozen=True)
class LogitRows:
    """Which tokens a piece of logits belongs to: for each row its example and its position."""

    examples: Int[Tensor, "token"]
    positions: Int[Tensor, "token"]


class Metric(ShortRepr, ABC):
    """A measure of logits. Larger or smaller is not better or worse: that is for the reader to say."""

    name: str
    unit: str = ""
    by_position: bool = False  # keep the value of each position, rather than their mean
    compares: bool = False  # needs the logits of the clean run, too
    jumps: bool = False  # counts: rounding can move it by a whole step where logits are nearly equal, so no audit stops for it

    @abstractmethod
    def wanted(self, batch: int, length: int) -> Bool[Tensor, "batch pos"]:
        """Which positions are read."""

    def columns(self) -> Int[Tensor, "column"] | None:
        """Which entries of the vocabulary are read, ascending; None: all."""
        return None

    def named(self) -> dict[str, Tensor]:
        """The tokens that the metric names: what they are, in words → their ids (negative labels: not counted)."""
        return {}

    def check(self, d_vocab: int) -> None:
        """Make sure that the vocabulary has the tokens that the metric names.

        Raises:
            TokenError: it lacks one; a vocabulary has no negative numbers, either.
        """
        for what, tokens in self.named().items():
            outside = tokens[(tokens < 0) | (tokens >= d_vocab)]
            if len(outside):
                raise TokenError(
                    f"the {self.name} names the {what} {int(outside[0])}, and the vocabulary has the {d_vocab} tokens 0 to "
                    f"{d_vocab - 1}; are these the tokens of another model?"
                )

    @abstractmethod
    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        """The value at each token, from its logits in these columns (and those of the clean run, where it `compares`)."""

    def scaled(self, value: Tensor) -> Tensor:
        """The last step, from means over positions to what is reported."""
        return value

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"], clean: Tensor | None = None) -> Tensor:
        """The value of each example from whole logits, `[batch]`, or `[batch, pos]` where `by_position`."""
        self.check(logits.shape[-1])
        return self.of_examples(logits, self.counted(*logits.shape[:2]), clean)

    def counted(self, batch: int, length: int) -> Bool[Tensor, "batch pos"]:
        """`wanted`, where it is anything at all.

        Raises:
            ShapeError: no position of any example is read, so that every mean is one of nothing.
        """
        wanted = self.wanted(batch, length)
        if not bool(wanted.any()):
            raise ShapeError(f"the {self.name} counts no position of these tokens: every label is negative or at padding")
        return wanted

    def of_examples(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        wanted: Bool[Tensor, "batch pos"],
        clean: Tensor | None = None,
        first: int = 0,
    ) -> Tensor:
        """The same for some examples of a batch: whole logits, what is wanted of them, and the number of the first."""
        wanted = wanted.to(logits.device)
        rows, places = wanted.nonzero(as_tuple=True)
        columns = self.columns()
        columns = None if columns is None else columns.to(logits.device)

        def picked(x: Tensor) -> Tensor:
            x = x[rows, places]
            return x if columns is None else x[:, columns]

        values = self.of_tokens(picked(logits), rows + first, places, None if clean is None else picked(clean))
        return self.combine(values.new_zeros(wanted.shape).index_put((rows, places), values), wanted)

    def of_tokens(
        self, logits: Float[Tensor, "token column"], examples: Tensor, positions: Tensor, clean: Tensor | None = None
    ) -> PerToken:
        """The value of each token, from its logits and where it stands, which may be known on another device."""
        return self.measure(logits, LogitRows(examples.to(logits.device), positions.to(logits.device)), clean)

    def combine(self, grid: Float[Tensor, "*cell batch pos"], wanted: Bool[Tensor, "batch pos"]) -> Tensor:
        """The mean over the wanted positions of each example; with `by_position` the grid, NaN where nothing was asked."""
        wanted = wanted.to(grid.device)
        if self.by_position:
            return self.scaled(grid.masked_fill(~wanted, torch.nan))
        return self.scaled((grid * wanted).sum(-1) / wanted.sum(-1))

    def by_example(self, values: Float[Tensor, "*cell token"], wanted: Bool[Tensor, "batch pos"]) -> Float[Tensor, "*cell batch"]:
        """The mean over the wanted positions of each example, from the values of the wanted tokens in their order."""
        grid = values.new_zeros(*values.shape[:-1], *wanted.shape)
        grid[..., wanted] = values
        out = self.combine(grid, wanted)
        return out.nanmean(-1) if out.ndim > values.ndim else out


def _where(positions: Positions, batch: int, length: int) -> Bool[Tensor, "batch pos"]:
    """A mask of positions: one or some for all examples, or a tensor with one (`[batch]`) or a mask for each."""
    mask = torch.zeros(batch, length, dtype=torch.bool)
    if positions is None:
        return ~mask
    if isinstance(positions, Tensor) and positions.dtype == torch.bool:
        if positions.shape not in ((length,), (batch, length)):
            raise ShapeError(f"a mask of positions has shape {tuple(positions.shape)}; needed is {(batch, length)}")
        return positions.cpu().expand(batch, length).clone()
    return mask.scatter(1, _columns(positions, batch, length) % length, True)


def _columns(positions: Any, batch: int, length: int) -> Int[Tensor, "batch _"]:
    """Columns that are read in each row, −length to length − 1: one or some for all rows, or a tensor with one for each.

    Raises:
        ShapeError: one is no whole number or outside, one comes twice, or there are none.
    """
    if isinstance(positions, Tensor) and positions.ndim == 1:
        if len(positions) != batch:
            raise ShapeError(f"positions {tuple(positions.shape)} must be one for each of {batch} examples (or a list for all)")
        given = [whole(one, "a position") for one in positions.tolist()]
        rows = [[one] for one in given]
    else:
        given = [whole(positions, "a position")] if _is_one(positions) else [whole(one, "a position") for one in positions]
        rows = [given] * batch
        if not given or len(set(given)) < len(given):
            raise ShapeError(f"positions={list(given)}: give each position once, and at least one (None: all)")
    for one in given:
        if not -length <= one < length:
            raise ShapeError(f"the metric reads position {one}, and there are {length} of them")
    return torch.tensor(rows).reshape(batch, -1)


def _is_one(positions: Any) -> bool:
    return isinstance(positions, str) or getattr(positions, "ndim", 1) == 0 or not hasattr(positions, "__iter__")


@dataclass(frozen=True, eq=False, repr=False)
class Answers(Metric):
    """A metric of the logits of one answer (and, for a difference, one wrong answer) per example."""

    answers: Int[Tensor, "answer"]
    wrong: Int[Tensor, "other"] | None = None
    positions: Positions = -1
    by_position: bool = False

    def __post_init__(self) -> None:
        for tokens in (self.answers, self.wrong):
            if tokens is not None and (tokens.ndim != 1 or tokens.dtype != torch.long or not len(tokens)):
                raise TokenError(f"answers are a list of token ids, not {tuple(tokens.shape)} of {tokens.dtype}")
        if self.wrong is not None and (len(self.answers) == len(self.wrong) or 1 in (len(self.answers), len(self.wrong))):
            for example in (self.answers == self.wrong).nonzero().flatten().tolist():
                token = int((self.answers if len(self.answers) > 1 else self.wrong)[example])
                raise TokenError(f"answer and wrong answer {example} are both token {token}: their difference is always 0")

    def wanted(self, batch: int, length: int) -> Bool[Tensor, "batch pos"]:
        for tokens, what in ((self.answers, "answers"), (self.wrong, "wrong answers")):
            if tokens is not None and len(tokens) not in (1, batch):
                raise ShapeError(f"{len(tokens)} {what} for {batch} examples; give one for each, or one for all")
        return _where(self.positions, batch, length)

    def named(self) -> dict[str, Tensor]:
        return {"answer": self.answers} | ({} if self.wrong is None else {"wrong answer": self.wrong})

    def _of(self, tokens: Tensor, at: LogitRows) -> Tensor:
        tokens = tokens.to(at.examples.device)
        return tokens.expand(len(at.examples)) if len(tokens) == 1 else tokens[at.examples]

    def _log_prob(self, logits: Tensor, at: LogitRows) -> Tensor:
        return -F.cross_entropy(logits, self._of(self.answers, at), reduction="none")


class LogitDifference(Answers):
    """The logit of the answer minus that of the wrong answer."""

    name, unit = "logit difference", "logits"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wrong is None:
            raise TokenError("a logit difference needs wrong answers beside the answers")

    def columns(self) -> Int[Tensor, "column"]:
        assert self.wrong is not None
        return torch.cat([self.answers, self.wrong]).unique()

    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        assert self.wrong is not None
        columns = self.columns().to(logits.device)
        right, wrong = (torch.searchsorted(columns, self._of(tokens, at).contiguous()) for tokens in (self.answers, self.wrong))
        return (logits.gather(1, right[:, None]) - logits.gather(1, wrong[:, None])).squeeze(1)


class LogProbability(Answers):
    """The log-probability of the answer."""

    name, unit = "log-probability", "nats"

    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        return self._log_prob(logits, at)


class Probability(Answers):
    """The probability of the answer."""

    name, unit = "probability", "probability"

    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        return self._log_prob(logits, at).exp()


def _ranked(logits: Tensor) -> Tensor:
    """Logits that have an order.

    Raises:
        NotFinite: some are NaN, which are neither larger nor smaller than others.
    """
    if bool(logits.isnan().any()):
        raise NotFinite("the logits hold NaN, so no token has a rank; look at the model, the tokens and the edits")
    return logits


class Rank(Answers):
    """How many entries of the vocabulary have a larger logit than the answer."""

    name, unit = "rank", ""
    jumps = True

    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        own = _ranked(logits).gather(1, self._of(self.answers, at)[:, None])
        return (logits > own).sum(1).to(logits.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class ProbabilityDifference(Metric):
    """The probability of all right tokens together minus that of all wrong ones (negative ids: none)."""

    right: Int[Tensor, "one_or_batch right"]
    wrong: Int[Tensor, "one_or_all wrong"]
    positions: Positions = -1
    by_position: bool = False
    name, unit = "probability difference", "probability"

    def wanted(self, batch: int, length: int) -> Bool[Tensor, "batch pos"]:
        for tokens, what in ((self.right, "right"), (self.wrong, "wrong")):
            if len(tokens) not in (1, batch):
                raise ShapeError(f"{len(tokens)} sets of {what} tokens for {batch} examples; give one for each, or one for all")
        return _where(self.positions, batch, length)

    def __post_init__(self) -> None:
        for tokens in (self.right, self.wrong):
            if tokens.ndim != 2 or tokens.dtype != torch.long or not tokens.numel():
                raise TokenError(f"sets of tokens are rows of token ids, not {tuple(tokens.shape)} of {tokens.dtype}")
        if len(self.right) == len(self.wrong) or 1 in (len(self.right), len(self.wrong)):
            both = (self.right[:, :, None] == self.wrong[:, None]) & (self.right[:, :, None] >= 0)  # example, right, wrong
            if both.any():
                example, at, _ = both.nonzero()[0].tolist()
                token = int(self.right[example if len(self.right) > 1 else 0, at])
                raise TokenError(f"token {token} is among the right and among the wrong tokens of example {example}")

    def named(self) -> dict[str, Tensor]:
        return {"right token": self.right[self.right >= 0], "wrong token": self.wrong[self.wrong >= 0]}

    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        shares = logits.softmax(-1)
        return self._of(self.right, shares, at) - self._of(self.wrong, shares, at)

    def _of(self, tokens: Tensor, shares: Tensor, at: LogitRows) -> Tensor:
        own = tokens.to(shares.device).expand(len(shares), -1) if len(tokens) == 1 else tokens.to(shares.device)[at.examples]
        return (shares.gather(1, own.clamp(min=0)) * (own >= 0)).sum(1)


@dataclass(frozen=True, eq=False, repr=False)
class LabelMetric(Metric):
    """A metric of the label at each position: the next token, or given labels (negative: none here)."""

    labels: Int[Tensor, "batch pos"]
    positions: Positions = None
    by_position: bool = False

    def __post_init__(self) -> None:
        if self.labels.dtype != torch.long:
            raise TokenError(f"labels are token ids, not {self.labels.dtype}")

    def wanted(self, batch: int, length: int) -> Bool[Tensor, "batch pos"]:
        if tuple(self.labels.shape) != (batch, length):
            raise ShapeError(f"labels of shape {tuple(self.labels.shape)} for tokens of shape {(batch, length)}")
        return _where(self.positions, batch, length) & (self.labels.cpu() >= 0)

    def named(self) -> dict[str, Tensor]:
        return {"label": self.labels[self.labels >= 0]}

    def _labels(self, at: LogitRows) -> Int[Tensor, "token"]:
        return self.labels.to(at.examples.device)[at.examples, at.positions]


def among_real(metric: Any, real: Bool[Tensor, "batch pos"], tokens: Int[Tensor, "batch pos"]) -> Any:
    """The metric on rows that are padded: it reads no padding, and −1 is a row's own last token.

    Negative positions count back from the last real token of each row, others are columns. Labels at padding do not count, nor
    do those that are the padding behind a row's last token.

    Raises:
        ShapeError: a position is padding in some row.
    """
    if isinstance(metric, Normalised):
        return replace(metric, metric=among_real(metric.metric, real, tokens))
    if isinstance(metric, CustomMetric):
        return replace(metric, real=real)
    if isinstance(metric, LabelMetric) and metric.labels.shape == real.shape:
        labels, real_there = metric.labels.cpu(), real.cpu()
        following = torch.cat([tokens.cpu()[:, 1:], torch.full_like(tokens[:, :1].cpu(), -1)], 1)
        behind = torch.cat([~real_there[:, 1:], torch.zeros_like(real_there[:, :1])], 1) & (labels == following)
        metric = replace(metric, labels=labels.masked_fill(~real_there | behind, -1))
    if not hasattr(metric, "positions"):
        return metric
    return replace(metric, positions=_among(metric.positions, real.cpu()))


def _among(positions: Positions, real: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    batch, length = real.shape
    if positions is None or (isinstance(positions, Tensor) and positions.dtype == torch.bool):
        return _where(positions, batch, length) & real
    ends = length - real.long().flip(1).argmax(1)  # one behind the last real token
    columns = _columns(positions, batch, length)
    columns = torch.where(columns < 0, ends[:, None] + columns, columns)
    chosen = torch.zeros(batch, length + 1, dtype=torch.bool).scatter(1, columns.clamp(-1, length - 1) % (length + 1), True)
    outside = chosen & ~torch.cat([real, torch.zeros(batch, 1, dtype=torch.bool)], 1)
    if bool(outside.any()):
        row, column = outside.nonzero()[0].tolist()
        raise ShapeError(f"the metric reads column {column} of row {row}, which is padding; -1 is each row's own last token")
    return chosen[:, :length]


class Loss(LabelMetric):
    """The cross-entropy of the label."""

    name, unit = "loss", "nats"

    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        return F.cross_entropy(logits, self._labels(at), reduction="none")


class Accuracy(LabelMetric):
    """1 where the label has the largest logit, else 0."""

    name, unit = "accuracy", ""
    jumps = True

    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        return (_ranked(logits).argmax(1) == self._labels(at)).to(logits.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class KL(Metric):
    """The divergence of the edited run's distribution from the clean run's, KL(clean ‖ edited)."""

    positions: Positions = -1
    by_position: bool = False
    name = "KL from the clean run"
    unit = "nats"
    compares = True

    def wanted(self, batch: int, length: int) -> Bool[Tensor, "batch pos"]:
        return _where(self.positions, batch, length)

    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        assert clean is not None
        edited, kept = logits.log_softmax(-1), clean.log_softmax(-1)
        return (kept.exp() * (kept - edited)).sum(-1)


@dataclass(frozen=True, eq=False, repr=False)
class OfAnother(Metric):
    """What measures by another metric: as that one does, where nothing else is said."""

    metric: Metric

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.metric.name

    @property
    def unit(self) -> str:  # type: ignore[override]
        return self.metric.unit

    @property
    def by_position(self) -> bool:  # type: ignore[override]
        return self.metric.by_position

    @property
    def compares(self) -> bool:  # type: ignore[override]
        return self.metric.compares

    @property
    def jumps(self) -> bool:  # type: ignore[override]
        return self.metric.jumps

    def wanted(self, batch: int, length: int) -> Bool[Tensor, "batch pos"]:
        return self.metric.wanted(batch, length)

    def columns(self) -> Int[Tensor, "column"] | None:
        return self.metric.columns()

    def named(self) -> dict[str, Tensor]:
        return self.metric.named()

    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        return self.metric.measure(logits, at, clean)

    def scaled(self, value: Tensor) -> Tensor:
        return self.metric.scaled(value)


@dataclass(frozen=True, eq=False, repr=False)
class Normalised(OfAnother):
    """Another metric on a scale where the corrupted run is 0 and the clean run is 1."""

    clean: float
    corrupted: float
    unit = ""

    def __post_init__(self) -> None:
        check_options(vars(self), clean=EVERY, corrupted=EVERY)
        if self.clean == self.corrupted:
            raise ShapeError(f"clean and corrupted runs have the same {self.metric.name}, {self.clean:g}; there is no scale")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.metric.name}, 0 = corrupted and 1 = clean"

    def scaled(self, value: Tensor) -> Tensor:
        return (self.metric.scaled(value) - self.corrupted) / (self.clean - self.corrupted)


@dataclass(frozen=True, eq=False, repr=False)
class OfRows(OfAnother):
    """Another metric on some of its examples, up to a column: what a sweep measures a group of its rows by.

    Args:
        rows: their numbers among all.
        whole: how many examples and positions there are in all.
        length: how many columns these run.
    """

    rows: Int[Tensor, "batch"]
    whole: tuple[int, int]
    length: int

    def wanted(self, batch: int, length: int) -> Bool[Tensor, "batch pos"]:
        return self.metric.wanted(*self.whole)[self.rows][:, : self.length]

    def measure(self, logits: Float[Tensor, "token column"], at: LogitRows, clean: Tensor | None = None) -> PerToken:
        rows = self.rows.to(at.examples.device)[at.examples]
        return self.metric.measure(logits, LogitRows(rows, at.positions), clean)


@dataclass(frozen=True, eq=False, repr=False)
class CustomMetric(ShortRepr):
    """Any function of whole logits `[batch, pos, d_vocab]`, to one number or one per example.

    It is handed logits that are computed when they are looked at: picking by constants (`logits[:, -1, ids]`,
    `logits[:, -1].gather(-1, ids)`) computes only what is picked, anything else all of them.
    """

    function: Callable[[Tensor], Any]
    name: str = "metric"
    unit: str = ""
    real: Bool[Tensor, "batch pos"] | None = None  # of padded texts, which tokens are no padding; runs fill it in

    def __call__(self, logits: Tensor) -> Tensor:
        """The value, `[]` or `[batch]`.

        Raises:
            ShapeError: the function returned something else, or picked a position that is padding.
        """
        padding = None if self.real is None else Padding(self.real)
        value = self.function(logits if padding is None else LazyLogits.of(logits, padding))
        if padding is not None and padding.seen:
            message = (
                f"the texts are padded, and the {self.name}, a function of logits, looks at padding, too; leave it out there"
            )
            warnings.warn(message, UserWarning, stacklevel=2)
        out = value.as_subclass(Tensor) if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float32)
        out = out.detach()
        if out.ndim == 1 and len(out) == logits.shape[0] and len(out) > 0:
            return out
        if out.numel() != 1:
            raise ShapeError(f"a metric gives one number, or one for each of {logits.shape[0]} examples, not {tuple(out.shape)}")
        return out.reshape(())


AnyMetric = Metric | CustomMetric
