"""Neurons, heads, directions: the texts and tokens that most and least activate them, streamed.

A feature is one number at each position: a neuron's activation, the size of what a head writes, the product of an
activation with a direction. Any amount of text passes; kept are the extremes with their surroundings, a mean and a
count for each token, and sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.analysis.shared import token_name, tokens_of_text
from cutaway.errors import ShapeError
from cutaway.model.components import Component, parse_writers, sites
from cutaway.model.sites import axes, resolve
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options
from cutaway.prompts import Prompts
from cutaway.runs.bars import watched
from cutaway.runs.decompose import written
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result
from cutaway.view import Figure, bar_chart, table, top_samples

Direction = tuple[str, Float[Tensor, "d"]]
NO_TEXT = -1


@dataclass(frozen=True)
class Snippet:
    """A stretch of text around an extreme: tokens and activations, which of them it is, and where it comes from."""

    feature: str
    value: float
    words: tuple[str, ...]
    activations: tuple[float, ...]
    at: int
    example: int
    position: int

    def __str__(self) -> str:
        before, word, after = "".join(self.words[: self.at]), self.words[self.at], "".join(self.words[self.at + 1 :])
        return f"{self.value:+.3f}  {before}⟦{word}⟧{after}".replace("\n", "⏎")


@dataclass(frozen=True, eq=False)
class MaxActivatingTexts(Result):
    """What activates each feature. `values` are mean, standard deviation, least, greatest and share above 0, `[feature, of]`.

    `by_token` is the mean over each token's occurrences, `[feature, token]`, NaN for tokens that did not occur,
    and `counts` their number.
    """

    values: Labelled
    most: dict[str, list[Snippet]]
    least: dict[str, list[Snippet]]
    by_token: Labelled
    counts: Tensor
    examples: int
    positions: int

    def top_tokens(self, feature: str, k: int = 10, *, least: bool = False, at_least: int = 1) -> list[tuple[str, float, int]]:
        """The tokens with the highest (or lowest) mean: (token, mean, how often), of those that occurred `at_least` so often."""
        row = self.by_token.sel(feature=feature).data
        often = self.counts.to(row.device) >= max(1, at_least)
        filled = torch.where(often, -row if least else row, -torch.inf)
        order = filled.topk(min(k, int(often.sum()))).indices.tolist()
        names = self.by_token.names("token")
        return [(names[i], float(row[i]), int(self.counts[i])) for i in order]

    def figure(self, k: int = 10) -> Figure:
        """The texts that activate most, for each feature."""
        names = list(self.most)
        samples: list[tuple[str, ...]] = []
        rows: list[Tensor] = []
        for number, name in enumerate(names):
            for snippet in self.most[name][:k]:
                row = torch.full((len(names), len(snippet.words)), torch.nan)
                row[number] = torch.tensor(snippet.activations)
                samples.append(snippet.words)
                rows.append(row)
        if not samples:
            return table(["feature"], [], title="Nothing was read")
        return top_samples(samples, rows, names=names, menu_name="feature", k=k, title="Texts that activate most")

    def token_figure(self, feature: str, k: int = 15) -> Figure:
        """The tokens with the highest means."""
        found = self.top_tokens(feature, k)
        return bar_chart(
            [repr(token) for token, _, _ in found],
            [mean for _, mean, _ in found],
            x_name="token",
            value_name=f"mean of {feature}",
        )

    def to_frame(self) -> Any:
        """A pandas frame with a row for each extreme."""
        import pandas as pd

        rows = [
            {"feature": one.feature, "extreme": kind, "value": one.value, "token": one.words[one.at], "example": one.example,
             "position": one.position, "text": "".join(one.words)}
            for kind, found in (("most", self.most), ("least", self.least)) for snippets in found.values() for one in snippets
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Any]:
        """Figures, extremes and the tokens with the highest means of each feature."""

        def listed(found: dict[str, list[Snippet]]) -> dict[str, Any]:
            return {
                name: [vars(one) | {"words": list(one.words), "activations": list(one.activations)} for one in some]
                for name, some in found.items()
            }

        tokens = {name: self.top_tokens(name, 20) for name in self.most}
        return {
            "examples": self.examples, "positions": self.positions, "values": self.values.to_json(), "most": listed(self.most),
            "least": listed(self.least), "tokens": {name: [list(one) for one in some] for name, some in tokens.items()},
        }  # fmt: skip

    def summary(self, k: int = 5) -> str:
        """The strongest texts and tokens of each feature."""
        lines = [f"{self.positions:,} token{'s' * (self.positions != 1)} of {self.examples:,} text{'s' * (self.examples != 1)}"]
        for name in self.most:
            row = self.values.sel(feature=name)
            facts = {of: float(value) for of, value in zip(row.names("of"), row.data.tolist(), strict=True)}
            lines.append(f"{name}: mean {facts['mean']:.3g} ± {facts['std']:.3g}, above 0 at {facts['above 0']:.0%} of tokens")
            lines += [f"  {snippet}" for snippet in self.most[name][:k]]
            often = ", ".join(f"{token!r} {mean:.2f}" for token, mean, _ in self.top_tokens(name, 8, at_least=3))
            lines.append(f"  tokens: {often or 'none comes three times'}")
        return "\n".join(lines)


# Features.


@dataclass(frozen=True, eq=False)
class _Feature:
    """One feature: a component, or a direction at a site."""

    name: str
    component: Component | None
    site: str = ""
    direction: Float[Tensor, "d"] | None = None


def _feature(model: Transformer, feature: str | Direction) -> _Feature:
    """A feature by its label, or (site, direction).

    Raises:
        UnknownName: the network has no such component.
        ShapeError: a direction that does not fit its site.
    """
    cfg = model.cfg
    if isinstance(feature, str):
        component = parse_writers([feature], cfg)[0]
        return _Feature(str(component), component)
    site, direction = feature
    full = resolve(site, model.hook_dict, cfg.n_layers)
    if axes(full, cfg)[:2] != ("batch", "pos") or len(axes(full, cfg)) != 3 or direction.ndim != 1:
        raise ShapeError(f"a direction is a vector for a site with one entry per position; {full!r} has {axes(full, cfg)}")
    return _Feature(full, None, full, direction)


def _sites(model: Transformer, features: Sequence[_Feature]) -> list[str]:
    named = sites(model.cfg, [one.component for one in features if one.component is not None])
    return list(dict.fromkeys([*named, *(one.site for one in features if one.component is None)]))


def _values(
    model: Transformer, features: Sequence[_Feature], run: Mapping[str, Tensor], shape: Sequence[int]
) -> Float[Tensor, "feature batch pos"]:
    """A neuron's activation, the size of what another component writes, or the product with a direction."""
    found = []
    for one in features:
        if one.component is None:
            assert one.direction is not None
            found.append(run[one.site].float() @ one.direction.to(run[one.site].device).float())
        elif one.component.kind == "neuron":
            found.append(run[sites(model.cfg, [one.component])[0]][..., int(one.component.index or 0)].float())
        else:
            found.append(torch.linalg.vector_norm(written(model, run, [one.component], shape)[0].float(), dim=-1))
    return torch.stack(found)


class _Extremes:
    """The k largest values of each feature so far, one per example, with the tokens and activations around them."""

    def __init__(self, features: int, k: int, around: int, sign: float) -> None:
        self.k, self.around, self.sign = k, around, sign
        width = 2 * around + 1
        self.values = torch.full((features, 0), -torch.inf)
        self.place = torch.zeros(features, 0, 2, dtype=torch.long)
        self.tokens = torch.zeros(features, 0, width, dtype=torch.long)
        self.near = torch.zeros(features, 0, width)

    def add(self, found: Float[Tensor, "feature batch pos"], tokens: Tensor, real: Bool[Tensor, "batch pos"], first: int) -> None:
        """Look at one batch, whose first example has the number `first`."""
        masked = (found * self.sign).masked_fill(~real, -torch.inf)
        best, where = masked.max(-1)
        count = min(self.k, best.shape[1])
        values, example = best.topk(count, 1)
        position = where.gather(1, example)
        window = position[..., None] + torch.arange(-self.around, self.around + 1)
        inside = (window >= 0) & (window < tokens.shape[1])
        window = window.clamp(0, tokens.shape[1] - 1)
        inside &= real[example[..., None], window]
        around_tokens = tokens[example[..., None], window].masked_fill(~inside, NO_TEXT)
        features = torch.arange(len(found))[:, None, None]
        near = found[features, example[..., None], window]
        values = torch.cat([self.values, values], 1)
        keep = values.topk(min(self.k, values.shape[1]), 1).indices
        self.values = values.gather(1, keep)
        joined = (
            torch.cat([self.place, torch.stack([example + first, position], -1)], 1),
            torch.cat([self.tokens, around_tokens], 1),
            torch.cat([self.near, near], 1),
        )
        self.place, self.tokens, self.near = (x.gather(1, keep[..., None].expand(-1, -1, x.shape[2])) for x in joined)

    def snippets(self, model: Transformer, names: Sequence[str], vocab: Sequence[str] | None) -> dict[str, list[Snippet]]:
        """As text, strongest first."""
        out: dict[str, list[Snippet]] = {}
        for number, name in enumerate(names):
            out[name] = []
            for rank, value in enumerate(self.values[number].tolist()):
                if value == -torch.inf:
                    continue
                tokens, near = self.tokens[number, rank], self.near[number, rank]
                there = tokens != NO_TEXT
                words = tuple(token_name(model, token, vocab) for token in tokens[there].tolist())
                at = int(there[: self.around].sum())
                example, position = self.place[number, rank].tolist()
                out[name].append(Snippet(name, value * self.sign, words, tuple(near[there].tolist()), at, example, position))
        return out


@with_provenance
@options(k=1, around=0, batch_size=1)
def max_activating_texts(
    model: Transformer,
    features: Sequence[str | Direction],
    texts: str | Prompts | Iterable[str] | Int[Tensor, "batch pos"] | Iterable[Tensor],
    *,
    k: int = 10,
    around: int = 8,
    batch_size: int = 16,
    vocab: Sequence[str] | None = None,
) -> MaxActivatingTexts:
    """The texts and tokens that most and least activate some features.

    Args:
        features: neurons (`0.mlp.17`), by their activation; other components (`0.1`, `0.mlp`, `embed`), by the size of what
            they write; or (site, direction).
        texts: one text, any iterable of texts or of token batches, `Prompts`, or tokens. A text longer than the context is read
            in windows, each of which is an example.
        k: how many extremes to keep, at most one per example.
        around: how many tokens to keep on each side.

    Raises:
        ShapeError: no features, or nothing to read.
    """
    if not features:
        raise ShapeError("max_activating_texts needs at least one feature, such as '0.mlp.17', '0.1' or (site, direction)")
    plan = [_feature(model, feature) for feature in features]
    names = [one.name for one in plan]
    names = [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names)]
    most, least = _Extremes(len(names), k, around, 1.0), _Extremes(len(names), k, around, -1.0)
    size = model.cfg.d_vocab
    sums, counts = torch.zeros(len(names), size, dtype=torch.float64), torch.zeros(size, dtype=torch.long)
    total, squares, above = (torch.zeros(len(names), dtype=torch.float64) for _ in range(3))
    examples = 0
    for tokens, real in _batches(model, texts, batch_size):
        mask = None if bool(real.all()) else real.long()
        with torch.no_grad():
            _, run = model.run_with_cache(tokens, names_filter=_sites(model, plan), return_type=None, attention_mask=mask)
            found = _values(model, plan, getattr(run, "cache_dict", run), tokens.shape)
        found, tokens, real = found.cpu(), tokens.cpu(), real.cpu()
        most.add(found, tokens, real, examples)
        least.add(found, tokens, real, examples)
        values, seen = found[:, real].double(), tokens[real]
        sums.index_add_(1, seen, values)
        counts += torch.bincount(seen, minlength=size)
        total, squares, above = total + values.sum(1), squares + values.square().sum(1), above + (values > 0).sum(1)
        examples += len(tokens)
    positions = int(counts.sum())
    if not positions:
        raise ShapeError("there was nothing to read: give texts or tokens")
    mean = total / positions
    std = (squares / positions - mean.square()).clamp(min=0).sqrt()
    extremes = [most.snippets(model, names, vocab), least.snippets(model, names, vocab)]
    ends = [torch.tensor([some[name][0].value for name in names], dtype=torch.float64) for some in extremes]
    facts = torch.stack([mean, std, ends[1], ends[0], above / positions], 1).float()
    means = torch.where(counts > 0, sums / counts.clamp(min=1), torch.nan).float()
    words = [token_name(model, token, vocab) if count else "" for token, count in enumerate(counts.tolist())]
    labels = {"feature": names}
    return MaxActivatingTexts(
        Labelled(facts, ("feature", "of"), labels | {"of": ["mean", "std", "least", "greatest", "above 0"]}, "activation"),
        extremes[0],
        extremes[1],
        Labelled(means, ("feature", "token"), labels | {"token": words}, "mean activation"),
        counts,
        examples,
        positions,
    )


def _batches(model: Transformer, texts: Any, batch_size: int) -> Iterable[tuple[Tensor, Bool[Tensor, "batch pos"]]]:
    """Tokens and which of them are real, a batch at a time."""

    def whole(tokens: Tensor, real: Tensor | None) -> Iterable[tuple[Tensor, Tensor]]:
        tokens = tokens.to(model.W_U.device)
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real.to(tokens.device)
        for at in watched("reading texts", range(0, len(tokens), batch_size)):
            yield tokens[at : at + batch_size], real[at : at + batch_size]

    if isinstance(texts, str | Tensor | Prompts):
        yield from whole(*tokens_of_text(model, texts))
        return
    waiting: list[str] = []
    for one in texts:
        if isinstance(one, Tensor):
            yield from whole(*tokens_of_text(model, one))
            continue
        tokens, real = tokens_of_text(model, one) if len(one) > model.cfg.n_ctx else (None, None)
        if tokens is not None and len(tokens) > 1:  # longer than the context
            yield from whole(tokens, real)
            continue
        waiting.append(one)
        if len(waiting) == batch_size:
            yield from whole(*tokens_of_text(model, waiting))
            waiting = []
    if waiting:
        yield from whole(*tokens_of_text(model, waiting))
