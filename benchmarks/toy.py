"""The first seed's toy: training steps, labels, cached forwards, ablations and importing, beside TransformerLens 2.18.

Two layers of three heads, width 42, attention only, LayerNorm, 20 positions; the flags that the published model sets
(split inputs, per-head results). Training takes batches of 512 sequences, the rest runs on 1000.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from beside import Arrays, Claim, main

LAYERS, HEADS, WIDTH, HEAD, LENGTH, LETTERS = 2, 3, 42, 14, 20, 10
STEPS = 5  # training steps whose losses and weights are compared
FLAGS = {"use_attn_result": True, "use_split_qkv_input": True, "use_hook_tokens": True}

CLAIMS = [
    Claim("train", "a training step, 512 × 20", at_least=5, tolerance=1e-3),
    Claim("labels", "labels of 20,000 sequences, beside a loop over sequences", at_least=30, tolerance=0),
    Claim("cache", "forward with everything cached, all flags, 1000 × 20", at_least=3),
    Claim("ablations", "24 ablations of heads, queries, keys and values, by position, 1000 × 20", at_least=4, tolerance=1e-4),
    Claim("ablations_lean", "the same, the peer without its flags, at `hook_z`", tolerance=1e-4),
    Claim("forward", "a plain forward, 1000 × 20"),
    Claim("import", "`import cutaway` beside `import torch`", at_most=1.2, baseline="ours", baseline_case="import_torch"),
    Claim("import_class", "importing `HookedTransformer` beside `import torch`", baseline="ours", baseline_case="import_torch"),
    Claim("cache", "peak memory of the cached forward", memory=True),
]  # fmt: skip


def prepare(folder: Path) -> None:
    """Weights, sequences and their answers, which every side reads."""
    random = np.random.default_rng(0)
    vocab = LETTERS + 1

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    weights = {"embed.W_E": normal(vocab, WIDTH, scale=0.5), "pos_embed.W_pos": normal(LENGTH, WIDTH, scale=0.5)}
    for layer in range(LAYERS):
        attn = f"blocks.{layer}.attn."
        for letter in "QKV":
            weights[attn + f"W_{letter}"] = normal(HEADS, WIDTH, HEAD, scale=0.2)
            weights[attn + f"b_{letter}"] = normal(HEADS, HEAD, scale=0.1)
        weights[attn + "W_O"] = normal(HEADS, HEAD, WIDTH, scale=0.2)
        weights[attn + "b_O"] = normal(WIDTH, scale=0.1)
    for norm in ("blocks.0.ln1", "blocks.1.ln1", "ln_final"):
        weights[norm + ".w"] = 1 + normal(WIDTH, scale=0.1)
        weights[norm + ".b"] = normal(WIDTH, scale=0.1)
    weights["unembed.W_U"], weights["unembed.b_U"] = normal(WIDTH, vocab, scale=0.2), normal(vocab, scale=0.1)
    np.savez(folder / "weights.npz", **weights)
    letters = random.integers(0, LETTERS, (20_000, LENGTH - 1))
    np.save(folder / "tokens.npy", np.concatenate([np.full((20_000, 1), LETTERS), letters], 1))


def loop_labels(tokens: list[list[int]]) -> list[list[int]]:
    """The answers, one sequence after another, as a reader of the problem would write it."""
    labels = []
    for sequence in tokens:
        counts: dict[int, int] = {}
        row = [LETTERS]
        for position, token in enumerate(sequence[1:], start=2):
            counts[token] = counts.get(token, 0) + 1
            row.append(next((seen for seen in sequence[1:position] if counts[seen] == 1), LETTERS))
        labels.append(row)
    return labels


def training(model: Any, step: Callable[[], Any], weights: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Arrays]]:
    """A training step as a case: what is compared are losses and weights after the first steps.

    Key biases are left out: attention does not depend on them, so that their gradients, and Adam's steps, are noise.
    """

    def answer() -> Arrays:
        losses = [step().item() for _ in range(STEPS)]
        state = {
            name: tensor.detach().numpy().copy()
            for name, tensor in model.state_dict().items()
            if name in weights and not name.endswith("b_K")
        }
        return {"losses": np.array(losses), **state}

    return step, answer


def edited_places() -> list[tuple[str, int, int]]:
    return [(kind, layer, head) for kind in ("head", "q", "k", "v") for layer in range(LAYERS) for head in range(HEADS)]


def peer(folder: Path) -> dict[str, Any]:
    """TransformerLens 2.18, used as its notebooks use it."""
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    raw = dict(np.load(folder / "weights.npz"))
    tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
    labels = torch.tensor(loop_labels(tokens.tolist()))
    batch, answers, some, some_answers = tokens[:512], labels[:512], tokens[:1000], labels[:1000]

    def build(**flags: bool) -> Any:
        config = HookedTransformerConfig(
            n_layers=LAYERS, n_heads=HEADS, d_model=WIDTH, d_head=HEAD, n_ctx=LENGTH, d_vocab=LETTERS + 1, act_fn="relu",
            attn_only=True, normalization_type="LN", device="cpu", seed=42, **flags,
        )  # fmt: skip
        model = HookedTransformer(config)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in raw.items()}, strict=False)
        return model

    trained = build(**FLAGS)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)

    def step() -> Any:
        optimizer.zero_grad()
        log_probs = trained(batch).log_softmax(-1)
        loss = -log_probs.gather(-1, answers[..., None]).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    model, lean = build(**FLAGS), build()
    everything = build(**FLAGS, use_attn_in=True, use_hook_mlp_in=True)

    def cache() -> Any:
        with torch.no_grad():
            return everything.run_with_cache(some)

    def forward() -> Any:
        with torch.no_grad():
            return model(some)

    def ablate(network: Any, head_site: str) -> np.ndarray:
        def silence(head: int) -> Callable[..., Any]:
            def hook(activation: Any, hook: Any) -> Any:
                activation[:, :, head] = 0
                return activation

            return hook

        def loss_by_position(logits: Any) -> Any:
            return -logits.log_softmax(-1).gather(-1, some_answers[..., None])[..., 0].mean(0)

        rows = []
        with torch.no_grad():
            clean = loss_by_position(network(some))
            for kind, layer, head in edited_places():
                site = head_site if kind == "head" else f"hook_{kind}"
                logits = network.run_with_hooks(some, fwd_hooks=[(f"blocks.{layer}.attn.{site}", silence(head))])
                rows.append((loss_by_position(logits) - clean).numpy())
        return np.stack(rows)

    def as_arrays() -> Arrays:
        logits, kept = cache()
        return {"logits": logits.numpy(), **{name: tensor.numpy() for name, tensor in kept.items()}}

    rows = tokens.tolist()
    return {
        "train": training(trained, step, raw),
        "labels": (lambda: loop_labels(rows), lambda: {"labels": np.array(loop_labels(rows))}),
        "cache": (cache, as_arrays),
        "ablations": (lambda: ablate(model, "hook_result"), lambda: {"loss": ablate(model, "hook_result")}),
        "ablations_lean": (lambda: ablate(lean, "hook_z"), lambda: {"loss": ablate(lean, "hook_z")}),
        "forward": (forward, lambda: {"logits": forward().numpy()}),
    }


def ours(folder: Path) -> dict[str, Any]:
    """Cutaway: the same, and training as `cutaway train` does it."""
    import torch

    from cutaway import HookedTransformer
    from cutaway.runs import metrics
    from cutaway.runs.edits import zero
    from cutaway.runs.sweep import Grid, sweep
    from cutaway.tasks import FirstUniqueChar
    from cutaway.tasks.first_unique_dataset import first_unique
    from cutaway.tasks.task import loss_of

    raw = dict(np.load(folder / "weights.npz"))
    tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
    labels = first_unique(tokens, LETTERS)
    batch, answers, some, some_answers = tokens[:512], labels[:512], tokens[:1000], labels[:1000]

    def build(**flags: bool) -> Any:
        config = FirstUniqueChar.config(seed=42, device="cpu")
        for name, value in (FLAGS | flags).items():
            setattr(config, name, value)
        model = HookedTransformer(config)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in raw.items()})
        return model

    trained = build()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, fused=True)

    def step() -> Any:
        loss = loss_of(trained(batch), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    model, everything = build(), build(use_attn_in=True, use_hook_mlp_in=True)

    def cache() -> Any:
        with torch.no_grad():
            return everything.run_with_cache(some)

    def forward() -> Any:
        with torch.no_grad():
            return model(some)

    metric = metrics.loss(some, some_answers, by_position=True)

    def ablate() -> np.ndarray:
        found = [sweep(model, some, Grid(zero(), site, ("layer", "head")), metric, audit=0).effects for site in "zqkv"]
        return np.concatenate([one.data.mean(-2).flatten(0, 1).numpy() for one in found])

    def as_arrays() -> Arrays:
        logits, kept = cache()
        return {"logits": logits.numpy(), **{name: tensor.numpy() for name, tensor in kept.items()}}

    def run(code: str) -> Callable[[], None]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True) and None

    return {
        "train": training(trained, step, raw),
        "labels": (lambda: first_unique(tokens, LETTERS), lambda: {"labels": first_unique(tokens, LETTERS).numpy()}),
        "cache": (cache, as_arrays),
        "ablations": (ablate, lambda: {"loss": ablate()}),
        "ablations_lean": (ablate, lambda: {"loss": ablate()}),
        "forward": (forward, lambda: {"logits": forward().numpy()}),
        "import": (run("import cutaway"), dict),
        "import_torch": (run("import torch"), dict),
        "import_class": (run("from cutaway import HookedTransformer"), dict),
    }


if __name__ == "__main__":
    main(__file__, CLAIMS, prepare)
