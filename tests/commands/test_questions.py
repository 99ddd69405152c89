"""Commands that ask a model one question: what they print is what the analyses say; one sentence where they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway import loading
from cutaway.analysis.attribution import attribute
from cutaway.analysis.circuits import ov
from cutaway.analysis.heads import on_random_repeats
from cutaway.analysis.lens import lens
from cutaway.analysis.predictions import read
from cutaway.cli import app
from cutaway.commands.questions import COMMANDS
from cutaway.model.transformer import Transformer

TOY = "first-unique-char"
TEXT = "chgegfaeadieaebcffh"


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def numbers(*words: str) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def toy() -> Transformer:
    return loading.from_pretrained(Transformer, TOY, device="cpu")


def test_heads(toy: Transformer) -> None:
    found = on_random_repeats(toy, examples=4)
    said = numbers("heads", TOY, "--examples", "4", "--threshold", "0.2")
    assert said["scores"]["first"]["0.1"] == pytest.approx(found.mean.sel(kind="first", head="0.1").item(), abs=1e-5)
    assert {kind: list(heads) for kind, heads in said["heads"].items()} == found.report(0.2)
    text = run("heads", TOY, "--text", "abcabc", "--threshold", "0.2").stdout
    assert text.splitlines()[0].split() == ["kind", "head", "attention", "95%", "even", "attends", "to"]
    assert "none" in run("heads", TOY, "--threshold", "1").stdout


def test_attribute(toy: Transformer) -> None:
    found = attribute(toy, TEXT, targets="d")
    said = numbers("attribute", TOY, "--text", TEXT, "--target", "d", "--position", "19")
    assert said["components"] == pytest.approx(found.values.sel(batch=0, pos=19).as_dict(), abs=1e-4)
    assert sum(said["components"].values()) == pytest.approx(said["logit"], abs=1e-3)
    assert run("attribute", TOY, "--text", TEXT, "--minus", "a", "--target", "b", "--top", "2").stdout.count("\n") == 4


def test_lens(toy: Transformer) -> None:
    found = lens(toy, TEXT, targets="c")
    said = numbers("lens", TOY, "--text", TEXT, "--target", "c", "--position", "3")
    assert [row["row"] for row in said["rows"]] == ["0_pre", "1_pre", "final"]
    assert said["rows"][1]["target_probability"] == pytest.approx(float(found.values.data[1, 0, 3]), abs=1e-5)
    assert said["rows"][2]["top"][0][0] == found.tops()[2][3]
    assert run("lens", TOY, "--text", TEXT, "--of", "0.1, 1.attn").stdout.splitlines()[1].startswith("0.1 ")


def test_predict(toy: Transformer, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 3, encoding="utf-8")
    found = read(toy, TEXT * 3)
    said = numbers("predict", TOY, "--file", str(file))
    assert said["loss"] == pytest.approx(found.loss, abs=1e-4) and len(said["tokens"]) == len(TEXT) * 3
    printed = run("predict", TOY, "--text", TEXT, "--rows", "4").stdout.splitlines()
    assert len(printed) == 6 and printed[-1].startswith(f"{len(TEXT)} tokens: loss")


def test_neurons() -> None:
    said = numbers("neurons", TOY, "0.1", "1.2", "--text", TEXT)
    assert set(said["most"]) == {"0.1", "1.2"} and said["positions"] == len(TEXT) + 1
    printed = run("neurons", TOY, "0.1", "--text", TEXT, "--k", "1").stdout
    assert "⟦" in printed and printed.startswith(f"{len(TEXT) + 1} tokens of 1 text\n")


def test_circuit(toy: Transformer) -> None:
    found = ov(toy, "0.1")
    said = numbers("circuit", TOY, "embed -> 0.1 -> logits", "--top", "3")
    assert said["top"] == [[row, column, pytest.approx(value, rel=1e-4)] for row, column, value in found.top(3)]
    assert said["copying_score"] == pytest.approx(found.copying_score(), abs=1e-3)
    assert numbers("circuit", TOY, "ov", "0.1", "--top", "3")["top"] == said["top"]
    assert "norm scales count as 1" in run("circuit", TOY, "qk 0.1").stdout
    assert "scale of 0.ln1 taken as" in run("circuit", TOY, "qk 0.1", "--text", TEXT).stdout


def test_composition() -> None:
    said = numbers("composition", TOY, "--modes", "K", "--top", "2")
    assert len(said["top"]) == 2 and said["top"][0][0] == "K" and set(said["random"]) == {"K"}
    assert set(said["copying"]) == {"0.0", "0.1", "0.2", "1.0", "1.1", "1.2"}


@pytest.mark.parametrize(
    "words",
    [
        ["heads", TOY], ["attribute", TOY, "--text", TEXT], ["lens", TOY, "--text", TEXT], ["predict", TOY, "--text", TEXT],
        ["neurons", TOY, "0.1", "--text", TEXT], ["circuit", TOY, "ov 0.1"], ["composition", TOY],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_pages_need_nothing_else(words: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run(*words, "--html", str(page))
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert text.lower().startswith("<!doctype html>")
    assert "<script src=" not in text and str(page) in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lens", TOY], "lens needs text: give either --text or --file"),
        (["predict", TOY, "--text", "ab", "--file", "x"], "predict takes --text or --file, not both"),
        (["predict", TOY, "--file", "nowhere.txt"], "nowhere.txt: No such file"),
        (["heads", TOY, "--random-repeats", "--text", "ab"], "give either a text or --random-repeats"),
        (["heads", TOY, "--length", "99"], "twice that must fit into 20 positions"),
        (["attribute", TOY, "--text", TEXT, "--target", "xy"], "xy"),
        (["attribute", TOY, "--text", TEXT, "--target", "ab"], "ab"),
        (["attribute", TOY, "--text", TEXT, "--position", "50"], "no position 50: the text has 20 tokens"),
        (["attribute", TOY, "--text", TEXT, "--position", "19"], "position 19 has no next token; give --target"),
        (["lens", TOY, "--text", TEXT, "--position", "50"], "no position 50"),
        (["lens", TOY, "--text", TEXT, "--of", "4.1"], "lens knows no '4.1'"),
        (["circuit", TOY, "embed -> 1.0 -> 0.1"], "layers must rise"),
        (["circuit", TOY], "needs a path after"),
        (["circuit", TOY, "qk 7.1"], "'7.1' is no head"),
        (["neurons", TOY, "--text", TEXT], "at least one feature"),
        (["neurons", TOY, "0.mlp.1", "--text", TEXT], "attention only"),
        (["composition", TOY, "--modes", "X"], "not 'X'"),
    ],
)
def test_what_cannot_be_asked_ends_in_one_sentence(words: list[str], said: str) -> None:
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and "Traceback" not in result.output
    assert result.stderr.startswith("cutaway: ") and result.stderr.count("\n") == 1


def test_every_command_is_offered() -> None:
    listed = run("--help").stdout
    assert all(command.__name__ in listed for command in COMMANDS)
    assert torch.is_grad_enabled()
