"""`cutaway ablate`: what it prints is what the analysis says. (Records, patching and plans: tests/test_records.py.)"""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cutaway import loading
from cutaway.analysis.ablation import ablate_heads
from cutaway.cli import app
from cutaway.model.transformer import Transformer


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_ablate_prints_the_analysis(kind: str) -> None:
    text = "The king is dead. The king is dead."
    result = CliRunner().invoke(app, ["ablate", "--text", text, "--kind", kind, "--json"])
    assert result.exit_code == 0, result.output
    model = loading.from_pretrained(Transformer, "attn-only-2l", device="cpu")
    tokens, _ = model.tokens_and_mask(text, None, None)
    found = ablate_heads(model, tokens, kinds=[kind], sites=["z"], over=("batch", "pos"))
    printed = json.loads(result.stdout)["heads"]
    assert list(printed) == [kind]
    assert printed[kind]["z"] == pytest.approx(found.increases(kind, "z"), abs=1e-6)


def test_the_table_has_a_row_for_every_edit_that_a_baseline_counts() -> None:
    said = CliRunner().invoke(app, ["ablate", "--text", "The king is dead. The king is dead.", "--baseline", "2"]).stdout
    rows = [line for line in said.splitlines() if line.startswith("zero ")]
    assert "of 18 edits" in said and len(rows) == 18
    assert sum("all of layer" in row for row in rows) == 2


def test_patch_prints_as_many_places_as_asked() -> None:
    pair = [
        "patch",
        "--text",
        "The king is dead",
        "--corrupted",
        "The queen is dead",
        "--answer",
        ".",
        "--wrong",
        ",",
        "--what",
        "z",
    ]
    for options, count in (([], 3), (["--top", "5"], 5), (["--all"], 16)):
        said = CliRunner().invoke(app, [*pair, *options])
        assert said.exit_code == 0 and said.stdout.partition("largest shares")[2].count("layer ") == count, said.output
        assert said.stdout.startswith("z, share restored, layer by head\nlayer  ")


def test_names_may_be_separated_by_commas() -> None:
    pair = ["patch", "--text", "The king is dead", "--corrupted", "The queen is dead", "--answer", ".", "--wrong", ","]
    kinds = (["--kinds", "resid_pre,z"], ["--kinds", "resid_pre", "--kind", "z"])
    one, other = (CliRunner().invoke(app, [*pair, *given]) for given in kinds)
    assert one.exit_code == 0 and one.stdout == other.stdout and "  resid_pre: " in one.stdout and "  z: " in one.stdout


def test_what_takes_long_is_said_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["attn-only-2l", "--text", "The king of my man", "--corrupted", "The lord of my man", "--answer", " king"]
    assert " cells, about " not in CliRunner().invoke(app, ["patch", *words]).stderr
    monkeypatch.setattr("cutaway.commands.progress.LONG", 0.0)
    for command, given, said in (
        ("patch", words, "--kind, --layers, --positions and --count"),
        ("ablate", words[:3], "--component"),
    ):
        done = CliRunner().invoke(app, [command, *given])
        assert done.exit_code == 0, done.output
        assert " s on this machine; " in done.stderr and said in done.stderr
