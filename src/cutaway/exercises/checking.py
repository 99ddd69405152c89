"""Checking an answer: in a process of its own, for as long as the exercise allows, with a verdict in words."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import CutawayError
from cutaway.exercises.exercise import Exercise, find
from cutaway.exercises.progress import Progress


class NoAnswer(CutawayError, OSError):
    """There is no file to check."""


@dataclass(frozen=True)
class Verdict:
    """What came of a check.

    Args:
        right: how many cases were right.
        seed: gives the same hidden networks again.
    """

    name: str
    passed: bool
    message: str
    right: int
    seed: int


def check(
    name: str,
    folder: str | Path = ".",
    *,
    file: str | Path | None = None,
    seed: int | None = None,
    time_limit: float | int | None = None,
) -> Verdict:
    """Try the reader's function on every case of an exercise, and note in `folder` what came of it.

    Args:
        file: by default NAME.py in the folder.
        seed: of the hidden networks; drawn anew each time where None.
        time_limit: seconds for everything; the exercise's own where None.

    Raises:
        UnknownName: no such exercise.
        NoAnswer: the file is not there.
    """
    exercise = find(name)
    path = (Path(folder) / f"{name}.py" if file is None else Path(file)).resolve()
    if not path.is_file():
        raise NoAnswer(f"there is no {path.name} in {path.parent}; `cutaway exercises start {name}` writes it")
    seed = secrets.randbelow(2**31) if seed is None else seed
    limit = exercise.time_limit if time_limit is None else time_limit
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report"
        report.touch()
        code = _judged(exercise, path, report, seed, limit)
        events = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    verdict = _verdict(exercise, events, code, seed, limit)
    Progress.read(folder).noted(verdict.name, passed=verdict.passed, message=verdict.message)
    return verdict


def _judged(exercise: Exercise, path: Path, report: Path, seed: int, limit: float | int) -> int | None:
    """The exit code of the judge; None where its time was up."""
    command = [sys.executable, "-m", "cutaway.exercises.judge", exercise.name, str(path), str(report), str(seed)]
    with subprocess.Popen(command, cwd=path.parent, start_new_session=True) as process:
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    """End the judge, with whatever the reader's code has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _verdict(exercise: Exercise, events: list[dict[str, Any]], code: int | None, seed: int, limit: float | int) -> Verdict:
    right = sum(event["event"] == "right" for event in events)
    last = events[-1] if events else {"event": "case", "case": ""}
    if last["event"] == "done":
        return Verdict(exercise.name, True, f"right, on all {right} cases", right, seed)
    case = f"on {last['case']}: " if last.get("case") else ""
    if last["event"] == "wrong":
        hidden = f" (the same networks again: --seed {seed})" if "random network" in case else ""
        return Verdict(exercise.name, False, f"{case}{last['message']}{hidden}", right, seed)
    if code is None:
        return Verdict(exercise.name, False, f"{case}it takes longer than the {limit:g} s that all cases may take", right, seed)
    return Verdict(exercise.name, False, f"{case}the process that ran it ended (code {code})", right, seed)
