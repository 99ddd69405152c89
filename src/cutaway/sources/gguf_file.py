"""A GGUF file as llama.cpp writes it: what its header says, and its tensors, read and dequantised a few rows at a time.

The header is read by plain reads and believed only after it was checked against the size of the file. (The package
`gguf` maps whole files and takes 9 s for a vocabulary of 262,144; it does the dequantising here.)
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from cutaway.errors import CheckpointError, PackageNeeded

MAGIC = b"GGUF"
SUFFIX = ".gguf"
VERSIONS = (2, 3)
LARGEST_RANK = 8
SLICE = 1 << 16  # weights that are dequantised at once: the package makes several copies of them

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; `shape` is in the order of Torch, and each row is a whole number of blocks."""

    file: Path
    shape: tuple[int, ...]
    kind: int
    start: int
    row_bytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a file says of itself."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(file: Path) -> GGUFHeader:
    """Metadata and tensors of a GGUF file; of one in several parts, those of all its parts.

    Raises:
        CheckpointError: the file or a part is missing, damaged, too old, or of a quantisation that cannot be read.
        PackageNeeded: the package `gguf` is not installed.
    """
    header = _read_one(file)
    parts = int(header.metadata.get("split.count", 1))
    for part in _parts(file, parts) if parts > 1 else ():
        if part.name != file.name:
            header.tensors.update(_read_one(part).tensors)
    return header


def quantisations(header: GGUFHeader) -> dict[str, int]:
    """How many tensors are stored in each quantisation, by its name."""
    counts: dict[str, int] = {}
    for entry in header.tensors.values():
        name = _types()(entry.kind).name
        counts[name] = counts.get(name, 0) + 1
    return counts


def read_rows(entry: TensorInfo, first: int = 0, count: int | None = None) -> Tensor:
    """Rows `first` to `first + count` of a tensor (all axes but the last counted together), in float32: `[row, column]`."""
    import numpy as np
    from gguf import dequantize

    columns = entry.shape[-1]
    count = prod(entry.shape[:-1]) - first if count is None else count
    out = torch.empty(count, columns)
    room, kind = out.numpy(), _types()(entry.kind)
    step = max(1, SLICE // columns)
    try:
        with entry.file.open("rb", buffering=0) as opened:
            opened.seek(entry.start + first * entry.row_bytes)
            for start in range(0, count, step):
                rows = min(step, count - start)
                raw = np.frombuffer(_exactly(opened, rows * entry.row_bytes, entry.file), dtype=np.uint8)
                room[start : start + rows] = dequantize(raw.reshape(rows, entry.row_bytes), kind)
    except OSError as error:
        raise CheckpointError(f"cannot read {entry.file}: {error.strerror or error}") from error
    return out


def _read_one(file: Path) -> GGUFHeader:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            return _Reader(file, opened, size).header()
    except FileNotFoundError as error:
        raise CheckpointError(f"no file {file}; the model lacks a part, download it again") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error


def _parts(file: Path, count: int) -> list[Path]:
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", file.name)
    if match is None or int(match[2]) != count:
        raise CheckpointError(f"{file.name} is one of {count} parts, which are called …-00001-of-{count:05}.gguf; rename it back")
    return [file.with_name(f"{match[1]}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]


class _Reader:
    """Reads a header; every length is compared with what is left of the file before it is believed."""

    def __init__(self, file: Path, opened: IO[bytes], size: int):
        self.file, self.opened, self.size = file, opened, size
        self.done = 0

    def header(self) -> GGUFHeader:
        if self.take(4) != MAGIC:
            raise self.damaged("it does not begin with GGUF")
        version = self.number("I")
        if version not in VERSIONS:
            raise CheckpointError(f"{self.file.name} is GGUF version {version}, and 2 and 3 can be read; convert it again")
        tensors, pairs = self.number("Q"), self.number("Q")
        if 32 * tensors + 13 * pairs > self.size:
            raise self.damaged("its header does not fit into it")
        metadata = {self.string(): self.value(self.number("I")) for _ in range(pairs)}
        infos = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self.damaged("its alignment is no number")
        start = -(-self.done // alignment) * alignment
        return GGUFHeader(metadata, {name: self.entry(name, shape, kind, start + offset) for name, shape, kind, offset in infos})

    def take(self, count: int) -> bytes:
        if count > self.size - self.done:
            raise self.damaged("its header does not fit into it")
        self.done += count
        return _exactly(self.opened, count, self.file)

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        if kind not in _NUMBERS:
            raise self.damaged(f"its header has a value of type {kind}")
        return self.number(_NUMBERS[kind])

    def array(self, kind: int, count: int) -> list[Any]:
        if count > self.size - self.done:  # an element takes a byte at least
            raise self.damaged("its header does not fit into it")
        if kind == _STRING:  # a vocabulary, which the tokenizer reads by itself: passed over
            for _ in range(count):
                self.take(self.number("Q"))
            return []
        if kind not in _NUMBERS:
            return [self.value(kind) for _ in range(count)]
        code = f"{count}{_NUMBERS[kind]}"
        return list(struct.unpack("<" + code, self.take(struct.calcsize("<" + code))))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, rank = self.string(), self.number("I")
        if not 1 <= rank <= LARGEST_RANK:
            raise self.damaged(f"{name!r} has {rank} axes")
        shape = tuple(reversed([self.number("Q") for _ in range(rank)]))  # the fastest axis is written first
        return name, shape, self.number("I"), self.number("Q")

    def entry(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> TensorInfo:
        block, width = _block(kind, f"{name!r} in {self.file.name}")
        if min(shape) < 1 or shape[-1] % block:
            raise self.damaged(f"{name!r} has shape {list(shape)}")
        row = shape[-1] // block * width
        if start + row * prod(shape[:-1]) > self.size:
            raise self.damaged(f"{name!r} does not fit into it")
        return TensorInfo(self.file, shape, kind, start, row)

    def damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.file.name} is cut short or damaged: {why}; download it again")


def _exactly(opened: IO[bytes], count: int, file: Path) -> bytes:
    data = opened.read(count)
    while len(data) < count:
        more = opened.read(count - len(data))
        if not more:
            raise CheckpointError(f"{file.name} is cut short or damaged: it ends too soon; download it again")
        data += more
    return data


def _types() -> Any:
    """The quantisations that the package `gguf` knows, by number."""
    try:
        from gguf import GGMLQuantizationType
    except ModuleNotFoundError as error:
        raise PackageNeeded("reading GGUF files needs the package gguf: pip install 'cutaway[gguf]'") from error
    return GGMLQuantizationType


def _block(kind: int, what: str) -> tuple[int, int]:
    """Weights in a block of a quantisation, and its bytes."""
    types, readable = _types(), _readable()
    if kind not in readable:
        known = {one.value: one.name for one in types}
        names = ", ".join(known[one] for one in readable)
        raise CheckpointError(
            f"{what} is quantised as {known.get(kind, f'type {kind}')}, which cannot be read; there are {names}: "
            "download another quantisation of the model"
        )
    from gguf import GGML_QUANT_SIZES

    block, width = GGML_QUANT_SIZES[types(kind)]
    return int(block), int(width)


@functools.cache
def _readable() -> tuple[int, ...]:
    """The quantisations that the package `gguf` can undo: found by trying each on one block of zeros."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, dequantize

    known = []
    for kind, (_, width) in GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, width), dtype=np.uint8), kind)
        except NotImplementedError:
            continue
        known.append(int(kind))
    return tuple(known)
