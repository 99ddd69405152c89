"""Ablation: what gets worse when a head's output, queries, keys or values are replaced by zero or by their mean?

Every ablation is a cell of one sweep, so that layers below an ablated head are not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cutaway.analysis.shared import Where, head_names, real_tokens
from cutaway.config import HookedTransformerConfig
from cutaway.errors import UnknownName
from cutaway.model.components import Component, norm_after, parse_writers, writers
from cutaway.model.foreign import part_with
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import indices, options, some_of
from cutaway.prompts import Prompts
from cutaway.runs import metrics
from cutaway.runs.edits import Change, Edit, add, freeze, mean, zero
from cutaway.runs.metrics import settled
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Means, Result, layers_by_heads
from cutaway.runs.sweep import Audit, SweepResult, sweep
from cutaway.runs.sweep.planning import plan
from cutaway.view import Figure, bar_chart, sweep_grid

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
        """A map of layers × heads for each site, or bars where there are few heads; of one kind of ablation."""
        kind = self.values.names("kind")[0] if kind is None else kind
        overall = self._overall(self.values).sel(kind=kind)
        series = {WORDS[site]: overall.sel(site=site).data for site in overall.names("site")}
        label = f"{self.values.what} ({self.values.unit})"
        grids = [layers_by_heads(overall.sel(site=site)) for site in overall.names("site")]
        maps = [grid for grid in grids if grid is not None]
        if len(maps) == len(grids):
            known = torch.stack(maps)
            rows = [layer for layer in range(known.shape[1]) if not bool(known[:, layer].isnan().all())]  # --layers
            return sweep_grid(
                known[:, rows], list(map(str, rows)), kinds=list(series), row_name="layer", column_name="head", value_name=label,
                title=f"{kind} ablation of each head",
            )  # fmt: skip
        return bar_chart(overall.names("head"), series, x_name="head", value_name=label, title=f"{kind} ablation of each head")

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


@with_provenance
@options(audit=0, baseline=0, seed=0, memory=1)
def ablate_heads(
    model: Transformer,
    tokens: Any,
    metric: Any = None,
    *,
    kinds: Sequence[str] = KINDS,
    sites: Sequence[str] = ("z", "q", "k", "v"),
    layers: Sequence[int] | None = None,
    over: Sequence[str] | None = None,
    positions: Where | None = None,
    mask: Tensor | None = None,
    audit: int = 2,
    seed: int = 0,
    memory: int | str | None = None,
    progress: Callable[[float, float], None] | None = None,
    say: Callable[[int, int, float], None] | None = None,
    baseline: int = 0,
) -> HeadAblation:
    """Ablate each head, and all heads of each layer, and measure what changes at every position.

    Args:
        tokens: what runs: text, texts, `Prompts` or token ids `[batch, pos]`.
        metric: a metric; or labels `[batch, pos]` (negative: none), whose loss is measured at each position; None: what
            `Prompts` with answers say themselves, else the loss of the next token.
        kinds: "zero", and "mean": the mean over these examples.
        over: ("batch",) gives each position a mean of its own, ("batch", "pos") one for all positions. None: the first for
            several examples of one length, the second for a single text and for texts of different lengths.
        positions: ablate there only: a number, a role, or several.
        sites: "z" (what a head has seen; "result" is the same), "q", "k", "v", "pattern". Where heads share keys and
            values, a head stands for its group.
        layers: only the heads of these.
        mask: `[batch, pos]`, 1 for tokens and 0 for padding.
        audit, seed, memory, progress, baseline: as `sweep` takes them.
        say: told before anything long is run how many cells there are, how many are known (0), and the least seconds of the rest.

    Raises:
        UnknownName: no such kind or site.
        ShapeError: a layer that the network lacks.
    """
    kinds, sites = some_of(kinds, KINDS, "kind of ablation"), some_of(sites, SITES, "site to ablate")
    cfg = model.cfg
    chosen = list(range(cfg.n_layers)) if layers is None else sorted(indices(layers, cfg.n_layers, "layer"))
    measure = _metric_of(model, tokens, metric, mask)
    over = _averaged(model, tokens) if over is None else over
    edits: list[Edit] = []
    for kind in kinds:
        for site in sites:
            edits += _edits(zero() if kind == "zero" else mean(over=over), site, cfg, chosen, positions)
    if say is not None:
        expected = plan(model, tokens, edits, measure, mask=mask, memory=memory)
        say(expected.cells, expected.reused, expected.seconds or 0.0)
    done = sweep(
        model, tokens, edits, measure, mask=mask, audit=audit, seed=seed, memory=memory, progress=progress, baseline=baseline
    )
    changes = done.effects.data
    at, heads, whole = 0, [], []
    for _ in kinds:
        for site in sites:
            count = _groups(site, cfg)
            part = changes[at : at + len(chosen) * (count + 1)].unflatten(0, (len(chosen), count + 1))
            at += len(chosen) * (count + 1)
            heads.append(part[:, :count].repeat_interleave(cfg.n_heads // count, dim=1).flatten(0, 1))
            whole.append(part[:, count])
    rest = done.clean.axes
    names = {"kind": list(kinds), "site": list(sites)}
    shape = (len(kinds), len(sites))
    what, unit = done.effects.what, done.effects.unit
    named = [name for name in head_names(cfg) if int(name.partition(".")[0]) in chosen]
    return HeadAblation(
        Labelled(torch.stack(heads).unflatten(0, shape), ("kind", "site", "head", *rest), names | {"head": named},
                 what, unit),
        Labelled(torch.stack(whole).unflatten(0, shape), ("kind", "site", "layer", *rest),
                 names | {"layer": list(map(str, chosen))}, what, unit),
        done.clean, done.audit, done,
    )  # fmt: skip


def _groups(site: str, cfg: HookedTransformerConfig) -> int:
    """How many heads a site has: fewer for keys and values that heads share."""
    return cfg.kv_heads if site in ("k", "v") and not cfg.ungroup_grouped_query_attention else cfg.n_heads


def _edits(change: Change, site: str, cfg: HookedTransformerConfig, layers: Sequence[int], positions: Any = None) -> list[Edit]:
    """For each layer each head, then all heads."""
    out = []
    for layer in layers:
        out += [change.at((site, layer), heads=head, positions=positions) for head in range(_groups(site, cfg))]
        out.append(change.at((site, layer), positions=positions))
    return out


def _metric_of(model: Transformer, tokens: Any, metric: Any, mask: Tensor | None) -> Any:
    """The metric: the one given, the loss of given labels, what `Prompts` say themselves, or the loss of the next token."""
    if metric is None and isinstance(tokens, Prompts) and tokens.right:
        return settled(None, model, tokens)
    if metric is not None and not isinstance(metric, Tensor):
        return metric
    found, real = real_tokens(model, tokens)
    mask = mask if mask is not None or real is None else real
    return metrics.loss(found, metric, mask=mask, by_position=True)


def _averaged(model: Transformer, tokens: Any) -> tuple[str, ...]:
    """What a mean is over: the examples at each position, unless there is only one or they differ in length."""
    found, real = real_tokens(model, tokens)
    return ("batch",) if len(found) > 1 and real is None else ("batch", "pos")


# Any component.


@dataclass(frozen=True, eq=False)
class Ablation(Result):
    """How much a metric changes when one component after another is ablated, `[kind, component, batch, …]`.

    `clean` is the metric without any ablation.
    """

    values: Labelled
    clean: Labelled
    audit: Audit
    sweep: SweepResult = field(repr=False)

    def changes(self, kind: str = "zero") -> dict[str, float]:
        """Component → mean change, the largest first."""
        found = self._overall().sel(kind=kind)
        pairs = zip(found.names("component"), found.data.tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -abs(pair[1])))

    def means(self, kind: str = "zero") -> Means:
        """The mean change of each component with an interval over examples."""
        chosen = self.values.sel(kind=kind)
        return (chosen.mean("pos") if "pos" in chosen.axes else chosen).means("batch")

    def _overall(self) -> Labelled:
        return self.values.mean(*(axis for axis in ("batch", "pos") if axis in self.values.axes))

    def figure(self, top: int = 30) -> Figure:
        """Bars of the components that matter most, a series for each kind."""
        found = self._overall()
        order = found.data.abs().amax(0).argsort(descending=True)[:top].tolist()
        names = [found.names("component")[at] for at in order]
        series = {kind: found.sel(kind=kind, component=names).data for kind in found.names("kind")}
        label = f"{self.values.what} ({self.values.unit})" if self.values.unit else self.values.what
        return bar_chart(names, series, x_name="component", value_name=label, title="ablation of each component")

    def summary(self) -> str:
        """The components whose ablation matters most."""
        lines = [f"{self.values.what}; {float(self.clean.data.nanmean()):.4g} {self.clean.unit} without ablation"]
        for kind in self.values.names("kind"):
            shown = ", ".join(f"{name} {change:+.3g}" for name, change in list(self.changes(kind).items())[:8])
            lines.append(f"{kind} ablation: {shown}")
        lines += [] if self.sweep.baseline is None else [self.sweep.baseline.summary()]
        return "\n".join([*lines, str(self.audit)])


@with_provenance
@options(audit=0, baseline=0, seed=0, memory=1)
def ablate(
    model: Transformer,
    tokens: Any,
    metric: Any = None,
    *,
    components: Sequence[str] | None = None,
    kinds: Sequence[str] = KINDS,
    over: Sequence[str] | None = None,
    positions: Where | None = None,
    audit: int = 2,
    seed: int = 0,
    memory: int | str | None = None,
    progress: Callable[[float, float], None] | None = None,
    baseline: int = 0,
) -> Ablation:
    """Ablate one component after another: heads, whole attentions, MLPs or neurons.

    Example: `ablate(model, prompts, components=["0.mlp", "3.mlp.17", "5.1"]).summary()`

    Args:
        components: `0.3` (a head), `0.attn`, `0.mlp`, `0.mlp.17` (a neuron), `embed`, `0.bias`, …; None: each layer's attention
            and MLP. A bias is its own mean, so that only its ablation by zero changes anything.
        tokens, metric, kinds, over, positions, audit, seed, memory, progress, baseline: as `ablate_heads` takes them.

    Raises:
        UnknownName: no such kind or component, or a bias whose part a norm between it and the stream leaves open.
    """
    kinds = some_of(kinds, KINDS, "kind of ablation")
    chosen = _components(model, components)
    over = _averaged(model, tokens) if over is None else over
    means = {"zero": None, "mean": mean(over=over)}
    edits = [ablation_of(model, one, positions, means[kind]) for kind in kinds for one in chosen]
    measure = _metric_of(model, tokens, metric, None)
    done = sweep(model, tokens, edits, measure, audit=audit, seed=seed, memory=memory, progress=progress, baseline=baseline)
    changes = done.effects
    labels = {"kind": list(kinds), "component": list(map(str, chosen))}
    values = changes.data.unflatten(0, (len(kinds), len(chosen)))
    axes = ("kind", "component", *done.clean.axes)
    return Ablation(Labelled(values, axes, labels, changes.what, changes.unit), done.clean, done.audit, done)


def _components(model: Transformer, names: Sequence[str] | None) -> list[Component]:
    if names is None:
        return [one for one in writers(model.cfg, by_head=False) if one.kind in ("attn", "mlp")]
    return parse_writers(names, model.cfg)


ABLATED = {
    "head": "z", "attn": "attn_out", "mlp": "mlp_out", "neuron": "post", "embed": "embed", "pos_embed": "pos_embed",
}  # fmt: skip


def ablation_of(model: Transformer, one: Component, positions: Any = None, means: Change | None = None) -> list[Edit]:
    """The edits that put means, or zero (None), in place of what a component writes.

    Raises:
        UnknownName: a bias whose part a norm between it and the stream leaves open.
    """
    if one.constant:
        return _without_bias(model, one, positions, hold=means is not None)
    place = {"head": {"heads": one.index}, "neuron": {"neurons": one.index}}.get(one.kind, {})
    site = ABLATED[one.kind] if one.layer is None else (ABLATED[one.kind], one.layer)
    return [(zero() if means is None else means).at(site, positions=positions, **place)]


def _without_bias(model: Transformer, bias: Component, positions: Any, *, hold: bool) -> list[Edit]:
    """A bias is taken from what its layers write; to `hold` it changes nothing, since it is its own mean."""
    if any(norm_after(model.cfg, Component(part, 0)) for part in ("attn", "mlp")):
        raise UnknownName(
            f"{bias} has no part of its own where a norm follows what a layer writes; ablate the layer ('0.attn', '0.mlp')"
        )
    part, name, site = ("mlp", "b_out", "mlp_out") if bias.kind == "mlp bias" else ("attn", "b_O", "attn_out")
    layers = range(model.cfg.n_layers) if bias.layer is None else [bias.layer]
    vectors = [getattr(part_with(model, layer, part, name), name).detach() for layer in layers]
    return [
        (freeze() if hold else add(-vector)).at((site, layer), positions=positions)
        for layer, vector in zip(layers, vectors, strict=True)
    ]
