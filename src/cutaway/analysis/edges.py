"""Which edges between components carry a behaviour: edge attribution patching, and the circuits that it finds.

Nodes are the embedding, heads and MLPs; edges go from what a node writes to what a later node reads (a head's queries, keys
and values each by themselves, an MLP, the logits). An edge's score is, to first order, how much the metric changes when the
edge alone carries the clean run's activation into the corrupted run; with integrated gradients the gradient is the mean over
inputs between the two.

A circuit is then run for real: its edges carry what the nodes write now, all others what they write in the corrupted run.
`faithfulness` shows how much of the metric circuits of growing size recover, with random circuits beside them.

Source: Syed et al. 2023 (https://arxiv.org/abs/2310.10348); integrated gradients: Hanna et al. 2024
(https://arxiv.org/abs/2403.17806).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cutaway.analysis.shared import as_tokens, head_names
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ShapeError
from cutaway.model.transformer import Transformer
from cutaway.runs.metrics import Metric
from cutaway.runs.results import Labelled, Result
from cutaway.runs.sweep_gradient import gradients
from cutaway.view import Figure, heat_map, line_chart

READS = ("q", "k", "v")


def writers(cfg: HookedTransformerConfig) -> list[str]:
    """What writes to the stream, in order: the embedding, then heads and MLP of each layer."""
    names = ["embed"]
    for layer in range(cfg.n_layers):
        names += head_names(cfg, [layer]) + ([] if cfg.attn_only else [f"mlp{layer}"])
    return names


def readers(cfg: HookedTransformerConfig) -> list[str]:
    """What reads from it, in order: heads' queries, keys and values and the MLP of each layer, then the logits."""
    names = []
    for layer in range(cfg.n_layers):
        names += [f"{head}.{reads}" for reads in READS for head in head_names(cfg, [layer])]
        names += [] if cfg.attn_only else [f"mlp{layer}"]
    return [*names, "logits"]


def _before(cfg: HookedTransformerConfig, layer: int, *, mlp: bool = False) -> int:
    """How many writers come before what this layer reads."""
    each = cfg.n_heads + (not cfg.attn_only)
    return 1 + layer * each + (cfg.n_heads if mlp and not cfg.parallel_attn_mlp else 0)


def edge_mask(cfg: HookedTransformerConfig) -> Bool[Tensor, "writer reader"]:
    """Which edges there are: from each writer to everything that reads after it."""
    there = torch.zeros(len(writers(cfg)), len(readers(cfg)), dtype=torch.bool)
    for number, name in enumerate(readers(cfg)):
        layer = cfg.n_layers if name == "logits" else int(name.removeprefix("mlp").split(".")[0])
        there[: _before(cfg, layer, mlp=name.startswith("mlp")), number] = True
    return there


@dataclass(frozen=True, eq=False)
class EdgeScores(Result):
    """The score of each edge, `[writer, reader]`, mean over examples; NaN where there is no edge."""

    values: Labelled
    steps: int

    def circuit(self, count: int) -> Bool[Tensor, "writer reader"]:
        """The edges with the largest scores, whatever their sign."""
        return _largest(self.values.data, count)

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
        lines = [f"edge attribution over {self.steps} step{'s' if self.steps > 1 else ''}; the largest of {count} edges:"]
        return "\n".join([*lines, *(f"  {writer} → {reader}: {score:+.4g}" for writer, reader, score in self.top(8))])


def _largest(scores: Tensor, count: int) -> Tensor:
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[scores.flatten().abs().nan_to_num(-1).cpu().argsort(descending=True, stable=True)[:count]] = True
    return chosen.view(scores.shape) & ~scores.isnan().cpu()


def edge_attribution(model: Transformer, clean: Any, corrupted: Any, metric: Metric, *, steps: int = 5) -> EdgeScores:
    """Score every edge by integrated gradients between the corrupted and the clean run (`steps=1`: at the corrupted run).

    Raises:
        ShapeError: prompts of different shapes, or a network that normalises what its blocks write.
    """
    pair = _pair(model, clean, corrupted)
    cfg = model.cfg
    clean_run, corrupted_run = (_written(model, tokens) for tokens in pair)
    difference = clean_run - corrupted_run  # writer, batch, pos, d_model
    sites = _reading_sites(model)
    total = torch.zeros(len(writers(cfg)), len(readers(cfg)), device=difference.device)
    for step in range(steps):
        share = step / steps
        start = corrupted_run[0] + share * difference[0]

        def begin(x: Tensor, hook: Any, start: Tensor = start) -> Tensor:
            return start.clone()

        def value(resid: Tensor) -> Tensor:
            out = metric(model.logits_of(resid))
            return out.nanmean(-1) if out.ndim > 1 else out

        _, grads, _ = gradients(model, pair[1], sites, value, extra=[("blocks.0.hook_resid_pre", begin)])
        total += _products(cfg, difference, grads) / (steps * len(pair[1]))
    total = total.masked_fill(~edge_mask(cfg).to(total.device), torch.nan)
    labels = {"writer": writers(cfg), "reader": readers(cfg)}
    return EdgeScores(Labelled(total, ("writer", "reader"), labels, f"change of {metric.name}", metric.unit), steps)


def _pair(model: Transformer, clean: Any, corrupted: Any) -> tuple[Tensor, Tensor]:
    pair = as_tokens(model, clean), as_tokens(model, corrupted)
    if pair[0].shape != pair[1].shape:
        raise ShapeError(f"clean and corrupted prompts need one shape, not {tuple(pair[0].shape)} and {tuple(pair[1].shape)}")
    if any(not isinstance(block.ln1_post, nn.Identity) for block in model.blocks):
        raise ShapeError("edges need blocks that write to the stream as they are; this network normalises what they write")
    if model.cfg.kv_heads != model.cfg.n_heads and not model.cfg.ungroup_grouped_query_attention:
        raise ShapeError("heads share keys and values here; call set_ungroup_grouped_query_attention(True) to tell them apart")
    return pair


def _reading_sites(model: Transformer) -> list[str]:
    cfg = model.cfg
    names = []
    for layer in range(cfg.n_layers):
        names += [f"blocks.{layer}.hook_{reads}_input" for reads in READS]
        names += [] if cfg.attn_only else [f"blocks.{layer}.hook_mlp_in"]
    return [*names, f"blocks.{cfg.n_layers - 1}.hook_resid_post"]


@torch.no_grad()
def _written(model: Transformer, tokens: Tensor) -> Float[Tensor, "writer batch pos d_model"]:
    """What every writer adds to the stream."""
    cfg = model.cfg
    sites = ["blocks.0.hook_resid_pre"]
    for layer in range(cfg.n_layers):
        sites += [f"blocks.{layer}.attn.hook_z"] + ([] if cfg.attn_only else [f"blocks.{layer}.hook_mlp_out"])
    store: Any = model.run_with_cache(tokens, names_filter=sites, return_type=None)[1]
    parts = [store[sites[0]][None]]
    for layer in range(cfg.n_layers):
        z = store[f"blocks.{layer}.attn.hook_z"]
        parts.append(model.blocks[layer].attn.results(z).movedim(2, 0))
        parts += [] if cfg.attn_only else [store[f"blocks.{layer}.hook_mlp_out"][None]]
    return torch.cat(parts)


def _products(cfg: HookedTransformerConfig, difference: Tensor, grads: dict[str, Tensor]) -> Tensor:
    """Each writer's difference times the gradient at each reader, summed."""
    columns = []
    for layer in range(cfg.n_layers):
        for reads in READS:
            columns.append(torch.einsum("wbpm,bphm->wh", difference, grads[f"blocks.{layer}.hook_{reads}_input"]))
        if not cfg.attn_only:
            columns.append(torch.einsum("wbpm,bpm->w", difference, grads[f"blocks.{layer}.hook_mlp_in"])[:, None])
    last = grads[f"blocks.{cfg.n_layers - 1}.hook_resid_post"]
    columns.append(torch.einsum("wbpm,bpm->w", difference, last)[:, None])
    return torch.cat(columns, 1)


# Running a circuit.


@torch.no_grad()
def run_circuit(
    model: Transformer, clean: Any, corrupted: Any, circuit: Bool[Tensor, "writer reader"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the clean prompts where only the circuit's edges carry what is written now, all others the corrupted run's."""
    pair = _pair(model, clean, corrupted)
    return _circuit_logits(model, pair[0], _written(model, pair[1]), circuit)


def _circuit_logits(model: Transformer, clean: Tensor, base: Tensor, circuit: Tensor) -> Tensor:
    """The same, with what every writer adds in the corrupted run."""
    cfg = model.cfg
    wanted = (circuit & edge_mask(cfg)).to(base)
    column = {name: number for number, name in enumerate(readers(cfg))}
    written = torch.zeros_like(base)  # now minus corrupted, by writer, as far as the run has come
    each = cfg.n_heads + (not cfg.attn_only)
    biases = [model.blocks[layer].attn.b_O for layer in range(cfg.n_layers)]

    def stream(layer: int, mlp: bool = False) -> Tensor:
        """The corrupted run's stream where this layer reads."""
        done = _before(cfg, layer, mlp=mlp)
        return base[:done].sum(0) + sum(biases[: layer + (mlp and not cfg.parallel_attn_mlp)])

    def read_heads(reads: str, layer: int) -> Callable[..., Tensor]:
        columns = [column[f"{layer}.{head}.{reads}"] for head in range(cfg.n_heads)]

        def hook(x: Tensor, hook: Any) -> Tensor:
            return stream(layer)[:, :, None] + torch.einsum("wh,wbpm->bphm", wanted[:, columns], written)

        return hook

    def read_one(name: str, layer: int, mlp: bool) -> Callable[..., Tensor]:
        def hook(x: Tensor, hook: Any) -> Tensor:
            return stream(layer, mlp) + torch.einsum("w,wbpm->bpm", wanted[:, column[name]], written)

        return hook

    def write(first: int, outputs: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        def hook(x: Tensor, hook: Any) -> None:
            now = outputs(x)
            written[first : first + len(now)] = now - base[first : first + len(now)]

        return hook

    def heads_of(layer: int) -> Callable[[Tensor], Tensor]:
        return lambda z: model.blocks[layer].attn.results(z).movedim(2, 0)

    hooks: list[tuple[str, Any]] = [("blocks.0.hook_resid_pre", write(0, lambda x: x[None]))]
    for layer in range(cfg.n_layers):
        block = f"blocks.{layer}."
        hooks += [(f"{block}hook_{reads}_input", read_heads(reads, layer)) for reads in READS]
        hooks.append((f"{block}attn.hook_z", write(1 + layer * each, heads_of(layer))))
        if not cfg.attn_only:
            hooks.append((f"{block}hook_mlp_in", read_one(f"mlp{layer}", layer, True)))
            hooks.append((f"{block}hook_mlp_out", write(1 + layer * each + cfg.n_heads, lambda x: x[None])))
    hooks.append((f"blocks.{cfg.n_layers - 1}.hook_resid_post", read_one("logits", cfg.n_layers, False)))
    logits: Tensor = model.run_with_hooks(clean, fwd_hooks=hooks)
    return logits


@dataclass(frozen=True, eq=False)
class Faithfulness(Result):
    """How much circuits of growing size recover, 0 = corrupted run and 1 = clean run.

    Args:
        values: `[curve, size]`: `faithful` (the circuit alone), `without` (everything but the circuit: complete circuits
            leave nothing), and `random` (circuits of as many edges drawn at random, mean).
        sizes: how many edges.
        clean, corrupted: the metric of the two runs.
    """

    values: Labelled
    sizes: tuple[int, ...]
    clean: float
    corrupted: float

    def figure(self) -> Figure:
        """The curves."""
        series = {name: self.values.sel(curve=name).data for name in self.values.names("curve")}
        said = "recovered, 0 = corrupted and 1 = clean"
        return line_chart(series, x=list(self.sizes), x_name="edges", y_name=said, title="what circuits recover")

    def summary(self) -> str:
        lines = [
            f"clean {self.clean:.4g}, corrupted {self.corrupted:.4g}; share recovered by the circuit, without it, by random ones"
        ]
        for at, size in enumerate(self.sizes):
            circuit, without, random = (float(self.values.sel(curve=name).data[at]) for name in self.values.names("curve"))
            lines.append(f"  {size} edges: {circuit:.2f}, {without:.2f}, {random:.2f}")
        return "\n".join(lines)


def faithfulness(
    model: Transformer, clean: Any, corrupted: Any, metric: Metric, scores: EdgeScores, *, sizes: Sequence[int] | None = None,
    draws: int = 3, seed: int = 0,
) -> Faithfulness:  # fmt: skip
    """Run the circuits of the largest scores, their complements, and random circuits of the same sizes.

    Args:
        sizes: numbers of edges; None: 0, then doubling up to all.
        draws: how many random circuits of each size.
    """
    pair = _pair(model, clean, corrupted)
    there = edge_mask(model.cfg)
    every = int(there.sum())
    if sizes is None:
        sizes = [0, *(2**power for power in range(2, every.bit_length()) if 2**power < every), every]
    base = _written(model, pair[1])
    generator = torch.Generator().manual_seed(seed)

    def measured(circuit: Tensor) -> float:
        with torch.no_grad():
            return float(metric(_circuit_logits(model, pair[0], base, circuit)).double().nanmean())

    with torch.no_grad():
        ends = [float(metric(model(tokens)).double().nanmean()) for tokens in pair]
    if ends[0] == ends[1]:
        raise ShapeError(f"clean and corrupted prompts have the same {metric.name}, {ends[0]:g}; there is nothing to recover")
    rows: list[list[float]] = [[], [], []]
    for size in sizes:
        circuit = scores.circuit(size)
        random = [
            _largest(torch.rand(there.shape, generator=generator).masked_fill(~there, torch.nan), size) for _ in range(draws)
        ]
        rows[0].append(measured(circuit))
        rows[1].append(measured(there & ~circuit))
        rows[2].append(sum(map(measured, random)) / draws)
    values = (torch.tensor(rows, dtype=torch.float64) - ends[1]) / (ends[0] - ends[1])
    labels = {"curve": ["faithful", "without", "random"], "size": list(map(str, sizes))}
    return Faithfulness(Labelled(values, ("curve", "size"), labels, "recovered"), tuple(sizes), *ends)
