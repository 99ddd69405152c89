"""Ablation: what gets worse when a head's output, queries, keys or values are replaced by zero or by their mean?

Every ablation is a cell of one sweep, so that layers below an ablated head are not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cutaway.analysis.shared import as_tokens, head_names
from cutaway.config import HookedTransformerConfig
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import some_of
from cutaway.runs import metrics
from cutaway.runs.edits import Change, Edit, mean, zero
from cutaway.runs.results import Labelled, Means, Result
from cutaway.runs.sweep import Audit, SweepResult, sweep
from cutaway.view import Figure, bar_chart

KINDS = ("zero", "mean")
SITES = ("z", "q", "k", "v", "result", "pattern")
WORDS = {"z": "output", "result": "output", "q": "queries", "k": "keys", "v": "values", "pattern": "pattern"}


@dataclass(frozen=True, eq=False)
class HeadAblation(Result):
    """How much each ablation changes a metric (the loss, unless another was asked for).

    Args:
        values: the change by `[kind, site, head, batch, pos]` (`pos` only where the metric keeps positions).
        layers: the same for all heads of a layer at once, `[kind, site, layer, …]`.
        clean: the metric without any ablation, `[batch, pos]`.
        audit: how far cells are from plain full forward passes.
        sweep: the sweep that this is made of, for records.
    """

    values: Labelled
    layers: Labelled
    clean: Labelled
    audit: Audit
    sweep: SweepResult = field(repr=False)

    def means(self, kind: str = "zero", site: str = "z") -> Means:
        """The mean change for each head, over examples and positions, with an interval over examples."""
        chosen = self.values.sel(kind=kind, site=site)
        return (chosen.mean("pos") if "pos" in chosen.axes else chosen).means("batch")

    def by_position(self, kind: str = "zero", site: str = "z") -> Means:
        """The mean change for each head at each position, with an interval over examples."""
        return self.values.sel(kind=kind, site=site).means("batch")

    def increases(self, kind: str = "zero", site: str = "z") -> dict[str, float]:
        """Head → mean change, as plain numbers."""
        found = self._overall(self.values).sel(kind=kind, site=site)
        return dict(zip(found.names("head"), found.data.tolist(), strict=True))

    def layer_increases(self, kind: str = "zero", site: str = "z") -> dict[str, float]:
        """Layer → mean change when all its heads are ablated together."""
        found = self._overall(self.layers).sel(kind=kind, site=site)
        return dict(zip(found.names("layer"), found.data.tolist(), strict=True))

    @staticmethod
    def _overall(values: Labelled) -> Labelled:
        return values.mean(*(axis for axis in ("batch", "pos") if axis in values.axes))

    def figure(self, kind: str | None = None) -> Figure:
        """A bar for each head, a series for each site; of one kind of ablation."""
        kind = self.values.names("kind")[0] if kind is None else kind
        overall = self._overall(self.values).sel(kind=kind)
        series = {WORDS[site]: overall.sel(site=site).data for site in overall.names("site")}
        said = f"{self.values.what} ({self.values.unit})"
        return bar_chart(overall.names("head"), series, x_name="head", value_name=said, title=f"{kind} ablation of each head")

    def summary(self) -> str:
        """The heads whose ablation matters most, for each kind and site."""
        lines = [f"{self.values.what}; {float(self.clean.data.nanmean()):.4g} {self.clean.unit} without ablation"]
        for kind in self.values.names("kind"):
            for site in self.values.names("site"):
                found = sorted(self.increases(kind, site).items(), key=lambda item: -abs(item[1]))[:4]
                shown = ", ".join(f"{head} {change:+.3g}" for head, change in found)
                lines.append(f"{kind} ablation of {WORDS[site]}: {shown}")
        lines += [] if self.sweep.baseline is None else [self.sweep.baseline.summary()]
        return "\n".join([*lines, str(self.audit)])


def ablate_heads(
    model: Transformer,
    tokens: Any,
    metric: metrics.Metric | Tensor | None = None,
    *,
    kinds: Sequence[str] = KINDS,
    sites: Sequence[str] = ("z", "q", "k", "v"),
    over: Sequence[str] = ("batch",),
    mask: Tensor | None = None,
    audit: int = 2,
    seed: int = 0,
    memory: int | None = None,
    progress: Callable[[float, float], None] | None = None,
    baseline: int = 0,
) -> HeadAblation:
    """Ablate each head, and all heads of each layer, and measure what changes at every position.

    Args:
        tokens: what runs: text or token ids `[batch, pos]`.
        metric: a metric; or labels `[batch, pos]` (negative: none), whose loss is measured at each position; None: the
            loss of the next token.
        kinds: "zero", and "mean": the mean over these examples.
        over: ("batch",) gives each position a mean of its own, ("batch", "pos") one for all positions, as a single text needs.
        sites: "z" (what a head has seen; "result" is the same), "q", "k", "v", "pattern". Where heads share keys and
            values, a head stands for its group.
        mask: `[batch, pos]`, 1 for tokens and 0 for padding.
        audit, seed, memory, progress, baseline: as `sweep` takes them.

    Raises:
        UnknownName: no such kind or site.
    """
    kinds, sites = some_of(kinds, KINDS, "kind of ablation"), some_of(sites, SITES, "site to ablate")
    cfg, found = model.cfg, as_tokens(model, tokens)
    if metric is None or isinstance(metric, Tensor):
        metric = metrics.loss(found, metric, mask=mask, by_position=True)
    edits: list[Edit] = []
    for kind in kinds:
        for site in sites:
            edits += _edits(zero() if kind == "zero" else mean(over=over), site, cfg)
    done = sweep(
        model, found, edits, metric, mask=mask, audit=audit, seed=seed, memory=memory, progress=progress, baseline=baseline
    )
    changes = done.effects.data
    at, heads, layers = 0, [], []
    for _ in kinds:
        for site in sites:
            count = _groups(site, cfg)
            part = changes[at : at + cfg.n_layers * (count + 1)].unflatten(0, (cfg.n_layers, count + 1))
            at += cfg.n_layers * (count + 1)
            heads.append(part[:, :count].repeat_interleave(cfg.n_heads // count, dim=1).flatten(0, 1))
            layers.append(part[:, count])
    rest = done.clean.axes
    names = {"kind": list(kinds), "site": list(sites)}
    shape = (len(kinds), len(sites))
    what, unit = f"change of {metric.name}", metric.unit
    return HeadAblation(
        Labelled(torch.stack(heads).unflatten(0, shape), ("kind", "site", "head", *rest), names | {"head": head_names(cfg)},
                 what, unit),
        Labelled(torch.stack(layers).unflatten(0, shape), ("kind", "site", "layer", *rest),
                 names | {"layer": [str(layer) for layer in range(cfg.n_layers)]}, what, unit),
        done.clean, done.audit, done,
    )  # fmt: skip


def _groups(site: str, cfg: HookedTransformerConfig) -> int:
    """How many heads a site has: fewer for keys and values that heads share."""
    return cfg.kv_heads if site in ("k", "v") and not cfg.ungroup_grouped_query_attention else cfg.n_heads


def _edits(change: Change, site: str, cfg: HookedTransformerConfig) -> list[Edit]:
    """For each layer each head, then all heads."""
    out = []
    for layer in range(cfg.n_layers):
        out += [change.at((site, layer), heads=head) for head in range(_groups(site, cfg))]
        out.append(change.at((site, layer)))
    return out
