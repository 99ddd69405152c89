"""Predictions: token by token, what the model expected, whether it was right, and what it cost.

Text longer than the context is read in windows; a token is scored once, with as much before it as its window has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.analysis.shared import answers_of, finite, target_ids, token_name, tokens_of_text, vocabulary
from cutaway.errors import TokenError
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import index, options
from cutaway.runs.bars import watched
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Means, Result, grouped
from cutaway.tokens import check_length
from cutaway.view import Figure, colored_tokens, line_chart

ENTRIES = 2**24


@dataclass(frozen=True, eq=False)
class Predictions(Result):
    """What the model made of a text, `[batch, pos]`; row i, position p is about the target there (the next token).

    `values` is the loss in nats; `probability` and `rank` are the target's, `predicted` is the likeliest token.
    Positions without a target hold NaN (−1 for `rank`).
    """

    values: Labelled
    probability: Labelled
    rank: Labelled
    predicted: Tensor
    predicted_probability: Labelled
    tokens: Tensor
    targets: Tensor
    words: dict[int, str]
    windows: int = 1  # into how many a text longer than the context was split

    @property
    def of_next(self) -> bool:
        """Whether the targets are the next tokens, and not answers of another kind."""
        ahead = torch.cat([self.tokens[:, 1:], self.tokens.new_full((len(self.tokens), 1), -1)], 1).to(self.targets.device)
        return bool((ahead == self.targets)[self.counted].all())

    @property
    def split(self) -> str:
        """How a text longer than the context was read, in a sentence; empty where it was not split."""
        if self.windows == 1:
            return ""
        windows = f"{self.windows} windows of at most {self.tokens.shape[1]} tokens"
        return f"the text is longer than the context and was read in {windows}; what comes before a window is not seen in it"

    @property
    def counted(self) -> Bool[Tensor, "batch pos"]:
        """Where there is a target."""
        return self.targets >= 0

    @property
    def right(self) -> Bool[Tensor, "batch pos"]:
        """Where the likeliest token was the target."""
        return self.predicted == self.targets

    @property
    def loss(self) -> float:
        """The mean loss over all targets, in nats."""
        return float(self.values.data[self.counted].mean())

    @property
    def accuracy(self) -> float:
        """The share of targets that were the likeliest token."""
        return float(self.right[self.counted].float().mean())

    def top_accuracy(self, k: int) -> float:
        """The share of targets among the `k` likeliest tokens."""
        return float((self.rank.data[self.counted] < k).float().mean())

    def by_position(self) -> Means:
        """The mean loss at each position, with intervals."""
        return self.values.means("batch")

    def over(self, where: Bool[Tensor, "batch pos"] | None = None) -> Means:
        """Mean loss and accuracy over all targets (that `where` says), `[measure]`, with intervals over examples."""
        both = torch.stack([self.values.data.nan_to_num(0), self.right.to(self.values.data.dtype)])
        values = Labelled(both, ("measure", "batch", "pos"), {"measure": ["loss", "accuracy"]}, "mean")
        counted = self.counted if where is None else self.counted & where.to(self.counted.device)
        return grouped(values, torch.zeros_like(self.targets), ["all"], where=counted, axis="positions").sel(positions="all")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Token by token: example, position, token, target, predicted, right, rank, probability, loss."""
        for example, position in self.counted.nonzero().tolist():
            at = (example, position)
            yield {
                "example": example,
                "position": position,
                "token": self.words[int(self.tokens[at])],
                "target": self.words[int(self.targets[at])],
                "predicted": self.words[int(self.predicted[at])],
                "right": bool(self.right[at]),
                "rank": int(self.rank.data[at]),
                "probability": float(self.probability.data[at]),
                "loss": float(self.values.data[at]),
            }

    def to_frame(self) -> Any:
        """A pandas frame with a row for each target."""
        import pandas as pd

        return pd.DataFrame(list(self.rows()))

    def to_json(self) -> dict[str, Any]:
        """Loss and accuracy, and a row for each target."""
        return {"loss": self.loss, "accuracy": self.accuracy, "windows": self.windows, "tokens": list(self.rows())}

    def figure(self, example: int | None = None) -> Figure:
        """A text, each token coloured by how likely the model thought it (or the answer after it).

        Of several prompts with one answer each: the answers, one after another.
        """
        whole, next_ones = self.counted, self.of_next
        answers = example is None and not next_ones and len(whole) > 1 and int(whole.sum(1).max()) == 1
        where = whole if answers else torch.arange(len(whole), device=whole.device)[:, None].eq(example or 0) & whole
        read = (self.targets if next_ones or answers else self.tokens.to(whole.device))[where]
        words = [self.words[token] for token in read.tolist()]
        kinds = ["probability", "loss", "right"]
        parts = [self.probability.data, self.values.data, self.right.float()]
        data = torch.stack([part[where].float() for part in parts])
        title = "How well each token was predicted" if next_ones else "How well the answer at each token was predicted"
        title = "How well the answer of each prompt was predicted" if answers else title
        return colored_tokens(words, data, kinds, title=title, scale="sequential")

    def curve(self) -> Figure:
        """The mean loss over positions."""
        means = self.by_position()
        bounds = {"loss": torch.stack([means.low.data, means.high.data])}
        return line_chart(
            {"loss": means.values.data}, intervals=bounds, x_name="position", y_name="nats", title="Loss by position"
        )

    def summary(self) -> str:
        """Loss and accuracy, and the tokens that surprised most."""
        count = int(self.counted.sum())
        if not count:
            return "no position has a target"
        found = self.over()
        low, high = (float(part.sel(measure="loss").data) for part in (found.low, found.high))
        interval = f" [{low:.3f}, {high:.3f}]" if low == low else ""
        lines = [
            f"{count} {'token' if self.of_next else 'answer'}{'s' * (count != 1)}: loss {self.loss:.4f} nats{interval}, "
            f"accuracy {self.accuracy:.1%}, among the 10 likeliest {self.top_accuracy(10):.1%}"
        ]
        lines += [self.split] if self.split else []
        worst = self.values.data.nan_to_num(-1).flatten().topk(min(5, count)).indices.tolist()
        for number in worst:
            at = divmod(number, self.values.shape[1])
            target, predicted = self.words[int(self.targets[at])], self.words[int(self.predicted[at])]
            lines.append(
                f"example {at[0]}, position {at[1]}: {target!r} cost {float(self.values.data[at]):.2f}; expected {predicted!r}"
            )
        return "\n".join(lines)


@with_provenance
@options(batch_size=1)
def predict(
    model: Transformer,
    text: Any,
    *,
    targets: Any = None,
    batch_size: int = 8,
    vocab: Sequence[str] | None = None,
) -> Predictions:
    """Run a text, texts or tokens through a model and say how each token was predicted.

    Args:
        text: a text (of any length), texts that fit the context, `Prompts`, or token ids `[batch, pos]`.
        targets: other than the next tokens (of `Prompts`: than their answers): as for `attribute`.

    Raises:
        TokenError: nothing to predict.
    """
    tokens, real = tokens_of_text(model, text)
    device = model.W_U.device
    tokens = tokens.to(device)
    check_length(tokens.shape[1], model.cfg.n_ctx, reload=model.cfg.takes_longer)
    targets, _ = answers_of(text, targets)
    wanted = target_ids(model, targets, tokens, tokens.shape, vocab, device, caller="predict", real=real)
    real = None if real is None else real.to(device)
    if not bool((wanted >= 0).any()):
        raise TokenError("there is nothing to predict: give at least two tokens, or targets")
    found: dict[str, list[Tensor]] = {name: [] for name in ("loss", "probability", "rank", "predicted", "best")}
    with torch.no_grad():
        for at in watched("predicting", range(0, len(tokens), batch_size)):
            part = slice(at, at + batch_size)
            mask = None if real is None else real[part].long()
            resid = model(tokens[part], attention_mask=mask, stop_at_layer=model.cfg.n_layers)
            for name, value in _scored(model, resid, wanted[part]).items():
                found[name].append(value)
    whole = {name: torch.cat(parts) for name, parts in found.items()}
    ids = torch.cat([tokens.flatten(), whole["predicted"].flatten(), wanted[wanted >= 0]]).unique().tolist()
    axes = ("batch", "pos")
    return Predictions(
        Labelled(whole["loss"], axes, {}, "loss", "nats"),
        Labelled(whole["probability"], axes, {}, "probability of the target", "probability"),
        Labelled(whole["rank"], axes, {}, "rank of the target"),
        whole["predicted"],
        Labelled(whole["best"], axes, {}, "probability of the likeliest token", "probability"),
        tokens,
        wanted,
        {token: token_name(model, token, vocab) for token in ids},
        len(tokens) if isinstance(text, str) else 1,
    )


def _scored(model: Transformer, resid: Tensor, targets: Int[Tensor, "batch pos"]) -> dict[str, Tensor]:
    """Facts about the target at each position, a few positions' logits at a time."""
    flat, wanted = resid.flatten(0, 1), targets.flatten()
    step = max(1, ENTRIES // model.cfg.d_vocab_out)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("loss", "probability", "rank", "predicted", "best")}
    for at in range(0, len(flat), step):
        logits = finite(model.logits_of(flat[None, at : at + step])[0].float())
        target = wanted[at : at + step]
        own = logits.gather(1, target.clamp(min=0)[:, None])
        total = logits.logsumexp(-1)
        best, predicted = logits.max(-1)
        none = target < 0
        loss = (total - own[:, 0]).masked_fill(none, torch.nan)
        values = (loss, (-loss).exp(), (logits > own).sum(-1).masked_fill(none, -1), predicted, (best - total).exp())
        for name, value in zip(parts, values, strict=True):
            parts[name].append(value)
    return {name: torch.cat(value).view(targets.shape) for name, value in parts.items()}


@options(k=1)
def likeliest_tokens(
    model: Transformer, text: Any, *, position: int = -1, k: int = 10, example: int = 0, vocab: Sequence[str] | None = None
) -> list[tuple[str, float]]:
    """The `k` likeliest tokens at one position, with their probabilities.

    Raises:
        ShapeError: the text has no such position.
    """
    tokens, real = tokens_of_text(model, text)
    example = index(example, len(tokens), "example")
    own = range(tokens.shape[1]) if real is None else real[example].nonzero()[:, 0].tolist()  # a row's own tokens
    place = own[index(position, len(own), "position")]
    with torch.no_grad():
        mask = None if real is None else real.long()
        resid = model(tokens, attention_mask=mask, stop_at_layer=model.cfg.n_layers)
        probability = finite(model.logits_of(resid[example : example + 1, place][None])[0, 0].float()).softmax(-1)
    top = probability.topk(min(k, len(probability)))
    names = vocabulary(model, vocab, model.cfg.d_vocab_out) if vocab is not None else None
    return [(token_name(model, i, names), value) for i, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
