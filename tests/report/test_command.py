"""`cutaway report`: what it prints, what it writes, and one sentence where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway.cli import app
from cutaway.report.questions import failures
from cutaway.report.reporting import HTML, JSON

REPORT = ["report", "first-unique-char"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "CHAINS", 2)
    monkeypatch.setattr(failures, "ROUNDS", 1)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def sentence(result: Any) -> str:
    """The one line on stderr of a command that failed."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output and result.stderr.startswith("cutaway: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


def test_it_prints_a_summary_and_writes_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = run(*REPORT, "--size", "30", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert "30 prompts with 600 answers" in result.stdout
    assert all(word in result.stdout for word in ("The share of right answers is", "attends to the same token", HTML, JSON))
    folder = tmp_path / "out" / "first-unique-char"
    assert sorted(path.name for path in folder.iterdir()) == [HTML, JSON]
    assert "<h1>" in (folder / HTML).read_text(encoding="utf-8")


def test_json_prints_what_it_writes(tmp_path: Path):
    result = run(*REPORT, "--size", "5", "--json", "--out", str(tmp_path))
    assert result.exit_code == 0 and result.stdout == (tmp_path / JSON).read_text(encoding="utf-8")
    assert json.loads(result.stdout)["size"] == 5


class Odd:
    """What a state dict should not hold."""


def bad(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.pt"
    if kind == "corrupt":
        path.write_bytes(b"PK\x03\x04 no weights")
    elif kind == "unsafe":
        torch.save({"a": Odd()}, path)
    elif kind == "misfit":
        torch.save({"embed.W_E": torch.zeros(3, 4)}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "no file called 'missing.pt'"),
        ("corrupt", "corrupt.pt is cut short, damaged"),
        ("unsafe", "could run any code"),
        ("misfit", "wrongly shaped (embed.W_E [3, 4] should be [11, 42])"),
    ],
)
def test_bad_checkpoints(tmp_path: Path, kind: str, said: str):
    out = tmp_path / "out"
    assert said in sentence(run(*REPORT, "--checkpoint", str(bad(tmp_path, kind)), "--out", str(out)))
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "first-uniqe-char"], "did you mean 'first-unique-char'?"),
        ([*REPORT, "--size", "0"], "size is at least 2, not 0"),
        ([*REPORT, "--seed", "-1"], "seed is at least 0, not -1"),
    ],
)
def test_bad_words(tmp_path: Path, words: list[str], said: str):
    assert said in sentence(run(*words, "--out", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    assert "is a file" in sentence(run(*REPORT, "--size", "5", "--out", str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "mine"


def test_an_interrupt_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from cutaway.report.first_report import FirstReport

    def interrupted(self: FirstReport) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(FirstReport, "json", interrupted)
    result = run(*REPORT, "--size", "2", "--out", str(tmp_path / "out"))
    assert result.exit_code == 130 and list(tmp_path.rglob("report.*")) == []
