"""The wire format: a JSON header and the arrays' bytes, one format for the page, the notebook and the workbench.

    magic "CUT1" · header length (uint32, little-endian) · header (UTF-8 JSON, padded with spaces) · bytes, gzipped

The header is `{v, view, title, tokens, meta, arrays: {name: {dtype, shape, layout, offset, length, …}}}`; offsets
count from the end of the header and are multiples of 8. Layout `full` is row-major; `tril` keeps the lower
triangle of the last two axes (the rest is zero). `u8` stores levels, and the header what each level means; levels 253,
254 and 255 are NaN, +∞ and −∞. Levels lie closer together near zero (as squares do), because most attention is small.
`i32` holds whole numbers as they are.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from cutaway import reading
from cutaway.errors import NotReadable, ShapeError
from cutaway.view.arrays import Array, finite_range

VERSION = 1
MAGIC = b"CUT1"
Dtype = Literal["f32", "f16", "u8"]
EXACT_UP_TO = 20_000  # values; larger arrays travel as f16
LEVELS = 253  # for finite values; the three above are NaN, +∞, −∞
NUMPY = {"f32": "<f4", "f16": "<f2", "u8": "u1", "i32": "<i4"}


MOST_RAW = 2**28  # bytes of a figure before compression
Count = Annotated[int, Meta(ge=0, le=2**28)]


class ArrayEntry(msgspec.Struct):
    """An array in a header."""

    dtype: Dtype | Literal["i32"]
    shape: Annotated[list[Count], Meta(max_length=16)]
    layout: Literal["full", "tril"]
    offset: Annotated[int, Meta(ge=0, le=2**28, multiple_of=8)]
    length: Count
    levels: list[float] = []


class Header(msgspec.Struct):
    """The header of a figure."""

    arrays: dict[str, ArrayEntry]
    view: str = ""
    title: str = ""
    tokens: list[str] = []
    meta: dict[str, Any] = {}
    text: str = ""
    height: Annotated[int, Meta(ge=0, le=1_000_000)] = 420


def lower_triangular(array: Array) -> bool:
    """Whether the last two axes are square and zero above the diagonal."""
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 2:
        return False
    above = ~np.tri(array.shape[-1], dtype=bool)
    return all(not plane[above].any() for plane in array.reshape(-1, *array.shape[-2:]))


def pack(header: Mapping[str, Any], arrays: Mapping[str, Array], *, dtype: Dtype | None = None) -> bytes:
    """A figure as bytes. With no `dtype`, small arrays are f32 and large ones f16 (or f32 where f16 overflows)."""
    entries: dict[str, Any] = {}
    chunks: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        entry, data = _encode(array, dtype)
        entries[name] = entry | {"offset": offset, "length": len(data)}
        padding = -len(data) % 8
        chunks += [data, b"\0" * padding]
        offset += len(data) + padding
    if offset > MOST_RAW - 2**20:
        raise ShapeError(f"this figure has {offset / 1e6:.0f} MB of numbers, and {MOST_RAW / 1e6:.0f} MB is the most; draw less")
    text = json.dumps({"v": VERSION, **header, "arrays": entries}, ensure_ascii=False, separators=(",", ":"))
    head = text.encode("utf-8", "surrogatepass")
    head += b" " * (-len(head) % 8)
    return gzip.compress(MAGIC + len(head).to_bytes(4, "little") + head + b"".join(chunks), compresslevel=6, mtime=0)


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header (without its arrays) and the arrays: float32, or int32 where they were integers.

    Raises:
        NotReadable: not this format, damaged, too large, or of a newer version.
    """
    raw = _decompressed(data)
    if raw[:4] != MAGIC:
        raise NotReadable(f"these bytes are no figure: they begin with {raw[:4]!r}, not {MAGIC!r}")
    start = 8 + int.from_bytes(raw[4:8], "little")
    try:
        text = raw[8:start].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise NotReadable("this figure is damaged: its header is not text") from error
    header = reading.parse(text, "this figure", finite=False)
    if isinstance(header, dict) and header.get("v") != VERSION:
        raise NotReadable(f"this figure was written by a newer cutaway; this one reads version {VERSION}")
    known = reading.convert(header, Header, "this figure")
    if sum(max(1, math.prod(max(1, n) for n in entry.shape)) for entry in known.arrays.values()) > MOST_RAW // 4:
        raise NotReadable(f"this figure is too large: its arrays have more than {MOST_RAW // 4:,} values")
    arrays = {name: _array(raw, start, name, entry) for name, entry in known.arrays.items()}
    return {name: value for name, value in header.items() if name not in ("v", "arrays")}, arrays


def _decompressed(data: bytes) -> bytes:
    """The bytes of a gzip file, of which no more are made than a figure may have."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        raw = unpacker.decompress(data, MOST_RAW)
    except (zlib.error, TypeError) as error:
        raise NotReadable(f"these bytes are no figure: {error}") from error
    if unpacker.unconsumed_tail:
        raise NotReadable(f"this figure is too large: it unpacks to more than {MOST_RAW / 1e6:.0f} MB")
    if not unpacker.eof:
        raise NotReadable("this figure is damaged: it is cut short")
    return raw


def _array(raw: bytes, start: int, name: str, entry: ArrayEntry) -> Array:
    """An array of a figure."""
    begin = start + entry.offset
    cells = math.prod(entry.shape)
    if entry.layout == "tril":
        if len(entry.shape) < 2 or entry.shape[-1] != entry.shape[-2]:
            raise NotReadable(f"this figure is damaged: {name} is no triangle")
        cells = math.prod(entry.shape[:-2]) * entry.shape[-1] * (entry.shape[-1] + 1) // 2
    levels = entry.dtype != "u8" or len(entry.levels) == LEVELS
    if begin + entry.length > len(raw) or entry.length != cells * np.dtype(NUMPY[entry.dtype]).itemsize or not levels:
        raise NotReadable(f"this figure is damaged: the bytes of {name} are not those of its shape {entry.shape}")
    return _decode(np.frombuffer(raw, NUMPY[entry.dtype], cells, begin), entry)


def _encode(array: Array, dtype: Dtype | None) -> tuple[dict[str, Any], bytes]:
    shape = list(array.shape)
    tril = lower_triangular(array)
    if tril:
        rows, columns = np.tril_indices(array.shape[-1])
        array = array[..., rows, columns]
    kind: str = dtype or ("f32" if array.size <= EXACT_UP_TO else "f16")
    if np.issubdtype(array.dtype, np.integer):  # an index must not change
        kind = "i32"
    entry: dict[str, Any] = {"shape": shape, "layout": "tril" if tril else "full"}
    if kind == "u8":
        table = _levels(*finite_range([array]))
        levels = np.searchsorted((table[1:] + table[:-1]) / 2, array.astype(np.float64)).astype(np.uint8)
        if not np.isfinite(array).all():
            levels[np.isnan(array)], levels[np.isposinf(array)], levels[np.isneginf(array)] = 253, 254, 255
        return entry | {"dtype": "u8", "levels": [float(f"{value:.7g}") for value in table]}, levels.tobytes()
    if kind == "f16" and max(map(abs, finite_range([array]))) > 65_000:
        kind = "f32"
    return entry | {"dtype": kind}, array.astype(NUMPY[kind]).tobytes()


def _levels(low: float, high: float) -> Array:
    """What each level means: squares away from zero, or away from the end that is nearest to it."""
    if low < 0 < high:
        steps = np.linspace(-1, 1, LEVELS)  # an odd number, so that zero is one of them
        return np.sign(steps) * steps**2 * max(-low, high)
    steps = np.linspace(0, 1, LEVELS) ** 2
    return low + (high - low) * steps if low >= 0 else high - (high - low) * steps[::-1]


def _decode(flat: Array, entry: ArrayEntry) -> Array:
    values = flat if entry.dtype == "i32" else flat.astype(np.float32)
    if entry.dtype == "u8":
        values = np.array([*entry.levels, np.nan, np.inf, -np.inf], np.float32)[flat]
    shape = entry.shape
    if entry.layout == "full":
        return values.reshape(shape)
    full = np.zeros(shape, values.dtype)
    rows, columns = np.tril_indices(shape[-1])
    full[..., rows, columns] = values.reshape(*shape[:-2], -1)
    return full
