"""The files of a chunk: its shard of activations, its part of the index, and its texts.

The shard's name is the chunk's key. The part of the index carries the receipt: that it exists says that the chunk is done.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cutaway import reading
from cutaway.collect.corpus import arrows
from cutaway.collect.cutting import Chunk, ChunkHead
from cutaway.collect.folders import Place, check_there
from cutaway.errors import NotReadable

SHARDS, INDEX, TEXTS = "shards", "index", "texts"
RECEIPT = b"cutaway"  # where it sits among the metadata of a part of the index


@dataclass(frozen=True)
class Receipt:
    """What a finished chunk holds.

    Args:
        number, key, first: of the chunk; `first` is its first document.
        digest, bytes: of its shard.
        rows: how many rows each site has.
        tokens: how many ran.
    """

    number: int
    key: str
    first: int
    digest: str
    bytes: int
    rows: int
    tokens: int

    @property
    def shard(self) -> str:
        """The name of its shard."""
        return f"{SHARDS}/{self.key}.safetensors"


def part_name(inside: str, number: int) -> str:
    """The file of a chunk's part of the index or the texts."""
    return f"{inside}/{number:06d}.parquet"


def digest_of(data: bytes) -> str:
    """A short hash of a file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def write_shard(place: Place, key: str, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """Write a shard.

    Returns:
        Its digest and its bytes.
    """
    data = save(dict(tensors), metadata={"key": key})
    _write(place, f"{SHARDS}/{key}.safetensors", data)
    return digest_of(data), len(data)


def write_part(
    place: Place, chunk: Chunk, receipt: Receipt, sites: Sequence[str], columns: Mapping[str, np.ndarray]
) -> None:  # fmt: skip
    """Write a chunk's texts and, last, its part of the index.

    Args:
        columns: `piece`, `position` and `token` of each row of the shard.
    """
    parquet, arrow = arrows()
    texts = {
        "document": [one.document for one in chunk.pieces], "part": [one.part for one in chunk.pieces],
        "source": [one.source for one in chunk.pieces], "text": [one.text for one in chunk.pieces],
    }  # fmt: skip
    _write(place, part_name(TEXTS, chunk.number), _parquet(parquet, arrow.table(texts)))
    count = len(columns["token"])
    documents = np.array([one.document for one in chunk.pieces], dtype=np.int64)
    parts = np.array([one.part for one in chunk.pieces], dtype=np.int32)
    piece = np.tile(columns["piece"], len(sites))

    def always(value: Sequence[str], each: int) -> Any:
        codes = arrow.array(np.repeat(np.arange(len(value), dtype=np.int32), each))
        return arrow.DictionaryArray.from_arrays(codes, arrow.array(list(value)))

    table = arrow.table({
        "document": documents[piece], "part": parts[piece],
        "position": np.tile(columns["position"].astype(np.int32), len(sites)),
        "token": np.tile(columns["token"].astype(np.int32), len(sites)),
        "site": always(sites, count), "shard": always([chunk.key], count * len(sites)),
        "row": np.tile(np.arange(count, dtype=np.int32), len(sites)), "digest": always([receipt.digest], count * len(sites)),
    })  # fmt: skip
    known = msgspec.json.encode(asdict(receipt))
    _write(place, part_name(INDEX, chunk.number), _parquet(parquet, table.replace_schema_metadata({RECEIPT: known})))


def _write(place: Place, name: str, data: bytes) -> None:
    """Write a file of a collection that is still there."""
    check_there(place)
    place.write(name, data)


def _parquet(parquet: Any, table: Any) -> bytes:
    out = io.BytesIO()
    parquet.write_table(table, out, compression="zstd")
    return out.getvalue()


def finished(place: Place, head: ChunkHead) -> Receipt | None:
    """The receipt of a chunk, where all its files are there and belong to it."""
    name = part_name(INDEX, head.number)
    if place.size(name) is None or place.size(part_name(TEXTS, head.number)) is None:
        return None
    parquet, arrow = arrows()
    try:
        kept = (parquet.read_schema(io.BytesIO(place.read(name))).metadata or {}).get(RECEIPT, b"{}")
        receipt: Receipt = reading.decode(kept, Receipt, f"{place}/{name}")
    except (NotReadable, arrow.lib.ArrowException):  # damaged: it is written anew
        return None
    same = (receipt.number, receipt.key, receipt.first) == (head.number, head.key, head.first)
    return receipt if same and place.size(receipt.shard) == receipt.bytes else None


def texts_of(place: Place, name: str) -> list[str]:
    """The beginnings of the documents of a chunk; none where the file is damaged."""
    parquet, arrow = arrows()
    try:
        table = parquet.read_table(io.BytesIO(place.read(name)), columns=["part", "text"])
    except arrow.lib.ArrowException:
        return []
    return [text for part, text in zip(*table.to_pydict().values(), strict=True) if part == 0]


def known_shard(place: Place, key: str) -> tuple[str, int] | None:
    """Digest and bytes of a shard that is there already: of a corpus that has grown, or of texts that occur twice."""
    name = f"{SHARDS}/{key}.safetensors"
    if not place.exists(name):
        return None
    data = place.read(name)
    try:
        load(data)
    except SafetensorError:  # damaged: it is written anew
        return None
    return digest_of(data), len(data)
