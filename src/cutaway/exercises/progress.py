"""How far a reader is: which exercises were begun, tried and passed, in a JSON file beside the answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cutaway import reading
from cutaway.errors import CutawayError, NotReadable
from cutaway.exercises.exercise import find
from cutaway.writing import write

FILE = "exercises.json"


class ProgressError(CutawayError, ValueError):
    """Progress that cannot be read, or an answer that would be overwritten."""


class _Entry(msgspec.Struct):
    started: str = ""
    attempts: Annotated[int, Meta(ge=0)] = 0
    passed: str | None = None
    last: str = ""


class _Noted(msgspec.Struct):
    """The file."""

    exercises: dict[str, _Entry]


@dataclass
class Progress:
    """Exercise → `started`, `attempts`, `passed` (a time, or None) and `last`, what the last check said."""

    folder: Path
    exercises: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> Progress:
        """The progress noted in a folder; none where there is no note.

        Raises:
            ProgressError: the note is damaged.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return cls(Path(folder))
        try:
            noted = reading.decode(reading.read_bytes(path), _Noted, str(path))
        except NotReadable as error:
            raise ProgressError(f"{error}; mend it, or remove it to begin anew") from error
        return cls(Path(folder), {name: msgspec.to_builtins(entry) for name, entry in noted.exercises.items()})

    def state(self, name: str) -> str:
        """`passed`, `tried`, `started` or nothing."""
        entry = self.exercises.get(name)
        if entry is None:
            return ""
        return "passed" if entry.get("passed") else "tried" if entry.get("attempts") else "started"

    def noted(self, name: str, *, passed: bool, message: str) -> None:
        """Count an attempt and write it down; what was passed once stays passed."""
        entry = self._entry(name)
        entry["attempts"] = int(entry.get("attempts") or 0) + 1
        entry["last"] = message
        if passed and not entry.get("passed"):
            entry["passed"] = _now()
        self.write()

    def _entry(self, name: str) -> dict[str, Any]:
        return self.exercises.setdefault(name, {"started": _now(), "attempts": 0, "passed": None, "last": ""})

    def write(self) -> None:
        """Write the file, whole or not at all."""
        write(self.folder / FILE, json.dumps({"version": 1, "exercises": self.exercises}, indent=1) + "\n")


def start(name: str, folder: str | Path = ".", *, force: bool = False) -> Path:
    """Write the file of an exercise into a folder, and say where.

    Raises:
        UnknownName: no such exercise.
        ProgressError: the file is there already (`force` writes it anew).
    """
    exercise = find(name)
    path = Path(folder) / f"{name}.py"
    if path.exists() and not force:
        raise ProgressError(f"{path} is there already; go on with it, or begin anew with --force")
    progress = Progress.read(folder)
    progress._entry(name)
    progress.write()
    return write(path, exercise.file())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
