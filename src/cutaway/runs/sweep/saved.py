"""Sweeps that survive: a folder keeps the plan and every finished chunk, so that a killed sweep goes on where it stopped.

Which cells run together decides how numbers round, so the plan is part of what is kept: resumed and uninterrupted sweeps
end with the same bits. Each chunk carries a digest of its values, its sweep and its place.
"""

from __future__ import annotations

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
from cutaway.errors import CheckpointError
from cutaway.runs import written  # the module, since it imports this package itself
from cutaway.runs.hashes import digest, model_hash
from cutaway.runs.sweep.cells import Sweep
from cutaway.runs.sweep.engine import CLEAN, Schedule, schedule
from cutaway.writing import write, write_json

PLAN = "plan.json"


class ChunkDamaged(UserWarning):
    """A chunk in the folder of an interrupted sweep cannot be used, and is computed again."""


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
            self._follow(_read(path))
        else:
            write_json(path, json.dumps({"mark": self.mark, "batches": self.schedule.batches, "chunks": self._numbers()}))

    def _numbers(self) -> list[list[list[int]]]:
        return [[[cell.number for cell in chunk] for chunk in batch] for batch in self.schedule.chunks]

    def _follow(self, kept: _Plan) -> None:
        for name, mine in self.mark.items():
            if kept.mark.get(name) != mine:
                raise CheckpointError(
                    f"{self.folder} holds a sweep with other {name} ({kept.mark.get(name)} there, {mine} here); "
                    "give another folder, or remove this one"
                )
        cells = self.schedule.cells
        if not self._covers_all(kept):
            raise CheckpointError(f"the plan of a sweep in {self.folder} is damaged; give another folder, or remove this one")
        chunks = [[[cells[number] for number in chunk] for chunk in batch] for batch in kept.chunks]
        self.schedule = Schedule(cells, kept.batches, chunks)

    def _covers_all(self, kept: _Plan) -> bool:
        """Whether the batches are all examples once, and every batch has every cell once."""
        rows = [row for first, last in kept.batches if 0 <= first < last for row in (first, last)]
        joined = rows[1:-1:2] == rows[2::2] and len(rows) == 2 * len(kept.batches) == 2 * len(kept.chunks)
        mine = self.schedule.batches
        numbers = sorted(number for chunk in self._numbers()[0] for number in chunk)
        whole = all(sorted(number for chunk in batch for number in chunk) == numbers for batch in kept.chunks)
        return bool(joined and rows and (rows[0], rows[-1]) == (mine[0][0], mine[-1][1]) and whole)

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
        write(self._path(batch, chunk), save({"values": values}, metadata={"digest": self._digest(batch, chunk, values)}))

    def _digest(self, batch: int, chunk: int, values: Tensor) -> str:
        """Ties values to this sweep, and to their place in it."""
        return digest([self.mark, batch, chunk, values])


class _Plan(msgspec.Struct):
    """`plan.json`."""

    mark: dict[str, str]
    batches: list[tuple[int, int]]
    chunks: list[list[list[int]]]


def _read(path: Path) -> _Plan:
    """The plan that a sweep wrote."""
    return reading.decode(reading.read_bytes(path), _Plan, f"the plan of a sweep, {path},")


def _mark(task: Sweep) -> dict[str, str]:
    """What makes a sweep this sweep."""
    writer = written.Writer(written.sites_of(task.model, task.cells))
    cells, metric = writer.write(task.cells), writer.write(task.metric)
    parts: list[Any] = [task.tokens] if task.mask is None else [task.tokens, task.mask]
    return {
        "model": model_hash(task.model),
        "tokens": digest(parts),
        "edits and metric": digest([cells, writer.changes, metric, task.skip, *writer.tensors.values()]),
        "versions": f"torch {torch.__version__}, {task.model.cfg.torch_dtype}",
    }
