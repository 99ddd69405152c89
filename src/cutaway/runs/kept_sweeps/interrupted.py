"""Sweeps that survive: a folder keeps the plan and every finished chunk, so that a killed sweep goes on where it stopped.

Which cells run together decides how numbers round, so the plan is part of what is kept: resumed and uninterrupted sweeps
end with the same bits. Each chunk carries a digest of its values, its sweep and its place.
"""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cutaway import reading
from cutaway.errors import CheckpointError, ChunkDamaged
from cutaway.runs import written
from cutaway.runs.hashes import digest, model_hash
from cutaway.runs.sweep.options import Sweep
from cutaway.runs.sweep.scheduling import CLEAN, Schedule, schedule
from cutaway.writing import write, write_json

PLAN = "plan.json"


class Saved:
    """What a folder holds of a sweep.

    Raises:
        CheckpointError: it holds another sweep, or its plan cannot be read.
    """

    def __init__(self, folder: Path | str, task: Sweep):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mark = _mark(task)
        self.schedule = schedule(task)
        path = self.folder / PLAN
        if path.exists():
            self._follow(read_plan(path, f"the plan of a sweep, {path},"))
        else:
            numbers = [[[cell.number for cell in chunk] for chunk in batch] for batch in self.schedule.chunks]
            write_json(path, json.dumps({"mark": self.mark, "batches": self.schedule.batches, "chunks": numbers}))

    def _follow(self, kept: KeptPlan) -> None:
        for name, expected in self.mark.items():
            if kept.mark.get(name) != expected:
                raise CheckpointError(
                    f"{self.folder} holds a sweep with other {name} ({kept.mark.get(name)} there, {expected} here); "
                    "give another folder, or remove this one"
                )
        self.schedule = kept.followed(self.schedule, f"the plan of a sweep in {self.folder}")

    def _path(self, batch: int, chunk: int) -> Path:
        name = f"clean-{batch}" if chunk == CLEAN else f"values-{batch}-{chunk}"
        return self.folder / f"{name}.safetensors"

    def known(self, batch: int, chunk: int) -> Tensor | None:
        """The values of a finished chunk; None, and a warning, where the file is damaged or of another sweep."""
        path = self._path(batch, chunk)
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                values: Tensor = file.get_tensor("values")
                kept = (file.metadata() or {}).get("digest")
        except (SafetensorError, OSError) as error:
            why = f"is damaged ({error})"
        else:
            if kept == self._digest(batch, chunk, values):
                return values
            why = "is damaged, or of another sweep or place in it"
        warnings.warn(f"{path} {why}; its cells are computed again", ChunkDamaged, stacklevel=2)
        return None

    def keep(self, batch: int, chunk: int, values: Tensor) -> None:
        """Keep the values of a chunk."""
        values = values.detach().cpu().contiguous()
        data = save({"values": values}, metadata={"digest": self._digest(batch, chunk, values)})
        write(self._path(batch, chunk), data, under=self.folder)

    def _digest(self, batch: int, chunk: int, values: Tensor) -> str:
        """Ties values to this sweep, and to their place in it."""
        return digest([self.mark, batch, chunk, values])


class KeptPlan(msgspec.Struct, omit_defaults=True):
    """Which examples run together, and of each such batch which cells; `mark`: of which sweep."""

    batches: list[tuple[int, int]]
    chunks: list[list[list[int]]]
    mark: dict[str, str] = {}

    def followed(self, fresh: Schedule, name: str) -> Schedule:
        """The cells of a fresh schedule as this plan has them.

        Raises:
            CheckpointError: the plan does not have every example and every cell once; `name`: what the error calls it.
        """
        rows = [row for one in self.batches for row in one]
        adjoin = rows[1:-1:2] == rows[2::2] and all(first < last for first, last in self.batches)
        ends = (fresh.batches[0][0], fresh.batches[-1][1])
        every = list(range(len(fresh.cells)))
        if (
            not rows or not adjoin or (rows[0], rows[-1]) != ends or len(self.chunks) != len(self.batches)
            or any(sorted(itertools.chain.from_iterable(batch)) != every for batch in self.chunks)
        ):  # fmt: skip
            raise CheckpointError(f"{name} is damaged: it lacks cells, or has one twice; remove it, or give another folder")
        cells = [[[fresh.cells[one] for one in chunk] for chunk in batch] for batch in self.chunks]
        return Schedule(fresh.cells, self.batches, cells)


def read_plan(path: Path, name: str) -> KeptPlan:
    """The plan that a sweep wrote; `name`: what errors call it."""
    return reading.decode(reading.read_bytes(path), KeptPlan, name)


def _mark(task: Sweep) -> dict[str, str]:
    """What makes a sweep this sweep."""
    writer = written.Writer(written.sites_of(task.model, task.cells))
    cells, metric = writer.write(task.cells), writer.write(task.metric)
    parts: list[Any] = [task.tokens] if task.mask is None else [task.tokens, task.mask]
    return {
        "model": model_hash(task.model),
        "tokens": digest(parts),
        "edits and metric": digest([cells, writer.changes, metric, task.options.skip, *writer.tensors.values()]),
        "versions": f"torch {torch.__version__}, {task.model.cfg.torch_dtype}",
    }
