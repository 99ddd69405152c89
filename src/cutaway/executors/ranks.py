"""The executor of ranks: processes that torchrun or SLURM has started, each with its number.

Rank r of n takes the chunks whose number is r modulo n. At the end all tell each other what they did; rank 0 leads.
"""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from cutaway.errors import ConfigError
from cutaway.executors.driving import Done, Job, SetAside
from cutaway.executors.local import run_here

VARIABLES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
MEETINGS = itertools.count()  # what earlier ones left in the store would send later ones to addresses that are gone
PATIENCE = datetime.timedelta(days=7)  # how long a rank that is done waits for the others


@dataclass(frozen=True)
class Ranks:
    """This process as one of several that run the same command.

    Args:
        rank, world: its number and how many there are; None: as torchrun or SLURM says.

    Raises:
        ConfigError: nothing says which rank this is.
    """

    rank: int | None = None
    world: int | None = None
    travels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rank is None or self.world is None:
            rank, world = _from_environment()
            object.__setattr__(self, "rank", rank)
            object.__setattr__(self, "world", world)

    @property
    def leader(self) -> bool:
        """Whether this is rank 0, which writes what belongs to the whole."""
        return self.rank == 0

    @property
    def workers(self) -> int | None:
        """As many as there are ranks."""
        return self.world

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}"

    def run(self, job: Job, units: Iterable[Any], done: Done) -> list[SetAside]:
        """See `Executor.run`; `done` is called for the units of all ranks, in all ranks."""
        import torch.distributed as dist  # here, so that other executors start without Torch

        world = self.world or 1
        own: list[tuple[Any, Any]] = []
        aside = run_here(job, (unit for unit in units if unit.number % world == self.rank), lambda *one: own.append(one))
        gathered: list[Any] = [None] * world
        joined = not dist.is_initialized()
        if joined:
            store = dist.PrefixStore(f"cutaway {next(MEETINGS)}", _store())
            dist.init_process_group("gloo", timeout=PATIENCE, store=store, rank=self.rank or 0, world_size=world)
        try:
            dist.all_gather_object(gathered, ([(unit.head, receipt) for unit, receipt in own], aside))
        finally:
            if joined:
                dist.destroy_process_group()
        for units_done, _ in gathered:
            for unit, receipt in units_done:
                done(unit, receipt)
        return [one for _, some in gathered for one in some]


@cache
def _store() -> Any:
    """Where ranks leave their addresses: that of torchrun's agent, or one that rank 0 opens, once in each process."""
    from torch.distributed import rendezvous

    return next(rendezvous("env://", timeout=PATIENCE))[0]


def _from_environment() -> tuple[int, int]:
    for rank, world in VARIABLES:
        if rank in os.environ and world in os.environ:
            if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
                raise ConfigError(f"{rank} is set, and MASTER_ADDR or MASTER_PORT is not: set both, as torchrun does")
            os.environ.setdefault("RANK", os.environ[rank])
            os.environ.setdefault("WORLD_SIZE", os.environ[world])
            return int(os.environ[rank]), int(os.environ[world])
    raise ConfigError("executor=ranks runs under torchrun or srun: neither RANK nor SLURM_PROCID is set")
