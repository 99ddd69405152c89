"""How far long commands say they are: beforehand, in between, and of what was finished before, the same in all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway import HookedTransformer, edits, metrics
from cutaway.cli import app
from cutaway.runs import bars
from cutaway.runs.sweep import planning, sweep

MODEL = "attn-only-2l"
PAIR = ["--text", "The king of my man", "--corrupted", "The lord of my man", "--answer", " king", "--wrong", " lord"]


def run(*words: str) -> Any:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done


def test_a_resumed_patch_says_what_was_finished_before(tmp_path: Path) -> None:
    words = ["patch", MODEL, *PAIR, "--results", str(tmp_path / "r"), "--kind"]
    assert not run(*words, "z").stderr
    assert run(*words, "z").stderr == "16 of 16 cells finished before, 0 left\n"
    assert "16 of 28 cells finished before, 12 left\n" in run(*words, "z,resid_pre").stderr


def test_a_resumed_question_to_many_models_says_it_too(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        json.dumps({"clean": PAIR[1], "corrupted": PAIR[3], "answer": " king", "wrong": " lord"}) + "\n"
    )
    words = ["across", "patch", MODEL, "--pairs", str(tmp_path / "pairs.jsonl"), "--results", str(tmp_path / "r")]
    words += ["--option", 'kinds=["z"]']
    assert not run(*words).stderr
    assert run(*words).stderr == f"{MODEL}: 1 of 1 answers finished before, 0 left\n"


def test_a_resumed_collection_says_it_too(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    words = ["collect", MODEL, str(corpus), "--out", str(tmp_path / "out"), "--sites", "z1", "--chunk", "64", "--lines"]
    corpus.write_text("the king of my man was dead and the lord of my man was not\n" * 2)
    assert not run(*words).stderr
    corpus.write_text(corpus.read_text() + "another line, which nobody has read until now, is new here\n")
    done = run(*words)
    assert done.stderr.startswith("2 chunks of 116 characters finished before; the rest is left"), done.stderr


@torch.no_grad()
def test_the_estimate_is_of_the_rest(tmp_path: Path) -> None:
    """A sweep that is half done takes what the other half does alone; with all of it there nothing but the clean run is left."""
    model = HookedTransformer.from_pretrained(MODEL, device="cpu")
    tokens, metric = model.to_tokens("The king of my man was dead"), metrics.logit_difference(" king", " lord")
    first, second = ([edits.zero().at(f"blocks.{layer}.attn.hook_z", heads=n) for n in range(8)] for layer in (0, 1))

    def cost(asked: Any, results: Path | None = None) -> planning.Plan:
        return planning.plan(model, tokens, asked, metric, results=results, measure=False)

    sweep(model, tokens, first, metric, results=tmp_path)
    half, whole = cost([*first, *second], tmp_path), cost([*first, *second])
    assert (half.reused, half.cells) == (8, 16)
    nothing = cost(first, tmp_path).operations
    assert half.operations - nothing == whole.operations - cost(first).operations > 0


def test_a_long_search_for_a_circuit_says_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["circuit", "find", MODEL, *PAIR, "--size", "3", "--steps", "1"]
    assert not run(*words).stderr
    monkeypatch.setattr("cutaway.commands.progress.LONG", 0.0)
    assert " edges, about " in run(*words).stderr


LONG = {
    "patch": PAIR, "ablate": [*PAIR[:2], "--baseline", "2"], "circuit find": [*PAIR, "--size", "3"],
    "steer": [*PAIR[:2], "--positive", "king", "--negative", "lord", "--layers", "1", "--tokens", "2"],
}  # fmt: skip


@pytest.mark.parametrize("command", LONG)
def test_where_nobody_looks_on_lines_say_how_far_it_is(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "FIRST", 0.0)
    said = run(*command.split(), MODEL, *LONG[command], "--json")
    assert "% after " in said.stderr and " left\n" in said.stderr and json.loads(said.stdout)


def test_lines_come_when_the_time_has_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[str]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    step = bars.Lines("counting", told.append)
    for second in range(1, 200):
        now[0] = float(second)
        step(second, 200)
    assert [one.partition(" after ")[2] for one in told] == [
        "30.0 s, about 2.8 minutes left", "60.0 s, about 2.3 minutes left", "2.0 minutes, about 80.0 s left"
    ]  # fmt: skip
