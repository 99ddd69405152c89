"""Jobs for tests of executors: small enough to start at once, and able to die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import NotWritten


@dataclass(frozen=True)
class Unit:
    """A chunk that does what its word says."""

    number: int
    word: str = ""

    @property
    def name(self) -> str:
        return f"unit-{self.number}"

    @property
    def head(self) -> Unit:
        return self


@dataclass(frozen=True)
class Squares:
    """Squares numbers, unless the chunk's word says otherwise; notes its processes in a folder."""

    folder: str

    def start(self) -> Callable[[Unit], Any]:
        (Path(self.folder) / f"pid-{os.getpid()}").touch()
        return self.compute

    def compute(self, unit: Unit) -> int:
        if unit.word == "die" or (unit.word == "die once" and self._first(unit)):
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.word == "fail":
            raise ValueError("this chunk is poisoned")
        if unit.word == "full":
            raise NotWritten("the disk is full")
        if unit.word == "sleep":
            time.sleep(60)
        return unit.number**2

    def _first(self, unit: Unit) -> bool:
        marker = Path(self.folder) / f"tried-{unit.number}"
        there = marker.exists()
        marker.touch()
        return not there


def processes_of(folder: Path) -> list[int]:
    """The processes that have started a job there."""
    return [int(one.name.removeprefix("pid-")) for one in folder.glob("pid-*")]


def running(pid: int) -> bool:
    """Whether a process lives, and is no zombie that its parent has yet to collect."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
