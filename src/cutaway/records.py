"""Records: an experiment leaves a folder that says everything, runs again, and checks itself.

`record.json` holds the model's name and hash, the edits, the metric, the options and the versions; `tensors.safetensors`
the tokens, the values that edits put in, and the result for each example, also that of a baseline. An experiment of several
sweeps is a folder of such folders.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import safetensors
import torch
from msgspec import Meta
from safetensors.torch import load, save
from torch import Tensor

from cutaway import __version__, loading, reading
from cutaway.config import DTYPES
from cutaway.errors import CheckpointError, NotReadable, WeightsMismatch, suggest_names
from cutaway.model.transformer import Transformer
from cutaway.runs.grids import Cells, label_of
from cutaway.runs.hashes import digest, model_hash
from cutaway.runs.metrics import Metric
from cutaway.runs.results import Result
from cutaway.runs.sweep import SweepResult, sweep
from cutaway.runs.written import Writer, read, sites_of
from cutaway.writing import check_folder, write_json
from cutaway.writing import write as write_file

RECORD, TENSORS, FORMAT = "record.json", "tensors.safetensors", 1
BOUNDS = {"torch.float64": 1e-9, "torch.float32": 1e-4, "torch.bfloat16": 5e-2, "torch.float16": 1e-2}  # of rounding
LARGEST = 2**36  # bytes of tensors


def write(folder: Path | str, results: SweepResult | Mapping[str, SweepResult] | Result, model_name: str) -> Path:
    """Write a sweep, or several under their names, into a folder, which is made.

    Args:
        results: a sweep, several by name, or a result that is made of some: of patching, of ablations, of steering.
        model_name: what `loading` finds the model by, when the record runs again.

    Raises:
        CheckpointError: an edit or the metric is a function, which no file can hold; or there is a record already.
    """
    folder, results = Path(folder), _sweeps_of(results)
    check_free(folder, () if isinstance(results, SweepResult) else results)
    if not isinstance(results, SweepResult):
        for name, one in results.items():
            write(folder / name, one, model_name)
        return folder
    task = results.task
    if task is None:
        raise CheckpointError("only the result of a sweep can be recorded; this one does not know what it was asked")
    writer = Writer(sites_of(task.model, task.cells), task.model)
    cells, metric = writer.write(task.cells), writer.write(task.metric)
    text = json.dumps([cells, metric, writer.changes])
    if '"function": ' in text:
        raise CheckpointError(
            "this sweep's edits or metric are functions, which a record cannot hold; use edits and metrics of cutaway.runs"
        )
    about = {
        "format": FORMAT,
        "model": {"name": model_name, "hash": model_hash(task.model), "dtype": str(task.model.cfg.torch_dtype)},
        "options": {**results.options, "memory": task.options.room},
        "cells": cells, "metric": metric, "changes": writer.changes,
        "audit": {"cells": results.audit.cells, "difference": _number(results.audit.difference)},
        "notes": results.notes,
        "versions": versions(),
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip
    tensors = {f"edit.{name}": tensor for name, tensor in writer.tensors.items()}
    tensors |= {"tokens": task.tokens, "values": results.values.data, "clean": results.clean.data}
    if results.baseline is not None:
        tensors["baseline"] = results.baseline.values.data
    if task.mask is not None:
        tensors["mask"] = task.mask
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    about["digest"] = _digest(json.loads(json.dumps(about)), tensors)
    write_file(folder / TENSORS, save(tensors))
    write_json(folder / RECORD, json.dumps(about, indent=1))
    return folder


def _sweeps_of(results: Any) -> SweepResult | Mapping[str, SweepResult]:
    """The sweeps of a result that is made of some.

    Raises:
        CheckpointError: it is made of none, so nothing could run again.
    """
    found = getattr(results, "sweeps", None) or getattr(results, "sweep", None) or results
    if not isinstance(found, SweepResult | Mapping):
        raise CheckpointError(
            f"{type(results).__name__} is not made of sweeps, so a record could not run it again; keep it with "
            "result.save('x.cutaway')"
        )
    return found


def check_free(folder: Path | str, names: Iterable[str] = ()) -> None:
    """Make sure that a record, or several under these names, can be written here: to be asked before anything is computed.

    Raises:
        CheckpointError: there is a record already, a file where the folder should be, or no room for one.
    """
    for place in [Path(folder) / name for name in names] or [Path(folder)]:
        if (place / RECORD).exists():
            raise CheckpointError(f"{place} holds a record already; give another folder, or remove this one first")
        if place.exists() and not place.is_dir():
            raise CheckpointError(f"{place} is a file; a record is a folder: give another name")
        check_folder(place)


def versions() -> dict[str, str]:
    """What computed this."""
    return {
        "cutaway": __version__, "torch": torch.__version__, "numpy": np.__version__, "safetensors": safetensors.__version__,
        "python": platform.python_version(), "machine": platform.machine(), "threads": str(torch.get_num_threads()),
    }  # fmt: skip


def _number(value: float) -> float | None:
    return value if value == value else None


@dataclass(frozen=True, eq=False)
class Record:
    """A folder, read."""

    folder: Path
    about: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def cells(self) -> Cells:
        """The edits of every cell."""
        return self.cells_of(None)

    def cells_of(self, model: Transformer | None) -> Cells:
        """The edits of every cell; with the record's model, what they take from its runs knows which run that was."""
        found: Cells = self._read(self.about["cells"], model)
        return found

    @property
    def metric(self) -> Any:
        return self._read(self.about["metric"])

    @property
    def labels(self) -> list[str]:
        """What each cell is called."""
        return list(map(label_of, self.cells.edits))

    @property
    def values(self) -> Tensor:
        """The result, one row for each cell."""
        values = self.tensors["values"]
        return values.reshape(len(self.about["cells"]["edits"]), *values.shape[len(self.about["cells"]["shape"]) :])

    def _read(self, value: Any, model: Transformer | None = None) -> Any:
        own = {name.removeprefix("edit."): tensor for name, tensor in self.tensors.items() if name.startswith("edit.")}
        changes: list[Any] = []
        for one in self.about["changes"]:  # a change that is made of another comes after it
            changes.append(read(one, own, changes, model))
        return read(value, own, changes, model)


def read_record(folder: Path | str) -> Record:
    """Read a record.

    Raises:
        CheckpointError: there is none, or it is damaged or of a later version.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        inside = [one.parent.name for one in folder.glob(f"*/{RECORD}")] if folder.is_dir() else []
        more = f"; it holds the records {', '.join(sorted(inside))}" if inside else ""
        raise CheckpointError(f"there is no record in {folder}{more}")
    what = f"the record in {folder}"
    about = reading.decode(reading.read_bytes(folder / RECORD), dict[str, Any], what)
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{what} has format {about.get('format')}; this version reads {FORMAT}")
    kept = reading.convert(about, _About, what)
    try:
        tensors = load(reading.read_bytes(folder / TENSORS, largest=LARGEST))  # a map of the file would die with the file
    except safetensors.SafetensorError as error:
        raise NotReadable(f"{what} is damaged: {error}") from error
    if about.get("digest") not in (None, _digest(about, tensors)):
        raise NotReadable(f"{what} was changed after it was written, as its digest says; make it anew with the same command")
    record = Record(folder, about | {"options": msgspec.to_builtins(kept.options)}, tensors)  # with what it leaves out
    _check(record, what)
    return record


def _digest(about: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Over all that a record holds, so that an edited number or label is seen."""
    parts: list[Any] = [{name: value for name, value in about.items() if name != "digest"}]
    for name in sorted(tensors):
        parts += [name, tensors[name]]
    return digest(parts)


Dtype = Literal["torch.float32", "torch.float64", "torch.float16", "torch.bfloat16"]


class _Model(msgspec.Struct):
    name: str
    hash: str
    dtype: Dtype


Count = Annotated[int, Meta(ge=0, le=10**7)]


class _Options(msgspec.Struct):
    """What a sweep was called with."""

    method: str
    top: Count
    skip: str
    seed: Annotated[int, Meta(ge=-(2**62), le=2**62)]
    memory: Annotated[int, Meta(ge=0, le=2**60)] | None = None
    dtype: Dtype | None = None
    baseline: Count = 0


class _About(msgspec.Struct):
    """`record.json`; edits and metrics in it are read by `runs.written`."""

    format: int
    model: _Model
    options: _Options
    cells: dict[str, Any]
    metric: dict[str, Any]
    changes: list[dict[str, Any]]
    versions: dict[str, str]
    notes: list[str] = []
    digest: str | None = None


def _check(record: Record, what: str) -> None:
    """Whether the parts of a record fit each other.

    Raises:
        NotReadable: they do not.
    """
    cells, metric, tensors = record.cells, record.metric, record.tensors
    if not isinstance(cells, Cells) or not isinstance(metric, Metric):
        raise NotReadable(f"{what} is damaged: it should hold cells and a metric")
    needed = ("tokens", "values", "clean", *(["baseline"] if record.about["options"].get("baseline") else []))
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise NotReadable(f"{what} is damaged: its tensors lack {', '.join(missing)}")
    tokens, values, clean = (tensors[name] for name in ("tokens", "values", "clean"))
    fits = tuple(values.shape[: len(cells.shape)]) == cells.shape and math.prod(cells.shape) == len(cells.edits)
    kinds = tokens.dtype == torch.long and values.is_floating_point() and clean.is_floating_point()
    if not (fits and kinds and tokens.ndim == 2 and tokens.numel() and cells.edits and all(cells.edits)):
        raise NotReadable(f"{what} is damaged: its tensors are not those of its cells")
    for name in ("mask", "baseline"):
        if name in tensors and tensors[name].is_floating_point() == (name == "mask"):
            raise NotReadable(f"{what} is damaged: its {name} holds {tensors[name].dtype}")


def records_in(folder: Path | str) -> list[Record]:
    """The record in a folder, or those in the folders that it holds."""
    folder = Path(folder)
    inside = sorted(one.parent for one in folder.glob(f"*/{RECORD}"))
    return [read_record(one) for one in inside] if inside and not (folder / RECORD).exists() else [read_record(folder)]


@dataclass(frozen=True)
class Replay:
    """A record run again.

    Args:
        difference: the largest difference of any value, relative to the largest value.
        cell: where it is.
        same_bits: whether all values have the same bits.
        sealed: whether the record has a digest; without one (as an early version wrote them) its labels and notes may be edited.
    """

    name: str
    difference: float
    cell: str
    same_bits: bool
    versions: dict[str, tuple[str, str]]  # those that differ: then, now
    bound: float = 1e-4
    sealed: bool = True

    @property
    def agrees(self) -> bool:
        """Whether the numbers are the recorded ones up to rounding (`bound`, by precision)."""
        return self.same_bits or self.difference <= self.bound

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return dict(self.__dict__) | {"agrees": self.agrees}

    def summary(self) -> str:
        """In words."""
        unknown = "" if self.sealed else "; the record has no digest, so whether its labels were edited is not known"
        if self.same_bits:
            return f"{self.name}: the same bits{unknown}"
        changed = "".join(f"; {name} {then} then, {now} now" for name, (then, now) in self.versions.items())
        verdict = "the same numbers up to rounding" if self.agrees else f"OTHER NUMBERS (more than {self.bound:.0e} apart)"
        return f"{self.name}: {verdict}; largest relative difference {self.difference:.1e}, at {self.cell}{changed}{unknown}"


def replay(
    record: Record, model: Transformer | None = None, *, device: str | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> Replay:  # fmt: skip
    """Run a record again.

    Args:
        model: the model; None: loaded by the name that the record has.

    Raises:
        WeightsMismatch: it is another model than the record's.
    """
    about, options = record.about, record.about["options"]
    if model is None:
        precision = about["model"]["dtype"].removeprefix("torch.")
        model = loading.from_pretrained(Transformer, about["model"]["name"], device=device, dtype=precision)
    now, then = model_hash(model), about["model"]["hash"]
    if now != then:
        raise WeightsMismatch(
            f"the record was made with a model whose hash is {then} ({about['model']['name']!r} at that time); this model's is "
            f"{now}; give the one that the record was made with"
        )
    dtype = options.get("dtype")
    found = sweep(
        model, record.tensors["tokens"], record.cells_of(model), record.metric, mask=record.tensors.get("mask"),
        method=options["method"], top=options["top"], skip=options["skip"], memory=options["memory"], seed=options["seed"],
        baseline=options["baseline"], dtype=None if dtype is None else DTYPES[dtype.removeprefix("torch.")], audit=0,
        progress=progress,
    )  # fmt: skip
    mine = found.values.data.cpu().flatten(0, len(about["cells"]["shape"]) - 1)
    if mine.shape != record.values.shape:
        raise NotReadable(
            f"the record in {record.folder} is damaged: it holds values of shape {tuple(record.values.shape)}, and its own sweep "
            f"gives {tuple(mine.shape)}"
        )
    here = versions()
    changed = {name: (was, here[name]) for name, was in about["versions"].items() if here.get(name) not in (None, was)}
    difference, at = _largest(record.values, mine)
    cell, same = record.labels[at], _same_bits(record.values, mine)
    then, now_clean = record.tensors["clean"], found.clean.data.cpu()
    other, _ = _largest(then, now_clean)
    same = same and _same_bits(then, now_clean)
    if other > difference:
        difference, cell = other, "the clean run"
    if found.baseline is not None:
        kept, again = record.tensors["baseline"], found.baseline.values.data.cpu()
        other, at = _largest(kept, again)
        same = same and _same_bits(kept, again)
        if other > difference:
            difference, cell = other, found.baseline.values.names("cell")[at]
    bound = BOUNDS.get(dtype or about["model"]["dtype"], 1e-4)
    return Replay(record.folder.name, difference, cell, same, changed, bound, sealed=about.get("digest") is not None)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())


def _largest(one: Tensor, other: Tensor) -> tuple[float, int]:
    """The largest difference, relative to the largest value, and its cell."""
    if one.shape != other.shape or not torch.equal(one.isnan(), other.isnan()):
        return math.inf, 0
    known = one.nan_to_num()
    apart = (known - other.nan_to_num()).abs().flatten(1) if one.ndim > 1 else (known - other.nan_to_num()).abs()[:, None]
    by_cell = apart.amax(1)
    at = int(by_cell.argmax())
    return float(by_cell[at]) / max(float(known.abs().max()), 1e-30), at


@dataclass(frozen=True)
class Comparison:
    """Two records beside each other.

    Args:
        differs: what was asked differently: model, metric (its answers and positions, too), options, tokens.
        cells: (label, mean of the one, mean of the other) for cells that both have, those furthest apart first.
        only: how many cells only the one, and only the other, has.
        difference: the largest difference of means, relative to the largest mean.
        correlation: of the means.
    """

    differs: tuple[str, ...]
    cells: tuple[tuple[str, float, float], ...]
    only: tuple[int, int]
    difference: float
    correlation: float

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return dict(self.__dict__)

    def summary(self) -> str:
        """In words."""
        settings = f"asked differently: {', '.join(self.differs)}" if self.differs else "asked the same"
        both = f"{len(self.cells)} cell{'s' * (len(self.cells) != 1)} in both"
        lines = [f"{settings}; {both}, {self.only[0]} and {self.only[1]} in one only"]
        if self.cells:
            lines.append(f"largest relative difference of means {self.difference:.1e}, correlation {self.correlation:.4f}")
            lines += [f"  {label}: {one:.5g} and {other:.5g}" for label, one, other in self.cells[:5] if one != other]
        return "\n".join(lines)


def compare(one: Record, other: Record) -> Comparison:
    """Put two records beside each other, cell by cell."""
    pairs = {
        "model": (one.about["model"]["hash"], other.about["model"]["hash"]),
        "metric": (_metric_mark(one), _metric_mark(other)),
        "options": (one.about["options"], other.about["options"]),
    }
    differs = [name for name, (mine, theirs) in pairs.items() if mine != theirs]
    if not torch.equal(one.tensors["tokens"], other.tensors["tokens"]):
        differs.append("tokens")
    means = [dict(zip(record.labels, _means(record.values), strict=True)) for record in (one, other)]
    both = [label for label in means[0] if label in means[1]]
    rows = sorted(((label, means[0][label], means[1][label]) for label in both), key=lambda row: -abs(row[1] - row[2]))
    largest = max((max(abs(mine), abs(theirs)) for _, mine, theirs in rows), default=0.0)
    difference = abs(rows[0][1] - rows[0][2]) / max(largest, 1e-30) if rows else float("nan")
    correlation = float("nan")
    if len(rows) > 1:
        correlation = float(torch.corrcoef(torch.tensor([[row[1] for row in rows], [row[2] for row in rows]]).double())[0, 1])
    only = len(means[0]) - len(both), len(means[1]) - len(both)
    return Comparison(tuple(differs), tuple(rows), only, difference, correlation)


def _metric_mark(record: Record) -> str:
    """What tells metrics apart: their kind, answers, labels and positions."""
    writer = Writer()
    metric = writer.write(record.metric)
    return digest([metric, *writer.tensors.values()])


def _means(values: Tensor) -> list[float]:
    flat: list[float] = (values.flatten(1).double().nanmean(1) if values.ndim > 1 else values.double()).tolist()
    return flat


suggest_names(__name__)
