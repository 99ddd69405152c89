"""Edge attribution patching: the score of every edge from a few forward and backward passes.

An edge's score is, to first order, how much the metric changes when the edge alone carries the clean run's activation into the
corrupted run: what its writer adds (clean − corrupted) times the gradient at what its reader reads. With integrated gradients the
gradient is a mean over runs between the two: between their inputs (`path="inputs"`), or, for the edges out of each writer,
between what it writes (`path="activations"`).

Heads read one stream, so the forward pass is the ordinary one; the gradient of each head's own input is brought back from its
queries, keys and values afterwards. Keys and values that heads share are told apart by giving each head a copy of them.

Source: Syed et al. 2023 (https://arxiv.org/abs/2310.10348); integrated gradients: Hanna et al. 2024
(https://arxiv.org/abs/2403.17806); MIB 2025 (https://arxiv.org/abs/2504.13151) for activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.circuits.components import Written, attended, check, embedded, mlp_writes, project_by_head, read_by, written
from cutaway.circuits.graph import Edges, Graph
from cutaway.circuits.pairs import ablated, as_pair, metric_on
from cutaway.errors import ConfigError, ShapeError
from cutaway.model.norm import post_norm
from cutaway.model.positions import Stream
from cutaway.model.transformer import Transformer
from cutaway.runs.metrics import LogitRows, Metric
from cutaway.runs.results import Labelled, Result
from cutaway.runs.sweep.gradient import weights_held
from cutaway.view import Figure, heat_map

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
        data = self.values.data
        flat = data.flatten()
        order = flat.abs().nan_to_num(-1).argsort(descending=True, stable=True)[:count].tolist()
        names = self.values.names("writer"), self.values.names("reader")
        return [(names[0][at // data.shape[1]], names[1][at % data.shape[1]], float(flat[at])) for at in order]

    def figure(self) -> Figure:
        """Writers down, readers across."""
        return heat_map(
            self.values.data, self.values.names("reader"), self.values.names("writer"), x_name="reader", y_name="writer",
            value_name="score", title="edges",
        )  # fmt: skip

    def summary(self) -> str:
        count = int((~self.values.data.isnan()).sum())
        lines = [f"{self.method}; the largest of {count} edges:"]
        return "\n".join([*lines, *(f"  {writer} → {reader}: {score:+.4g}" for writer, reader, score in self.top(8))])


def largest(scores: Float[Tensor, "writer reader"], count: int) -> Edges:
    """As many edges as wanted, those with the largest scores whatever their sign.

    Raises:
        ConfigError: a negative number.
    """
    if count < 0:
        raise ConfigError(f"a circuit of {count} edges: the size must not be negative")
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[scores.flatten().abs().nan_to_num(-1).cpu().argsort(descending=True, stable=True)[:count]] = True
    return chosen.view(scores.shape) & ~scores.isnan().cpu()


def edge_attribution(
    model: Transformer, clean: Any, corrupted: Any = None, metric: Any = None, *, steps: int = 5, path: str = "inputs",
    ablation: str = "resample", memory: int = ROOM, progress: Callable[[float, float], None] | None = None,
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
        memory: numbers that the parts of one batch may take.

    Raises:
        ShapeError: prompts that do not align, or a metric without a gradient.
        ConfigError: an unknown path or ablation, or no steps.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}: the gradient is a mean over at least one run")
    if path not in PATHS:
        raise ConfigError(f"path={path!r} is not known; there are {' and '.join(PATHS)}")
    metric = metric_on(model, metric, clean)
    if metric.compares:
        raise ShapeError(
            f"{metric.name} has no gradient at the clean run, where it is smallest; use edge_effects, which is exact"
        )
    check(model)
    tokens, source = as_pair(model, clean, corrupted, ablation)
    graph = Graph(model.cfg)
    each = torch.full((len(tokens), *graph.mask.shape), torch.nan)
    room = max(1, memory // (2 * len(graph.writers) * tokens.shape[1] * model.cfg.d_model))
    for first in range(0, len(tokens), room):
        rows = slice(first, min(first + room, len(tokens)))
        each[rows] = _scores(model, graph, tokens[rows], source, rows, metric, steps, path, ablation, tokens)
        if progress is not None:
            progress(rows.stop, len(tokens))
    labels = {"writer": graph.writers, "reader": graph.readers}
    values = Labelled(each.mean(0), ("writer", "reader"), labels, f"change of {metric.name}", metric.unit)
    named = f"edge attribution, {ablation} ablation, {steps} step{'s' * (steps > 1)} between {path}"
    return EdgeScores(values, each, named)


def _scores(
    model: Transformer, graph: Graph, tokens: Tensor, source: Tensor | None, rows: slice, metric: Metric, steps: int, path: str,
    ablation: str, everything: Tensor,
) -> Float[Tensor, "batch writer reader"]:  # fmt: skip
    """The scores of some examples."""
    now = written(model, tokens)
    base = ablated(model, ablation, tokens, None if source is None else source[rows], everything)
    value = _value_of(model, metric, everything.shape, rows, tokens.device)
    difference = now.parts - base.parts
    if path == "activations":
        return _by_activations(model, graph, tokens, now, base, difference, value, steps)
    shares = [step / steps for step in range(steps)] if ablation == "resample" else [1.0]
    total: list[Tensor] | None = None
    for share in shares:
        start = base.stream(graph, 0) + share * (now.stream(graph, 0) - base.stream(graph, 0))
        grads = list(_gradients(model, graph, tokens, start, value))
        total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
    assert total is not None
    return _products(graph, difference, [one / len(shares) for one in total])


def _value_of(
    model: Transformer, metric: Metric, shape: torch.Size, rows: slice, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The metric of some examples, from the stream after the last layer."""
    wanted = metric.wanted(*shape)[rows].to(device)
    columns = metric.columns()

    def value(resid: Tensor) -> Tensor:
        at, places = wanted.nonzero(as_tuple=True)
        logits = model.logits_of(resid[at, places], None if columns is None else columns.to(resid.device))
        values = metric.measure(logits, LogitRows(at + rows.start, places))
        out = metric.combine(values.new_zeros(wanted.shape).index_put((at, places), values), wanted)
        return out.nanmean(-1) if out.ndim > 1 else out

    return value


# Gradients at what readers read.


def _gradients(
    model: Transformer, graph: Graph, tokens: Tensor, resid: Tensor, value: Callable[[Tensor], Tensor], layer: int = 0,
    middle: Tensor | None = None,
) -> Iterator[Float[Tensor, "batch pos reader d_model"]]:  # fmt: skip
    """Gradients at what the readers of each layer read, from this layer on, and at the logits' stream.

    The run begins at a layer, from the stream before it, or, with `middle`, from that between its attention and its MLP; the
    readers of a layer that begins in the middle are its MLP alone.
    """
    cfg = model.cfg
    _, stream = embedded(model, tokens)
    nodes: list[Tensor] = []
    reads: list[tuple[int, Tensor, int]] = []  # layer, what its heads read, how many of its nodes come first
    with torch.enable_grad(), weights_held(model):
        resid = resid.detach().requires_grad_()
        for number in range(layer, cfg.n_layers):
            block, before = model.blocks[number], resid
            begun = len(nodes)
            if middle is not None and number == layer:
                resid = middle.detach().requires_grad_()
            else:
                projected = [project_by_head(block, which, read_by(block, which, resid, stream)) for which in "qkv"]
                nodes += projected
                z = attended(block, projected, stream)
                resid = resid + post_norm(block, "ln1_post")(block.attn.output(z))
            reads.append((number, before, begun))
            if not cfg.attn_only:
                inner = before if cfg.parallel_attn_mlp else resid
                inner = inner.view_as(inner)  # a node of its own, apart from the stream that goes on
                nodes.append(inner)
                resid = resid + mlp_writes(block, inner)
        last = resid.view_as(resid)
        nodes.append(last)
        found = torch.autograd.grad(value(last).sum(), nodes, allow_unused=True)
    grads = [torch.zeros_like(node) if one is None else one for node, one in zip(nodes, found, strict=True)]
    for number, before, begun in reads:
        block, columns = model.blocks[number], []
        if middle is None or number != layer:
            columns = [
                _to_stream(block, which, grads[begun + at], before, stream, nodes[begun + at]) for at, which in enumerate("qkv")
            ]
        if not cfg.attn_only:
            columns.append(grads[begun + len(columns)].unsqueeze(2))
        yield torch.cat(columns, 2)
    yield grads[-1].unsqueeze(2)


def _to_stream(block: Any, which: str, grad: Tensor, resid: Tensor, stream: Stream, projected: Tensor) -> Tensor:
    """The gradient of each head's own input, from that of its queries, keys or values, `[batch, pos, head, d_model]`."""
    clip = block.attn.cfg.clip_qkv
    if clip is not None:
        grad = grad.masked_fill(projected.abs() >= clip, 0)
    weight = getattr(block.attn, f"W_{which.upper()}")
    normal = torch.einsum("bphd,hmd->bphm", grad, weight)
    if isinstance(block.ln1, nn.Identity):
        return normal
    with torch.enable_grad():
        own = resid.detach().unsqueeze(2).expand(normal.shape).requires_grad_()
        return torch.autograd.grad(block.ln1(own), own, normal)[0]


def _products(graph: Graph, difference: Tensor, grads: list[Tensor]) -> Float[Tensor, "batch writer reader"]:
    """Each writer's difference times the gradient at each reader, summed over positions."""
    cfg = graph.cfg
    out = torch.full((difference.shape[1], *graph.mask.shape), torch.nan)
    by_example = difference.movedim(1, 0).flatten(2)  # batch, writer, pos × d_model

    def fill(grad: Tensor, done: int, readers: slice) -> None:
        out[:, :done, readers] = (by_example[:, :done] @ grad.movedim(2, 1).flatten(2).mT).cpu()

    for layer, grad in enumerate(grads[:-1]):
        heads = slice(graph.reading(layer, "q").start, graph.reading(layer, "v").stop)
        fill(grad[:, :, : 3 * cfg.n_heads], graph.before(layer), heads)
        if not cfg.attn_only:
            fill(grad[:, :, 3 * cfg.n_heads :], graph.before(layer, mlp=True), slice(heads.stop, heads.stop + 1))
    fill(grads[-1], len(graph.writers), slice(len(graph.readers) - 1, len(graph.readers)))
    return out


def _by_activations(
    model: Transformer, graph: Graph, tokens: Tensor, now: Written, base: Written, difference: Tensor,
    value: Callable[[Tensor], Tensor], steps: int,
) -> Float[Tensor, "batch writer reader"]:  # fmt: skip
    """For the writers of each layer: gradients of the clean run with what they write put between base and clean."""
    cfg = model.cfg
    out = torch.full((len(tokens), *graph.mask.shape), torch.nan)
    for group, layer, inside in _groups(graph):
        shares = [step / steps for step in range(1, steps + 1)]
        total: list[Tensor] | None = None
        for share in shares:
            less = (1 - share) * difference[group].sum(0)
            if inside:
                middle = now.stream(graph, layer, mlp=True) - less
                grads = list(_gradients(model, graph, tokens, now.stream(graph, layer), value, layer, middle))
            else:
                grads = list(_gradients(model, graph, tokens, now.stream(graph, layer) - less, value, layer))
            total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
        assert total is not None
        whole = _padded(graph, total, layer, inside, difference)
        scores = _products(graph, difference, [one / steps for one in whole])
        out[:, group] = scores[:, group]
    return out.masked_fill(~graph.mask, torch.nan) if cfg.n_layers else out


def _groups(graph: Graph) -> Iterator[tuple[slice, int, bool]]:
    """Writers that are taken together, the layer where a run with them changed begins, and whether in its middle."""
    cfg = graph.cfg
    yield slice(0, graph.embeddings), 0, False
    for layer in range(cfg.n_layers):
        within = not cfg.attn_only and not cfg.parallel_attn_mlp
        yield graph.heads(layer), layer if within else layer + 1, within
        if not cfg.attn_only:
            yield slice(graph.mlp(layer), graph.mlp(layer) + 1), layer + 1, False


def _padded(graph: Graph, grads: list[Tensor], layer: int, inside: bool, like: Tensor) -> list[Tensor]:
    """Gradients of all layers, zero where the run has not been."""
    cfg = graph.cfg
    readers = 3 * cfg.n_heads + (not cfg.attn_only)
    batch, pos, width = like.shape[1:]
    zeros = like.new_zeros(batch, pos, readers, width)
    if inside:
        grads = [torch.cat([zeros[:, :, : 3 * cfg.n_heads], grads[0]], 2), *grads[1:]]
    return [zeros] * layer + grads
