"""Executors: every chunk once, whatever dies; a poisoned one is set aside after three tries; nobody outlives the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cutaway.errors import ConfigError, NotWritten, WorkerRefused
from cutaway.executors import Executor, Local, Processes, Ray, executor_of
from tests.executors.jobs import Squares, Unit, processes_of, running


def results(executor: Executor, folder: Path, units: list[Unit]) -> tuple[dict[int, int], list[tuple[int, str]]]:
    found: dict[int, int] = {}
    aside = executor.run(Squares(str(folder)), units, lambda unit, value: found.setdefault(unit.number, value))
    return found, [(one.number, one.why) for one in aside]


def test_names_stand_for_executors() -> None:
    assert executor_of(None) == executor_of("local") == Local()
    assert executor_of("processes:3") == Processes(3) and executor_of(Processes(3)) == Processes(3)
    assert executor_of("ray") == Ray() and executor_of("ray:10.0.0.1:6379") == Ray("10.0.0.1:6379")
    assert executor_of("ray://head:10001") == Ray("ray://head:10001")
    for wrong in ("procesess:2", "processes:", "processes:x", "dask"):
        with pytest.raises(ConfigError, match="there are local, processes:N"):
            executor_of(wrong)
    with pytest.raises(ConfigError, match="one at least"):
        Processes(0)


@pytest.mark.parametrize("executor", [Local(), Processes(2)], ids=str)
def test_a_poisoned_chunk_is_set_aside_and_all_others_are_done(executor: Executor, tmp_path: Path) -> None:
    units = [Unit(number, "fail" if number == 2 else "") for number in range(6)]
    found, aside = results(executor, tmp_path, units)
    assert found == {number: number**2 for number in range(6) if number != 2}
    assert aside == [(2, "this chunk is poisoned")]


def test_dead_workers_are_replaced_and_what_kills_them_is_set_aside(tmp_path: Path) -> None:
    words = {1: "die once", 3: "die"}
    found, aside = results(Processes(2), tmp_path, [Unit(number, words.get(number, "")) for number in range(8)])
    assert found == {number: number**2 for number in range(8) if number != 3}
    assert [number for number, _ in aside] == [3] and "killed" in aside[0][1]
    assert 3 <= len(processes_of(tmp_path)) <= 2 + 1 + 3
    assert not any(map(running, processes_of(tmp_path)))


def test_what_no_other_try_mends_stops_at_once(tmp_path: Path) -> None:
    for executor in (Local(), Processes(2)):
        with pytest.raises(NotWritten, match="the disk is full"):
            results(executor, tmp_path, [Unit(0, "full"), *(Unit(number, "sleep") for number in range(1, 3))])
    assert not any(running(pid) for pid in processes_of(tmp_path) if pid != os.getpid())


def test_workers_that_all_die_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerRefused, match="workers in a row ended"):
        results(Processes(1), tmp_path, [Unit(number, "die") for number in range(9)])


DRIVER = """
import sys
from cutaway.executors import Processes
from tests.executors.jobs import Squares, Unit
if __name__ == "__main__":
    Processes(2).run(Squares(sys.argv[1]), [Unit(number, "sleep") for number in range(4)], print)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes by /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_driver(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER, encoding="utf-8")
    work = tmp_path / "work"
    work.mkdir()
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    driver = subprocess.Popen(
        [sys.executable, str(script), str(work)], env=env, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + 60
    while len(processes_of(work)) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    workers = processes_of(work)
    assert len(workers) == 2
    driver.send_signal(how)
    driver.wait(timeout=30)
    until = time.monotonic() + 20
    while any(map(running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(running, workers))
