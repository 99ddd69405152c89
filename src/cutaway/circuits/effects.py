"""Exact effects of edges: each ablated by itself in a run where all others are as they were.

What a reader reads is known at once: the run's stream, with what the writer adds replaced. Each edge is then one cell of a sweep,
which runs on from what the reader's node writes. With `downstream="frozen"` nothing after the reader's node reads the change
but the logits: the effect along the way writer → reader → logits alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.analysis.paths import neuron_edit, places_of
from cutaway.analysis.shared import Where, chosen_positions, real_tokens
from cutaway.circuits.attribution import strongest
from cutaway.circuits.components import (
    Written,
    attended,
    by_head_alone,
    check,
    embedded,
    mlp_writes,
    project_by_head,
    read_by,
    written,
)
from cutaway.circuits.direct import DirectEffects
from cutaway.circuits.finer import Finer, parts
from cutaway.circuits.graph import READS, Edges, Graph
from cutaway.circuits.pairs import ablated, as_pair, check_apart, constant_parts, metric_on
from cutaway.errors import ConfigError, ShapeError, UnknownName
from cutaway.model.components import Component, parse_readers, parse_writers, reaches, written_at
from cutaway.model.norm import post_norm
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options
from cutaway.runs.edits import Edit, replace
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result
from cutaway.runs.sweep import Audit, SweepResult, sweep
from cutaway.runs.sweep.sweeping import BOUNDS, not_exact
from cutaway.view import Figure, heat_map

CELLS = 512  # edges of one sweep
NOTHING = 1e-6  # relative to what the writer adds, or to the largest effect: less is rounding
SAME = 1e-5  # relative to what the reader's node writes: beside a norm float32 rounds so much


@dataclass(frozen=True, eq=False)
class EdgeEffects(Result):
    """What ablating each edge changes.

    Args:
        values: `[writer, reader]`, the mean change of the metric; NaN where there is no edge or it was not asked for. Finer
            writers and readers than the graph's nodes follow these.
        each: the same by example, `[batch, writer, reader]`.
        unseen: edges whose ablation changes nothing that the reader's node writes, on these prompts: the writer adds the same in
            both runs, or the reader reads nothing of the difference.
        audit: how far cells are from plain full forward passes, the largest of all sweeps.
    """

    values: Labelled
    each: Float[Tensor, "batch writer reader"]
    unseen: Edges
    audit: Audit

    def figure(self) -> Figure:
        """Writers down, readers across."""
        return heat_map(
            self.values.data, self.values.names("reader"), self.values.names("writer"), x_name="reader", y_name="writer",
            value_name=self.values.what, title="what each edge does", absent="not ablated, or no such edge",
        )  # fmt: skip

    def top(self, count: int = 10) -> list[tuple[str, str, float]]:
        """The edges that change most: writer, reader, mean change."""
        return strongest(self.values, count)

    def summary(self) -> str:
        unit = f" {self.values.unit}" if self.values.unit else ""
        lines = [f"{self.values.what}, of {int((~self.values.data.isnan()).sum())} edges:"]
        lines += [f"  {writer} → {reader}: {value:+.4g}{unit}" for writer, reader, value in self.top(8)]
        if bool(self.unseen.any()):
            count = int(self.unseen.sum())
            lines.append(f"{count} edges change nothing that their readers write: these prompts cannot show whether they matter")
        return "\n".join([*lines, str(self.audit)])


@with_provenance
@options(audit=0, memory=1)
@torch.no_grad()
def edge_effects(
    model: Transformer, clean: Any, corrupted: Any = None, metric: Any = None, *,
    edges: Edges | Iterable[tuple[str, str]] | None = None, ablation: str = "resample", over: Any = None,
    positions: Where | None = None, downstream: str = "recomputed", audit: int = 1,
    memory: int | str | None = None, progress: Callable[[float, float], None] | None = None,
) -> EdgeEffects:  # fmt: skip
    """Ablate each edge by itself, exactly.

    Args:
        clean: text, texts, tokens, or `Prompts` (in pairs, where no corrupted prompts are given).
        metric: None: what `Prompts` say themselves.
        edges: which ones; None: all of the graph. Pairs may name any component that writes and any that reads: neurons
            ("0.mlp.17"), a whole attention ("0.attn"), a bias, which changes exactly nothing unless it is ablated by zero.
        ablation: what the edge carries instead: "resample" (the corrupted run's), "mean", "mean over positions" or "zero".
        over: the prompts that means are over; None: the clean ones.
        positions: where the edge is ablated (positions of the reader, of each row's own tokens; roles, too); None: everywhere.
        downstream: "recomputed" (everything after the reader sees the change) or "frozen" (only the logits do).
        audit: cells of each sweep that run again in full.

    Raises:
        ShapeError: prompts that do not align; positions outside, twice or none.
        UnknownName: no such edge.
    """
    if downstream not in ("recomputed", "frozen"):
        raise ConfigError(f"downstream={downstream!r} is not known; there are 'recomputed' and 'frozen'")
    check(model)
    metric = metric_on(model, metric, clean, functions=downstream == "recomputed")
    tokens, source = as_pair(model, clean, corrupted, ablation)
    check_apart(tokens, source)
    asked = _asked(Graph(model.cfg), edges)
    means_of = tokens if over is None else as_pair(model, over, None, "mean")[0]
    base = ablated(model, tokens, source, constant_parts(model, ablation, means_of, tokens.shape[1]))
    now = written(model, tokens)
    finer = Finer.of(model, asked.finer, ablation, means_of, tokens.shape[1])
    adds = parts(model, finer.components, tokens)
    change = torch.cat([base.parts - now.parts, finer.change(tokens, source, now=adds)])
    same = _size(change) <= NOTHING * torch.cat([_size(now.parts), _size(adds)]).clamp(min=1e-9)
    change = _at(change, positions, model, clean)
    wanted = asked.edges
    unseen = wanted & same.cpu()[:, None]
    each = torch.full((len(tokens), *wanted.shape), torch.nan, dtype=torch.float64)
    each[:, unseen] = 0.0
    what, unit, audits = f"change of {metric.name}", metric.unit, [Audit((), 0, math.nan)]
    reading = _Reading(model, asked, tokens, now, frozen=downstream == "frozen")
    selected = wanted & ~unseen
    if downstream == "frozen" and by_head_alone(model):
        direct = DirectEffects(model, tokens, metric, now, change)
        of_graph = selected & (torch.arange(len(asked.readers)) < len(asked.graph.readers))
        for writers, reader, changes in direct.each(of_graph, progress):
            each[:, writers, reader] = changes.mT.double().cpu()
        audits += _again(reading, metric, of_graph, change, each, audit)
        selected &= ~of_graph
    places = selected.nonzero().tolist()
    for first in range(0, len(places), CELLS):
        chunk = places[first : first + CELLS]
        edits = [reading.edit(reader, change[writer]) for writer, reader in chunk]
        found = sweep(model, tokens, edits, metric, audit=audit if first == 0 else 0, memory=memory)
        for (writer, reader), changes in zip(chunk, _by_example(found), strict=True):
            each[:, writer, reader] = changes
        audits.append(found.audit)
        if progress is not None:
            progress(first + len(chunk), len(places))
    least = NOTHING * float(each.nan_to_num(0).abs().max())
    for writer, reader in (wanted & ~unseen & (each.abs().amax(0) <= least)).nonzero().tolist():
        unseen[writer, reader] = reading.writes_the_same(reader, change[writer])
    labels = {"writer": asked.writers, "reader": asked.readers}
    values = Labelled(each.mean(0), ("writer", "reader"), labels, f"{what} when one edge is ablated ({ablation})", unit)
    return EdgeEffects(values, each, unseen, max(audits, key=lambda one: one.difference if one.cells else -1.0))


def _by_example(found: SweepResult) -> Float[Tensor, "cell batch"]:
    effects = found.effects.data.double().cpu()
    return effects.nanmean(-1) if effects.ndim > 2 else effects


def _again(reading: _Reading, metric: Any, selected: Edges, change: Tensor, each: Tensor, count: int) -> list[Audit]:
    """Some edges once more, each by itself in whole runs.

    Raises:
        NotExact: they differ by more than rounding.
    """
    places = selected.nonzero()
    if not count or not len(places):
        return []
    chosen = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:count]].tolist()
    edits = [reading.edit(reader, change[writer]) for writer, reader in chosen]
    values = _by_example(sweep(reading.model, reading.tokens, edits, metric, audit=0))
    scale = max(float(each.nan_to_num(0).abs().max()), 1e-4)
    off = max(
        float((each[:, writer, reader] - one).abs().max()) / scale for (writer, reader), one in zip(chosen, values, strict=True)
    )
    names = tuple(f"{reading.asked.writers[writer]} → {reading.asked.readers[reader]}" for writer, reader in chosen)
    if off > (bound := BOUNDS[reading.model.cfg.torch_dtype]):
        same = _by_example(sweep(reading.model, reading.tokens, edits, metric, audit=0))
        raise not_exact(
            f"the edges {', '.join(names)} differ from whole runs by up to {off:.1e} of the largest effect",
            float((same - values).abs().max()) <= bound * scale, "downstream='recomputed'",
        )  # fmt: skip
    return [Audit(names, len(each), off)]


def _at(change: Tensor, positions: Any, model: Transformer, clean: Any) -> Tensor:
    """A change `[writer, batch, pos, …]` at some positions only, numbered or named, of each row's own tokens."""
    chosen = chosen_positions(positions, clean, real_tokens(model, clean)[1], change.shape[1:3])
    return change if chosen is None else change * chosen.to(change)[None, :, :, None]


def _size(x: Float[Tensor, "writer batch pos d_model"]) -> Float[Tensor, "writer"]:
    """The largest entry of each."""
    return x.abs().amax((1, 2, 3)) if len(x) else x.new_zeros(0)


@dataclass(frozen=True, eq=False)
class _Asked:
    """The edges that were asked for: between nodes of the graph, and between `finer` components, which follow them."""

    graph: Graph
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    edges: Edges
    finer: Sequence[Component] = ()


def _asked(graph: Graph, edges: Edges | Iterable[tuple[str, str]] | None) -> _Asked:
    if edges is None:
        return _Asked(graph, graph.writers, graph.readers, graph.mask)
    if isinstance(edges, Tensor):
        if edges.shape != graph.mask.shape:
            raise ShapeError(f"edges {tuple(edges.shape)} of another model: this one has {tuple(graph.mask.shape)}")
        return _Asked(graph, graph.writers, graph.readers, edges.cpu() & graph.mask)
    pairs = [(parse_writers([writer], graph.cfg)[0], parse_readers([reader], graph.cfg)[0]) for writer, reader in edges]
    if not pairs:
        raise ShapeError("an empty list of edges means nothing; leave edges out for all of them")
    finer = sorted(dict.fromkeys(writer for writer, _ in pairs if str(writer) not in graph.writers), key=written_at)
    neurons = dict.fromkeys(reader for _, reader in pairs if str(reader) not in graph.readers)
    writers, readers = (*graph.writers, *map(str, finer)), (*graph.readers, *map(str, neurons))
    wanted = torch.zeros(len(writers), len(readers), dtype=torch.bool)
    for writer, reader in pairs:
        at = writers.index(str(writer)), readers.index(str(reader))
        if not reaches(graph.cfg, writer, reader):
            raise UnknownName(f"there is no edge {writer} → {reader}: {reader} reads before {writer} has written")
        if bool(wanted[at]):
            raise ShapeError(f"the edge {writer} → {reader} is given twice; give each once")
        wanted[at] = True
    return _Asked(graph, writers, readers, wanted, finer)


class _Reading:
    """What the nodes of a run write when one of them reads something else."""

    def __init__(self, model: Transformer, asked: _Asked, tokens: Tensor, now: Written, *, frozen: bool):
        self.model, self.asked, self.tokens, self.now, self.frozen = model, asked, tokens, now, frozen
        self.stream = embedded(model, tokens)[1]
        self._last = now.stream(model.cfg.n_layers)
        self._layer, self._projected = -1, [torch.empty(0)] * 3
        self._z = self._resid = torch.empty(0)

    def edit(self, reader: int, change: Float[Tensor, "batch pos d_model"]) -> Edit:
        """The edit that lets a reader read the run's stream plus a change."""
        name, cfg = self.asked.readers[reader], self.model.cfg
        at = places_of(change, NOTHING * float(change.abs().max()))
        layer = cfg.n_layers if name == "logits" else int(name.split(".")[0])
        if name.endswith((".k", ".v")):  # seen from every later position, or from all
            at = list(range(at[0] if cfg.attention_dir == "causal" else 0, change.shape[1]))
        if self.frozen or name == "logits":
            new = self._last[:, at] + self._adds(reader, change)[:, at]
            return replace(new).at(f"blocks.{cfg.n_layers - 1}.hook_resid_post", positions=at)
        if name.endswith(".mlp"):
            new = mlp_writes(self.model.blocks[layer], (self.now.stream(layer, mlp=True) + change)[:, at])
            return replace(new).at(f"blocks.{layer}.hook_mlp_out", positions=at)
        if ".mlp." in name:
            block, resid = self.model.blocks[layer], self.now.stream(layer, mlp=True)
            read = block.ln2(resid[:, at]), block.ln2((resid + change)[:, at])
            return neuron_edit(block, layer, int(name.split(".")[2]), *read, at)
        heads, new = self._seen(layer, name, change)
        return replace(new[:, at]).at(f"blocks.{layer}.attn.hook_z", heads=heads, positions=at)

    def writes_the_same(self, reader: int, change: Float[Tensor, "batch pos d_model"]) -> bool:
        """Whether a reader's node writes what it did, up to rounding; of the logits, whether they stay."""
        graph, name = self.asked.graph, self.asked.readers[reader]
        new = self._adds(reader, change)
        if name == "logits":
            before = self.model.logits_of(self._last)
            new = self.model.logits_of(self._last + new) - before
        else:  # of a neuron beside what its whole MLP writes
            node = name.rpartition(".")[0] if ".mlp." in name else graph.node_of(name)
            before = self.now.parts[graph.writers.index(node)]
        return bool(new.abs().max() <= SAME * before.abs().max())

    def _adds(self, reader: int, change: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """What the reader's node adds to the stream beyond what it did; of the logits, the change itself."""
        name = self.asked.readers[reader]
        if name == "logits":
            return change
        layer = int(name.split(".")[0])
        block = self.model.blocks[layer]
        if name.endswith(".mlp"):
            return mlp_writes(block, self.now.stream(layer, mlp=True) + change) - self.now.parts[self.asked.graph.mlp(layer)]
        if ".mlp." in name:
            resid = self.now.stream(layer, mlp=True)
            post = block.mlp.post_apart(block.ln2(resid), int(name.split(".")[2]), block.ln2(resid + change))
            return post_norm(block, "ln2_post")(block.mlp.output(post)) - self.now.parts[self.asked.graph.mlp(layer)]
        heads, new = self._seen(layer, name, change)
        changed = self._z.clone()
        changed[:, :, heads] = new
        after, before = (post_norm(block, "ln1_post")(block.attn.output(z)) for z in (changed, self._z))
        out: Tensor = after - before
        return out

    def _enter(self, layer: int) -> None:
        """Queries, keys and values of a layer's heads as they are in the run."""
        if layer == self._layer:
            return
        block = self.model.blocks[layer]
        self._layer, self._resid = layer, self.now.stream(layer)
        self._projected = [project_by_head(block, which, read_by(block, which, self._resid, self.stream)) for which in READS]
        self._z = attended(block, self._projected, self.stream)

    def _seen(self, layer: int, name: str, change: Tensor) -> tuple[list[int], Float[Tensor, "batch pos head d_head"]]:
        """What some heads have seen, when one of them has queries, keys or values that read the changed stream: which, and it."""
        self._enter(layer)
        block, head, which = self.model.blocks[layer], int(name.split(".")[1]), READS.index(name[-1])
        heads = [head] if by_head_alone(self.model) else list(range(self.model.cfg.n_heads))  # a norm over all changes them all
        x = read_by(block, READS[which], self._resid + change, self.stream)
        projected = [one[:, :, heads].clone() for one in self._projected]
        projected[which][:, :, heads.index(head)] = project_by_head(block, READS[which], x.unsqueeze(2), [head])[:, :, 0]
        return heads, attended(block, projected, self.stream)
