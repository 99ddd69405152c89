"""Reading data from outside: limits on size and depth first, then a schema. What does not fit is refused in one sentence.

Schemas are msgspec's: a type with annotations says what a value must be, and a message says where it is not. The JSON reader is
Python's own, which takes what JSON files hold in practice (NaN, lone surrogates); numbers that are not finite are refused here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from cutaway.errors import NotReadable

LARGEST = 2**28  # bytes of JSON, by default; the largest files of ours are records with many edits
DEEPEST = 100  # lists and tables inside each other: configurations have 5, edits of edits not many more


def parse(text: str | bytes, what: str, *, largest: int = LARGEST, finite: bool = True) -> Any:
    """JSON as lists, tables and values.

    Args:
        what: names it in the errors: a file, or a part of one.
        largest: in bytes, or in characters of a `str`.
        finite: whether NaN and infinities are refused.

    Raises:
        NotReadable: no JSON, too large, nested too deeply, or with a number that is not finite.
    """
    if len(text) > largest:
        raise NotReadable(f"{what} is too large: {len(text):,} bytes of JSON, and {largest:,} is the most that is read")
    try:
        value = json.loads(text if isinstance(text, str) else text.decode())
    except RecursionError:
        _too_deep(what)
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise NotReadable(f"{what} is damaged: it is not JSON ({str(error)[:100]})") from error
    _check(value, what, finite)
    return value


def convert(value: Any, kind: Any, what: str) -> Any:
    """A parsed value as `kind` says it must be.

    Raises:
        NotReadable: it is not; says where, and what was expected.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise NotReadable(f"{what} is not understood: {error_text(error)}") from error
    except UnicodeEncodeError as error:  # msgspec takes no lone surrogates, which JSON can have
        raise NotReadable(f"{what} is not understood: a text in it is no Unicode ({error.object[:20]!r})") from error
    except RecursionError:
        _too_deep(what)


def decode(text: str | bytes, kind: Any, what: str, *, largest: int = LARGEST, finite: bool = True) -> Any:
    """`parse`, then `convert`."""
    return convert(parse(text, what, largest=largest, finite=finite), kind, what)


def read_bytes(path: Path, *, largest: int = LARGEST) -> bytes:
    """A file, if it is no larger than expected.

    Raises:
        NotReadable: it is missing, cannot be read, or is too large.
    """
    data = bytearray()
    try:
        with path.open("rb") as file:
            while len(data) <= largest and (part := file.read(2**24)):
                data += part
    except FileNotFoundError as error:
        raise NotReadable(f"there is no file {path}") from error
    except OSError as error:
        raise NotReadable(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > largest:
        raise NotReadable(f"{path} is too large: more than {largest:,} bytes")
    return bytes(data)


def error_text(error: msgspec.ValidationError) -> str:
    """What msgspec says, with the place in front: `n_layers: expected int, got str`."""
    text, _, place = " ".join(str(error).split()).partition(" - at `")  # names of fields may hold line ends
    place = place.rstrip("`").removeprefix("$").removeprefix(".")
    text = text.replace("`", "")
    return f"{place}: {text[:1].lower()}{text[1:]}" if place else text


def _check(value: Any, what: str, finite: bool) -> None:
    """Depth and finite numbers, without recursion."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
            elif finite and isinstance(one, float) and not math.isfinite(one):
                raise NotReadable(f"{what} is not understood: it holds the number {one}, where only finite ones make sense")
        if not below:
            return
        level = below
    _too_deep(what)


def _too_deep(what: str) -> NoReturn:
    raise NotReadable(f"{what} is damaged: lists and tables are nested more than {DEEPEST} deep in it")
