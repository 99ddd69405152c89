"""Ray: a real cluster of this machine, started once for these tests. Same bytes, dead workers replaced, faults in a sentence."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cutaway import edits, loading, metrics, sweep
from cutaway.collect import collect
from cutaway.collect.conformance import check_cluster
from cutaway.errors import ClusterUnreachable, NotWritten
from cutaway.executors import Ray
from cutaway.executors.ray_cluster import connected
from cutaway.model.transformer import Transformer
from tests.executors.jobs import Squares, Unit, processes_of, running

pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own
TEXTS = [f"line {number} of what the workers read, and {number * 7} words more" for number in range(40)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])  # workers import these tests
    with connected(None, 4) as ray:
        yield ray


def tree(folder: Path) -> dict[str, str]:
    files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
    return {one.relative_to(folder).as_posix(): hashlib.md5(one.read_bytes()).hexdigest() for one in files}


def test_workers_are_replaced_and_poisoned_chunks_set_aside(cluster: Any, tmp_path: Path) -> None:
    words = {1: "die once", 3: "die", 5: "fail"}
    found: dict[int, int] = {}
    units = [Unit(number, words.get(number, "")) for number in range(8)]
    aside = Ray(workers=2, cpus=0.5).run(Squares(str(tmp_path)), units, lambda unit, value: found.setdefault(unit.number, value))
    assert found == {number: number**2 for number in range(8) if number not in (3, 5)}
    assert sorted(one.number for one in aside) == [3, 5]
    assert next(one.why for one in aside if one.number == 5) == "this chunk is poisoned"
    with pytest.raises(NotWritten, match="the disk is full"):
        Ray(workers=1, cpus=0.5).run(Squares(str(tmp_path)), [Unit(0, "full")], lambda unit, value: None)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.fuzz), 2, 4])
def test_collections_and_sweeps_have_the_same_bytes(cluster: Any, tmp_path: Path, workers: int) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    model = loading.from_pretrained(Transformer, "attn-only-2l")
    tokens = model.tokens_and_mask(TEXTS[0], None, None)[0]
    cells = [edits.Edit(("z", n % 2), edits.zero(), heads=n // 2) for n in range(16)]
    for name, executor in (("here", "local"), ("there", Ray(workers=workers, cpus=0.5))):
        collect("attn-only-2l", corpus, ["resid_post0"], tmp_path / name / "c", chunk=2**9, executor=executor)
        if workers == 2:
            sweep(model, tokens, cells, metrics.loss(tokens), results=tmp_path / name / "s", executor=executor, memory=300_000)
    there = tree(tmp_path / "there")
    assert there == tree(tmp_path / "here") and len(there) > (12 if workers == 2 else 8)


def test_a_cluster_is_checked(cluster: Any, tmp_path: Path) -> None:
    tries = list(check_cluster(None, tmp_path, 2))
    assert [one.name for one in tries if not one.passed] == [] and len(tries) == 6
    assert "Ray: 2 workers on 1 node" in tries[0].details and not list(tmp_path.iterdir())


def test_workers_end_with_the_run(cluster: Any, tmp_path: Path) -> None:
    Ray(workers=2, cpus=0.5).run(Squares(str(tmp_path)), [Unit(number) for number in range(4)], lambda unit, value: None)
    import time

    until = time.monotonic() + 20
    while any(map(running, processes_of(tmp_path))) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(running, processes_of(tmp_path)))


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    from cutaway.executors.ray_cluster import _answers

    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(ClusterUnreachable, match="no Ray cluster answers"):
            _answers(address)
