"""Programs as JSON, and back. What is read is checked field by field; an unknown one is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from cutaway.errors import ProgramError, nearest
from cutaway.programs.language import Attend, Bucket, Map, Multiply, Program, ReadOut, Selector, Term, Weigh

FORMAT = "cutaway program 1"
LINES: dict[str, type] = {"attend": Attend, "map": Map, "weigh": Weigh, "bucket": Bucket, "multiply": Multiply}
NUMBERS = "list of numbers"
TABLE = "list of lists of numbers"
CHECKS: dict[str, str] = {
    "name": "text", "about": "text", "relation": "text", "key": "text", "of": "text", "how": "text", "left": "text",
    "right": "text", "kind": "text", "query": "text or null", "constant": "whole number", "n_ctx": "whole number",
    "size": "whole number", "bos": "whole number or null", "causal": "true or false", "weight": "number", "gap": "number",
    "temperature": "number or null", "values": "list of whole numbers", "vocabulary": "list of texts",
    "outputs": "list of texts or null", "inputs": "list of texts", "edges": NUMBERS, "bias": NUMBERS,
}  # fmt: skip


def to_dict(program: Program) -> dict[str, Any]:
    """The program as plain lists, texts and numbers."""
    names = {kind: name for name, kind in LINES.items()}
    out = _plain(program)
    out["lines"] = [{"line": names[type(line)], **_plain(line)} for line in program.lines]
    return {"format": FORMAT, **out}


def to_json(program: Program) -> str:
    """The program as JSON, one line of the program per line of text."""
    out = to_dict(program)
    lines = out.pop("lines")
    head = json.dumps(out, ensure_ascii=False)
    body = ",\n  ".join(json.dumps(line, ensure_ascii=False) for line in lines)
    return f'{head[:-1]}, "lines": [\n  {body}\n]}}\n' if lines else f'{head[:-1]}, "lines": []}}\n'


def from_json(text: str) -> Program:
    """A program from JSON.

    Raises:
        ProgramError: no JSON, a field that is unknown, missing or of the wrong type, or a program that contradicts itself.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ProgramError(f"no JSON: {error}") from None
    return from_dict(data)


def read(path: Path | str) -> Program:
    """A program from a file of JSON."""
    return from_json(Path(path).read_text(encoding="utf-8"))


def from_dict(data: Any) -> Program:
    """A program from what `to_dict` gives."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise ProgramError(f'no program: an object with the field "format": "{FORMAT}" is needed')
    given = {name: value for name, value in data.items() if name != "format"}
    made = _fields(Program, given, "the program", {"lines", "read_out"})
    lines = given.get("lines")
    if not isinstance(lines, list):
        raise ProgramError("the program's lines are a list")
    made["lines"] = tuple(_line(line, f"line {number}") for number, line in enumerate(lines, start=1))
    made["read_out"] = _read_out(given.get("read_out"))
    return Program(**made)


def _line(data: Any, where: str) -> Any:
    kind = LINES.get(data.get("line", "")) if isinstance(data, Mapping) else None
    if kind is None:
        raise ProgramError(f'{where} is an object whose field "line" is one of {", ".join(LINES)}')
    given = {name: value for name, value in data.items() if name != "line"}
    made = _fields(kind, given, where, {"select", "table", "terms"})
    if kind is Attend:
        made["select"] = _selector(given["select"], where)
        made["table"] = None if given.get("table") is None else _table(given["table"], where)
    if kind is Map:
        made["table"] = tuple(_checked(given["table"], "list of whole numbers", f"{where}: table"))
    if kind is Weigh:
        made["terms"] = _terms(given["terms"], where)
    return kind(**made)


def _selector(data: Any, where: str) -> Selector:
    made = _fields(Selector, data, f"{where}: select", {"terms"})
    if not isinstance(data.get("terms", []), list):
        raise ProgramError(f"{where}: the terms of select are a list")
    terms = []
    for term in data.get("terms", []):
        inner = _fields(Term, term, f"{where}: a term", {"table"})
        terms.append(Term(**inner, table=_table(term.get("table", []), where)))
    return Selector(tuple(terms), **made)


def _read_out(data: Any) -> ReadOut:
    made = _fields(ReadOut, data, "the read-out", {"terms", "at"})
    at = data.get("at")
    if not (at is None or isinstance(at, str)):
        at = tuple(_checked(at, "list of whole numbers", "the read-out: at"))
    return ReadOut(terms=_terms(data["terms"], "the read-out"), at=at, **made)


def _terms(data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list) or not all(isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in data):
        raise ProgramError(f"{where}: terms are a list of pairs, a variable and its table")
    return tuple((name, _table(table, where)) for name, table in data)


def _table(data: Any, where: str) -> tuple[tuple[float, ...], ...]:
    if not isinstance(data, list):
        raise ProgramError(f"{where}: a table is a {TABLE}, not {data!r}")
    return tuple(tuple(_checked(row, NUMBERS, f"{where}: a row of a table")) for row in data)


def _fields(kind: Any, data: Any, where: str, elsewhere: set[str]) -> dict[str, Any]:
    """The fields of a dataclass, those checked elsewhere left out."""
    if not isinstance(data, Mapping):
        raise ProgramError(f"{where} is an object, not {data!r}")
    known = {field.name: field for field in fields(kind) if field.init}
    for name in data:
        if name not in known:
            raise ProgramError(
                f"{where} has a field {name!r} that is not known{nearest(name, known)}; there are {', '.join(known)}"
            )
    missing = [name for name, field in known.items() if field.default is MISSING and name not in data]
    if missing:
        raise ProgramError(f"{where} lacks {', '.join(missing)}")
    return {
        name: _checked(data[name], CHECKS[name], f"{where}: {name}") for name in known if name in data and name not in elsewhere
    }


def _checked(value: Any, wanted: str, where: str) -> Any:
    base = wanted.removesuffix(" or null")
    if value is None and base != wanted:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    simple = {"text": isinstance(value, str), "whole number": whole, "number": whole or isinstance(value, float),
              "true or false": isinstance(value, bool)}  # fmt: skip
    if base in simple:
        if not simple[base]:
            raise ProgramError(f"{where} is a {wanted}, not {value!r}")
        return float(value) if base == "number" else value
    if not isinstance(value, list):
        raise ProgramError(f"{where} is a {wanted}, not {value!r}")
    inner = base.removeprefix("list of ").removesuffix("s")
    return tuple(_checked(one, inner, where) for one in value)


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as a dictionary; fields at their defaults are left out."""
    out = {}
    for one in fields(value):
        item = getattr(value, one.name) if one.init else MISSING
        if item is not MISSING and item != one.default:
            out[one.name] = _listed(item)
    return out


def _listed(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_listed(one) for one in value]
    return _plain(value) if isinstance(value, Selector | Term | ReadOut) else value
