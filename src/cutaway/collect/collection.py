"""Reading a collection: rows by number from mapped shards, in order or shuffled globally, joined with tokens and texts.

Row numbers count over all shards in the order of the corpus. A shard is mapped when one of its rows is read, so that memory is
what a batch takes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway import reading
from cutaway.collect.corpus import arrows
from cutaway.collect.folders import CARD, PLAN, Folder, place_of
from cutaway.collect.formats import SCALE, unpacked
from cutaway.collect.shards import INDEX, SHARDS, TEXTS, digest_of, part_name
from cutaway.collect.shuffling import Permutation
from cutaway.collect.statistics import Statistics, statistics_of
from cutaway.errors import CollectionError, NotReadable
from cutaway.model.sites import resolve
from cutaway.sources.tensor_files import mapped

OPEN = 64  # shards that stay mapped
INDEXED = 16  # parts of the index that stay in memory


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Some rows of a site.

    Args:
        values: `[row, *rest]`; from int8, float32.
        rows: their numbers in the collection.
        document, position, token: of each row.
    """

    values: Float[Tensor, "row *rest"]
    rows: Int[Tensor, "row"]
    document: Int[Tensor, "row"]
    position: Int[Tensor, "row"]
    token: Int[Tensor, "row"]

    def __len__(self) -> int:
        return len(self.rows)


class Collection:
    """A data set of activations that `collect` wrote.

    Args:
        path: its folder, or its address.

    Raises:
        CollectionError: there is none, or it is not finished.
    """

    def __init__(self, path: Path | str):
        self.place = place_of(path)
        if not self.place.exists(CARD):
            there = self.place.exists(PLAN)
            why = "is not finished: run the same collect again" if there else "holds no collection"
            raise CollectionError(f"{self.place} {why}")
        self.card: dict[str, Any] = reading.decode(self.place.read(CARD), dict[str, Any], f"{self.place}/{CARD}")
        self.shards = [reading.convert(one, _Shard, f"{self.place}/{CARD}") for one in self._listed()]
        self._starts = np.concatenate([[0], np.cumsum([one[4] for one in self.shards])]).astype(np.int64)
        self._mapped = lru_cache(OPEN)(self._open)
        self._columns = lru_cache(INDEXED)(self._read_columns)

    def _listed(self) -> list[Any]:
        found = self.card.get("shards")
        if not isinstance(found, list) or not isinstance(self.card.get("options"), dict):
            raise NotReadable(f"{self.place}/{CARD} is damaged: it lists no shards")
        return found

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"Collection({len(self):,} rows of {', '.join(self.sites)} in {len(self.shards)} shards)"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": str(self.place)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Collection.__init__(self, state["path"])

    @property
    def sites(self) -> list[str]:
        """The full names of the sites."""
        return list(self.card["options"]["sites"])

    def site(self, name: str | tuple[Any, ...]) -> str:
        """The full name of a stored site.

        Raises:
            UnknownSite: it is not stored.
        """
        return resolve(name, self.sites)

    # Rows.

    def rows(self, site: str | tuple[Any, ...], numbers: Sequence[int] | Tensor | np.ndarray) -> Float[Tensor, "row *rest"]:
        """The activations of some rows, in the order that is asked for."""
        name, wanted = self.site(site), self._checked(numbers)
        out: Tensor | None = None
        for shard, where, local in self._grouped(wanted):
            found = self._of_shard(shard, name, torch.from_numpy(local))
            if out is None:
                out = torch.empty((len(wanted), *found.shape[1:]), dtype=found.dtype)
            out[torch.from_numpy(where)] = found
        return self._of_shard(0, name, torch.zeros(0, dtype=torch.long)) if out is None else out

    def batch(self, site: str | tuple[Any, ...], numbers: Sequence[int] | Tensor | np.ndarray) -> RowBatch:
        """Some rows with what is known about them."""
        wanted = self._checked(numbers)
        columns = {name: np.empty(len(wanted), dtype=np.int64) for name in ("document", "position", "token")}
        for shard, where, local in self._grouped(wanted):
            for name, column in self._columns(shard).items():
                columns[name][where] = column[local]
        joined = {name: torch.from_numpy(column) for name, column in columns.items()}
        return RowBatch(self.rows(site, wanted), torch.from_numpy(wanted), **joined)

    def batches(self, site: str | tuple[Any, ...], size: int, *, seed: int | None = None, start: int = 0) -> Iterator[RowBatch]:
        """All rows once, in batches; in the order of the corpus or, with a seed, shuffled over the whole collection.

        Args:
            start: how many rows to leave out at the beginning: where an interrupted training goes on.
        """
        order = None if seed is None else Permutation(len(self), seed)
        for first in range(start, len(self), size):
            numbers = np.arange(first, min(first + size, len(self)))
            yield self.batch(site, numbers if order is None else order[numbers])

    def sample(self, site: str | tuple[Any, ...], count: int, *, seed: int = 0) -> RowBatch:
        """Some rows drawn at random, none of them twice."""
        return self.batch(site, Permutation(len(self), seed)[np.arange(min(count, len(self)))])

    def dataset(self, site: str | tuple[Any, ...]) -> torch.utils.data.Dataset[Tensor]:
        """The rows of a site for `torch.utils.data.DataLoader`."""
        return _Rows(self, self.site(site))

    def _checked(self, numbers: Any) -> np.ndarray:
        wanted = np.asarray(numbers, dtype=np.int64).reshape(-1)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of a collection of {len(self)}")
        return wanted

    def _grouped(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Rows by shard: its number, where its rows stand among those wanted, and their numbers in it."""
        of = np.searchsorted(self._starts, wanted, side="right") - 1
        order = np.argsort(of, kind="stable")
        for where in np.split(order, np.nonzero(np.diff(of[order]))[0] + 1):
            if len(where):
                shard = int(of[where[0]])
                yield shard, where, wanted[where] - self._starts[shard]

    def _of_shard(self, shard: int, site: str, local: Tensor) -> Tensor:
        tensors = self._mapped(shard)
        parts = {name: tensors[name][local] for name in (site, site + SCALE) if name in tensors}
        return unpacked(parts, site)

    def _open(self, shard: int) -> dict[str, Tensor]:
        name = f"{SHARDS}/{self.shards[shard][1]}.safetensors"
        if self.place.size(name) != self.shards[shard][3]:
            raise NotReadable(f"{self.place}/{name} is missing or cut short; run the same collect again")
        if isinstance(self.place, Folder):
            return mapped(self.place.path / name)
        from safetensors.torch import load

        return load(self.place.read(name))

    # The index and the texts.

    def _read_columns(self, shard: int) -> dict[str, np.ndarray]:
        count = self.shards[shard][4]
        table = self._part(INDEX, self.shards[shard][0], ["document", "position", "token"]).slice(0, count)
        return {name: table.column(name).to_numpy() for name in table.column_names}

    def _part(self, inside: str, number: int, columns: list[str] | None = None) -> Any:
        parquet, arrow = arrows()
        name = part_name(inside, number)
        try:
            return parquet.read_table(io.BytesIO(self.place.read(name)), columns=columns)
        except arrow.lib.ArrowException as error:
            raise NotReadable(f"{self.place}/{name} is damaged ({str(error)[:80]}); run the same collect again") from error

    @cached_property
    def _firsts(self) -> np.ndarray:
        return np.array([one[5] for one in self.shards], dtype=np.int64)

    def text(self, document: int) -> str:
        """The text of a document.

        Raises:
            CollectionError: there is none of this number.
        """
        shard = int(np.searchsorted(self._firsts, document, side="right")) - 1
        while shard > 0 and self._firsts[shard] == document:  # a long one may have begun earlier
            shard -= 1
        parts: list[str] = []
        while 0 <= shard < len(self.shards) and self._firsts[shard] <= document:
            table = self._part(TEXTS, self.shards[shard][0])
            rows = zip(table.column("document").to_pylist(), table.column("text").to_pylist(), strict=True)
            parts += [text for number, text in rows if number == document]
            shard += 1
        if not parts:
            raise CollectionError(f"there is no document {document} in {self.place}")
        return "".join(parts)

    def frame(self) -> Any:
        """The index as a pandas frame; of a large collection, read its parquet files in parts."""
        import pandas

        return pandas.concat([self._part(INDEX, one[0]).to_pandas() for one in self.shards], ignore_index=True)

    # The whole.

    def statistics(self, site: str | tuple[Any, ...], *, covariance: bool = True) -> Statistics:
        """Mean, covariance and norms, in one pass over the shards."""
        name = self.site(site)
        return statistics_of(
            (self._of_shard(number, name, torch.arange(one[4])) for number, one in enumerate(self.shards)), covariance=covariance
        )

    def check(self) -> None:
        """Read every shard and compare it with its digest.

        Raises:
            NotReadable: one is damaged.
        """
        for _, key, digest, *_ in self.shards:
            if digest_of(self.place.read(f"{SHARDS}/{key}.safetensors")) != digest:
                raise NotReadable(
                    f"{self.place}/{SHARDS}/{key}.safetensors is damaged; remove it, and run the same collect again"
                )


_Shard = tuple[int, str, str, int, int, int]  # number, key, digest, bytes, rows, first document


class _Rows(torch.utils.data.Dataset[Tensor]):
    def __init__(self, collection: Collection, site: str):
        self.collection, self.of = collection, site

    def __len__(self) -> int:
        return len(self.collection)

    def __getitem__(self, number: int) -> Tensor:
        return self.collection.rows(self.of, [number])[0]

    def __getitems__(self, numbers: list[int]) -> list[Tensor]:
        return list(self.collection.rows(self.of, numbers))
