"""What one cell of a sweep costs, as its layer, position, prompt length and number of prompts grow: by the plan, and measured.

Run: python benchmarks/growth.py [--record]. In shares of a full forward pass of the same prompts: operations by the plan's count,
and processor time of the cell's own chunk (without the clean run that all cells share). SmolLM2-135M, prompts without a token in
common. With --record it draws the figure of docs/design/sweeps.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from beside import machine, record
from cutaway import HookedTransformer, edits, metrics, plan, view
from cutaway.runs.sweep.engine import Engine
from cutaway.runs.sweep.options import task_of
from cutaway.runs.sweep.scheduling import CLEAN

NAME = "smollm2-135m-instruct"
FIGURE = Path(__file__).resolve().parent.parent / "docs" / "design" / "growth.png"
LENGTHS = [64, 128, 256, 512, 1024, 2048]
TIMED = [64, 512]
PLACES = {"layer 0, first position": (0, 0.0), "layer 0, middle": (0, 0.5), "layer 15, first": (15, 0.0),
          "layer 15, middle": (15, 0.5), "layer 29, first": (29, 0.0), "layer 29, last": (29, 1.0)}  # fmt: skip
PROMPTS = [1, 4, 16, 64, 256]
ROUNDS = 3


class Case:
    """A sweep of one cell, which puts random numbers into the stream at one place."""

    def __init__(self, model: HookedTransformer, length: int, layer: int, at: float, prompts: int = 1):
        draw = torch.Generator().manual_seed(length)
        self.model, self.tokens = model, torch.randint(3, 49152, (prompts, length), generator=draw)
        self.tokens[:, 0] = torch.arange(3, 3 + prompts)  # nothing in common
        place = round(at * (length - 1))
        numbers = torch.randn(1, length, model.cfg.d_model, generator=draw)
        self.edit = edits.Put({f"blocks.{layer}.hook_resid_pre": numbers}).at(("resid_pre", layer), positions=place)
        self.metric = metrics.logit_difference(torch.full((prompts,), 100), torch.full((prompts,), 200))

    def counted(self) -> float:
        """Operations of the cell in full passes: of a sweep with it twice, less one with it once."""
        once, twice = (plan(self.model, self.tokens, [self.edit] * count, self.metric, measure=False) for count in (1, 2))
        return (twice.operations - once.operations) / once.full_operations

    def measured(self) -> float:
        """Processor time of the cell in full passes; the middle of some rounds."""
        batch = Engine(task_of(self.model, self.tokens, [self.edit], self.metric)).batch(0)
        batch.values(CLEAN)
        batch.values(0)
        return statistics.median(
            seconds(lambda: batch.values(0)) / seconds(lambda: self.model(self.tokens)) for _ in range(ROUNDS)
        )


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def figure(series: dict[str, list[float]]) -> view.Figure:
    """The shares over the length of the prompt."""
    return view.line_chart(
        series, LENGTHS, log_x=True, log_y=True, x_name="tokens", y_name="share of a full pass", title="What one cell costs",
    )  # fmt: skip


@torch.no_grad()
def main() -> None:
    """Count, measure, print; with `--record`, into RESULTS.md and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    keep = parser.parse_args().record
    model = HookedTransformer.from_pretrained(NAME)
    series = {name: [Case(model, length, *place).counted() for length in LENGTHS] for name, place in PLACES.items()}
    lines = ["| one cell, in full passes of one prompt: counted (measured) | " + " | ".join(map(str, LENGTHS)) + " |",
             "|---" * (len(LENGTHS) + 1) + "|"]  # fmt: skip
    for name, place in PLACES.items():
        cells = [f"{share:.2g}" + (f" ({Case(model, length, *place).measured():.2g})" if length in TIMED else "")
                 for length, share in zip(LENGTHS, series[name], strict=True)]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    counts = [Case(model, 64, 15, 0.5, count).counted() for count in PROMPTS]
    timed = {count: Case(model, 64, 15, 0.5, count).measured() for count in PROMPTS[:2]}
    lines += ["", f"Layer 15, middle of 64 tokens, {', '.join(map(str, PROMPTS))} prompts, in full passes of as many: counted "
              f"{', '.join(f'{one:.2g}' for one in counts)}; measured with 1 and 4: "
              f"{', '.join(f'{one:.2g}' for one in timed.values())}."]  # fmt: skip
    text = f"{machine()}\n{ROUNDS} rounds; processor time.\n\n" + "\n".join(lines)
    print(text)
    if keep:
        record("growth", text)
        figure(series).save(FIGURE, replace=True)


if __name__ == "__main__":
    main()
