"""Edge attribution patching: the score of every edge from a few forward and backward passes.

An edge's score is, to first order, how much the metric changes when the edge alone carries the clean run's activation into the
corrupted run: what its writer adds (clean − corrupted) times the gradient at what its reader reads. With integrated gradients the
gradient is a mean over runs between the two: between their inputs (`path="inputs"`), or, for the edges out of each writer,
between what it writes (`path="activations"`).

Runs begin where the two prompts begin to differ, and gradients are brought back to heads' own inputs once for all steps
(`gradients.py`).

Source: Syed et al. 2023 (https://arxiv.org/abs/2310.10348); integrated gradients: Hanna et al. 2024
(https://arxiv.org/abs/2403.17806); MIB 2025 (https://arxiv.org/abs/2504.13151) for activations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.circuits.components import Written, check, embedded, kept_of, written
from cutaway.circuits.finer import Finer
from cutaway.circuits.gradients import GradientSum
from cutaway.circuits.graph import Edges, Graph
from cutaway.circuits.pairs import ablated, as_pair, check_apart, constant_parts, first_differences, metric_on
from cutaway.errors import ConfigError, ShapeError
from cutaway.model.components import parse_writers
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options, size
from cutaway.runs.bars import DelayedBar
from cutaway.runs.metrics import Metric
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result
from cutaway.view import Figure, circuit_layers, heat_map

PATHS = ("inputs", "activations")
ROOM = 2**26  # numbers that the parts of a batch of examples may take, about


@dataclass(frozen=True, eq=False)
class EdgeScores(Result):
    """The score of each edge.

    Args:
        values: `[writer, reader]`, mean over examples; NaN where there is no edge.
        each: the same by example, `[batch, writer, reader]`.
        method: how they were computed, in words.
    """

    values: Labelled
    each: Float[Tensor, "batch writer reader"]
    method: str

    def circuit(self, count: int) -> Edges:
        """The edges with the largest scores, whatever their sign."""
        return largest(self.values.data, count)

    def top(self, count: int = 10) -> list[tuple[str, str, float]]:
        """Those edges as (writer, reader, score), largest first."""
        return strongest(self.values, count)

    def figure(self) -> Figure:
        """Writers down, readers across; of many, those with the largest scores.

        Colours end at the score that one edge in a hundred of these exceeds: a single edge would leave all others pale.
        """
        size = self.values.data.abs().nan_to_num(0)
        rows, columns = (size.amax(axis).argsort(descending=True)[:60].sort().values.tolist() for axis in (1, 0))
        names = self.values.names("writer"), self.values.names("reader")
        shown = size[rows][:, columns].flatten().sort().values
        end = float(shown[int(0.99 * (len(shown) - 1))]) or float(shown[-1])
        return heat_map(
            self.values.data[rows][:, columns], [names[1][at] for at in columns], [names[0][at] for at in rows], x_name="reader",
            y_name="writer", value_name="score", title="Scores of edges", absent="no such edge",
            range=(-end, end) if end else None,
        )  # fmt: skip

    def graph(self, top: int = 40) -> Figure:
        """The edges with the largest scores as a graph: layers up, components across."""
        strongest_ = self.top(top)
        return circuit_layers(
            [one[:2] for one in strongest_], [score for *_, score in strongest_], value_name="score",
            title=f"The {len(strongest_)} edges with the largest scores",
        )  # fmt: skip

    def summary(self) -> str:
        count = int((~self.values.data.isnan()).sum())
        lines = [f"{self.method}; the largest of {count} edges:"]
        return "\n".join([*lines, *(f"  {writer} → {reader}: {score:+.4g}" for writer, reader, score in self.top(8))])


def strongest(values: Labelled, count: int) -> list[tuple[str, str, float]]:
    """Edges as (writer, reader, value), largest first whatever their sign."""
    edges = list(itertools.product(values.names("writer"), values.names("reader")))
    return [(*edges[at], value) for at, value in values.largest(count)]


def largest(scores: Float[Tensor, "*edge"], count: int, sign: int = 0) -> Bool[Tensor, "*edge"]:
    """As many edges as wanted, those with the largest scores.

    Args:
        sign: 0 whatever their sign; 1 the most positive first, -1 the most negative first.

    Raises:
        ConfigError: a negative number.
    """
    if count < 0:
        raise ConfigError(f"a circuit of {count} edges: the size must not be negative")
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    by = (scores * sign if sign else scores.abs()).flatten().nan_to_num(-torch.inf).cpu()
    chosen[by.argsort(descending=True, stable=True)[:count]] = True
    return chosen.view(scores.shape) & ~scores.isnan().cpu()


@with_provenance
@options(steps=1, memory=1)
def edge_attribution(
    model: Transformer, clean: Any, corrupted: Any = None, metric: Any = None, *, steps: int = 5, path: str = "inputs",
    ablation: str = "resample", writers: Sequence[str] | None = None, memory: int | str = 4 * ROOM,
    progress: Callable[[float, float], None] | None = None,
) -> EdgeScores:  # fmt: skip
    """Score every edge.

    Args:
        clean, corrupted: text, texts or tokens, of one shape; `corrupted` may be None where `ablation` needs none, and where
            `clean` is `Prompts` in pairs.
        metric: one with a gradient; None: what `Prompts` say themselves.
        steps: how many runs the gradient is a mean over; 1 is plain edge attribution patching, at the corrupted run.
        path: "inputs" or "activations" (see above).
        ablation: what an ablated edge carries: "resample" (the corrupted run's), "mean" (over the clean prompts) or "zero".
            The gradient of means and zeros is that of the clean run (`steps=1`), or on the way there from activations.
        writers: what edges come from, in place of the graph's nodes (of which a circuit is made): any components that write,
            such as neurons ("0.mlp.17") and a whole attention ("0.attn"). A bias scores exactly 0, unless it is ablated by zero.
        memory: bytes, or a text such as "512 MiB", that the parts of one batch may take.

    Raises:
        ShapeError: prompts that do not align, or a metric without a gradient.
        ConfigError: an unknown path or ablation, or no steps.
        UnknownName: no such writer.
    """
    if path not in PATHS:
        raise ConfigError(f"path={path!r} is not known; there are {' and '.join(PATHS)}")
    metric = metric_on(model, metric, clean)
    if metric.compares:
        raise ShapeError(
            f"{metric.name} has no gradient at the clean run, where it is smallest; use edge_effects, which is exact"
        )
    check(model)
    progress = DelayedBar("scoring edges") if progress is None else progress
    tokens, source = as_pair(model, clean, corrupted, ablation)
    check_apart(tokens, source)
    source = source if ablation == "resample" else None
    graph = Graph(model.cfg)
    finer = None if writers is None else Finer.of(model, parse_writers(writers, model.cfg), ablation, tokens, tokens.shape[1])
    rows_of = graph if finer is None else finer
    each = torch.full((len(tokens), *rows_of.mask.shape), torch.nan)
    constant = constant_parts(model, ablation, tokens, tokens.shape[1])
    begin = first_differences(model, tokens, source, metric.wanted(*tokens.shape))
    order = begin.argsort(stable=True)
    done = 0
    while done < len(tokens):
        start = int(begin[order[done]])
        kept_parts = len(graph.writers) + (0 if finer is None else len(finer.components))
        room = max(1, size(memory, "memory") // (8 * kept_parts * (tokens.shape[1] - start) * model.cfg.d_model))
        rows = order[done : done + room].to(tokens.device)
        each[rows.cpu()] = _scores(_Some(model, graph, finer, tokens, source, rows, start, metric, constant), steps, path)
        done += len(rows)
        if progress is not None:
            progress(done, len(tokens))
    labels = {"writer": rows_of.writers, "reader": graph.readers}
    values = Labelled(each.mean(0), ("writer", "reader"), labels, f"change of {metric.name}", metric.unit)
    named = f"edge attribution, {ablation} ablation, {steps} step{'s' * (steps > 1)} between {path}"
    return EdgeScores(values, each, named)


class _Some:
    """Some examples: what their runs add, from the first position that matters on, and the metric."""

    def __init__(
        self, model: Transformer, graph: Graph, finer: Finer | None, everything: Tensor, source: Tensor | None, rows: Tensor,
        start: int, metric: Metric, constant: Tensor | None,
    ):  # fmt: skip
        self.finer, self.mask = finer, graph.mask if finer is None else finer.mask
        self.model, self.graph, self.rows, self.start, self.metric, self.constant = model, graph, rows, start, metric, constant
        tokens = everything[rows]
        self.kept = kept_of(model, tokens[:, :start])
        self.tokens = tokens[:, start:]
        self.now = written(model, self.tokens, self.kept)
        self.source = None if source is None else source[rows][:, start:]
        self.wanted = metric.wanted(*everything.shape)[rows.cpu()].to(tokens.device)

    @cached_property
    def base(self) -> Written:
        """What ablated edges carry."""
        return ablated(self.model, self.tokens, self.source, self.constant, self.kept)

    @cached_property
    def difference(self) -> Float[Tensor, "writer batch pos d_model"]:
        """What each node adds to the clean run beyond that."""
        return self.now.parts - self.base.parts

    @cached_property
    def scored(self) -> Float[Tensor, "writer batch pos d_model"]:
        """The same of each writer whose edges get scores."""
        return self.difference if self.finer is None else -self.finer.change(self.tokens, self.source, self.kept)

    def value(self, resid: Tensor) -> Tensor:
        """The metric of these examples, from the stream after the last layer."""
        at, places = self.wanted.nonzero(as_tuple=True)
        logits = self.model.logits_of(resid[at, places - self.start], self.metric.columns())
        return self.metric.by_example(self.metric.of_tokens(logits, self.rows[at], places), self.wanted)


def _scores(some: _Some, steps: int, path: str) -> Float[Tensor, "batch writer reader"]:
    """The scores of some examples."""
    if path == "activations":
        return _by_activations(some, steps)
    sums, every = GradientSum(some.model, some.tokens, some.kept), slice(0, len(some.mask))
    end = some.now.stream(0)
    if some.source is None:
        sums.add(end, some.value)
        return _products(some, sums, 1, every)
    with torch.no_grad():
        parts = embedded(some.model, some.source, some.kept)[0]
    begin = torch.stack(parts).sum(0)
    for step in range(steps):
        sums.add(begin + step / steps * (end - begin), some.value, parts=None if step else parts)
    some.base = Written(some.graph, torch.stack(parts), some.now.rest)  # the first of these runs is the corrupted one
    return _products(some, sums, steps, every)


def _products(some: _Some, sums: GradientSum, count: int, writers: slice) -> Float[Tensor, "batch writer reader"]:
    """The difference of each of these writers times the mean gradient at each reader, summed over positions."""
    graph, cfg = some.graph, some.model.cfg
    by_example = some.scored[writers].movedim(1, 0).flatten(2)  # batch, writer, pos × d_model
    out = torch.full((len(by_example), by_example.shape[1], graph.mask.shape[1]), torch.nan)

    def fill(grad: Tensor, readers: slice) -> None:
        done = int(some.mask[writers, readers.start].sum())  # writers come in the order in which they run
        out[:, :done, readers] = (by_example[:, :done] @ (grad / count).movedim(2, 1).flatten(2).mT).cpu()

    for layer in range(cfg.n_layers):
        heads, mlp = sums.heads(layer), sums.mlp(layer)
        if heads is not None:
            fill(heads, slice(graph.reading(layer, "q").start, graph.reading(layer, "v").stop))
        if mlp is not None:
            at = graph.mlp_reading(layer)
            fill(mlp.unsqueeze(2), slice(at, at + 1))
    fill(sums.last.unsqueeze(2), slice(len(graph.readers) - 1, len(graph.readers)))
    return out


def _by_activations(some: _Some, steps: int) -> Float[Tensor, "batch writer reader"]:
    """For the writers of each layer: gradients of the clean run with what they write put between base and clean."""
    graph, now = some.graph, some.now
    streams = now.streams
    out = torch.full((len(some.tokens), *some.mask.shape), torch.nan)
    for group, layer, inside in _groups(graph):
        rows = group if some.finer is None else some.finer.beside(graph, group)
        if rows.start == rows.stop:
            continue
        sums = GradientSum(some.model, some.tokens, some.kept)
        for step in range(1, steps + 1):
            less = (1 - step / steps) * some.difference[group].sum(0)
            before = streams[2 * layer]
            if inside:
                sums.add(before, some.value, layer, streams[2 * layer + 1] - less)
            else:
                sums.add(before - less, some.value, layer)
        out[:, rows] = _products(some, sums, steps, rows)
    return out.masked_fill(~some.mask, torch.nan)


def _groups(graph: Graph) -> Iterator[tuple[slice, int, bool]]:
    """Writers that are taken together, the layer where a run with them changed begins, and whether in its middle."""
    cfg = graph.cfg
    yield slice(0, graph.embeddings), 0, False
    for layer in range(cfg.n_layers):
        within = cfg.has_resid_mid
        yield graph.heads(layer), layer if within else layer + 1, within
        if not cfg.attn_only:
            yield slice(graph.mlp(layer), graph.mlp(layer) + 1), layer + 1, False
