"""Whatever happens, a file is what it was or what it should be, and no draft of a dead process stays."""

from __future__ import annotations

import ast
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from cutaway import HookedTransformer, view, writing
from cutaway.analysis.heads import head_scores
from cutaway.cli import app
from cutaway.errors import AlreadyThere, CheckpointError, CutawayError, NotWritten

PACKAGE = Path(writing.__file__).parent


def drafts(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".partial")]


def test_replacing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "card.md"
    with writing.replacing(target) as out:
        out.write(b"old")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), writing.replacing(target) as out:
        out.write(b"new")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["card.md"]


def test_a_reader_of_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    target = tmp_path / "file"
    writing.write(target, "old, to its end")
    with target.open("rb", buffering=0) as reader:
        assert reader.read(3) == b"old"
        writing.write(target, "new")
        assert reader.read() == b", to its end" and target.read_text() == "new"


def test_a_link_stays_a_link_and_permissions_stay(tmp_path: Path) -> None:
    file, link = tmp_path / "secret", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file)
    writing.write(link, "new")
    assert link.is_symlink() and file.read_text() == "new" and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_is_no_file_is_written_to_directly(tmp_path: Path) -> None:
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    writing.write(pipe, "through")
    reader.join(5)
    assert heard == [b"through"] and stat.S_ISFIFO(pipe.stat().st_mode)
    assert writing.write("/dev/null", "gone").exists()
    with pytest.raises(NotWritten, match="No space left"):
        writing.write("/dev/full", "never")


def test_lone_surrogates_are_written(tmp_path: Path) -> None:
    assert writing.write(tmp_path / "page", "a\ud800b").read_text(encoding="utf-8") == "a\ufffdb"
    assert writing.write_json(tmp_path / "json", '"a\ud800b"').read_bytes() == b'"a\\ud800b"'


def test_errors_of_the_writer_itself_are_not_dressed_up(tmp_path: Path) -> None:
    with pytest.raises(NotWritten, match=r"^inner$"), writing.replacing(tmp_path / "x"):
        raise NotWritten("inner")
    assert issubclass(NotWritten, CheckpointError) and issubclass(NotWritten, OSError)


@pytest.mark.parametrize(("place", "words"), [("file/in", "is a file"), ("folder", "is a folder|Is a dir")])
def test_a_place_that_cannot_be_written_is_said_before_and_while(tmp_path: Path, place: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for attempt in (writing.check_writable, lambda path: writing.write(path, "x")):
        with pytest.raises(NotWritten, match=words):
            attempt(tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and not os.listdir(tmp_path / "folder")


def test_asking_leaves_nothing_behind(tmp_path: Path) -> None:
    writing.check_writable(tmp_path / "a" / "b" / "file")
    writing.check_folder(tmp_path / "a" / "b")
    assert not os.listdir(tmp_path)


# ------------------------------------------------------------------------------------------------- killed, or no room

WRITER = """
import sys
from cutaway import writing
big = {letter: letter.encode() * 3_000_000 for letter in "ab"}
print("ready", flush=True)
while True:
    for letter in "ab":
        writing.write(sys.argv[1], big[letter])
"""


@pytest.mark.parametrize("kills", [pytest.param(8), pytest.param(200, marks=pytest.mark.fuzz)])
def test_a_killed_writer_leaves_a_whole_file_and_the_next_one_clears_its_draft(tmp_path: Path, kills: int) -> None:
    target, draw, left = tmp_path / "file", random.Random(0), 0
    for kill in range(kills):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(draw.uniform(0, 0.08))
            while kill % 2 and not drafts(tmp_path):  # half of the kills at a draft, whatever else the machine does
                pass
            process.send_signal(signal.SIGKILL)
        left += len(drafts(tmp_path))
        if target.exists():
            content = target.read_bytes()
            assert len(content) == 3_000_000 and len(set(content)) == 1
        writing.write(tmp_path / "other", "next")
        assert not drafts(tmp_path)
    assert left > kills // 8, "hardly any kill came while a draft was there"


def test_drafts_of_the_living_stay(tmp_path: Path) -> None:
    with writing.replacing(tmp_path / "one") as out:
        writing.write(tmp_path / "two", "x")
        out.write(b"whole")
    assert (tmp_path / "one").read_bytes() == b"whole" and sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_many_writers_of_one_file_do_not_lose_each_others_drafts(tmp_path: Path) -> None:
    wrong: list[BaseException] = []

    def work(letter: str) -> None:
        try:
            for _ in range(30):
                writing.write(tmp_path / "file", letter * 1000)
        except CutawayError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong and os.listdir(tmp_path) == ["file"] and len((tmp_path / "file").read_text()) == 1000


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np, torch
from cutaway import HookedTransformer, notebooks, records, view
from cutaway.analysis.steering import SteeringVector
from cutaway.compat.train import HookedTransformerTrainConfig
from cutaway.errors import NotWritten
from cutaway.exercises.progress import Progress
from cutaway.report.reporting import Report
from cutaway.runs import edits, metrics
from cutaway.runs.sweep import sweep
from cutaway.sources import files
from cutaway.tasks.first_unique_char import FirstUniqueCharTask
from cutaway.tasks.training import train

folder = Path(sys.argv[1])
model = HookedTransformer.from_pretrained("first-unique-char", device="cpu")
tokens = torch.randint(0, 11, (2, 9))
cells = [edits.add(torch.randn(model.cfg.d_model)).at(f"blocks.{l}.hook_resid_pre") for l in range(2) for _ in range(16)]
found = sweep(model, tokens, cells, metrics.loss(tokens), audit=0)
vector = SteeringVector(values=torch.randn(40, model.cfg.d_model), layer=0, site="resid_pre", method="mean",
                        front=False,
                        positive=("a",), negative=("b",), read_at="-1", model_hash="h")
SHAPE = {"n_layers": 1, "n_heads": 1, "d_model": 1, "attn_only": True}
ABOUT = {"model": "m" * 90000, "behaviour": "b", "summary": "", "shape": SHAPE, "prompts": 1,
         "answers": 1, "read_out": "x", "at_chance": False}
progress = Progress(folder, {"x" * 9000: {"attempts": 1}})
writers = {
    "record": lambda: records.write(folder / "record", found, "first-unique-char"),
    "page": lambda: view.heat_map(np.random.rand(60, 60)).save(folder / "page.html", replace=True),
    "report": lambda: Report(ABOUT, {}).save(folder, replace=True),
    "model": lambda: files.save(folder / "model.safetensors", model.state_dict(), model.cfg),
    "vector": lambda: vector.save(folder / "vector.safetensors", replace=True),
    "progress": progress.write,
    "chunk": lambda: sweep(model, tokens, cells, metrics.loss(tokens), audit=0, resume=folder / "sweep"),
    "notebook": lambda: notebooks.run(folder / "notebook.ipynb", folder / "notebook.ipynb", replace=True),
    "training": lambda: train(FirstUniqueCharTask(vocab=tuple("abc"), seq_len=4), folder / "training", epochs=1, device="cpu"),
}
before = {name: path.read_bytes() for name in ("page.html", "report.html", "report.json", "model.safetensors",
          "vector.safetensors", "exercises.json", "notebook.ipynb") for path in [folder / name]}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (AT, AT))
for name, write in writers.items():
    try:
        write()
    except NotWritten:
        print(name, "refused", flush=True)
    else:
        print(name, "written", flush=True)
assert all((folder / name).read_bytes() == data for name, data in before.items())
assert not list(folder.rglob("*.partial"))
print("as before")
"""


@pytest.mark.parametrize("limit", [0, 6000])
def test_on_a_full_disk_everything_stays_as_it_was(tmp_path: Path, limit: int) -> None:
    for name in ("page.html", "report.html", "report.json", "model.safetensors", "vector.safetensors", "exercises.json"):
        (tmp_path / name).write_text("yesterday's")
    notebook = {"cells": [], "metadata": {"yesterday": "s" * 9000}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "notebook.ipynb").write_text(json.dumps(notebook))
    command = [sys.executable, "-c", FULL.replace("AT, AT", f"{limit}, {limit}"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    assert last == "as before" and len(said) == 9
    assert not [line for line in said if "written" in line and "chunk" not in line], said  # small chunks fit into 6,000 bytes


# ------------------------------------------------------------------------------------------------------- one place

# The judge's pipe to its parent is no file; what a sweep puts on disk is read by its own process alone, and goes with it.
ALLOWED = {"writing.py", "exercises/judge.py", "runs/storage.py"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nobody_writes_a_file_another_way(path: Path) -> None:
    if path.relative_to(PACKAGE).as_posix() in ALLOWED:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        modes = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        opened = name.rpartition(".")[2] == "open" and any(set(mode) & set("wax+") and len(mode) < 4 for mode in modes)
        other = name.rpartition(".")[2] in ("write_text", "write_bytes", "dump", "savez", "save_file", "to_csv") or name in (
            "nbformat.write", "np.save", "os.replace", "os.rename",
        )  # fmt: skip
        torch_save = name == "torch.save" and ast.unparse(node.args[1]) != "file"
        kernel = name.startswith("Path('/proc/")  # no file, but a switch of the kernel
        assert kernel or not (opened or other or torch_save), f"line {node.lineno}: {ast.unparse(node)[:80]}; use cutaway.writing"


# ------------------------------------------------------------------------------- what somebody made is not written over

# Not of results: a checkpoint that a training writes again and again, kernels measured here, a folder with a rule of its own.
NOT_RESULTS = {"sources/files.py", "model/kernel_choices.py", "workbench/recording.py"}


def saves(path: Path) -> list[ast.FunctionDef]:
    found = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)]
    return [node for node in found if node.name in ("save", "save_result")]


def test_every_save_is_told_whether_it_may_replace() -> None:
    lacking = [
        f"{name}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if (name := path.relative_to(PACKAGE).as_posix()) not in NOT_RESULTS
        for node in saves(path)
        if "replace" not in {one.arg for one in node.args.kwonlyargs}
    ]
    assert not lacking, lacking


def test_a_file_that_exists_is_replaced_only_where_told(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.html", tmp_path / "other.html"
    mine.write_text("mine")
    with pytest.raises(AlreadyThere, match=r"mine.html is there already; give another name, or replace=True to write over it"):
        writing.check_new(mine)
    assert writing.check_new(other) == other and writing.check_new(mine, replace=True) == mine
    (link := tmp_path / "link").symlink_to(mine)
    with pytest.raises(FileExistsError):
        writing.check_new(link)
    assert writing.check_new(tmp_path) == tmp_path, "a folder is no file that would be lost"
    assert writing.check_new("/dev/null") == Path("/dev/null")


def test_a_folder_that_is_missing_is_not_made_by_a_save(tmp_path: Path) -> None:
    figure = view.heat_map(np.zeros((2, 2)))
    result = head_scores(HookedTransformer.from_pretrained("attn-only-2l"), torch.tensor([[1, 2, 3, 1, 2, 3]]))
    for name in ("x.html", "x.png", "x.svg"):
        with pytest.raises(NotWritten, match=f"cannot write .*{name}: there is no folder .*absent; make it, or choose another"):
            figure.save(tmp_path / "absent" / name)
    with pytest.raises(NotWritten, match=r"there is no folder .*absent"):
        result.save(tmp_path / "absent" / "x.cutaway", replace=True)
    assert not os.listdir(tmp_path)
    assert figure.save(tmp_path / "x.html").is_file()


def outputs(command: Any) -> list[str]:
    """The options of a command that name a file or folder that it writes."""
    return [one.name for one in command.params if one.name in ("out", "html", "save")]


def test_every_command_that_writes_a_file_can_be_told_to_replace_it() -> None:
    # These go on where a run stopped, or never write over anything.
    elsewhere = {"train": "--resume", "collect": "goes on", "open": "a new folder for each record"}
    group: Any = typer.main.get_command(app)
    commands = {**group.commands, **{f"circuit {name}": one for name, one in group.commands["circuit"].commands.items()}}
    writing_ones = {name: one for name, one in commands.items() if outputs(one) and name not in elsewhere}
    assert {"report", "explain", "notebook", "steer", "lens", "circuit find"} <= writing_ones.keys()
    lacking = [name for name, one in writing_ones.items() if "replace" not in {option.name for option in one.params}]
    assert not lacking, f"give these `shared.Replace`: {lacking}"


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["report", "attn-only-2l", "--behaviour", "induction", "--out"], "report.json"),
        (["report", "first-unique-char", "--out"], "report.html"),
        (["explain", "attn-only-2l", "--examples", "none.jsonl", "--out"], "program.py"),
    ],
)
def test_a_folder_of_results_is_not_written_over(words: list[str], file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("mine")
    done = CliRunner().invoke(app, [*words, str(tmp_path)])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert f"{tmp_path / file} is there already; give another name, or --replace to write over it" in done.stderr
    assert (tmp_path / file).read_text() == "mine" and len(os.listdir(tmp_path)) == 1


def test_a_notebook_that_ran_is_not_written_over(tmp_path: Path) -> None:
    plain = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "a.ipynb").write_text(json.dumps(plain))
    (tmp_path / "a.run.ipynb").write_text("mine")
    done = CliRunner().invoke(app, ["notebook", str(tmp_path / "a.ipynb")])
    assert done.exit_code == 2 and "a.run.ipynb is there already; give another name, or --replace" in done.stderr
    assert (tmp_path / "a.run.ipynb").read_text() == "mine"


def test_a_folder_that_has_vanished_is_not_made_anew(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    writing.write(tmp_path / "out" / "a" / "b" / "x", "1", under=tmp_path / "out")
    assert (tmp_path / "out" / "a" / "b" / "x").read_text() == "1"
    (tmp_path / "out").rename(tmp_path / "gone")
    for place in (tmp_path / "out" / "a" / "x", tmp_path / "out" / "x"):
        with pytest.raises(NotWritten, match="out has vanished"):
            writing.write(place, "1", under=tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["gone"]
