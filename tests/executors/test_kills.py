"""kill −9 at random moments, of drivers, workers and Ray's own processes: every run ends or goes on to the same bytes.

After each kill every file in the folder is a draft or has the bytes of an uninterrupted run, and no process outlives its driver.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

TEXTS = [f"line {number} of a corpus, and {number * 7} words more of what is in it" for number in range(120)]
PATIENCE = 20  # times what an uninterrupted run takes: for one run, and then for its processes to end

SCRIPT = """
import sys
from pathlib import Path
from cutaway import ablate, across, edits, loading, metrics, sweep
from cutaway.collect import collect
from cutaway.errors import WorkerFailed
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts

if __name__ == "__main__":
    folder, executor = Path(sys.argv[1]), sys.argv[2]
    done = collect("attn-only-2l", folder.parent / "corpus.jsonl", ["resid_post0"], folder / "c", chunk=2**9, executor=executor)
    model = loading.from_pretrained(Transformer, "attn-only-2l")
    tokens = model.tokens_and_mask("the house of a sailor stood at the end", None, None)[0]
    cells = [edits.Edit(("z", n % 2), edits.zero(), heads=n // 2, positions=p) for p in (2, 4, 6) for n in range(16)]
    try:
        sweep(model, tokens, cells, metrics.loss(tokens), results=folder / "s", executor=executor, memory=400_000)
        prompts = {str(n): Prompts.of_texts(model, ["the house of a sailor"[n:]]) for n in range(4)}
        across(ablate, "attn-only-2l", prompts, results=folder / "a", kinds=["zero"], executor=executor)
    except WorkerFailed:
        sys.exit(3)
    sys.exit(3 if done.set_aside else 0)
"""


def tree(folder: Path) -> dict[str, str]:
    found = {}
    for one in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a worker may still be renaming
            if one.is_file():
                found[one.relative_to(folder).as_posix()] = hashlib.md5(one.read_bytes()).hexdigest()
    return found


def begin(script: Path, folder: Path, executor: str) -> subprocess.Popen[bytes]:
    # Ray gives its workers a niceness of 15: beside other work on the machine they would hardly run at all.
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
        "RAY_worker_niceness": "0",
    }
    command = [sys.executable, str(script), str(folder), executor]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def family(driver: psutil.Process) -> list[psutil.Process]:
    """The driver and all that came of it."""
    try:
        return [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def lives(one: psutil.Process) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        return bool(one.is_running() and one.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def killed(random_: random.Random, script: Path, folder: Path, executor: str, kills: int, usual: float) -> int:
    """Run once, killing up to so many processes at random moments; how many were killed. Nobody outlives the driver.

    Args:
        usual: seconds that a run takes that nobody kills.
    """
    started = begin(script, folder, executor)
    driver, seen, done = psutil.Process(started.pid), set[psutil.Process](), 0
    until = time.monotonic() + PATIENCE * usual
    while started.poll() is None:
        assert time.monotonic() < until, f"{executor}: a run does not end after {done} kills"
        time.sleep(random_.uniform(0.0, usual / 4) if done < kills else 0.1)
        here = family(driver)
        seen |= set(here)
        if done < kills and here:
            with contextlib.suppress(psutil.NoSuchProcess):
                random_.choice(here).kill()
                done += 1
    until = time.monotonic() + PATIENCE * usual
    while (
        left := [one for one in seen if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    ) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left, f"{executor}: orphans: {[' '.join(one.cmdline())[:80] for one in left]}"
    assert started.returncode in (0, 1, 2, 3, -9, -6, -15), started.returncode
    return done


def harness(tmp_path: Path, executor: str, kills: int, seed: int) -> None:
    random_ = random.Random(seed)
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    script = tmp_path / "driver.py"
    script.write_text(SCRIPT, encoding="utf-8")
    begun = time.monotonic()
    assert begin(script, tmp_path / "whole", "local").wait() == 0
    usual = max(5.0, time.monotonic() - begun)
    wanted = tree(tmp_path / "whole")
    assert len(wanted) > 25
    done = turn = 0
    while done < kills:
        folder = tmp_path / f"turn-{turn}"
        for _ in range(random_.randint(1, 3)):
            done += killed(random_, script, folder, executor, min(kills - done, random_.randint(1, 4)), usual)
            here = tree(folder)
            final = {
                name: mark
                for name, mark in here.items()
                if "partial" not in name and not name.startswith(("s/asked", "s/.weights"))
            }
            card = final.pop("c/card.json", None)  # one with chunks set aside, after three kills, is not the last
            assert card is None or "c/plan.json" in final
            assert {name: wanted.get(name) for name in final} == final, "a file is neither a draft nor whole"
        again = begin(script, folder, executor)
        assert again.wait(timeout=PATIENCE * usual) == 0
        assert {name: mark for name, mark in tree(folder).items() if "partial" not in name} == wanted
        turn += 1
        print(f"{executor}: {done} of {kills} kills in {turn} turns, all with the same bytes", flush=True)


@pytest.mark.parametrize("kills", [2, pytest.param(150, marks=pytest.mark.fuzz)])
def test_processes(tmp_path: Path, kills: int) -> None:
    harness(tmp_path, "processes:2", kills, seed=kills)


@pytest.mark.fuzz
def test_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    harness(tmp_path, "ray", 50, seed=1)
