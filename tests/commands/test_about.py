"""`cutaway about`: the machine, and the kernels that were chosen on it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway import __version__
from cutaway.cli import app
from cutaway.model import kernels


def run(*words: str) -> Any:
    result = CliRunner().invoke(app, ["about", *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_it_says_which_kernels_were_measured_and_which_was_taken() -> None:
    found = json.loads(run("--json"))
    assert found["cutaway"] == __version__ and found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads() and found["processor"]
    assert len(found["products"]) == len(kernels.STANDARD)
    for one, (words, of) in zip(found["products"], kernels.STANDARD.items(), strict=True):
        assert one["class"].startswith(words) and one["rates"].keys() == {kernels.NAMES[name] for name in kernels.candidates(of)}
        others = [rate for name, rate in one["rates"].items() if name != "oneDNN"]
        assert one["rates"][one["kernel"]] >= 0.95 * max(others)
    text = run()
    assert all(one["class"] in text for one in found["products"])


def test_one_line_for_tables_names_processor_torch_and_kernels() -> None:
    line = kernels.line()
    assert "\n" not in line and torch.__version__ in line and f"{torch.get_num_threads()} thread" in line
    assert all(words in line for words in kernels.STANDARD)


def test_switched_off_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTAWAY_KERNELS", "torch")
    kernels.forget()
    try:
        assert json.loads(run("--json"))["products"] == []
        assert "CUTAWAY_KERNELS=torch" in run() and "CUTAWAY_KERNELS" in kernels.line()
    finally:
        monkeypatch.undo()
        kernels.forget()


def test_a_word_that_is_not_known_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTAWAY_KERNELS", "fast")
    kernels.forget()
    try:
        result = CliRunner().invoke(app, ["about"])
        assert result.exit_code == 2 and "CUTAWAY_KERNELS='fast'" in result.output
    finally:
        monkeypatch.undo()
        kernels.forget()
