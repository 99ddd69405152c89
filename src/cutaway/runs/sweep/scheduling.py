"""What runs together: batches of examples, and for each batch chunks of cells, settled before anything runs.

The schedule alone decides how numbers round, so it is what a resumable sweep writes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError
from cutaway.runs.metrics import Metric
from cutaway.runs.storage import Keeping, where_kept
from cutaway.runs.sweep.cells import Cell, bind, kept_sites, short
from cutaway.runs.sweep.measure import positions_read
from cutaway.runs.sweep.options import Sweep
from cutaway.runs.sweep.regions import Rules

CLEAN = -1  # stands for the clean run among the chunks of a batch
ROOM = 5 * 2**16  # numbers in one layer's stream that run at once, where nobody says how much memory there is
ROOM_CUDA = 2**25  # the same on a GPU, which small products leave idle


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which examples run together, and for each such batch which cells."""

    cells: list[Cell]
    batches: list[tuple[int, int]]
    chunks: list[list[list[Cell]]]  # batch, chunk, cell

    @property
    def passes(self) -> int:
        return sum(map(len, self.chunks))


@runtime_checkable
class KnownChunks(Protocol):
    """What is known of a sweep from earlier, interrupted runs (`runs/kept_sweeps/`), and the schedule that it follows."""

    @property
    def schedule(self) -> Schedule: ...

    def known(self, batch: int, chunk: int) -> Tensor | None:
        """The values of a chunk, or with `CLEAN` of the clean run; None where they are to be computed."""

    def keep(self, batch: int, chunk: int, values: Tensor) -> None:
        """Keep the values of a chunk."""


def schedule(task: Sweep) -> Schedule:
    """Settle what runs when.

    Raises:
        ConfigError: not even one cell fits into the memory.
    """
    cfg = task.model.cfg
    cells = bind(task)
    whole = not isinstance(task.metric, Metric) or task.options.skip == "layers"
    whole = whole or any(not bound.change.declared for cell in cells for bound in cell.bounds)
    smallest = task.length * (task.batch if whole else 1)
    usual = ROOM_CUDA if task.tokens.device.type == "cuda" else ROOM
    room = room_for(cfg, smallest, task.options.room, max(64, usual // cfg.d_model))
    step = task.batch if whole else min(task.batch, room // task.length)
    count = -(-task.batch // step)
    step = -(-task.batch // count)  # batches of about equal size
    batches = [(first, min(first + step, task.batch)) for first in range(0, task.batch, step)]
    wanted = None if whole or not isinstance(task.metric, Metric) else task.metric.wanted(task.batch, task.length)
    found = []
    for first, last in batches:
        read_at = None if wanted is None else positions_read(wanted[first:last])
        found.append(chunks(cells, last - first, Rules.of(task.model, task.length, read_at), room))
    return Schedule(cells, batches, found)


def chunks(cells: Sequence[Cell], batch: int, rules: Rules, room: int) -> list[list[Cell]]:
    """Which cells run together: neighbours by layer and start, so that few tokens travel through layers in small numbers.

    Args:
        room: how many tokens may run at once.
    """
    out: list[list[Cell]] = []
    used = 0
    for cell in sorted((cell for cell in cells if cell.way != "alone"), key=lambda cell: (cell.layer, cell.start, cell.number)):
        needed = rules.needed(cell.layer, short(cell.bounds[0].site)) if cell.way == "join" else None
        tokens = batch * (rules.length - cell.start if needed is None else len(needed))
        if not out or used + tokens > room:
            out.append([])
            used = 0
        out[-1].append(cell)
        used += tokens
    return out + [[cell] for cell in cells if cell.way == "alone"]


def keeping_of(task: Sweep, plan: Schedule, number: int) -> Keeping:
    """Where the clean run of a batch is kept."""
    cfg, (first, last) = task.model.cfg, plan.batches[number]
    running = max((sum(task.length - cell.start for cell in chunk) for chunk in plan.chunks[number]), default=0) * (last - first)
    sites = len(kept_sites(task.model, plan.cells))
    tokens = (last - first) * task.length
    return where_kept(cfg, tokens, sites, running * bytes_per_token(cfg), task.options.room, task.tokens.device)


def bytes_per_token(cfg: HookedTransformerConfig) -> int:
    """About how much memory one running token takes at most."""
    wide = 10 * cfg.d_model + 4 * cfg.n_heads * cfg.d_head
    if not cfg.attn_only:
        wide += (3 if cfg.gated_mlp else 2) * (cfg.d_mlp or 0)
    return int(wide * cfg.torch_dtype.itemsize)


def room_for(cfg: HookedTransformerConfig, smallest: int, memory: int | None, default: int) -> int:
    """How many tokens may run at once in this much memory (bytes).

    Args:
        smallest: tokens of one cell that cannot be split.

    Raises:
        ConfigError: not even one cell fits.
    """
    if memory is None:
        return max(default, smallest)
    room = min(memory // bytes_per_token(cfg), max(default, smallest))
    if room < smallest:
        needed = smallest * bytes_per_token(cfg)
        raise ConfigError(
            f"memory={memory} bytes is too small for one cell, which needs about {needed}; give more, or fewer examples"
        )
    return room
