"""Whether a cluster does what collections need, tried on itself: versions, clocks, a folder that all see, the same bytes.

Every try runs for real on the cluster: a collection of the bundled model, and a worker that kills itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.collect.collecting import collect
from cutaway.collect.corpus import Corpus
from cutaway.errors import CutawayError
from cutaway.executors import Local, Ray
from cutaway.executors.ray_cluster import connected, line
from cutaway.runs.model_source import versions
from cutaway.writing import write

MODEL, SITE = "attn-only-2l", "resid_post1"
TEXTS = [f"Line {number} of a text that a cluster reads to show that it can." for number in range(60)]
LATE = 1.0  # seconds by which a clock may be off before it is said


@dataclass(frozen=True)
class Try:
    """One thing that was tried.

    Args:
        passed: whether it holds.
        details: what was found.
    """

    name: str
    passed: bool
    details: str

    def __str__(self) -> str:
        return f"{'ok ' if self.passed else 'NO '} {self.name}: {self.details}"


@dataclass(frozen=True)
class Visit:
    """A chunk that only looks round."""

    number: int
    name: str = "visit"


@dataclass(frozen=True)
class Look:
    """The job of workers that say where they are; with `dying`, the first of them kills itself once."""

    folder: str
    dying: bool = False

    def start(self) -> Callable[[Visit], dict[str, Any]]:
        """See `Job`."""
        return self.look

    def look(self, visit: Visit) -> dict[str, Any]:
        """What a worker sees."""
        marker = Path(self.folder) / f"seen-{visit.number}"
        there = marker.exists()
        if Path(self.folder).is_dir():
            marker.touch()
        if self.dying and visit.number == 0 and not there:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"host": socket.gethostname(), "versions": versions(), "clock": time.time(), "sees": marker.exists()}


def check_cluster(address: str | None, folder: Path | str | None = None, workers: int | None = 2) -> Iterator[Try]:
    """Try a cluster, one thing after the other; a try that fails is the last where the next would need it.

    Args:
        address: of the cluster; None: one of this machine is started.
        folder: that all its machines see; None: a temporary one, which only this machine sees.

    Raises:
        ClusterUnreachable: nothing answers.
    """
    with connected(address, workers) as ray, _place(folder) as place:
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield Try("the cluster answers", True, line(ray, count))
        seen = _look(Ray(address, count), Look(str(place)), 2 * count)
        yield from _workers(seen, place)
        again = _look(Ray(address, count), Look(str(_made(place / "dying")), dying=True), count)
        yield Try("a worker that is killed is replaced", len(again) == count, f"{len(again)} of {count} chunks done")
        if all(one["sees"] for one in seen):
            yield _same_bytes(Ray(address, count), place)


def _look(executor: Ray, job: Look, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    executor.run(job, [Visit(number) for number in range(count)], lambda _, one: found.append(one | {"back": time.time()}))
    return found


def _workers(seen: list[dict[str, Any]], place: Path) -> Iterator[Try]:
    here = versions()
    pairs = [(str(one["host"]), name, one["versions"][name]) for one in seen for name in here]
    others = sorted({f"{host} has {name} {found}" for host, name, found in pairs if found != here[name]})
    details = "; ".join(others) or ", ".join(f"{name} {version}" for name, version in here.items())
    yield Try("workers have the driver's versions", not others, details)
    late = max((abs(one["clock"] - one["back"]) for one in seen), default=0.0)
    harmless = ", which changes nothing: no file depends on a clock" if late > LATE else ""
    yield Try("clocks", True, f"up to {late:.2f} s apart{harmless}")
    blind = ", ".join(sorted({str(one["host"]) for one in seen if not one["sees"]}))
    details = f"{blind} do not see {place}; give one with --folder" if blind else str(place)
    yield Try("workers see the folder", not blind, details)


def _same_bytes(executor: Ray, place: Path) -> Try:
    corpus = place / "corpus.jsonl"
    write(corpus, "".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    try:
        here = collect(MODEL, Corpus(corpus), [SITE], place / "here", chunk=2**9, executor=Local())
        there = collect(MODEL, Corpus(corpus), [SITE], place / "there", chunk=2**9, executor=executor)
    except CutawayError as error:
        return Try("a collection has the same bytes", False, str(error))
    same = here.digest == there.digest and not there.set_aside
    details = f"{there.chunks} shards, digest {there.digest}" + (
        "" if same else f", and {here.digest} here: other processors round otherwise"
    )
    return Try("a collection has the same bytes", same, details)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _place(folder: Path | str | None) -> Iterator[Path]:
    """A folder of its own inside the one that is given; gone at the end."""
    inside = Path(tempfile.mkdtemp(prefix="cutaway-check-", dir=None if folder is None else _made(Path(folder))))
    try:
        yield inside.resolve()
    finally:
        shutil.rmtree(inside, ignore_errors=True)
