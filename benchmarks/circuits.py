"""Scores of all edges beside the published way of computing them; exact effects of edges beside a loop of full passes.

Run: python benchmarks/circuits.py. Times are processor times; both sides give the same numbers.

The published way of EAP-IG (Hanna et al. 2024) gives each head inputs of its own, runs forward and backward with hooks for every
step, and multiplies at every hook of every step. Both run on the same network, one of ours with grouped keys, eight layers in
SmolLM2's proportions, random weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cutaway import HookedTransformer, HookedTransformerConfig, edge_attribution, edge_effects, metrics
from cutaway.circuits.graph import Graph

STEPS, BATCH, LENGTH, LAYERS = 5, 8, 16, 8
PLACE = 10  # where minimal pairs differ: in sentences about indirect objects, the second mention of the subject


def network() -> HookedTransformer:
    """Eight layers, nine heads of 64, three groups of keys, a gated MLP, rotary positions."""
    cfg = HookedTransformerConfig(
        n_layers=LAYERS, d_model=576, n_ctx=64, d_head=64, n_heads=9, n_key_value_heads=3, d_mlp=1536, act_fn="silu",
        gated_mlp=True, normalization_type="RMS", positional_embedding_type="rotary", d_vocab=2000, device="cpu", seed=0,
    )  # fmt: skip
    return HookedTransformer(cfg).eval()


def published(model: HookedTransformer, clean: Tensor, corrupted: Tensor, metric: Any) -> Tensor:
    """Scores `[writer, reader]` by hooks on split inputs."""
    graph = Graph(model.cfg)
    model.set_ungroup_grouped_query_attention(True)
    model.set_use_split_qkv_input(True)
    model.set_use_attn_result(True)
    model.set_use_hook_mlp_in(True)
    writers = {"hook_embed": slice(0, 1)}
    readers: dict[str, tuple[slice, int]] = {}
    for layer in range(model.cfg.n_layers):
        block = f"blocks.{layer}."
        writers[f"{block}attn.hook_result"], writers[f"{block}hook_mlp_out"] = (
            graph.heads(layer),
            slice(graph.mlp(layer), graph.mlp(layer) + 1),
        )
        for which in "qkv":
            readers[f"{block}hook_{which}_input"] = graph.reading(layer, which), graph.before(layer)
        at = graph.mlp_reading(layer)
        readers[f"{block}hook_mlp_in"] = slice(at, at + 1), graph.before(layer, mlp=True)
    readers[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"] = slice(-1, None), len(graph.writers)
    difference = torch.zeros(*clean.shape, len(graph.writers), model.cfg.d_model)
    scores = torch.zeros(graph.mask.shape)

    def add(sign: float) -> list[tuple[str, Callable[..., None]]]:
        def keep(x: Tensor, hook: Any) -> None:
            difference[:, :, writers[hook.name]] += sign * (x if x.ndim == 4 else x.unsqueeze(2))

        return [(name, keep) for name in writers]

    def back(grad: Tensor, hook: Any) -> None:
        columns, done = readers[hook.name]
        grad = grad if grad.ndim == 4 else grad.unsqueeze(2)
        scores[:done, columns] += torch.einsum("bpwm,bprm->wr", difference[:, :, :done], grad) / STEPS / len(clean)

    with torch.no_grad():
        model.run_with_hooks(clean, fwd_hooks=add(1.0))
        model.run_with_hooks(corrupted, fwd_hooks=add(-1.0))
        start = [model.embed(tokens) for tokens in (corrupted, clean)]
    for step in range(STEPS):

        def begin(x: Tensor, hook: Any, share: float = step / STEPS) -> Tensor:
            return (start[0] + share * (start[1] - start[0])).requires_grad_()

        with model.hooks(fwd_hooks=[("hook_embed", begin)], bwd_hooks=[(name, back) for name in readers]):
            metric(model(corrupted)).sum().backward()
        model.zero_grad()
    return scores


def timed(call: Callable[[], Any], repeats: int = 2) -> tuple[Any, float]:
    """What it gives, and the least processor time."""
    best, out = float("inf"), None
    for _ in range(repeats):
        begun = time.process_time()
        out = call()
        best = min(best, time.process_time() - begun)
    return out, best


def compare(model: HookedTransformer, clean: Tensor, corrupted: Tensor, what: str) -> None:
    """Scores of all edges both ways."""
    metric = metrics.logit_difference([1] * BATCH, [2] * BATCH)
    ours, own = timed(lambda: edge_attribution(model, clean, corrupted, metric, steps=STEPS), 3)
    theirs, other = timed(lambda: published(model, clean, corrupted, metric))
    there = Graph(model.cfg).mask
    apart = float((ours.values.data - theirs)[there].abs().max())
    largest = float(ours.values.data[there].abs().max())
    assert apart < 1e-3 * largest, apart
    print(f"{what}, {int(there.sum())} edges, {STEPS} steps: {own:.2f} s")
    print(f"  with hooks on split inputs {other:.2f} s: {other / own:.1f} times")
    print(f"  largest difference {apart:.1e} of scores up to {largest:.2g}")


def exact(model: HookedTransformer, clean: Tensor, corrupted: Tensor) -> None:
    """Exact effects beside a loop of full passes, one for each edge."""
    graph, metric = Graph(model.cfg), metrics.logit_difference([1] * BATCH, [2] * BATCH)
    _, one = timed(lambda: metric(model.run_with_hooks(clean, fwd_hooks=[("blocks.3.hook_mlp_out", lambda x, hook: x)])), 5)
    some = graph.mask & (torch.rand(graph.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.05)
    near = torch.zeros_like(graph.mask)
    near[:, graph.reading(LAYERS - 1, "q").start :] = True
    for words, chosen, how in (
        ("edges (all), the rest frozen", graph.mask, "frozen"),
        ("edges into the last layer, everything after recomputed", near & graph.mask, "recomputed"),
        ("edges drawn from all, everything after recomputed", some, "recomputed"),
    ):
        found, own = timed(partial(edge_effects, model, clean, corrupted, metric, edges=chosen, downstream=how), 1)
        count = int(chosen.sum())
        print(f"{count} {words}: {own:.2f} s; a loop of full passes {one * count:.1f} s: {one * count / own:.0f} times")
        print(f"  {found.audit}")


def main() -> None:
    """Print both comparisons."""
    model = network()
    draw = torch.Generator().manual_seed(0)
    clean, other = torch.randint(0, 2000, (2, BATCH, LENGTH), generator=draw)
    late = clean.clone()
    late[:, PLACE] = other[:, PLACE]
    compare(model, clean, late, f"prompts that differ in token {PLACE} of {LENGTH}")
    compare(model, clean, other, "prompts that differ in every token")
    exact(model, clean, late)


if __name__ == "__main__":
    main()
