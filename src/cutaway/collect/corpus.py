"""A corpus: text files, JSON lines, parquet files or a folder that `datasets` wrote, as one stream of documents.

A line or a row that is broken stops the stream with its place, or is counted and left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from cutaway.errors import CollectionError, PackageNeeded
from cutaway.reading import DEEPEST
from cutaway.writing import SURROGATES

JSON_LINES = (".jsonl", ".ndjson")
TABLES = (*JSON_LINES, ".parquet", ".arrow")  # files whose rows have a column of text
SUFFIXES = (".txt", *TABLES)
DATASET = "state.json"  # what `datasets.Dataset.save_to_disk` puts beside its files
SPLITS = "dataset_dict.json"
LARGEST_LINE = 2**28  # characters


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    Args:
        number: its place in the corpus.
        source: the file, and the line or row, from 1.
    """

    number: int
    source: str
    text: str


@dataclass
class Corpus:
    """Texts in files.

    Args:
        path: a file, or a folder of files, which are read in the order of their names.
        column: the column, or the field of a JSON object, that holds the text; by default "text".
        lines: whether each line of a text file is a document, rather than the file.
        skip_broken: leave broken lines out, and count them, rather than stop.

    Raises:
        CollectionError: there is no such file, or nothing in the folder is text; `column` or `lines` where no file has any.
    """

    path: Path
    column: str | None = None
    lines: bool = False
    skip_broken: bool = False
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = Path(self.path).expanduser()
        self.files = _files(self.path)
        plain = [_plain(file) for file in self.files]
        if self.column is not None and all(plain):
            raise CollectionError(f"column={self.column!r}: {self.path} is plain text, which has no columns; leave --column out")
        if self.lines and not any(plain):
            raise CollectionError(f"lines=True is for plain text, and each row of {self.path} is a document; leave --lines out")

    @property
    def text_column(self) -> str:
        """The column, or the field of a JSON object, that holds the text."""
        return "text" if self.column is None else self.column

    @property
    def reading(self) -> dict[str, Any]:
        """How documents are found in the files, as far as they have them: `lines` of plain text, `column` of tables."""
        plain = [_plain(file) for file in self.files]
        return ({"lines": self.lines} if any(plain) else {}) | ({} if all(plain) else {"column": self.text_column})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def __iter__(self) -> Iterator[Document]:
        """All documents with something in them, in order.

        Raises:
            CollectionError: a broken line, unless those are left out.
        """
        self.broken = []
        found = chain.from_iterable(self._texts(file) for file in self.files)
        for number, (source, text) in enumerate(one for one in found if one[1].strip()):
            yield Document(number, source, text)

    def _texts(self, file: Path) -> Iterator[tuple[str, str]]:
        kinds: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
            ".parquet": self._parquet, ".arrow": self._arrow, ".jsonl": self._json_lines, ".ndjson": self._json_lines,
        }  # fmt: skip
        try:
            for place, text in kinds.get(file.suffix.lower(), self._plain)(file):
                why = self._wrong(text)
                if why is None:
                    yield place, text
                elif self.skip_broken:
                    self.broken.append(f"{place}: {why}")
                else:
                    raise CollectionError(f"{place}: {why}; mend it, or leave such lines out with --skip-broken")
        except OSError as error:
            raise CollectionError(f"cannot read {file}: {error.strerror or error}") from error

    def _wrong(self, text: Any) -> str | None:
        if isinstance(text, _Broken):
            return text.why
        if not isinstance(text, str):
            return f"no text in {self.text_column!r}"
        lone = SURROGATES.search(text)
        return f"it is not UTF-8 text: it holds {lone[0]!r} at {lone.start()}" if lone else None

    def _plain(self, file: Path) -> Iterator[tuple[str, Any]]:
        if not self.lines:
            yield file.name, _decoded(file.read_bytes())
            return
        for number, line in enumerate(_lines(file), 1):
            yield f"{file.name}:{number}", _decoded(line.rstrip(b"\r\n"))

    def _json_lines(self, file: Path) -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                yield f"{file.name}:{number}", self._of_json(line)

    def _of_json(self, line: bytes) -> Any:
        if len(line) > LARGEST_LINE:
            return _Broken(f"it has {len(line):,} bytes, more than {LARGEST_LINE:,}")
        try:
            found = json.loads(line)
        except RecursionError:
            return _Broken(f"it is nested more than {DEEPEST} deep")
        except ValueError as error:
            return _Broken(f"it is not JSON ({str(error)[:80]})")
        if isinstance(found, str):
            return found
        if not isinstance(found, dict) or self.text_column not in found:
            names = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
            return _Broken(f"it has no field {self.text_column!r}; there is {names[:80] or 'nothing'}")
        return found[self.text_column]

    def _parquet(self, file: Path) -> Iterator[tuple[str, Any]]:
        parquet, arrow = arrows()
        try:
            opened = parquet.ParquetFile(file)
            self._check_column(file, opened.schema_arrow.names)
            yield from self._column(file, (batch.column(0) for batch in opened.iter_batches(1024, columns=[self.text_column])))
        except arrow.lib.ArrowException as error:
            raise CollectionError(f"{file} is cut short or damaged: {str(error)[:100]}") from error

    def _arrow(self, file: Path) -> Iterator[tuple[str, Any]]:
        _, arrow = arrows()
        try:
            with arrow.memory_map(str(file)) as source, arrow.ipc.open_stream(source) as reader:
                self._check_column(file, reader.schema.names)
                yield from self._column(file, (batch.column(self.text_column) for batch in reader))
        except arrow.lib.ArrowException as error:
            raise CollectionError(f"{file} is cut short or damaged: {str(error)[:100]}") from error

    def _check_column(self, file: Path, names: list[str]) -> None:
        if self.text_column not in names:
            there = ", ".join(names)
            raise CollectionError(f"{file} has no column {self.text_column!r}; there are {there}: name one with --column")

    def _column(self, file: Path, batches: Iterator[Any]) -> Iterator[tuple[str, Any]]:
        for number, text in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1):
            yield f"{file.name}:{number}", text


def _plain(file: Path) -> bool:
    return file.suffix.lower() not in TABLES


@dataclass(frozen=True)
class _Broken:
    why: str


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        yield from opened


def _decoded(data: bytes) -> Any:
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        return _Broken(f"it is not UTF-8 text (byte {error.start})")


def arrows() -> tuple[Any, Any]:
    """The packages `pyarrow.parquet` and `pyarrow`.

    Raises:
        PackageNeeded: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise PackageNeeded("collections need the package pyarrow: pip install 'cutaway[collect]'") from error
    return pyarrow.parquet, pyarrow


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CollectionError(f"there is no corpus {path}: give a file of text, JSON lines or parquet, or a folder of them")
    if (path / SPLITS).is_file():
        splits = sorted(one.parent.name for one in path.glob(f"*/{DATASET}"))
        raise CollectionError(f"{path} holds the splits {', '.join(splits)}; give one of them, such as {path / splits[0]}")
    if (path / DATASET).is_file():
        listed = json.loads((path / DATASET).read_text(encoding="utf-8")).get("_data_files", [])
        files = [path / Path(str(one["filename"])).name for one in listed]
    else:
        files = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
    if not files:
        raise CollectionError(f"no file in {path} is text: it should hold one of {', '.join('*' + one for one in SUFFIXES)}")
    return files
