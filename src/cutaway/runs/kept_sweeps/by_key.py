"""Results of sweeps by what they are: model, tokens, edits, metric. A folder of them serves many sweeps, and many processes.

A cell of a batch of examples has a key; a file holds the values of a chunk under the keys of its cells. A sweep looks up what is
there and plans the rest. The plan is kept, since which cells run together decides how numbers round: an interrupted sweep
follows it, and all processes do, so that they end with the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from cutaway import reading
from cutaway.errors import CheckpointError, NotReadable, NotWritten
from cutaway.model.transformer import Transformer
from cutaway.runs import written
from cutaway.runs.grids import Cells
from cutaway.runs.hashes import digest, model_hash
from cutaway.runs.kept_sweeps.interrupted import KeptPlan, read_plan
from cutaway.runs.model_source import versions
from cutaway.runs.sweep.options import Sweep, SweepOptions
from cutaway.runs.sweep.scheduling import CLEAN, Schedule, schedule
from cutaway.writing import write, write_json

PLANS, VALUES, TASKS = "plans", "values", "asked"
LARGEST = 2**36  # bytes of what a sweep is asked


class Keyed:
    """The results in a folder that belong to a sweep, and the plan for the rest.

    Args:
        folder: of results, for any number of sweeps.
        threads: with which workers compute: bits may depend on their number.

    Raises:
        CheckpointError: an edit or the metric is a function, which has no key.
    """

    def __init__(self, folder: Path | str, task: Sweep, threads: int = 1):
        self.folder, self.task, self.threads = Path(folder).expanduser(), task, threads
        self._sites = written.sites_of(task.model, task.cells)
        self._digests: dict[tuple[Any, ...], str] = {}
        self.base = self._base()
        self.keys = [self._key(number) for number in range(len(task.cells.edits))]
        self.name = digest([self.base, self.keys])

    # Keys.

    def _base(self) -> str:
        """What all cells share: the model, the tokens, the metric, how they are computed."""
        task, writer = self.task, written.Writer()
        metric = writer.write(task.metric)
        if '"function": ' in json.dumps(metric):
            raise CheckpointError("this sweep's metric is a function, which has no key; use a metric of cutaway.metrics")
        return digest([
            model_hash(task.model), task.tokens, task.mask, metric, *writer.tensors.values(), task.options.skip,
            task.options.room, versions(), self.threads, task.tokens.device.type,
        ])  # fmt: skip

    def _key(self, number: int) -> str:
        """What tells a cell apart: its edits, and the values that they put in."""
        edits = self.task.cells.edits[number]
        alone = Cells((edits,), ("cell",), (1,), [[str(number)]])
        own = written.Writer(written.sites_of(self.task.model, alone), self.task.model)
        written_edits = own.write(edits)
        if '"function": ' in json.dumps([written_edits, own.changes]):
            raise CheckpointError("an edit of this sweep is a function, which has no key; use edits of cutaway.edits")
        return digest([self.base, written_edits, own.changes, *(self._digest(one) for one in own.tensors.values())])

    def _digest(self, x: Tensor) -> str:
        mark = x.data_ptr(), x.dtype, tuple(x.shape), tuple(x.stride())
        if mark not in self._digests:
            self._digests[mark] = digest([x])
        return self._digests[mark]

    # The plan.

    @cached_property
    def schedule(self) -> Schedule:
        """What runs together: as planned when this sweep was first begun; what was known then runs in no chunk with others.

        Raises:
            CheckpointError: the plan is damaged.
        """
        path = self.folder / PLANS / f"{self.name}.json"
        fresh = schedule(self.task)
        if not path.exists():
            plan = KeptPlan(fresh.batches, [self._divided(fresh, number) for number in range(len(fresh.batches))])
            if not path.exists():  # else another rank has begun, and what it computed since would divide chunks otherwise
                write_json(path, msgspec.json.encode(plan).decode())
        return read_plan(path, f"the plan {path}").followed(fresh, f"the plan {path}")

    def _divided(self, fresh: Schedule, batch: int) -> list[list[int]]:
        """The chunks of a batch, each in what is known of it and what is not."""
        rows = fresh.batches[batch]
        parts = []
        for chunk in fresh.chunks[batch]:
            known = [cell.number for cell in chunk if (self.keys[cell.number], rows) in self._known]
            parts += [known, [cell.number for cell in chunk if cell.number not in set(known)]]
        return [part for part in parts if part]

    @cached_property
    def _known(self) -> dict[tuple[str, tuple[int, int]], tuple[Path, int]]:
        """Where the values of cells are: key and examples → file and row."""
        found: dict[tuple[str, tuple[int, int]], tuple[Path, int]] = {}
        wanted = set(self.keys)
        place = self.folder / VALUES
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            about = _about(path)
            for row, key in enumerate(about.keys if about is not None else ()):
                if about is not None and key in wanted:
                    found[key, about.rows] = path, row
        return found

    def whole(self, fresh: Schedule) -> frozenset[int]:
        """The numbers of the cells whose values of all examples are here; nothing is written."""
        there = (all((key, rows) in self._known for rows in fresh.batches) for key in self.keys)
        return frozenset(number for number, known in enumerate(there) if known)

    # Values.

    def _names(self, batch: int, chunk: int) -> list[str]:
        """The keys of a chunk's cells; of a clean run, one of its own."""
        if chunk == CLEAN:
            return [digest([self.base, "clean"])]
        return [self.keys[cell.number] for cell in self.schedule.chunks[batch][chunk]]

    def path(self, batch: int, chunk: int) -> Path:
        """The file of a chunk."""
        return self.folder / VALUES / f"{digest([self._names(batch, chunk), self.schedule.batches[batch]])}.safetensors"

    def known(self, batch: int, chunk: int) -> Tensor | None:
        """The values of a chunk; None where some are missing or damaged."""
        values = _values(self.path(batch, chunk), self._names(batch, chunk), self.schedule.batches[batch])
        if values is not None or chunk == CLEAN:
            return values
        rows = self.schedule.batches[batch]
        places = [self._known.get((key, rows)) for key in self._names(batch, chunk)]
        parts = [None if place is None else _row(*place, rows) for place in places]
        return None if any(one is None for one in parts) else torch.stack([one for one in parts if one is not None])

    def keep(self, batch: int, chunk: int, values: Tensor) -> None:
        """Keep the values of a chunk.

        Raises:
            NotWritten: the folder or the disk does not take them, or the plan has vanished.
        """
        if not (self.folder / PLANS / f"{self.name}.json").exists():
            raise NotWritten(f"{self.folder} has vanished, or the plan of this sweep has; run the same sweep again")
        x = values.detach().cpu().contiguous()
        names, rows = self._names(batch, chunk), self.schedule.batches[batch]
        about = _About(names, rows, digest([names, rows, x]))
        write(
            self.path(batch, chunk),
            save({"values": x}, metadata={"cutaway": msgspec.json.encode(about).decode()}),
            under=self.folder,
        )

    # What a sweep is asked, for other processes.

    def tell(self) -> None:
        """Write down what is asked, for `read_task`: edits, metric and tokens; the model is not among it."""
        task = self.task
        writer = written.Writer(self._sites, task.model)
        about = {"cells": writer.write(task.cells), "metric": writer.write(task.metric), "changes": writer.changes,
                 "skip": task.options.skip, "memory": task.options.room, "threads": self.threads}  # fmt: skip
        tensors = {f"edit.{name}": tensor for name, tensor in writer.tensors.items()} | {"tokens": task.tokens}
        if task.mask is not None:
            tensors["mask"] = task.mask
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        write(self.folder / TASKS / f"{self.name}.safetensors", save(tensors, metadata={"asked": json.dumps(about)}))

    def forget(self) -> None:
        """Remove what `tell` wrote."""
        path = self.folder / TASKS / f"{self.name}.safetensors"
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            os.rmdir(path.parent)


def read_task(folder: Path | str, name: str, model: Transformer) -> Keyed:
    """A sweep as another process was told of it.

    Raises:
        NotReadable: what it was told is missing or damaged.
    """
    path = Path(folder).expanduser() / TASKS / f"{name}.safetensors"
    data = reading.read_bytes(path, largest=LARGEST)
    try:
        tensors: Mapping[str, Tensor] = load(data)
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get("asked", "")
    except SafetensorError as error:
        raise NotReadable(f"{path} is damaged: {error}") from error
    about = reading.decode(text, dict[str, Any], str(path))
    own = {name.removeprefix("edit."): x for name, x in tensors.items() if name.startswith("edit.")}
    changes: list[Any] = []
    for one in about["changes"]:
        changes.append(written.read(one, own, changes, model))
    cells, metric = written.read(about["cells"], own, changes, model), written.read(about["metric"], own, changes)
    if not isinstance(cells, Cells):
        raise NotReadable(f"{path} is damaged: it holds no cells")
    device = model.device
    mask = tensors.get("mask")
    options = SweepOptions(skip=about["skip"], memory=about["memory"])
    task = Sweep(model, tensors["tokens"].to(device), mask if mask is None else mask.to(device), cells, metric, options)
    found = Keyed(folder, task, about["threads"])
    if found.name != name:
        raise NotReadable(f"{path} is damaged: what it asks has another key")
    return found


class _About(msgspec.Struct):
    """What a file of values says of itself."""

    keys: list[str]
    rows: tuple[int, int]
    digest: str


def _about(path: Path) -> _About | None:
    try:
        with safe_open(str(path), framework="pt") as file:
            return reading.decode((file.metadata() or {}).get("cutaway", ""), _About, str(path))
    except (safetensors.SafetensorError, OSError, NotReadable):  # damaged, or removed meanwhile: its cells run again
        return None


def _values(path: Path, keys: Sequence[str] | None, rows: tuple[int, int]) -> Tensor | None:
    """The values in a file, where it is whole and has these cells and examples."""
    about = _about(path)
    if about is None or (keys is not None and about.keys != list(keys)) or about.rows != rows:
        return None
    with safe_open(str(path), framework="pt") as file:
        values: Tensor = file.get_tensor("values")
    return values if about.digest == digest([about.keys, about.rows, values]) else None


def _row(path: Path, row: int, rows: tuple[int, int]) -> Tensor | None:
    values = _values(path, None, rows)
    return None if values is None else values[row]
