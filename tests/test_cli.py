"""The command line: exit codes, one sentence instead of a traceback, nothing slow before it is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cutaway import tasks
from cutaway.cli import app
from cutaway.tasks.training import CARD, MODEL, STATE

TRAIN = ["train", "first-unique-char", "--device", "cpu", "--steps", "2", "--batch-size", "4"]


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def sentence(result: Any) -> str:
    """The one line on stderr of a command that failed."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output and result.stderr.startswith("cutaway: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_train_writes_model_card_and_state(tmp_path: Path):
    result = run(*TRAIN, "--epochs", "2", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([CARD, MODEL, STATE])
    assert "epoch   2/2" in result.stdout and "best: epoch" in result.stdout


def test_train_resumes_with_the_recipe_it_began_with(tmp_path: Path):
    run(*TRAIN, "--epochs", "1", "--seed", "9", "--out", str(tmp_path))
    result = run("train", "first-unique-char", "--resume", "--out", str(tmp_path))
    assert result.exit_code == 0 and "the one epoch is done already" in result.stdout


def test_an_unknown_task(tmp_path: Path):
    said = sentence(run("train", "first-uniqe-char", "--out", str(tmp_path / "out")))
    assert "no task called 'first-uniqe-char' (did you mean 'first-unique-char'?)" in said
    assert not (tmp_path / "out").exists()


def test_a_missing_text(tmp_path: Path):
    assert "no text file at" in sentence(run("train", "attn-only-2l", "--text", str(tmp_path / "no.txt"), "--out", str(tmp_path)))


def test_an_occupied_folder(tmp_path: Path):
    run(*TRAIN, "--epochs", "1", "--out", str(tmp_path))
    assert "--resume" in sentence(run(*TRAIN, "--epochs", "1", "--out", str(tmp_path)))


def test_a_folder_that_cannot_be(tmp_path: Path):
    (tmp_path / "file").touch()
    assert "cannot write" in sentence(run(*TRAIN, "--epochs", "1", "--out", str(tmp_path / "file" / "out")))


@pytest.mark.parametrize("words", [["train"], ["trian"], ["train", "first-unique-char", "--epochs", "x"], ["--no-such"]])
def test_wrong_usage_exits_with_2(words: list[str]):
    result = run(*words)
    assert result.exit_code == 2 and "Traceback" not in result.output


@pytest.mark.parametrize(("epochs", "hint"), [(0, "begins anew"), (1, "--resume")])
def test_an_interrupt_is_one_line_and_130(epochs: int, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: Any, **__: Any) -> None:
        for epoch in range(epochs):
            (tmp_path / f"epoch{epoch}").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("cutaway.tasks.training.train", interrupted)
    result = run(*TRAIN, "--out", str(tmp_path))
    assert result.exit_code == 130 and result.stderr.count("\n") == 1 and hint in result.stderr


def test_ctrl_c_in_the_middle_of_training(tmp_path: Path):
    command = [sys.executable, "-m", "cutaway.cli", *TRAIN, "--epochs", "100000", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        while "epoch" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 130 and said.startswith("interrupted") and said.count("\n") == 1
    assert not list(tmp_path.glob(".*")), "a draft was left behind"


def test_help_is_quick_because_torch_stays_out():
    code = "import sys, cutaway.cli; sys.exit('torch' in sys.modules or 'rich.progress' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_names_the_commands():
    result = run("--help")
    assert result.exit_code == 0 and "train" in result.stdout
    said = run("train", "--help").stdout
    assert "--resume" in said and all(name in said for name in tasks.names())


def test_version():
    from cutaway import __version__

    assert run("--version").stdout == f"cutaway {__version__}\n"


def test_a_shell_completes_commands_and_options():
    code = "from cutaway.cli import app; app(prog_name='cutaway')"
    for typed, wanted in (("cutaway le", "lens"), ("cutaway lens --po", "--positions")):
        completing = {"_CUTAWAY_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **completing}, capture_output=True, text=True, check=False
        )
        assert wanted in done.stdout.split(), done


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "cutaway", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("cutaway ")


@pytest.mark.parametrize(
    ("words", "said", "unsaid"),
    [
        (["next", "attn-only-2l", "the king"], "a text is given with --text: --text 'the king'", "Traceback"),
        (["haeds"], "no command called 'haeds' (did you mean 'heads'?)", "edges"),
        (["next", "--txt", "the king"], "(Possible options: --text)", "--top"),
    ],
)
def test_what_was_meant_is_said_and_nothing_else(words: list[str], said: str, unsaid: str):
    result = run(*words)
    shown = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2 and said in shown and unsaid not in shown
