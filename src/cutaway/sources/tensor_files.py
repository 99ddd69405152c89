"""Tensors in files, read one at a time by plain reads: nothing stays mapped, so memory is what was asked for.

A header is believed only after it was checked against the size of its file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from cutaway import reading
from cutaway.errors import CheckpointError
from cutaway.sources.checkpoint import LazyTensors

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The types of safetensors that we read; weights in others (8-bit floats, packed integers) are refused."""

LARGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it
MOST_AXES = 16
Count = Annotated[int, Meta(ge=0, le=2**48)]


class _Described(msgspec.Struct):
    """A tensor in a header of safetensors."""

    dtype: str
    shape: Annotated[list[Count], Meta(max_length=MOST_AXES)]
    data_offsets: tuple[Count, Count]


@dataclass(frozen=True)
class _Entry:
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


def safetensors(files: Iterable[Path]) -> LazyTensors:
    """The tensors of one safetensors file, or of several that belong together.

    Raises:
        CheckpointError: a file is missing or cut short, or its header is no header.
    """
    entries: dict[str, _Entry] = {}
    for file in files:
        entries |= _header(file)
    shapes = {name: entry.shape for name, entry in entries.items()}
    return LazyTensors(shapes, lambda name: _read(name, entries[name]), fresh=True)


def _header(file: Path) -> dict[str, _Entry]:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(size - 8, LARGEST_HEADER):
                raise _damaged(file, "its header does not fit into it")
            header = opened.read(length)
    except FileNotFoundError as error:
        raise CheckpointError(f"no file {file}; the model lacks a part, download it again") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    table = reading.parse(header, f"the header of {file.name}", finite=False)
    if isinstance(table, dict):
        table.pop("__metadata__", None)
    tensors = reading.convert(table, dict[str, _Described], f"the header of {file.name}")
    room = size - 8 - length
    return {name: _entry(file, name, about, 8 + length, room) for name, about in tensors.items()}


def _entry(file: Path, name: str, about: _Described, offset: int, room: int) -> _Entry:
    code, shape, (start, end) = about.dtype, tuple(about.shape), about.data_offsets
    if code not in DTYPES:
        raise CheckpointError(f"{name!r} in {file.name} is of type {code}, which we do not read; there are {', '.join(DTYPES)}")
    if not start <= end <= room or end - start != DTYPES[code].itemsize * prod(shape):
        raise _damaged(file, f"{name!r} does not fit into it")
    return _Entry(file, DTYPES[code], shape, offset + start)


def _read(name: str, entry: _Entry) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    if not tensor.numel():
        return tensor
    room = tensor.reshape(-1).view(torch.uint8).numpy().data
    try:
        with entry.file.open("rb", buffering=0) as opened:
            opened.seek(entry.start)
            done = 0
            while done < len(room):
                count = opened.readinto(room[done:])
                if not count:
                    raise _damaged(entry.file, f"it ends within {name!r}")
                done += count
    except OSError as error:
        raise CheckpointError(f"cannot read {name!r} from {entry.file}: {error.strerror or error}") from error
    return tensor


class _Index(msgspec.Struct):
    """`….index.json`: which file holds which tensor."""

    weight_map: dict[str, str]


def sharded(index: Path) -> list[Path]:
    """The files that an index (`….index.json`) names, in its folder.

    Raises:
        CheckpointError: the index is damaged, or names a file elsewhere.
    """
    table = reading.decode(reading.read_bytes(index), _Index, index.name, finite=False)
    names = sorted(set(table.weight_map.values()))
    for name in names:
        if Path(name).name != name or "\0" in name:
            raise CheckpointError(f"{index.name} names a file outside its folder: {name!r}")
    return [index.parent / name for name in names]


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file.name} is cut short or damaged: {why}; download or save it again")


def mapped(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped: read from the disk where they are looked at. They must not be written to.

    Raises:
        CheckpointError: the file is missing or cut short, or its header is no header.
    """
    entries = _header(file)
    room = np.memmap(file, dtype=np.uint8, mode="c")  # private: what somebody writes stays in memory
    found = {}
    for name, entry in entries.items():
        size = entry.dtype.itemsize * prod(entry.shape)
        raw = torch.from_numpy(room[entry.start : entry.start + size])
        aligned = raw if entry.start % entry.dtype.itemsize == 0 else raw.clone()
        found[name] = aligned.view(entry.dtype).view(entry.shape)
    return found
