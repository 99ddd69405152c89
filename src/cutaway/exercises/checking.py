"""Checking an answer: in a process of its own, for as long as the exercise allows, with a verdict in words."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from cutaway import reading
from cutaway.errors import CutawayError, NotReadable
from cutaway.exercises.comparing import difference
from cutaway.exercises.exercise import Case, Exercise, find
from cutaway.exercises.plain_data import REPORT, plain
from cutaway.exercises.progress import Progress
from cutaway.sources.files import DAMAGE
from cutaway.writing import replacing

WARDEN, CATALOGUE = Path(__file__).parent / "warden.py", Path(__file__).parent / "catalogue"
PATIENCE = 10.0  # seconds for the warden to end all that was started
MARK = "CUTAWAY_JUDGE"
LARGEST = 2**20  # bytes of a report that are read
LARGEST_ANSWER = 2**28


class NoAnswer(CutawayError, OSError):
    """There is no file to check."""


@dataclass(frozen=True)
class CheckResult:
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
) -> CheckResult:
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
    cases = list(exercise.cases(random.Random(seed)))
    with tempfile.TemporaryDirectory() as place:
        code = _judged(exercise, path, cases, Path(place), limit)
        events: list[dict[str, Any]] = []
        grade(exercise, cases, lambda number: _answer(Path(place), number), lambda **event: events.append(event))
        report = _read_report(Path(place) / REPORT)
    if report.raised is not None and events[-1]["event"] == "case":
        case = events[-1]["case"] if report.case >= 0 else ""
        events.append({"event": "wrong", "case": case, "message": report.raised})
    verdict = _verdict(exercise, events, code, seed, limit)
    Progress.read(folder).noted(verdict.name, passed=verdict.passed, message=verdict.message)
    return verdict


def grade(exercise: Exercise, cases: Sequence[Case], answer: Callable[[int], Any], say: Callable[..., None]) -> None:
    """Compare the answer of each case, until one is wrong or missing.

    Args:
        answer: number of a case → `judge.call`'s result, or None where there is none.
        say: called with each event: `case`, `right`, `wrong` (with a `message`), `done`.
    """
    for number, case in enumerate(cases):
        say(event="case", case=case.name)
        found = answer(number)
        if found is None:
            return
        with torch.no_grad():
            wanted = exercise.solution(*case.arguments)
        message = difference(found["value"], wanted, rtol=exercise.rtol, atol=exercise.atol) or found["left"]
        if message is not None:
            say(event="wrong", case=case.name, message=message)
            return
        say(event="right", case=case.name)
    say(event="done")


def _judged(exercise: Exercise, path: Path, cases: Sequence[Case], place: Path, limit: float | int) -> int | None:
    """The exit code of the judge; None where its time was up."""
    given = place / "cases.pt"
    with replacing(given) as file:
        torch.save([case.arguments for case in cases], file)
    judge = [sys.executable, "-m", "cutaway.exercises.judge", str(path), exercise.function, str(given), str(place)]
    environment = os.environ | {MARK: place.name}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(WARDEN), str(CATALOGUE), *judge],
        cwd=path.parent,
        start_new_session=True,
        env=environment,
    ) as process:
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            return None
        finally:
            _end(process)
            _end_detached(place.name)


def _end_detached(mark: str) -> None:
    """End what has outlived its warden: it still has the judge's environment. (Where the system shows environments.)"""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in entry.read_bytes().split(b"\0"):
                os.kill(int(entry.parent.name), signal.SIGKILL)


class _Report(msgspec.Struct):
    """A line of what the judge says. Whatever it says, an answer is right only by what it returned."""

    case: int = -1
    raised: str | None = None


def _read_report(report: Path) -> _Report:
    """The last case that was begun, and what was raised; rubbish from a reader's code is passed over."""
    last = _Report()
    if not report.is_file():
        return last
    with report.open("rb") as file:
        lines = file.read(LARGEST).splitlines()
    for line in lines:
        with contextlib.suppress(NotReadable):
            event = reading.decode(line, _Report, "the report", largest=LARGEST)
            last = _Report(max(last.case, event.case), event.raised or last.raised)
    return last


def _answer(place: Path, number: int) -> Any:
    """What the judge wrote for a case, if it is what it writes."""
    path = place / f"{number}.pt"
    if not path.is_file() or path.stat().st_size > LARGEST_ANSWER:
        return None
    try:
        found = torch.load(path, weights_only=True)
    except DAMAGE:
        return None
    known = isinstance(found, dict) and set(found) == {"value", "left"} and isinstance(found["left"], str | None)
    return {"value": plain(found["value"]), "left": found["left"]} if known else None


def _end(process: subprocess.Popen[Any]) -> None:
    """End the judge, with whatever the reader's code has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _verdict(exercise: Exercise, events: list[dict[str, Any]], code: int | None, seed: int, limit: float | int) -> CheckResult:
    right = sum(event["event"] == "right" for event in events)
    last = events[-1] if events else {"event": "case", "case": ""}
    if last["event"] == "done":
        return CheckResult(exercise.name, True, f"right, on all {right} cases", right, seed)
    case = f"on {last['case']}: " if last.get("case") else ""
    if last["event"] == "wrong":
        hidden = f" (the same networks again: --seed {seed})" if "random network" in case else ""
        return CheckResult(exercise.name, False, f"{case}{last['message']}{hidden}", right, seed)
    if code is None:
        return CheckResult(exercise.name, False, f"{case}it takes longer than the {limit:g} s for all cases", right, seed)
    return CheckResult(exercise.name, False, f"{case}the process that ran it ended (code {code})", right, seed)
