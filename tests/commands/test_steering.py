"""`cutaway steer`: what it prints is what the analyses say; one sentence where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway import loading
from cutaway.analysis.steering import SteeringVector, activation_addition, contrast_vectors
from cutaway.analysis.steering_effects import dose_response, steered_texts, steering_target
from cutaway.cli import app
from cutaway.model.transformer import Transformer
from cutaway.runs.generation import Sampling

TOY = "first-unique-char"
SETS = ["--positive", "abc", "--positive", "abd", "--negative", "def", "--negative", "dff"]
QUICK = ["--tokens", "4", "--random", "2", "--temperature", "0"]


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["steer", TOY, *QUICK, *words])


@pytest.fixture(scope="module")
def toy() -> Transformer:
    return loading.from_pretrained(Transformer, TOY, device="cpu")


def test_the_numbers_are_those_of_the_analysis(toy: Transformer, tmp_path: Path) -> None:
    page, file = tmp_path / "page.html", tmp_path / "vector.safetensors"
    more = ["--prompt", "ab", "--prompt", "gfa", "--strength", "1", "--strength", "3", "--effect", "a", "--minus", "b"]
    out = run(*SETS, *more, "--side", "hgf", "--matches", "[a-c]", "--html", str(page), "--save", str(file), "--json")
    assert out.exit_code == 0, out.output
    numbers = json.loads(out.stdout)
    vectors = contrast_vectors(toy, ["abc", "abd"], ["def", "dff"])
    answers = [toy.tokenizer.encode(word)[0] for word in "ab"]
    found = dose_response(toy, vectors, ["ab", "gfa"], steering_target(*answers), [0.0, 1.0, 3.0], side_text=["hgf"], random=2)
    assert numbers["response"] == json.loads(json.dumps(found.to_json())) and numbers["strengths"] == [0, 1, 3]
    assert numbers["layer"] == int(found.best)
    texts = steered_texts(
        toy, vectors[numbers["layer"]], ["ab", "gfa"], len, [0.0, 1.0, 3.0], max_new_tokens=4,
        sampling=Sampling(temperature=0.0),
    ).texts  # fmt: skip
    assert numbers["texts"] == texts
    counts = [[sum(letter in "abc" for letter in text) for text in row] for row in texts.values()]
    assert numbers["matches"]["values"] == counts
    assert torch.equal(SteeringVector.load(file, toy).values, vectors[numbers["layer"]].values)
    assert "Response to strength" in page.read_text(encoding="utf-8")


def test_what_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("ab\n\ngfa\n", encoding="utf-8")
    out = run(*SETS, "--prompt", str(file), "--layer", "1", "--strength", "2", "--position", "mean")
    assert out.exit_code == 0, out.output
    printed = out.stdout.splitlines()
    assert printed[0] == "mean of 2 positive and 2 negative, read at the mean over positions, written to resid_pre"
    assert [line.split()[0] for line in printed if line.startswith("  ")] == ["unsteered", "2"] * 2
    assert [line for line in printed if line[:1] == "'"] == ["'ab'", "'gfa'"]
    assert "loss of the prompts, mean of 2 prompts" in printed
    rows = printed[printed.index("loss of the prompts, mean of 2 prompts") + 2 :][:2]
    assert [row.split()[:2] for row in rows] == [["1", "0"], ["1", "2"]]


def test_a_pair_and_a_saved_vector(toy: Transformer, tmp_path: Path) -> None:
    file = tmp_path / "pair.safetensors"
    out = run(
        "--positive", "abcde", "--negative", "decaf", "--method", "pair", "--prompt", "ab", "--layer", "1", "--save", str(file)
    )
    assert out.exit_code == 0, out.output
    assert "read at each of the first 6 positions, written" in out.stdout
    assert torch.equal(SteeringVector.load(file, toy).values, activation_addition(toy, "abcde", "decaf", 1).values)
    again = run("--vector", str(file), "--prompt", "ab")
    assert again.exit_code == 0 and again.stdout == out.stdout


def test_a_record_runs_again_to_the_same_bits(tmp_path: Path) -> None:
    out = run(*SETS, "--prompt", "ab", "--prompt", "g", "--strength", "2", "--record", str(tmp_path / "record"))
    assert out.exit_code == 0, out.output
    again = CliRunner().invoke(app, ["replay", str(tmp_path / "record")])
    assert again.exit_code == 0 and "the same bits" in again.stdout
    refused = run(*SETS, "--prompt", "ab", "--record", str(tmp_path / "record"))
    assert refused.exit_code == 2 and "holds a record already" in refused.stderr


def test_line_breaks_in_files(tmp_path: Path) -> None:
    from cutaway.commands.steering import texts_of

    file = tmp_path / "two.txt"
    file.write_text("KING:\\nMy lord\nprose\n", encoding="utf-8")
    assert texts_of([str(file), "more"], "--positive") == ["KING:\nMy lord", "prose", "more"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([*SETS], "steer needs text: give either --text"),
        (["--positive", "a", "--prompt", "a"], "--negative is missing"),
        ([*SETS, "--prompt", " "], "--text is an empty text"),
        ([*SETS, "--prompt", "absent.txt"], "there is no file absent.txt"),
        ([*SETS, "--prompt", "empty"], "the file empty has no text in it"),
        ([*SETS, "--prompt", "bytes"], "bytes is not UTF-8 text"),
        ([*SETS, "--prompt", "XY"], "not in the vocabulary"),
        ([*SETS, "--prompt", "a", "--layer", "2"], "names layer 2, and the model has the layers 0 to 1"),
        ([*SETS, "--prompt", "a", "--strength", "nan"], "strength=nan"),
        ([*SETS, "--prompt", "a", "--strength", "1e39"], "a strength of 1e+39 is too much"),
        ([*SETS, "--prompt", "a", "--strength", "0"], "give another --strength"),
        ([*SETS, "--prompt", "a", "--effect", "ab"], "is 2 tokens, not one"),
        ([*SETS, "--prompt", "a", "--minus", "b"], "--minus needs --effect"),
        ([*SETS, "--prompt", "a", "--matches", "("], "is not a regular expression"),
        ([*SETS, "--prompt", "a", "--method", "median"], "--method 'median' is not known"),
        ([*SETS, "--prompt", "a", "--method", "pair"], "takes one text of each kind, not 2 and 2"),
        (["--positive", "ab", "--negative", "c", "--method", "pair", "--prompt", "a"], "the prompts differ in length"),
        ([*SETS, "--prompt", "a", "--position", "9"], "'abc' has no position 9; it has 4 tokens"),
        ([*SETS, "--prompt", "a", "--position", "last"], "must be a number or mean"),
        ([*SETS, "--prompt", "a", "--where", "some"], "no part of a generation is called 'some'"),
        ([*SETS, "--prompt", "a", "--tokens", "99"], "more than the"),
        ([*SETS, "--prompt", "a", "--vector", "other"], "give either --vector or"),
        (["--prompt", "a", "--vector", "other"], "made with another model"),
        (["--prompt", "a", "--vector", "wide"], "the vector has width 7"),
        (["--prompt", "a", "--vector", "empty"], "no steering vector can be read from empty"),
    ],
)
def test_one_sentence(words: list[str], sentence: str, toy: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n", encoding="utf-8")
    Path("bytes").write_bytes(b"\xff\xfe")
    for name, width in (("other", toy.cfg.d_model), ("wide", 7)):
        read = "position -1 of each prompt"
        SteeringVector(torch.ones(1, width), 0, "resid_pre", "mean", False, ("a",), ("b",), read, "0" * 64).save(name)
    out = run(*words)
    assert out.exit_code == 2 and sentence in out.stderr, out.output
    assert out.stderr.startswith("cutaway: ") and out.stderr.count("\n") == 1 and not out.stdout


def test_two_sides_that_are_the_same_are_refused() -> None:
    out = run("--positive", "abc", "--negative", "abc", "--prompt", "ab")
    assert out.exit_code == 2 and "the same activations" in out.stderr
