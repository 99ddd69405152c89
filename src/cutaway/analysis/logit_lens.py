"""The logit lens: what the network would predict if it stopped here.

A stream before some layer goes through the final norm (with a scale of its own) and the unembedding. What one
component wrote goes through the final norm with the scale of the whole stream, so that it is that component's part
of the final logits. Distributions over the vocabulary are made a few positions at a time and never kept.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.analysis.shared import (
    KeptSites,
    Subject,
    Where,
    Words,
    answers_of,
    chosen_positions,
    finite,
    kept,
    network,
    real_tokens,
    run_for,
    scale_of,
    target_ids,
    token_name,
    words_of,
)
from cutaway.config import HookedTransformerConfig
from cutaway.errors import UnknownName
from cutaway.model.components import Component, parse_writers, sites, writers
from cutaway.model.frozen_norms import FINAL, frozen_norm, norms_of
from cutaway.model.products import linear
from cutaway.model.sites import table
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options
from cutaway.prompts import Prompts
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.bars import watched
from cutaway.runs.decompose import written
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Means, Result, grouped
from cutaway.view import Figure, lens_grid, line_chart

STREAMS = ("resid", "attn_out", "mlp_out", "heads")
ENTRIES = 2**24  # numbers of a distribution held at once


@dataclass(frozen=True, eq=False)
class Lens(Result):
    """What each row (a stream, or a component) would predict, `[row, batch, pos]`.

    `values` is the probability of each position's target, `rank` how many tokens are likelier, `kl` the divergence
    KL(final ‖ row) and `entropy` in nats; `top` and `top_probability` have the `k` likeliest tokens on a last axis.
    `final` is the likeliest token at the end. Positions without a target hold NaN in `values`, and −1 in `rank`; padding
    holds NaN in `kl` and `entropy` too.
    """

    values: Labelled
    rank: Labelled
    kl: Labelled
    entropy: Labelled
    top: Tensor
    top_probability: Labelled
    targets: Tensor
    final: Tensor
    words: dict[int, str]
    read: Words = ()  # the tokens of each example

    def by_row(self) -> Means:
        """The mean probability of the target, `[row]`, over all positions, with intervals."""
        return self._over(self.values)

    def kl_by_row(self) -> Means:
        """The mean divergence from the final distribution, `[row]`."""
        return self._over(self.kl)

    def _over(self, values: Labelled) -> Means:
        missing = values.data.isnan()
        filled = Labelled(values.data.nan_to_num(0), values.axes, values.labels, values.what, values.unit)
        everything = torch.zeros_like(self.targets)
        return grouped(filled, everything, ["all"], where=~missing[0], axis="positions").sel(positions="all")

    def tops(self, example: int = 0) -> list[list[str]]:
        """The likeliest token of each row at each position of an example."""
        return [[self.words[token] for token in row] for row in self.top[:, example, :, 0].tolist()]

    def figure(self, example: int = 0, tokens: Sequence[str] | None = None) -> Figure:
        """One example: rows × positions, the likeliest token in each cell, coloured by its probability."""
        shown = self.top_probability.data[:, example, :, 0]
        tokens = self.read[example] if tokens is None and self.read else tokens
        names = list(tokens) if tokens is not None else [str(position) for position in range(shown.shape[1])]
        return lens_grid(names, shown, self.tops(example), layer_names=self.values.names("row"))

    def curve(self) -> Figure:
        """The mean divergence from the final distribution, row by row."""
        means = self.kl_by_row()
        bounds = {"KL(final ‖ row)": torch.stack([means.low.data, means.high.data])}
        series = {"KL(final ‖ row)": means.values.data}
        return line_chart(
            series, list(self.values.names("row")), intervals=bounds, x_name="row", y_name="nats", title="How far from the end"
        )

    def summary(self) -> str:
        """Row by row: probability and rank of the target, divergence, and how often the answer is the final one already."""
        counted, read = ~self.values.data[0].isnan(), ~self.kl.data[0].isnan()
        facts = "probability of the target, its median rank, " if counted.any() else ""
        lines = [f"row: {facts}KL to the end in nats, same top token as the end"]
        for index, name in enumerate(self.values.names("row")):
            same = float((self.top[index, ..., 0] == self.final)[read].float().mean())
            kl = float(self.kl.data[index][read].mean())
            probability, rank = self.values.data[index][counted], self.rank.data[index][counted].float()
            target = f"{float(probability.mean()):.3f}, {float(rank.median()):.0f}, " if counted.any() else ""
            lines.append(f"{name}: {target}{kl:.3g}, {same:.0%}")
        return "\n".join(lines)


@with_provenance
@options(k=1)
@torch.no_grad()
def lens(
    subject: Subject,
    tokens: Any = None,
    *,
    of: str | Sequence[str] = "resid",
    targets: Any = None,
    positions: Where | None = None,
    k: int = 5,
    middle: bool = False,
    vocab: Sequence[str] | None = None,
) -> Lens:
    """The logit lens at every position.

    Args:
        subject: a network, to be run on `tokens`, or a cache.
        of: the stream before each layer (`resid`), or what was written: `attn_out`, `mlp_out`, `heads`, or labels of
            components (`embed`, `0.1`, `1.attn`, `1.mlp`, `1.mlp.17`).
        targets: as for `attribute`: where None the answers of `Prompts`, else the next token.
        positions: the targets of these only: a number, a role, or several.
        k: how many of the likeliest tokens to keep.
        middle: also the streams between attention and MLP.

    Raises:
        MissingActivation: the cache lacks a stream.
        UnknownName: there is no such component.
    """
    model = network(subject)
    streams = _streams(model, middle) if of == "resid" else {}
    parts = [] if of == "resid" else components_of(model.cfg, of)
    rows = list(streams) or list(map(str, parts))
    own_scale, normed = of == "resid", bool(norms_of(model.cfg))
    needed = [*streams.values(), *sites(model.cfg, parts), _final_site(model)]
    needed += [] if own_scale or not normed else ["ln_final.hook_scale"]
    ids, real = (None, None) if tokens is None else real_tokens(model, tokens)
    cache = run_for(subject, tokens, list(dict.fromkeys(needed)), "lens")
    final = kept(cache, _final_site(model))
    batch, length = final.shape[:2]
    targets, _ = answers_of(tokens, targets)
    here = chosen_positions(positions, tokens, real, final.shape[:2])
    wanted = target_ids(model, targets, ids, final.shape[:2], vocab, final.device, caller="lens", real=real, optional=True)
    wanted = wanted if here is None else wanted.masked_fill(~here.to(wanted.device), -1)
    frozen = None if own_scale or not normed else scale_of(cache, "ln_final.hook_scale")
    k = min(k, model.cfg.d_vocab_out)
    run = KeptSites(cache)

    def vectors_of(number: int) -> Float[Tensor, "batch pos d_model"]:
        return run[streams[rows[number]]] if own_scale else written(model, run, [parts[number]], (batch, length))[0]

    found: dict[str, list[Tensor]] = {name: [] for name in ("probability", "rank", "kl", "entropy", "top", "top_probability")}
    answers: list[Tensor] = []
    step = max(1, ENTRIES // model.cfg.d_vocab_out)
    with torch.no_grad():
        for at in watched("reading layers", range(0, batch * length, step)):
            part = slice(at, at + step)
            end = finite(model.logits_of(final.flatten(0, 1)[None, part].to(model.W_U.dtype))[0].float()).log_softmax(-1)
            answers.append(end.argmax(-1))
            lines: dict[str, list[Tensor]] = {name: [] for name in found}
            for number in range(len(rows)):
                vectors = vectors_of(number).flatten(0, 1)[None, part]
                scale = None if frozen is None else frozen.flatten(0, 1)[None, part]
                logits = _read(model, vectors, scale, own_scale)[0].float()
                for key, value in _facts(logits.log_softmax(-1), end, wanted.flatten()[part], k).items():
                    lines[key].append(value)
            for key, columns in lines.items():
                found[key].append(torch.stack(columns))
    read = () if ids is None else words_of(model, ids, real, vocab)
    return replace(_result(model, found, rows, torch.cat(answers).view(batch, length), wanted, vocab, real), read=read)


@with_provenance
@torch.no_grad()
def lens_at(
    model: Transformer, prompts: Prompts, at: Int[Tensor, "batch"], *, of: str | Sequence[str] = "resid",
    targets: Any = None, k: int = 5,
) -> Lens:  # fmt: skip
    """The lens at one position of each prompt alone, `[row, batch, 1]`: of many prompts much cheaper than at all.

    Args:
        at: the position, counted from each prompt's start.
        targets: as `lens` takes them.
    """
    streams = list(_streams(model, False).values()) if of == "resid" else []
    parts = [] if of == "resid" else components_of(model.cfg, of)
    scale = ["ln_final.hook_scale"] if parts and norms_of(model.cfg) else []
    names = list(dict.fromkeys([*streams, *sites(model.cfg, parts), _final_site(model), *scale]))
    cache = run_for(model, prompts, names, "lens_at")
    each = torch.arange(len(prompts))
    cut = {name: tensor[each, at.to(tensor.device)][:, None] for name, tensor in cache.cache_dict.items()}
    ids, real = real_tokens(model, prompts)
    targets, _ = answers_of(prompts, targets)
    wanted = target_ids(model, targets, ids, ids.shape, None, ids.device, caller="lens_at", real=real, optional=True)
    chosen = wanted[each, at.to(wanted.device)][:, None]
    return lens(ActivationCache(cut, model), of=of, targets=chosen, k=k)


def _result(
    model: Transformer,
    found: dict[str, list[Tensor]],
    rows: list[str],
    final: Tensor,
    wanted: Tensor,
    vocab: Sequence[str] | None,
    real: Bool[Tensor, "batch pos"] | None,
) -> Lens:
    labels = {"row": rows}
    axes = ("row", "batch", "pos")

    def whole(name: str) -> Tensor:
        data = torch.cat(found[name], 1)
        data = data.reshape(len(rows), *final.shape, *data.shape[2:])
        return data if real is None or name not in ("kl", "entropy") else data.masked_fill(~real.to(data.device), torch.nan)

    top = whole("top")
    words = {token: token_name(model, token, vocab) for token in top.unique().tolist()}
    return Lens(
        Labelled(whole("probability"), axes, labels, "probability of the target", "probability"),
        Labelled(whole("rank"), axes, labels, "rank of the target"),
        Labelled(whole("kl"), axes, labels, "KL(final ‖ row)", "nats"),
        Labelled(whole("entropy"), axes, labels, "entropy", "nats"),
        top,
        Labelled(whole("top_probability"), (*axes, "top"), labels, "probability of the likeliest tokens", "probability"),
        wanted,
        final,
        words,
    )


def _facts(row: Float[Tensor, "n vocab"], end: Float[Tensor, "n vocab"], targets: Int[Tensor, "n"], k: int) -> dict[str, Tensor]:
    """What is kept of distributions, given as log-probabilities."""
    own = row.gather(1, targets.clamp(min=0)[:, None])
    none = targets < 0
    probability = row.exp()
    top_probability, top = probability.topk(k, -1)
    return {
        "probability": own[:, 0].exp().masked_fill(none, torch.nan),
        "rank": (row > own).sum(-1).masked_fill(none, -1),
        "kl": (end.exp() * (end - row)).nan_to_num(0).sum(-1).clamp(min=0),
        "entropy": -(probability * row).nan_to_num(0).sum(-1),
        "top": top,
        "top_probability": top_probability,
    }


def _read(model: Transformer, vectors: Tensor, scale: Tensor | None, own_scale: bool) -> Tensor:
    """The logits of streams, or of components with the scale of the whole stream (no biases, no cap)."""
    if own_scale:
        return model.logits_of(vectors.to(model.W_U.dtype))
    vectors = frozen_norm(model, FINAL, scale)(vectors)
    return linear(vectors, model.W_U.to(vectors.dtype))


# Which rows there are, and where each is read.


def _streams(model: Transformer, middle: bool) -> dict[str, str]:
    """Name of each stream → its site: before each layer, between attention and MLP where there is such a place, at the end."""
    cfg, known = model.cfg, table(model.cfg)
    rows = {}
    for l in range(cfg.n_layers):
        rows[f"{l}_pre"] = f"blocks.{l}.hook_resid_pre"
        if middle and f"blocks.{l}.hook_resid_mid" in known:
            rows[f"{l}_mid"] = f"blocks.{l}.hook_resid_mid"
    return rows | {"final": _final_site(model)}


def components_of(cfg: HookedTransformerConfig, of: str | Sequence[str]) -> list[Component]:
    """The components that `of` names: a kind of them, or labels."""
    kinds = {"attn_out": "attn", "mlp_out": "mlp", "heads": "head"}
    if isinstance(of, str) and of in kinds:
        whole = [one for one in writers(cfg, by_head=of == "heads") if one.kind == kinds[of]]
        if not whole:
            raise UnknownName(f"this network has no {of} to look at one by one")
        return whole
    try:
        return parse_writers([of] if isinstance(of, str) else of, cfg)
    except UnknownName as error:
        raise UnknownName(f"lens takes {', '.join(STREAMS)}, or labels of components. {error}") from None


def _final_site(model: Transformer) -> str:
    return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post" if model.cfg.n_layers else "hook_embed"
