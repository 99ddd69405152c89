"""What `across` will cost, before it runs: what is kept already, and operations, bytes, time and memory of the rest, by measure.

Any function may be asked, so nobody can count it from outside. A worker answers each kind of question for four prompts and for
twelve, drawn at random, and a straight line through both says what all prompts take.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cutaway.errors import CutawayError, WorkerFailed
from cutaway.executors import Processes
from cutaway.many.job import OneQuestion, ask
from cutaway.model.transformer import Transformer
from cutaway.runs.bars import duration
from cutaway.runs.result_files import save_value

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
COUNTED = {**flop_registry, FUSED: flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]}
PARTS = (4, 12)  # prompts of a set that are measured: few, and enough for analyses that compare halves
MEASURES = ("operations", "seconds", "bytes", "memory")


@dataclass(frozen=True)
class AcrossPlan:
    """The cost of asking every model about every set of prompts.

    Args:
        answers, reused: how many there are, and how many of them are kept already.
        measured: how many kinds of questions were measured: models of one shape, one set of prompts, one set of options.
        operations: floating-point operations of matrix products in what is missing.
        bytes: of the answers that are missing.
        memory: bytes of the largest worker, its model included.
        seconds: of one worker at the measured rate, with the loading of each model that is asked something.
        workers: how many compute at once; None where only the cluster knows.
        elapsed: seconds with all of them; no less than the longest answer takes.
    """

    answers: int
    reused: int
    measured: int
    operations: float
    bytes: int
    memory: int
    seconds: float
    workers: int | None
    elapsed: float

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return asdict(self)

    def summary(self) -> str:
        """In words."""
        lines = [f"{self.answers} answer{'s' * (self.answers != 1)}, {self.reused} of which are kept already"]
        if self.measured:
            share = f"; {duration(self.elapsed)} with {self.workers}" if (self.workers or 1) > 1 else ""
            lines += [
                f"measured on up to {PARTS[-1]} prompts of {self.measured} kind{'s' * (self.measured != 1)} of question: about "
                f"{self.operations:.3g} operations, {self.bytes / 2**20:,.1f} MiB of answers",
                f"about {duration(self.seconds)} with one worker{share}",
                f"about {self.memory / 2**20:,.0f} MiB of memory in each worker",
            ]
        return "\n".join(lines)


def plan_of(
    missing: Iterable[OneQuestion], workers: int | None, progress: Callable[[float, float], None], say: Callable[[str], None]
) -> AcrossPlan:
    """The cost of questions: the first of a kind is measured, and stands for the others.

    Args:
        progress: called with (kinds that are measured, all kinds).
        say: called before anything is measured, with a sentence where that takes no less than the questions themselves.
    """
    kinds: dict[str, list[OneQuestion]] = {}
    for one in missing:
        kinds.setdefault(one.kind, []).append(one)
    first = [several[0] for several in kinds.values()]
    if small := small_job([[len(one.prompts) for one in several] for several in kinds.values()]):
        say(small)
    took: dict[int, Taken] = {}

    def done(unit: OneQuestion, found: Taken) -> None:
        took[unit.number] = found
        progress(float(len(took)), float(len(first)))

    with tempfile.TemporaryDirectory() as folder:
        aside = Processes(1).run(MeasureJob(folder), first, done)
    if aside:
        why = "; ".join(map(str, aside[:3]))
        raise WorkerFailed(f"{len(aside)} of {len(kinds)} kinds of questions cannot be answered: {why}")
    totals, largest, loading = dict.fromkeys(MEASURES, 0.0), dict.fromkeys(MEASURES, 0.0), dict[str, float]()
    for several in kinds.values():
        measured = took[several[0].number]
        for one in several:
            all_of_it = {name: measured.at(len(one.prompts), name) for name in MEASURES}
            totals = {name: totals[name] + all_of_it[name] for name in MEASURES}
            largest = {name: max(largest[name], all_of_it[name]) for name in MEASURES}
            loading[one.model] = measured.loading
    seconds = totals["seconds"] + sum(loading.values())
    elapsed = max(seconds / (workers or 1), largest["seconds"] + max(loading.values(), default=0.0))
    answers = sum(map(len, kinds.values()))
    return AcrossPlan(
        answers, 0, len(kinds), totals["operations"], int(totals["bytes"]), int(largest["memory"]), seconds, workers, elapsed
    )


def small_job(kinds: Sequence[Sequence[int]]) -> str:
    """A sentence about a job that measuring takes as long as; empty of larger ones.

    Args:
        kinds: of each kind of question, the prompts of each question.
    """
    whole, tried = sum(map(sum, kinds)), sum(2 * sum(sizes_of(several[0])) for several in kinds)
    if not whole or whole > tried:
        return ""
    return f"the job is small, {whole} prompts; measuring it runs {tried}: you may as well run it, without --plan"


def sizes_of(rows: int) -> list[int]:
    """How many of a question's prompts are measured, each twice: once counted, once timed."""
    return sorted({min(size, rows) for size in PARTS})


@dataclass(frozen=True)
class Taken:
    """What one question took.

    Args:
        parts: (prompts, what `MEASURES` names) of each part that was measured.
        loading: seconds until the model was there.
    """

    parts: tuple[tuple[int, Mapping[str, float]], ...]
    loading: float

    def at(self, rows: int, what: str) -> float:
        """What so many prompts take: on the line through both parts, and no less than what fewer prompts took."""
        (few, small), (many, large) = self.parts[0], self.parts[-1]
        each = max(0.0, large[what] - small[what]) / max(many - few, 1)
        return max(0.0, large[what] + each * (rows - many))


@dataclass(frozen=True)
class MeasureJob:
    """Questions to measure, as a worker is told of them. Nothing of what it writes stays."""

    folder: str

    def start(self) -> Callable[[OneQuestion], Taken]:
        """See `Job`."""
        return self._measure

    def _measure(self, question: OneQuestion) -> Taken:
        assert question.source is not None
        started = time.perf_counter()
        model = question.source.open()
        loading, rows = time.perf_counter() - started, len(question.prompts)
        try:
            parts = tuple(self._took(model, question, size) for size in sizes_of(rows))
        except CutawayError:  # it takes more prompts than a part has
            if rows <= PARTS[-1]:
                raise
            parts = (self._took(model, question, rows),)
        return Taken(parts, loading)

    def _took(self, model: Transformer, question: OneQuestion, rows: int) -> tuple[int, Mapping[str, float]]:
        part = question.of_some(rows)
        with Operations() as counted:
            ask(part, model)  # also what only the first call does: imports, caches
        peak = Peak(model)
        started = time.perf_counter()
        found = ask(part, model)
        seconds = time.perf_counter() - started
        path = save_value(found, Path(self.folder) / f"{question.number}-{rows}.cutaway", timeless=True)
        taken = counted.count, seconds, path.stat().st_size, peak.bytes
        return rows, dict(zip(MEASURES, map(float, taken), strict=True))


class Operations(TorchDispatchMode):
    """Counts operations by Torch's own table; `FlopCounterMode` also follows modules, with hooks that some gradients refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, called: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        known = COUNTED.get(called._overloadpacket)
        if known is None:
            with self:
                parts = called.decompose(*args, **given)
            return called(*args, **given) if parts is NotImplemented else parts
        found = called(*args, **given)
        self.count += known(*args, **given, out_val=found)
        return found


class Peak:
    """The most memory from now on: of the model's graphics card, else of this process."""

    def __init__(self, model: Transformer):
        self.device = model.W_E.device
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            with suppress(OSError):  # where it may not be set back, loading counts too
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    @property
    def bytes(self) -> int:
        """Until now."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        if sys.platform == "linux":  # `getrusage` counts the process that this one was forked from
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("VmHWM"))
        from resource import RUSAGE_SELF, getrusage

        return getrusage(RUSAGE_SELF).ru_maxrss
