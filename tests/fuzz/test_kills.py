"""kill −9 of each command that writes: no file is cut, the next run gives the right bytes, and no draft stays after it.

Every second kill, the first among them, waits until a file appears, so that it falls while files are written. Runs are forks of
one process that has imported everything. (Kills of workers and of executors' own processes: tests/executors/test_kills.py.)
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import re
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from cutaway import records, writing
from cutaway.tasks.training import STATE, read_state

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "cutaway.cli",
        "cutaway.report.reporting",
        "cutaway.circuits",
        "cutaway.explain",
        "cutaway.collect",
        "cutaway.tasks.training",
    ]
)
REFUSED = 2  # the exit code of a record that is there already
UNLIKE = ("when", "seconds", "digest")  # of two equal runs; a record's digest covers its date
PATIENCE = 120.0

COMMANDS: dict[str, Callable[[Path, Path], list[Any]]] = {
    "report": lambda given, to: [
        *("report", "first-unique-char", "--examples", given / "examples.jsonl", "--size", 24, "--out", to / "out"),
        *("--questions", "performance", "--questions", "ablation", "--replace"),
    ],
    "ablate": lambda given, to: ["ablate", "--text", "The king is dead. The king is dead.", "--record", to / "record"],
    "circuit find": lambda given, to: [
        *("circuit", "find", "attn-only-2l", "--pairs", given / "pairs.jsonl", "--size", 12, "--steps", 1, "--checks", 4),
        *("--record", to / "record"),
    ],
    "explain": lambda given, to: [
        *("explain", "first-unique-char", "--examples", given / "examples.jsonl", "--replace", "--out", to / "out")
    ],
    "collect": lambda given, to: [
        *("collect", "attn-only-2l", given / "corpus.jsonl", "--sites", "resid_post0", "--chunk", 512, "--out", to / "set")
    ],
    "train": lambda given, to: [
        *("train", "palindromes", "--epochs", 2, "--steps", 2, "--batch-size", 8, "--device", "cpu", "--out", to / "model"),
        "--resume",
    ],
    "page": lambda given, to: [
        *("lens", "attn-only-2l", "--text", "The king is dead.", "--replace", "--html", to / "page.html")
    ],
    "steer": lambda given, to: [
        *("steer", "attn-only-2l", "--positive", "a good man", "--negative", "a bad man", "--text", "The king", "--layer", 1),
        *("--tokens", 2, "--temperature", 0, "--random", 2, "--replace", "--save", to / "vector.safetensors"),
    ],
    "exercises start": lambda given, to: ["exercises", "start", "right-guesses", "--force", "--folder", to],
    "kernel install": lambda given, to: ["kernel", "install", "--prefix", to],
    "notebook": lambda given, to: ["notebook", given / "one.ipynb", "--replace", "--out", to / "done.ipynb"],
}  # fmt: skip
WHEN = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?( UTC|Z|\+00:00)?")  # when something was made


def command(words: list[str]) -> None:
    from cutaway.cli import main

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.argv = ["cutaway", *words]
    main()


def begin(name: str, given: Path, to: Path) -> BaseProcess:
    process = FORKS.Process(target=command, args=([str(word) for word in COMMANDS[name](given, to)],))
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    process.join(PATIENCE)
    assert process.exitcode is not None, "a run does not end"
    return process.exitcode


def inputs(folder: Path) -> Path:
    draw = random.Random(0)
    rows = [[draw.randint(1, 9) for _ in range(5)] for _ in range(24)]
    examples = [{"tokens": row, "answers": {"4": row[0]}} for row in rows]
    words = [(" king", " man"), (" lord", " love"), (" day", " time"), (" good", " men")]
    pairs = [
        {"clean": f"The{a} of my{b} was. The", "corrupted": f"The{b} of my{a} was. The", "answer": a, "wrong": b}
        for a, b in words
    ]
    corpus = [{"text": f"line {number} of a corpus, and {number * 7} words more"} for number in range(40)]
    for name, lines in {"examples": examples, "pairs": pairs, "corpus": corpus}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1 + 1", "outputs": [], "execution_count": None}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "one.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    return folder


def plain(value: Any) -> Any:
    """Content without dates and durations."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items() if key not in UNLIKE}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def mark(file: Path, folder: Path) -> str:
    """A digest of what a file says; an error where it is cut."""
    if file.name == STATE:
        content = repr(plain(read_state(file))).encode()
    elif file.name == records.RECORD:
        records.read_record(file.parent)  # its digests are checked
        content = json.dumps(plain(json.loads(file.read_bytes()))).encode()
    else:
        content = WHEN.sub(b"", file.read_bytes())
    return hashlib.sha256(content.replace(str(folder).encode(), b"")).hexdigest()


def tree(folder: Path) -> dict[str, str]:
    """What every file says, drafts aside, by its name."""
    kept = [one for one in folder.rglob("*") if one.is_file() and not writing.DRAFT.fullmatch(one.name)]
    return {one.relative_to(folder).as_posix(): mark(one, folder) for one in kept}


def kill(process: BaseProcess, folder: Path, wait: float, writes: bool) -> None:
    """Kill after so many seconds; or a while after the first file, where the run is to be caught writing."""
    until = time.monotonic() + wait
    while process.is_alive() and (time.monotonic() < until or (writes and not any(one.is_file() for one in folder.rglob("*")))):
        time.sleep(2e-4)
    if writes:
        time.sleep(wait / 50)
    process.kill()
    finish(process)


def check_whole(name: str, folder: Path, wanted: dict[str, str]) -> None:
    """Every file is that of an uninterrupted run, or whole at an earlier moment (an epoch of `train`, a question of `report`)."""
    for file, said in tree(folder).items():
        assert file in wanted
        if wanted[file] != said:
            assert name in ("train", "report"), f"{file} is neither a draft nor whole"
            read(folder / file)


def read(file: Path) -> None:
    """Read a file of a known kind to its end."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            assert all(tensors.get_tensor(key).isfinite().all() for key in tensors.keys())  # noqa: SIM118
    elif file.suffix == ".json":
        json.loads(file.read_bytes())
    elif file.suffix == ".html":
        assert file.read_text(encoding="utf-8").rstrip().endswith("</html>")
    else:
        assert file.suffix in (".pt", ".md")  # a state was read for its digest


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.fuzz)])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_whole_files_and_runs_again(name: str, kills: int, tmp_path: Path) -> None:
    given, draw = inputs(tmp_path), random.Random(name)
    (tmp_path / "clean").mkdir()
    started = time.monotonic()
    assert finish(begin(name, given, tmp_path / "clean")) == 0
    lasts, wanted = time.monotonic() - started, tree(tmp_path / "clean")
    assert wanted
    for number in range(kills):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        kill(begin(name, given, folder), folder, draw.uniform(0, lasts), writes=number % 2 == 0)
        check_whole(name, folder, wanted)
        done = finish(begin(name, given, folder))
        assert tree(folder) == wanted, f"kill {number}"
        assert done == 0 or (done == REFUSED and "--record" in COMMANDS[name](given, folder)), f"kill {number}"
        assert done == REFUSED or not list(folder.rglob(".cutaway-*.partial")), f"kill {number}"
