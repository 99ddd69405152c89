"""Rows of tokens from a chunk's texts: a document a row, or documents joined by EOS and cut into full rows.

Every token of a row knows its piece of the chunk, so that a stored activation can be joined with its document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.collect.cutting import Piece
from cutaway.collect.options import Options
from cutaway.errors import TokenError
from cutaway.tokens import encode_each


@dataclass(frozen=True, eq=False)
class Row:
    """Tokens that run together.

    Args:
        tokens: `[pos]`.
        piece: which of the chunk's pieces each belongs to, `[pos]`.
        ends: whether it is the last row of a whole document.
    """

    tokens: np.ndarray
    piece: np.ndarray
    ends: bool

    def __len__(self) -> int:
        return len(self.tokens)


def rows_of(pieces: Sequence[Piece], tokenizer: Any, options: Options) -> list[Row]:
    """The rows of a chunk.

    Raises:
        TokenError: the tokenizer lacks a token that the packing needs, or does not know a character.
    """
    ids = encode_each(tokenizer, [one.text for one in pieces])
    bos = [_special(tokenizer, "bos")] if options.prepend_bos else []
    if options.packing == "packed":
        return _packed(pieces, ids, bos, _special(tokenizer, "eos"), options.length)
    return _by_document(pieces, ids, bos, options.length)


def _by_document(pieces: Sequence[Piece], ids: list[list[int]], bos: list[int], length: int) -> list[Row]:
    step = length - len(bos)
    rows = []
    for number, (piece, own) in enumerate(zip(pieces, ids, strict=True)):
        for start in range(0, len(own), step):
            tokens = np.array(bos + own[start : start + step], dtype=np.int64)
            rows.append(Row(tokens, np.full(len(tokens), number, dtype=np.int32), piece.ends and start + step >= len(own)))
    return rows


def _packed(pieces: Sequence[Piece], ids: list[list[int]], bos: list[int], eos: int, length: int) -> list[Row]:
    step = length - len(bos)
    joined, of = [], []
    for number, (piece, own) in enumerate(zip(pieces, ids, strict=True)):
        tokens = [*own, eos] if piece.ends else own
        joined += tokens
        of += [number] * len(tokens)
    rows = []
    for start in range(0, len(joined), step):
        tokens, owners = bos + joined[start : start + step], of[start : start + step]
        rows.append(Row(np.array(tokens, dtype=np.int64), np.array(owners[:1] * len(bos) + owners, dtype=np.int32), False))
    return rows


def _special(tokenizer: Any, role: str) -> int:
    found = getattr(tokenizer, f"{role}_token_id", None)
    if found is None:
        way = "collect without it (--no-bos)" if role == "bos" else "collect by document"
        raise TokenError(f"the tokenizer has no {role.upper()} token; {way}")
    return int(found)


def batches(rows: Sequence[Row], tokens: int) -> list[list[int]]:
    """Which rows run together: rows of about one length, of at most `tokens` with their padding; each has its number."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    found: list[list[int]] = []
    for number in order:
        if found and len(rows[number]) * (len(found[-1]) + 1) <= tokens:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def padded(rows: Sequence[Row], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as one array `[row, pos]`, padded on the right, and where tokens are."""
    width = max(map(len, rows))
    tokens = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row.tokens
        mask[number, : len(row)] = True
    return tokens, mask


def chosen(rows: Sequence[Row], options: Options) -> list[np.ndarray]:
    """Of each row the positions that are stored."""
    if options.positions == "all":
        return [np.arange(len(row)) for row in rows]
    if options.positions == "last":
        return [np.array([len(row) - 1] if row.ends else [], dtype=np.int64) for row in rows]
    return [np.isin(row.tokens, options.tokens).nonzero()[0] for row in rows]
