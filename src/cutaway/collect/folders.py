"""Where a collection lies: a folder, or an address of `fsspec`. Files in it appear whole or not at all.

Workers write only into a place that has a plan: a folder that vanished is not made anew in the middle of a run.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cutaway import reading
from cutaway.errors import CollectionError, NotReadable, NotWritten, PackageNeeded
from cutaway.writing import DRAFT, check_folder, write

PLAN, CARD = "plan.json", "card.json"
LARGEST = 2**40  # bytes of a shard


class Folder:
    """A folder that all workers see."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()

    def __str__(self) -> str:
        return str(self.path)

    def begin(self) -> None:
        """Make sure that files can be written.

        Raises:
            NotWritten: they cannot.
        """
        check_folder(self.path)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).is_file()

    def holds_files(self) -> bool:
        """Whether anything is in it but drafts, which other ranks may be writing."""
        return self.path.is_dir() and not all(DRAFT.fullmatch(one.name) for one in self.path.iterdir())

    def size(self, name: str) -> int | None:
        """Its bytes; None where there is none."""
        try:
            return (self.path / name).stat().st_size
        except OSError:
            return None

    def read(self, name: str) -> bytes:
        """What it holds.

        Raises:
            NotReadable: it is missing, or cannot be read.
        """
        return reading.read_bytes(self.path / name, largest=LARGEST)

    def write(self, name: str, data: bytes | str) -> None:
        """Write it.

        Raises:
            NotWritten: the folder or the disk does not take it.
        """
        write(self.path / name, data, under=None if name == PLAN else self.path)

    def names(self, inside: str) -> list[str]:
        """The files in a folder of it."""
        place = self.path / inside
        return sorted(one.name for one in place.iterdir() if one.is_file()) if place.is_dir() else []

    def remove(self, name: str) -> None:
        """Remove a file that may be there."""
        (self.path / name).unlink(missing_ok=True)


class Address:
    """A place that `fsspec` reaches: an object store, a server. An object appears when its upload is complete."""

    def __init__(self, address: str):
        try:
            from fsspec.core import url_to_fs
        except ModuleNotFoundError as error:
            raise PackageNeeded("addresses need the package fsspec: pip install fsspec") from error
        self.address = address
        try:
            self.files, self.root = url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise CollectionError(f"{address!r} is no address that can be reached: {error}") from error

    def __str__(self) -> str:
        return self.address

    def _at(self, name: str) -> str:
        return posixpath.join(self.root, name)

    def begin(self) -> None:
        """See `Folder`."""
        with _reached(self.address, NotWritten):
            self.files.makedirs(self.root, exist_ok=True)

    def exists(self, name: str) -> bool:
        """See `Folder`."""
        with _reached(self.address, NotReadable):
            return bool(self.files.isfile(self._at(name)))

    def size(self, name: str) -> int | None:
        """See `Folder`."""
        with _reached(self.address, NotReadable):
            return int(self.files.size(self._at(name))) if self.files.isfile(self._at(name)) else None

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        with _reached(self.address, NotReadable):
            return bytes(self.files.cat_file(self._at(name)))

    def write(self, name: str, data: bytes | str) -> None:
        """See `Folder`. Written beside its place and renamed, since not every server shows an upload only when it is whole."""
        path = self._at(name)
        draft = f"{path}.partial"
        with _reached(self.address, NotWritten):
            self.files.makedirs(posixpath.dirname(path), exist_ok=True)
            self.files.pipe_file(draft, data.encode() if isinstance(data, str) else data)
            self.files.mv(draft, path)

    def names(self, inside: str) -> list[str]:
        """See `Folder`."""
        place = self._at(inside)
        with _reached(self.address, NotReadable):
            if not self.files.isdir(place):
                return []
            return sorted(posixpath.basename(one) for one in self.files.ls(place, detail=False) if not one.endswith(".partial"))

    def remove(self, name: str) -> None:
        """See `Folder`."""
        if self.exists(name):
            self.files.rm(self._at(name))


Place = Folder | Address


@contextmanager
def _reached(address: str, kind: type[NotWritten] | type[NotReadable]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise kind(f"{address}: {error.strerror or error}") from error


def place_of(out: Any) -> Place:
    """A folder, or an address where there is `://` in it."""
    return Address(str(out)) if "://" in str(out) else Folder(out)


def check_there(place: Place) -> None:
    """Stop where the plan is gone: somebody has removed the folder.

    Raises:
        NotWritten: it is.
    """
    if not place.exists(PLAN):
        raise NotWritten(f"{place} has vanished, or its {PLAN} has; what is still there is kept: run the same command again")
