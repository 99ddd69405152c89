"""`cutaway circuit find`: the edges, how sure they are, files; and the paths through weights that `circuit` always took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cutaway.circuits.circuit import Circuit
from cutaway.cli import app
from cutaway.commands.shared import load

WORDS = [" king", " man", " lord", " love", " day", " time", " good", " men"]


def pairs(folder: Path) -> Path:
    """Prompts that repeat, and counterparts in which the answer stood elsewhere."""
    rows = []
    for one, other in zip(WORDS[::2], WORDS[1::2], strict=True):
        clean, corrupted = f"The{one} of my{other} was dead. The", f"The{other} of my{one} was dead. The"
        rows.append({"clean": clean, "corrupted": corrupted, "answer": one, "wrong": other})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_circuit_is_found_written_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "record"
    arguments = ["circuit", "find", "attn-only-2l", "--pairs", str(pairs(tmp_path)), "--html", str(tmp_path / "page.html")]
    done = CliRunner().invoke(app, [*arguments, "--record", str(folder), "--steps", "2", "--checks", "6"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(("stable", "UNSTABLE"))
    assert "of 257 edges" in done.output and "drawn at random recover" in done.output
    numbers = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert numbers["recovered"] >= 0.9 and numbers["prompts"] == 4
    circuit = Circuit.load(folder / "circuit.json", load("attn-only-2l", "cpu"))
    assert [list(pair) for pair in circuit.pairs()] == numbers["edges"]
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert set(numbers["ablations"]) == {"mean", "zero"} and "of the same edges" in done.output
    again = CliRunner().invoke(app, ["replay", str(folder)])
    assert again.exit_code == 0 and "gives what was recorded" in again.output
    twice = CliRunner().invoke(app, [*arguments, "--replace", "--record", str(folder)])
    assert twice.exit_code == 2 and "holds a circuit already" in twice.output
    text = (folder / "circuit.json").read_text(encoding="utf-8")
    less = json.loads(text) | {"edges": circuit.pairs()[:2], "effects": None}
    (folder / "circuit.json").write_text(json.dumps(less), encoding="utf-8")
    other = CliRunner().invoke(app, ["replay", str(folder)])
    assert other.exit_code == 1 and "OTHER numbers" in other.output
    (folder / "metric.json").write_text("{", encoding="utf-8")
    assert CliRunner().invoke(app, ["replay", str(folder)]).exit_code == 2


def test_a_size_is_kept_and_json_is_printed(tmp_path: Path) -> None:
    arguments = [
        "circuit",
        "find",
        "attn-only-2l",
        "--pairs",
        str(pairs(tmp_path)),
        "--size",
        "12",
        "--ablation",
        "mean",
        "--json",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.output)["edges"]) == 12


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "circuit find needs text: give either --clean"),
        (["--behaviour", "iol"], "no behaviour called 'iol'"),
        (["--pairs", "none.jsonl"], "cannot be read"),
        (["--behaviour", "ioi"], "vocabulary has"),
        (["--behaviour", "ioi", "--metric", "logit-diff"], "--metric 'logit-diff' is not known"),
    ],
)
def test_what_cannot_be_found_is_said_in_a_sentence(more: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["circuit", "find", "attn-only-2l", *more])
    assert done.exit_code == 2 and words in done.output


def test_paths_through_weights_are_still_there() -> None:
    done = CliRunner().invoke(app, ["circuit", "ov 1.2", "--top", "3"])
    assert done.exit_code == 0 and "effect on logits" in done.output
