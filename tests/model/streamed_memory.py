"""A process that collects from a streamed model and sweeps over it, and says how much memory that took beyond an empty process's.

Run as `streamed_memory.py MODEL LIMIT BESIDE`: bytes of weights in memory, and bytes for the sweep.
A small model goes the same way first, so that what imports take is there before anything is measured.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from cutaway import edits, loading, metrics, sweep
from cutaway.collect import collect
from cutaway.model import kernels
from cutaway.runs.model_source import load

TEXTS = [f"The house of a sailor stood at the end of the long road for {number} years." for number in "abcdefghijklmnopqrst"]


def resident(peak: bool = False) -> int:
    """Bytes of this process in memory: now, or at most since `forget`."""
    wanted = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(wanted))


def forget() -> None:
    """Begin to look for a peak."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def work(name: str, stream: int | None, beside: int) -> dict[str, Any]:
    """Collect and sweep; what came of it."""
    forget()
    model = load(name, "float32", "cpu", stream)
    last = f"resid_post{model.cfg.n_layers - 1}"
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"text": text.lower()}) + "\n" for text in TEXTS), encoding="utf-8")
        done = collect(model, corpus, [last], Path(folder) / "out", length=64, batch=256)
    tokens = model.tokens_and_mask("the house of a sailor", None, None)[0]
    cells = [edits.Edit(("z", layer), edits.zero(), heads=0) for layer in range(model.cfg.n_layers)]
    with kernels.fixed():
        found = sweep(model, tokens, cells, metrics.logit_difference([3], [5]), memory=beside)
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    return {
        "peak": resident(peak=True), "weights": weights, "digest": done.digest, "values": found.values.data.tolist(),
        "layers": model.cfg.n_layers, "audit": found.audit.difference,
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    name, limit, beside = sys.argv[1], *map(int, sys.argv[2:])
    loading.understand(loading.find(name))
    work("attn-only-2l", None, beside)
    before = resident()
    found = work(name, limit, beside)
    print(json.dumps(found | {"peak": found["peak"] - before}))


if __name__ == "__main__":
    main()
