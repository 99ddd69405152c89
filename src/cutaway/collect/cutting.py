"""Cutting a corpus into chunks by what the documents say, so that who computes a chunk, and what was added elsewhere, is all one.

A chunk ends after a document whose hash says so, within bounds. A document put in somewhere changes the chunks near it, and the
ones after keep their keys. Documents too long for a chunk are cut into pieces, each before a blank.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cutaway.collect.corpus import Document

PART = 4  # a chunk may end from this part of its bound on, and from there does so after as much again on average
BLANK = re.compile(r"(?<=\S)(?= \S|\n+\S)")  # where tokenizers that split at blanks would split anyway


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one that is too long for a chunk."""

    document: int
    part: int
    ends: bool
    source: str
    text: str


@dataclass(frozen=True)
class ChunkHead:
    """What a chunk is called, without its texts."""

    number: int
    key: str
    first: int

    @property
    def name(self) -> str:
        """Its key."""
        return self.key


@dataclass(frozen=True)
class Chunk:
    """Neighbouring documents.

    Args:
        number: its place in the corpus.
        key: a hash of the texts and of all that decides what becomes of them.
    """

    number: int
    key: str
    pieces: tuple[Piece, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """Its key."""
        return self.key

    @property
    def head(self) -> ChunkHead:
        """The same without texts."""
        return ChunkHead(self.number, self.key, self.pieces[0].document)

    @property
    def characters(self) -> int:
        """The length of all texts."""
        return sum(len(one.text) for one in self.pieces)


def cut(documents: Iterable[Document], mark: str, size: int) -> Iterator[Chunk]:
    """Chunks of at most `size` characters, of which the key is also of `mark`."""
    kept: list[Piece] = []
    characters, number = 0, 0
    for piece in (piece for document in documents for piece in pieces_of(document, size)):
        if kept and characters + len(piece.text) > size:
            yield _chunk(number, mark, kept)
            kept, characters, number = [], 0, number + 1
        kept.append(piece)
        characters += len(piece.text)
        if characters >= size // PART and _ends(piece.text, size):
            yield _chunk(number, mark, kept)
            kept, characters, number = [], 0, number + 1
    if kept:
        yield _chunk(number, mark, kept)


def _ends(text: str, size: int) -> bool:
    """Whether a chunk may end after this text: as its hash says, as often as there are `size / PART` characters."""
    return int.from_bytes(_digest([text])[:4], "big") < 2**32 * PART * len(text) // size


def pieces_of(document: Document, size: int) -> Iterator[Piece]:
    """The document, in parts of at most `size` characters; each but the first begins with a blank, where there is one."""
    text, start, part = document.text, 0, 0
    while len(text) - start > size:
        end = start + size
        blanks = [found.start() for found in BLANK.finditer(text, start + size // 2, end)]
        end = blanks[-1] if blanks else end
        yield Piece(document.number, part, False, document.source, text[start:end])
        start, part = end, part + 1
    yield Piece(document.number, part, True, document.source, text[start:])


def _chunk(number: int, mark: str, pieces: list[Piece]) -> Chunk:
    parts = [mark, *(f"{one.part} {one.ends} {len(one.text)} {one.text}" for one in pieces)]
    return Chunk(number, _digest(parts).hex(), tuple(pieces))


def _digest(parts: Iterable[str]) -> bytes:
    found = hashlib.blake2b(digest_size=12)
    for part in parts:
        found.update(part.encode())
    return found.digest()
