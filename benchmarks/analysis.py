"""Questions asked of a run, on GPT-2 small's shapes with random weights: 144 heads × 1024 tokens.

`plain` is what the notebooks do in this environment: a condition asked pair by pair, then a mean for each head; every
result of every head for a logit lens; all logits at once for ranks and probabilities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from beside import Arrays, Claim, main
from gpt2_small import HEADS, LAYERS, prepare, snapshot

CLAIMS = [
    Claim("detect", "six kinds of attention of 144 heads × 1024 tokens, of a kept run, beside a forward pass", at_most=1,
          baseline="ours", baseline_case="forward"),
    Claim("detect", "the same, beside conditions asked pair by pair", at_least=1, baseline="plain"),
    Claim("copy", "copying scores of 144 heads, beside factored matrices of the whole vocabulary", at_least=1, baseline="plain",
          tolerance=1e-3, rounds=3),
    Claim("read", "loss, probability and rank of 1024 tokens, beside all logits at once", baseline="plain", tolerance=1e-4),
    Claim("read", "extra memory of that", baseline="plain", tolerance=1e-4, memory=True),
]  # fmt: skip


def model_and_run(folder: Path) -> tuple[Any, Any, Any]:
    """The model, a long text, and its kept patterns."""
    import torch

    from cutaway import HookedTransformer

    torch.set_grad_enabled(False)
    model = HookedTransformer.from_pretrained(str(snapshot(folder)))
    tokens = torch.from_numpy(np.load(folder / "long.npy"))
    tokens[:, 512:] = tokens[:, :512]
    _, kept = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("pattern"))
    return model, tokens, kept


def ours(folder: Path) -> dict[str, Any]:
    """Cutaway."""
    from cutaway.analysis.head_composition import copying
    from cutaway.analysis.heads import head_scores
    from cutaway.analysis.predictions import predict

    model, tokens, kept = model_and_run(folder)

    def detected() -> Arrays:
        return {"scores": head_scores(kept, tokens).mean.data.numpy()}

    def facts() -> Arrays:
        found = predict(model, tokens)
        return {"loss": found.values.data[:, :-1].numpy(), "rank": found.rank.data[:, :-1].numpy()}

    return {
        "forward": (lambda: model(tokens), dict),
        "detect": (lambda: head_scores(kept, tokens), detected),
        "copy": (lambda: copying(model), lambda: {"copying": copying(model).values.data.numpy()}),
        "read": (lambda: predict(model, tokens), facts),
    }


def plain(folder: Path) -> dict[str, Any]:
    """Loops, and everything at once."""
    import torch

    model, tokens, kept = model_and_run(folder)
    row = tokens[0].tolist()

    def detect() -> Any:
        last: dict[int, int] = {}
        before: dict[int, int] = {}
        for position, token in enumerate(row):
            if token in last:
                before[position] = last[token]
            last[token] = position
        conditions = [
            lambda q, k: q == k,
            lambda q, k: q == k + 1,
            lambda q, k: k == 0,
            lambda q, k: k < q and row[q] == row[k],
            lambda q, k: q in before and before[q] == k,
            lambda q, k: q in before and before[q] + 1 == k,
        ]
        found = []
        for condition in conditions:
            mask = torch.tensor([[condition(q, k) for k in range(len(row))] for q in range(len(row))])
            found.append(
                [float(kept["pattern", layer][0, head][mask].mean()) for layer in range(LAYERS) for head in range(HEADS)]
            )
        return np.array(found, dtype=np.float32)

    def copy() -> Any:
        found = []
        for layer in range(LAYERS):
            whole = model.W_E @ model.OV[layer] @ model.W_U
            eigenvalues = whole.eigenvalues
            found.append(eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1))
        return torch.cat(found)

    def read() -> Any:
        logits = model(tokens)
        chances = logits.log_softmax(-1)[:, :-1]
        own = chances.gather(-1, tokens[:, 1:, None])
        order = chances.argsort(-1, descending=True)
        return -own[..., 0], (order == tokens[:, 1:, None]).int().argmax(-1)

    return {
        "detect": (detect, lambda: {"scores": detect()}),
        "copy": (copy, lambda: {"copying": copy().numpy()}),
        "read": (read, lambda: dict(zip(("loss", "rank"), (part.numpy() for part in read()), strict=True))),
    }


if __name__ == "__main__":
    main(__file__, CLAIMS, prepare, rounds=3, seconds=1.0)
