"""Whole sweeps on GPT-2 small's shapes and on the first seed's toy, beside TransformerLens 2.18.

The peer runs its `patching` functions, and a loop of `run_with_hooks` for ablations: a full forward pass for each cell.
Ours recompute what each edit reaches. One round takes minutes, nearly all of them the peer's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gpt2_small
import toy
from beside import Claim, main

CLAIMS = [
    Claim("toy", "6 heads × q, k, v, z, zero and mean, by position, 1000 × 20", at_least=6, tolerance=1e-4, rounds=3),
    Claim("residual", "residual stream, 12 layers × 16 positions, batch 8, logit difference", at_least=7, tolerance=1e-4),
    Claim("residual_function", "the same by `patching.get_act_patch_resid_pre` with a plain function as the metric", at_least=7,
          baseline_case="residual", tolerance=1e-4),
    Claim("screen", "the same, screened by gradients, then 10 cells exactly", at_least=25, baseline_case="residual",
          tolerance=1e-4),
    Claim("heads", "144 heads at all positions, batch 8 × 16, logit difference", at_least=4.5, tolerance=1e-4),
    Claim("heads_function", "the same by `patching.get_act_patch_attn_head_out_all_pos` with a plain function", at_least=4.5,
          baseline_case="heads", tolerance=1e-4),
    Claim("loss", "144 heads set to zero, next-token loss on 8 × 64", at_least=1.6, tolerance=1e-4),
    Claim("residual", "the residual sweep beside the bare matrix products that its plan counts (1.33: three quarters)",
          at_most=1.33,
          baseline="ours", baseline_case="residual_floor"),
    Claim("heads", "the sweep over heads beside the bare matrix products that its plan counts", at_most=1.33, baseline="ours",
          baseline_case="heads_floor"),
    Claim("toy", "peak memory of the toy's sweeps", at_least=1, tolerance=1e-4, memory=True, rounds=3),
    Claim("residual", "peak memory of the residual sweep", at_least=1, tolerance=1e-4, memory=True),
    Claim("screen", "peak memory of the screen, beside the peer's whole sweep", at_least=1, baseline_case="residual",
          tolerance=1e-4, memory=True),
    Claim("heads", "peak memory of the sweep over heads", at_least=1, tolerance=1e-4, memory=True),
    Claim("loss", "peak memory of the sweep with the loss", at_least=1, tolerance=1e-4, memory=True),
]  # fmt: skip


def prepare(folder: Path) -> None:
    """The inputs of both other benchmarks, and prompts with answers."""
    gpt2_small.prepare(folder)
    toy.prepare(folder)
    random = np.random.default_rng(1)
    np.save(folder / "clean.npy", random.integers(0, gpt2_small.VOCAB - 1, (8, 16)))
    np.save(folder / "corrupted.npy", random.integers(0, gpt2_small.VOCAB - 1, (8, 16)))
    np.save(folder / "answers.npy", random.integers(0, gpt2_small.VOCAB - 1, (2, 8)))


def inputs(folder: Path) -> Any:
    """Clean and corrupted prompts, right and wrong answers, and a text, as tensors."""
    import torch

    clean, corrupted, answers, short = (
        torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("clean", "corrupted", "answers", "short")
    )
    return clean, corrupted, *answers, short


def compared(run: Callable[[], Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    return run, lambda: {"table": run().numpy()}


def peer(folder: Path) -> dict[str, Any]:
    """TransformerLens 2.18."""
    os.environ["HF_HUB_CACHE"] = str(folder / "hub")
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig, patching

    torch.set_grad_enabled(False)
    clean, corrupted, right, wrong, short = inputs(folder)
    model = HookedTransformer.from_pretrained("gpt2")
    _, kept = model.run_with_cache(clean)
    rows = torch.arange(len(clean))

    def difference(logits: Any) -> Any:
        return (logits[rows, -1, right] - logits[rows, -1, wrong]).mean()

    def without(head: int, instead: Callable[[Any], Any], z: Any, hook: Any) -> Any:
        z[:, :, head] = instead(z[:, :, head])
        return z

    def zero(x: Any) -> Any:
        return torch.zeros_like(x)

    def mean(x: Any) -> Any:
        return x.mean(0, keepdim=True).expand_as(x)

    def loss() -> Any:
        table = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
        for layer in range(model.cfg.n_layers):
            for head in range(model.cfg.n_heads):
                hooks = [(f"blocks.{layer}.attn.hook_z", partial(without, head, zero))]
                table[layer, head] = model.run_with_hooks(short, return_type="loss", fwd_hooks=hooks)
        return table

    config = HookedTransformerConfig(
        n_layers=toy.LAYERS, n_heads=toy.HEADS, d_model=toy.WIDTH, d_head=toy.HEAD, n_ctx=toy.LENGTH, d_vocab=toy.LETTERS + 1,
        act_fn="relu", attn_only=True, normalization_type="LN", device="cpu", **toy.FLAGS,
    )  # fmt: skip
    small = HookedTransformer(config)
    small.load_state_dict({name: torch.from_numpy(x) for name, x in np.load(folder / "weights.npz").items()}, strict=False)
    some = torch.from_numpy(np.load(folder / "tokens.npy"))[:1000]
    labels = torch.tensor(toy.loop_labels(some.tolist()))

    def ablations() -> Any:
        table = []
        for instead in (zero, mean):
            for site in "qkvz":
                for layer in range(toy.LAYERS):
                    for head in range(toy.HEADS):
                        hooks = [(f"blocks.{layer}.attn.hook_{site}", partial(without, head, instead))]
                        logits = small.run_with_hooks(some, fwd_hooks=hooks)
                        table.append(-logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0].mean(0))
        return torch.stack(table)

    return {
        "residual": compared(lambda: patching.get_act_patch_resid_pre(model, corrupted, kept, difference)),
        "heads": compared(lambda: patching.get_act_patch_attn_head_out_all_pos(model, corrupted, kept, difference)),
        "loss": compared(loss),
        "toy": compared(ablations),
    }


def ours(folder: Path) -> dict[str, Any]:
    """Cutaway."""
    import torch

    from cutaway import HookedTransformer
    from cutaway.analysis import patching
    from cutaway.model.products import linear
    from cutaway.runs import metrics
    from cutaway.runs.edits import mean, patch, zero
    from cutaway.runs.sweep import heads, residual, sweep
    from cutaway.runs.sweep.planning import plan
    from cutaway.tasks import FirstUniqueChar
    from cutaway.tasks.first_unique_dataset import first_unique

    torch.set_grad_enabled(False)
    clean, corrupted, right, wrong, short = inputs(folder)
    model = HookedTransformer.from_pretrained(gpt2_small.snapshot(folder))
    _, kept = model.run_with_cache(clean)
    difference = metrics.logit_difference(right, wrong)
    small = HookedTransformer(FirstUniqueChar.config(seed=None, device="cpu"))
    small.load_state_dict({name: torch.from_numpy(x) for name, x in np.load(folder / "weights.npz").items()})
    some = torch.from_numpy(np.load(folder / "tokens.npy"))[:1000]
    by_position = metrics.loss(some, first_unique(some, toy.LETTERS), by_position=True)

    def ablations() -> Any:
        found = [sweep(small, some, heads(change, site), by_position, audit=0) for change in (zero(), mean()) for site in "qkvz"]
        return torch.cat([one.values.data.mean(-2).flatten(0, 1) for one in found])

    rows = torch.arange(len(clean))

    def function(logits: Any) -> Any:
        return (logits[rows, -1, right] - logits[rows, -1, wrong]).mean()

    def swept(grid: Any, tokens: Any, metric: Any, **how: Any) -> Any:
        return sweep(model, tokens, grid, metric, audit=0, **how)

    def screened() -> Any:
        """The table of the exact sweep, with the cells that the screen computed exactly in their place."""
        table = swept(residual(patch(kept)), corrupted, difference).table()
        found = swept(residual(patch(kept)), corrupted, difference, method="screen", top=10)
        cells = list(found.exact)
        table.view(-1)[cells] = found.table().flatten()[cells]
        return {"table": table.numpy()}

    def products(grid: Any) -> Callable[[], None]:
        """As many operations as the plan of a sweep counts, in products of 1024 tokens with one layer's weights."""
        operations = plan(model, corrupted, grid, difference, measure=False).operations
        x, weight = torch.ones(1024, gpt2_small.WIDTH), model.blocks[0].mlp.W_in
        times = round(operations / (2 * x.numel() * weight.shape[1]))

        def run() -> None:
            for _ in range(times):
                linear(x, weight)

        return run

    stream, every_head = residual(patch(kept)), heads(patch(kept))
    return {
        "residual": compared(lambda: swept(stream, corrupted, difference).table()),
        "residual_function": compared(lambda: patching.get_act_patch_resid_pre(model, corrupted, kept, function)),
        "residual_floor": (products(stream), dict),
        "screen": (lambda: swept(stream, corrupted, difference, method="screen", top=10), screened),
        "heads": compared(lambda: swept(every_head, corrupted, difference).table()),
        "heads_function": compared(lambda: patching.get_act_patch_attn_head_out_all_pos(model, corrupted, kept, function)),
        "heads_floor": (products(every_head), dict),
        "loss": compared(lambda: swept(heads(zero()), short, metrics.loss(short)).table()),
        "toy": compared(ablations),
    }


if __name__ == "__main__":
    main(__file__, CLAIMS, prepare, rounds=1, seconds=0.1)
