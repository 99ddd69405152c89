"""Operations: how many times fewer sweeps of the bundled language toy take than full passes. Nothing is timed.

Counted by the plan and by Torch (its `FlopCounterMode`), which must agree where the plan's regions are those that are measured.
`python benchmarks/operations.py` prints the table of RESULTS.md; it is the same on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cutaway import HookedTransformer, edits, grids, metrics, plan, sweep
from tests.architectures import flop_counter

LENGTH = 38  # tokens: 2 layers × 8 heads × 38 positions are 608 cells
GRIDS = {"heads by position": grids.heads_by_position, "residual stream by position": grids.residual, "heads": grids.heads}


def operations(run: Callable[[], Any]) -> int:
    """As Torch counts them."""
    with flop_counter() as counter:
        run()
    return int(counter.get_total_flops())


def pair(batch: int, differs: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Random prompts that repeat after half of their tokens, and others: without a token in common, or with one other token."""
    draw = torch.Generator().manual_seed(0)
    half = torch.randint(5, 500, (batch, LENGTH // 2), generator=draw)
    clean = torch.cat([half, half], 1)
    other = clean + 1
    if differs is not None:
        other = clean.clone()
        other[:, differs] += 1
    return clean, other


@torch.no_grad()
def main() -> None:
    """Print the table."""
    model = HookedTransformer.from_pretrained("attn-only-2l", device="cpu").requires_grad_(False)
    print("| prompts | sweep | cells | by Torch | by the plan |\n|---|---|---|---|---|")
    for words, differs in {"all tokens differ": None, "the first token differs": 0, "token 19 differs": 19}.items():
        for batch in (1, 8):
            clean, other = pair(batch, differs)
            _, kept = model.run_with_cache(other)
            metric = metrics.logit_difference(clean[:, 0], other[:, 1])
            full = operations(lambda clean=clean: model(clean))
            for name, grid in GRIDS.items():
                cells = grid(edits.patch(kept))
                counted = plan(model, clean, cells, metric, measure=False)
                taken = operations(lambda given=(clean, cells, metric): sweep(model, *given, audit=0))
                assert taken <= counted.operations, "the plan counts what is declared; less may run, and never more"
                row = f"{counted.cells} | {counted.cells * full / taken:.1f} | {counted.saved:.1f}"
                print(f"| {batch}, {words} | {name} | {row} |")


if __name__ == "__main__":
    main()
