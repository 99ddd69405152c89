"""What a sweep will cost, before it runs: floating-point operations, memory, time, and how much is saved.

Only matrix products are counted, as 2 operations per multiplication. The audit is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.model.products import linear
from cutaway.model.transformer import Transformer
from cutaway.runs.metrics import Function, Metric
from cutaway.runs.sweep import task_of
from cutaway.runs.sweep_baseline import check as check_baseline
from cutaway.runs.sweep_baseline import drawn
from cutaway.runs.sweep_cells import Cells, Edits, Grid, bind, bytes_per_token, kept_sites, own_means
from cutaway.runs.sweep_ends import absorbs
from cutaway.runs.sweep_engine import Schedule, Task, schedule
from cutaway.runs.sweep_join import short
from cutaway.runs.sweep_packed import Cell


@dataclass(frozen=True)
class Plan:
    """The cost of a sweep.

    Args:
        cells: how many.
        ways: how many of them join the running batch in the middle of a layer, run packed, or run alone.
        operations: floating-point operations of the sweep and its baseline, their clean runs included.
        full_operations: of a full forward pass for each cell and each random change.
        memory: bytes at the largest, about: what clean runs keep, and running tokens.
        batches: into how many batches the examples are split.
        chunks: how many passes over the layers there are.
        rate: operations per second of a matrix product on this machine, measured; 0: not measured.
        baseline: how many random changes run beside the cells.
    """

    cells: int
    ways: dict[str, int]
    operations: float
    full_operations: float
    memory: int
    batches: int
    chunks: int
    rate: float = 0.0
    baseline: int = 0

    @property
    def saved(self) -> float:
        """How many times fewer operations than full forward passes."""
        return self.full_operations / self.operations

    @property
    def seconds(self) -> float | None:
        """The least time that the operations take at the measured rate; sweeps take a fifth to a third more."""
        return self.operations / self.rate if self.rate else None

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return {**self.__dict__, "saved": self.saved, "seconds": self.seconds}

    def summary(self) -> str:
        """In words."""
        ways = ", ".join(f"{count} {way}" for way, count in self.ways.items() if count)
        random = f" and {self.baseline} random change{'s' * (self.baseline != 1)}" if self.baseline else ""
        lines = [
            f"{self.cells} cell{'s' * (self.cells != 1)} ({ways}){random} in {self.chunks} pass{'es' * (self.chunks != 1)} over "
            f"{self.batches} batch{'es' * (self.batches != 1)}",
            f"{self.operations:.3g} operations, {self.saved:.1f} times fewer than the {self.full_operations:.3g} of full passes",
            f"about {self.memory / 2**20:.0f} MiB beside the weights",
        ]
        if self.seconds is not None:
            lines.append(f"at least {self.seconds:.1f} s at {self.rate / 1e9:.0f} GFLOP/s, the matrix products of this machine")
        return "\n".join(lines)


def plan(
    model: Transformer,
    tokens: Any,
    edits: Grid | Edits | Cells,
    metric: Metric | Function | Callable[[Tensor], Any],
    *,
    mask: Tensor | None = None,
    skip: str = "all",
    memory: int | None = None,
    baseline: int = 0,
    seed: int = 0,
    measure: bool = True,
) -> Plan:
    """Count what `sweep` with the same arguments would cost, without running anything.

    A metric that is a plain function is taken to look at all logits; the sweep finds out whether it looks at fewer.

    Args:
        measure: time a matrix product for the estimate in seconds.
    """
    task = task_of(model, tokens, edits, metric, mask=mask, skip=skip, memory=memory)
    check_baseline(task.cells, baseline)
    speed = rate(model) if measure else 0.0
    own = plan_of(task, schedule(task), speed)
    if not baseline:
        return own
    beside = _baseline_of(task, baseline, seed)
    more = plan_of(beside, schedule(beside), speed)
    return replace(
        own, operations=own.operations + more.operations, full_operations=own.full_operations + more.full_operations,
        memory=max(own.memory, more.memory), chunks=own.chunks + more.chunks, baseline=baseline,
    )  # fmt: skip


def _baseline_of(task: Task, count: int, seed: int) -> Task:
    """The random changes that would run beside a sweep; means over its examples, which nobody knows yet, are taken for 0."""
    means = {site: torch.zeros(()) for site in own_means(task.cells, task.model.cfg)}
    settled = bind(task.model, task.cells, task.batch, task.length, skip=task.skip, means=means)
    return replace(task, cells=drawn(task.cells, settled, count, seed))


def plan_of(task: Task, settled: Schedule, speed: float) -> Plan:
    """The cost of a schedule."""
    costs = _Costs(task)
    cells = settled.cells
    whole = task.batch * (sum(costs.layer(task.length) for _ in range(costs.cfg.n_layers)) + task.length * costs.column)
    clean = task.batch * (costs.cfg.n_layers * costs.layer(task.length) + costs.tail(0))
    wide = _wide(task, settled)
    operations = clean + task.batch * sum(costs.of(cell, narrow=cell.number not in wide) for cell in cells)
    most = max(last - first for first, last in settled.batches)
    running = max(sum(most * (task.length - cell.start) for cell in chunk) for chunk in settled.chunks[0])
    kept = (task.model.cfg.n_layers + 1) * costs.cfg.d_model + costs.cfg.n_layers * 3 * costs.cfg.n_heads * costs.cfg.d_head
    kept += len(kept_sites(task.model, cells)) * costs.cfg.d_model
    size = costs.cfg.torch_dtype.itemsize
    memory = most * task.length * kept * size + running * bytes_per_token(costs.cfg)
    ways = {way: sum(cell.way == way for cell in cells) for way in ("join", "packed", "alone")}
    return Plan(len(cells), ways, operations, whole * len(cells), memory, len(settled.batches), settled.steps, speed)


def _wide(task: Task, settled: Schedule) -> set[int]:
    """Cells that run the last layer at all positions, because of its kind or of edits that are made there as it runs."""
    if task.model.cfg.positional_embedding_type == "alibi":
        return {cell.number for cell in settled.cells}
    last = task.model.cfg.n_layers - 1
    edited = {cell.number for cell in settled.cells if cell.way == "packed" and last in {one.layer for one in cell.bounds}}
    every = (chunk for some in settled.chunks for chunk in some)
    return {cell.number for chunk in every if edited & {one.number for one in chunk} for cell in chunk}


class _Costs:
    """Operations for one example."""

    def __init__(self, task: Task):
        self.task, self.cfg, self.length = task, task.model.cfg, task.length
        cfg = self.cfg
        self.query = 2 * cfg.d_model * cfg.n_heads * cfg.d_head
        self.keys = 4 * cfg.d_model * cfg.kv_heads * cfg.d_head
        self.mlp = 0 if cfg.attn_only else _mlp(cfg)
        self.column = 2 * cfg.d_model * cfg.d_vocab_out
        if isinstance(task.metric, Metric):
            self.wanted = task.metric.wanted(task.batch, task.length)
            columns = task.metric.columns()
            self.read = self.column if columns is None else 2 * cfg.d_model * len(columns)
        else:
            self.wanted, self.read = torch.ones(task.batch, task.length, dtype=torch.bool), self.column
        self.asked = self.wanted.any(0)

    def layer(self, tokens: int, queries: int | None = None) -> float:
        """A whole layer for the last `tokens` positions, with this many queries (None: all)."""
        queries = tokens if queries is None else queries
        seen = self.length - (queries - 1) / 2 if self.cfg.attention_dir == "causal" else self.length
        attention = 4 * self.cfg.n_heads * self.cfg.d_head * seen
        return tokens * self.keys + queries * (2 * self.query + attention + self.mlp)

    def tail(self, start: int) -> float:
        """The logits that the metric reads, from a position on."""
        return float(self.wanted[:, start:].sum()) / len(self.wanted) * self.read

    def of(self, cell: Cell, *, narrow: bool = True) -> float:
        """One cell; `narrow`: the last layer goes on at the positions that the metric reads only."""
        cfg, layers = self.cfg, self.cfg.n_layers
        if cell.way == "alone":
            first = max(cell.layer, 0)
            return (layers - first) * self.layer(self.length) + self.length * self.column
        asked = int(self.asked[cell.start :].sum())
        if not asked and cfg.attention_dir == "causal":
            return 0.0
        tokens = self.length - cell.start
        site = short(cell.bounds[0].site)
        entering = cell.way == "join" and site != "hook_resid_pre"
        after = cell.layer + entering  # the first whole layer
        total = self.tail(cell.start)
        if entering:
            total += self._entry(cell, site, tokens, asked if cell.layer == layers - 1 else tokens)
        for layer in range(after, layers):
            total += self._last(tokens, asked) if narrow and layer == layers - 1 else self.layer(tokens)
        if cell.way == "join" and not entering and cell.layer < layers - 1:
            total -= self._kept(cell, tokens)
        return total

    def _last(self, tokens: int, asked: int) -> float:
        """The last layer, which may take the query to the stream instead of projecting keys and values."""
        whole = self.layer(tokens, asked)
        if not absorbs(self.task.model, self.cfg.n_layers - 1, asked, self.length):
            return whole
        there = asked * (self.keys + 4 * self.cfg.n_heads * self.cfg.d_model * tokens)
        return whole - tokens * self.keys + there

    def _kept(self, cell: Cell, tokens: int) -> float:
        """What a stream edit's own layer saves: queries, keys and values of positions that are as they were."""
        positions = cell.bounds[0].positions
        if positions is None or 2 * len(positions) > tokens or self.cfg.parallel_attn_mlp:
            return 0.0
        return float((tokens - len(positions)) * (self.query + self.keys))

    def _entry(self, cell: Cell, site: str, tokens: int, queries: int) -> float:
        """From the edited site to the end of its layer."""
        bound = cell.bounds[0]
        share = 1.0 if bound.heads is None else len(bound.heads) / self.cfg.n_heads
        changed = min(queries, len(bound.positions) if bound.positions is not None else tokens)
        if site in ("attn.hook_k", "attn.hook_rot_k", "attn.hook_v"):
            changed = queries
        if site == "hook_resid_post":
            return 0.0
        if site in ("hook_mlp_out", "mlp.hook_post"):
            neurons = bound.chosen[-1]
            return 0.0 if neurons is None else 2.0 * changed * len(neurons) * self.cfg.d_model
        mlp = 0 if self.cfg.parallel_attn_mlp else self.mlp
        total = changed * float(mlp)
        if site in ("hook_resid_mid", "hook_attn_out"):
            return total
        total += changed * share * self.query
        if site not in ("attn.hook_z", "attn.hook_result"):
            total += changed * share * 4 * self.cfg.n_heads * self.cfg.d_head * self.length
        return total


def _mlp(cfg: HookedTransformerConfig) -> int:
    """Operations of the MLP for one token."""
    one = 2 * (3 if cfg.gated_mlp else 2) * cfg.d_model * (cfg.d_mlp or 0)
    return one * (cfg.experts_per_token or 1) if cfg.num_experts else one


def rate(model: Transformer, seconds: float = 0.05) -> float:
    """Operations per second of a matrix product of the network's width on its device."""
    weight = model.unembed.W_U
    width, device = model.cfg.d_model, weight.device
    x, w = (
        torch.ones(1024, width, device=device, dtype=weight.dtype),
        torch.ones(width, 4 * width, device=device, dtype=weight.dtype),
    )

    def once() -> float:
        start = time.perf_counter()
        linear(x, w)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with torch.no_grad():
        once()
        times = [once()]
        while sum(times) < seconds:
            times.append(once())
    return 2 * 1024 * width * 4 * width / min(times)
