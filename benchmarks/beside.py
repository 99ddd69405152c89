"""Two sides of a claim, timed in turns: ours in this environment, a baseline in its own.

A benchmark file offers functions named after its sides (`ours`, `peer`, `plain`). Each is given a folder of shared
inputs and returns its cases by name: a callable to time, or a pair of it and a callable that gives the arrays to
compare. Every side lives in its own process and waits while the other runs; rounds alternate who goes first. A claim
is a ratio of neighbouring turns, so that a busy machine slows both sides. Answers are compared before anything is timed.

This file runs in both environments, so it needs nothing but NumPy.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import datetime
import gc
import importlib.util
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Claim:
    """One sentence that the measurement confirms or refutes.

    `at_least`: the baseline takes that many times our time. `at_most`: we take at most that many times the baseline's.
    `memory`: compare peaks of resident memory above the start instead of seconds. `rounds`: fewer for what is slow.
    `wall`: hold the ratio of wall time to the target; else that of processor time, which a busy machine disturbs less.
    """

    case: str
    words: str
    at_least: float | None = None
    at_most: float | None = None
    ours: str = "ours"
    baseline: str = "peer"
    baseline_case: str | None = None
    tolerance: float = 1e-5
    memory: bool = False
    rounds: int | None = None
    wall: bool = False


@dataclasses.dataclass(frozen=True)
class Turns:
    """What each side replied, turn by turn, and how far their answers are apart."""

    ours: list[dict[str, Any]]
    baseline: list[dict[str, Any]]
    difference: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured for one claim: middle values of the rounds; `low` and `high` are quartiles of the ratio."""

    claim: Claim
    ours: float
    baseline: float
    ratio: float
    low: float
    high: float
    cpu_ratio: float
    difference: float | None
    rounds: int

    @property
    def holds(self) -> bool:
        ratio = self.ratio if self.claim.memory or self.claim.wall or math.isnan(self.cpu_ratio) else self.cpu_ratio
        if self.claim.at_least is not None:
            return ratio >= self.claim.at_least
        return self.claim.at_most is None or ratio <= self.claim.at_most


# ---------------------------------------------------------------------------------------------------- one side


def release_memory() -> None:
    """Give freed memory back to the system, so that a peak shows what a case itself needs (glibc; elsewhere nothing)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def peak_memory(reset: bool = False) -> tuple[int, int]:
    """Resident bytes of this process now, and their peak since the last reset (Linux; elsewhere zeros)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0, 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    fields = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status.read_text(), re.MULTILINE))
    return int(fields["VmRSS"]) * 1024, int(fields["VmHWM"]) * 1024


def processor_time() -> float:
    """Seconds of processor time of this process and of those that it started and that ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def time_case(run: Callable[[], Any], seconds: float, most: int) -> dict[str, Any]:
    """Call `run` again and again for about that long: seconds of wall and processor time per call, and peak memory.

    A case that measures memory in a process of its own returns it as `{"memory": bytes}`.
    """
    wall, cpu = [], []
    release_memory()
    before, _ = peak_memory(reset=True)
    until = time.perf_counter() + seconds
    while not wall or (time.perf_counter() < until and len(wall) < most):
        start, start_cpu = time.perf_counter(), processor_time()
        result = run()
        cpu.append(processor_time() - start_cpu)
        wall.append(time.perf_counter() - start)
        elsewhere = result["memory"] if isinstance(result, dict) and "memory" in result else None
        del result
    memory = peak_memory()[1] - before if elsewhere is None else elsewhere
    return {"wall": statistics.median(wall), "cpu": statistics.median(cpu), "calls": len(wall), "memory": memory}


def serve(file: str, side: str, folder: str) -> None:
    """Answer requests, one JSON object a line, until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the standard error
    spec = importlib.util.spec_from_file_location("benchmark", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark"] = module
    spec.loader.exec_module(module)
    cases: dict[str, Any] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if cases is None:
            cases = getattr(module, side)(Path(folder))
        entry = cases.get(request["case"])
        reply: dict[str, Any]
        if entry is None:
            reply = {"missing": sorted(cases)}
        else:
            run, answer = entry if isinstance(entry, tuple) else (entry, entry)
            if request["want"] == "answer":
                arrays = answer()
                reply = {"answer": None}
                if arrays:
                    np.savez(request["file"], **arrays)
                    reply = {"answer": request["file"]}
            else:
                reply = time_case(run, request["seconds"], request["most"])
        print(json.dumps(reply), file=replies, flush=True)


class Side:
    """A process that holds one side's model and does what it is asked, when it is asked."""

    def __init__(self, file: Path, name: str, python: str, folder: Path) -> None:
        self.name = name
        command = [python, str(HERE / "beside.py"), "--serve", str(file), name, str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the side {self.name!r} stopped while doing {request['case']!r}; its message is above")
        reply: dict[str, Any] = json.loads(line)
        if "missing" in reply:
            raise SystemExit(f"the side {self.name!r} has no case {request['case']!r}; it has {', '.join(reply['missing'])}")
        return reply

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


# --------------------------------------------------------------------------------------------------- both sides


def largest_difference(ours: Arrays, theirs: Arrays, case: str) -> float:
    """The largest difference of two answers, relative to the largest magnitude of each array; same keys, same shapes."""
    if set(ours) != set(theirs):
        raise SystemExit(f"{case}: the answers differ in what they hold: {sorted(set(ours) ^ set(theirs))}")
    worst = 0.0
    for key, mine in ours.items():
        other = theirs[key]
        if mine.shape != other.shape:
            raise SystemExit(f"{case}: {key} has shape {mine.shape} here and {other.shape} there")
        if not (np.isfinite(mine) == np.isfinite(other)).all():
            raise SystemExit(f"{case}: {key} is finite in different places")
        finite = np.isfinite(other)
        if finite.any():
            scale = max(float(np.abs(other[finite]).max()), 1e-12)
            worst = max(worst, float(np.abs(mine[finite].astype(np.float64) - other[finite]).max()) / scale)
    return worst


def run_in_turns(claim: Claim, sides: dict[str, Side], folder: Path, rounds: int, seconds: float) -> Turns:
    """Compare the answers of both sides, then time them in turns."""
    pair = [(sides[claim.ours], claim.case), (sides[claim.baseline], claim.baseline_case or claim.case)]
    answers = []
    for index, (side, case) in enumerate(pair):
        file = folder / f"answer-{index}.npz"
        kept = side.ask(want="answer", case=case, file=str(file))["answer"]
        answers.append(dict(np.load(file)) if kept else None)
        file.unlink(missing_ok=True)
    difference = None
    if answers[0] is not None and answers[1] is not None:
        difference = largest_difference(answers[0], answers[1], claim.case)
        if not difference <= claim.tolerance:
            raise SystemExit(f"{claim.case}: the answers differ by {difference:.1e}, more than {claim.tolerance:.0e}")
    turns: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    for number in range(rounds):
        for index in (0, 1) if number % 2 else (1, 0):
            side, case = pair[index]
            turns[index].append(side.ask(want="time", case=case, seconds=seconds, most=1 if claim.memory else 200))
    return Turns(*turns, difference)


def row_of(claim: Claim, turns: Turns) -> Row:
    """Middle values of what was measured, in the claim's unit."""
    unit = "memory" if claim.memory else "wall"
    ours, theirs = ([turn[unit] for turn in side] for side in (turns.ours, turns.baseline))
    up = claim.at_most is None
    ratios = [(b / max(a, 1e-9)) if up else (a / max(b, 1e-9)) for a, b in zip(ours, theirs, strict=True)]
    both = [(a["cpu"], b["cpu"]) for a, b in zip(turns.ours, turns.baseline, strict=True) if a["cpu"] * b["cpu"]]
    cpu = [(b / a) if up else (a / b) for a, b in both]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return Row(
        claim, statistics.median(ours), statistics.median(theirs), statistics.median(ratios), low, high,
        statistics.median(cpu) if cpu else float("nan"), turns.difference, len(ratios),
    )  # fmt: skip


def amount(value: float, memory: bool) -> str:
    if memory:
        return f"{value / 2**20:.0f} MiB"
    return f"{value * 1e6:.0f} µs" if value < 1e-3 else f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    titles = ["claim", "ours", "baseline", "ratio", "quartiles", "by processor time", "target", "holds", "largest difference"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        claim = row.claim
        target = f"≥ {claim.at_least:g}" if claim.at_least is not None else f"≤ {claim.at_most:g}" if claim.at_most else ""
        cells = [
            claim.words,
            amount(row.ours, claim.memory),
            amount(row.baseline, claim.memory),
            f"**{row.ratio:.2f}**",
            f"{row.low:.2f} to {row.high:.2f}",
            "" if claim.memory else f"{row.cpu_ratio:.2f}",
            target,
            "" if not target else "yes" if row.holds else "no",
            "" if row.difference is None else f"{row.difference:.0e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> str:
    """Today's date and this machine, in a few words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    said = f"{datetime.date.today()}, {cores} cores, {memory:.0f} GiB, CPU, {threads} thread on each side"
    return f"{said}\n{kernels(threads)}\n"


def kernels(threads: str) -> str:
    """The processor, and the kernels that multiply on our side, as `cutaway about` measures them."""
    code = "from cutaway.model import kernels; print(kernels.line())"
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    return done.stdout.strip()


def record(name: str, text: str) -> None:
    """Put the text into RESULTS.md in place of what this benchmark wrote last time."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    whole = RESULTS.read_text(encoding="utf-8")
    if begin not in whole:
        whole += f"\n## {name}\n\n{begin}\n{end}\n"
    before, rest = whole.split(begin)
    whole = before + begin + "\n" + text + "\n" + end + rest.split(end, 1)[1]
    RESULTS.write_text(whole, encoding="utf-8")


def main(file: str, claims: Sequence[Claim], prepare: Callable[[Path], None], *, rounds: int = 9, seconds: float = 0.4) -> None:
    """The command line of a benchmark file."""
    parser = argparse.ArgumentParser(description=f"Times {Path(file).stem} beside its baselines.")
    parser.add_argument("--peer", default=os.environ.get("CUTAWAY_PEER_PYTHON"), help="the Python of TransformerLens 2.18")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=seconds, help="length of one turn")
    parser.add_argument("--only", nargs="*", help="cases to measure")
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    chosen = [claim for claim in claims if not options.only or claim.case in options.only]
    needed = {name for claim in chosen for name in (claim.ours, claim.baseline)}
    if "peer" in needed and not (options.peer and shutil.which(options.peer)):
        print("the peer's Python is not there; `make bench` installs it, or name one with --peer or CUTAWAY_PEER_PYTHON")
        raise SystemExit(2)
    rows: list[Row] = []
    measured: dict[tuple[str | None, ...], Turns] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        pythons = {name: options.peer if name == "peer" else sys.executable for name in sorted(needed)}
        sides = {name: Side(Path(file).resolve(), name, python, folder) for name, python in pythons.items()}
        try:
            for claim in chosen:
                pair = (claim.ours, claim.case, claim.baseline, claim.baseline_case)
                if pair not in measured:  # a claim on memory after one on time needs no second run
                    times = min(options.rounds, claim.rounds or options.rounds)
                    measured[pair] = run_in_turns(claim, sides, folder, times, options.seconds)
                rows.append(row := row_of(claim, measured[pair]))
                print(
                    f"{claim.case:28} {amount(row.ours, claim.memory):>9} beside {amount(row.baseline, claim.memory):>9}  "
                    f"ratio {row.ratio:6.2f} [{row.low:.2f}, {row.high:.2f}], by processor time {row.cpu_ratio:.2f}"
                    f"{'' if row.holds else '  SHORT OF ITS TARGET'}",
                    flush=True,
                )
        finally:
            for side in sides.values():
                side.close()
    text = f"{machine()}\n{min(row.rounds for row in rows)} rounds or more.\n\n{table(rows)}"
    print("\n" + text)
    if options.record:
        record(Path(file).stem, text)


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[1] != "--serve":
        raise SystemExit("this is what the benchmark files are made with; run one of them instead")
    serve(*sys.argv[2:])
