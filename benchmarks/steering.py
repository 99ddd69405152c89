"""Steered generation beside plain generation, and beside TransformerLens 2.18 with a hook that adds the vector.

GPT-2 small's shapes with random weights, a batch of 8, 32 greedy tokens after 16, the residual stream before layer 6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import gpt2_small
from beside import Claim, main

LAYER, STRENGTH = 6, 2.0

CLAIMS = [
    Claim("steered", "steered generation (8 × 16 + 32 tokens) beside our own without steering", at_most=1.05,
          baseline="ours", baseline_case="plain"),
    Claim("pair", "the same, a vector for the first 5 positions", at_most=1.05, baseline="ours", baseline_case="plain"),
    Claim("steered", "steered generation beside the peer with a hook", at_least=1.2, tolerance=0),
]  # fmt: skip


def prepare(folder: Path) -> None:
    """The model and the prompts of `gpt2_small`, and a vector that is long enough to change what is said."""
    gpt2_small.prepare(folder)
    random = np.random.default_rng(1)
    np.save(folder / "vector.npy", 2 * random.standard_normal((1, gpt2_small.WIDTH), dtype=np.float32))
    np.save(folder / "vectors.npy", 2 * random.standard_normal((5, gpt2_small.WIDTH), dtype=np.float32))


def peer(folder: Path) -> dict[str, Any]:
    """TransformerLens 2.18."""
    import os

    os.environ["HF_HUB_CACHE"] = str(folder / "hub")
    import torch
    from transformer_lens import HookedTransformer

    torch.set_grad_enabled(False)
    model = HookedTransformer.from_pretrained("gpt2")
    prompts = torch.from_numpy(np.load(folder / "prompts.npy"))
    vector = torch.from_numpy(np.load(folder / "vector.npy"))[0]

    def steered() -> Any:
        with model.hooks([(f"blocks.{LAYER}.hook_resid_pre", lambda resid, hook: resid + STRENGTH * vector)]):
            return model.generate(prompts, max_new_tokens=gpt2_small.NEW, do_sample=False, stop_at_eos=False, verbose=False)

    return {"steered": (steered, lambda: {"tokens": steered().numpy()})}


def ours(folder: Path) -> dict[str, Any]:
    """Cutaway."""
    import torch

    from cutaway import HookedTransformer
    from cutaway.analysis.steering import Steer, SteeringVector, steer
    from cutaway.runs.hashes import model_hash

    torch.set_grad_enabled(False)
    model = HookedTransformer.from_pretrained(str(gpt2_small.snapshot(folder)))
    prompts = torch.from_numpy(np.load(folder / "prompts.npy"))

    def plain() -> Any:
        return model.generate(prompts, max_new_tokens=gpt2_small.NEW, do_sample=False, stop_at_eos=False, verbose=False)

    def applied(file: str) -> Any:
        values = torch.from_numpy(np.load(folder / file))
        front = len(values) > 1
        vector = SteeringVector(
            values, LAYER, "resid_pre", "pair" if front else "mean", front, ("a",), ("b",), "given", model_hash(model)
        )

        def steered() -> Any:
            with steer(model, Steer(vector, STRENGTH)):
                return plain()

        return steered

    steered, pair = applied("vector.npy"), applied("vectors.npy")
    assert not torch.equal(steered(), plain()) and not torch.equal(pair(), plain())
    return {"plain": (plain, dict), "pair": (pair, dict), "steered": (steered, lambda: {"tokens": steered().numpy()})}


if __name__ == "__main__":
    main(__file__, CLAIMS, prepare, rounds=7, seconds=1.0)
