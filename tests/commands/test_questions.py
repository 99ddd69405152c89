"""Commands that ask a model one question: what they print is what the analyses say; one sentence where they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway import CharTokenizer, loading
from cutaway.analysis.attribution import attribute
from cutaway.analysis.heads import on_random_repeats
from cutaway.analysis.logit_lens import lens
from cutaway.analysis.predictions import predict
from cutaway.analysis.weight_circuits import ov_circuit
from cutaway.cli import app
from cutaway.commands import sweeps
from cutaway.commands.learning import notebook
from cutaway.commands.questions import COMMANDS
from cutaway.commands.shared import one_token
from cutaway.commands.steering import steer
from cutaway.errors import TokenError
from cutaway.model.transformer import Transformer
from cutaway.tasks.first_unique_dataset import first_unique

TOY, LANGUAGE = "first-unique-char", "attn-only-2l"
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
    columns = ["kind", "head", "attention", "95%", "even", "attends", "to"]
    assert run("heads", TOY, "--examples", "4", "--threshold", "0.2").stdout.splitlines()[0].split() == columns
    text = run("heads", TOY, "--text", "abcabcd", "--threshold", "0.2").stdout
    assert text.splitlines()[0].split() == [column for column in columns if column != "95%"], "one text has no interval"
    assert "left out" not in text
    assert "no head's mean attention is above 1 for current" in run("heads", TOY, "--threshold", "1").stdout


def test_heads_says_which_kinds_a_short_text_is_too_short_for(tmp_path: Path) -> None:
    said = run("heads", TOY, "--text", "abcd", "--threshold", "0.2").stdout
    assert "current: left out, as it needs a text of 7 tokens, and this is 5 tokens with BOS" in said
    assert "induction: left out, as it needs a token that comes twice\n" in said
    assert {row.split()[0] for row in said.splitlines()[1:-1] if "left out" not in row} == {"previous"}
    page = tmp_path / "page.html"
    found = numbers("heads", TOY, "--text", "abcd", "--html", str(page))
    assert set(found["heads"]) == set(found["even"]) == {"previous"} and "induction" in found["left_out"]
    first = run("heads", TOY, "--text", "abcaaaaaaa", "--threshold", "0.9").stdout
    assert "left out" not in first


def test_a_long_text_is_cut_aloud() -> None:
    result = run("lens", TOY, "--text", TEXT * 2, "--position", "3", "--json")
    assert result.exit_code == 0 and result.stderr == "only the first 20 of 39 tokens are read: the model has no more positions\n"
    assert json.loads(result.stdout)["position"] == 3
    assert not run("lens", TOY, "--text", TEXT).stderr
    assert "3 windows of at most 20 tokens" in run("neurons", TOY, "0.1", "--text", TEXT * 3).stdout


def test_attribute(toy: Transformer) -> None:
    found = attribute(toy, TEXT, targets="d")
    said = numbers("attribute", TOY, "--text", TEXT, "--target", "d", "--position", "19")
    assert said["components"] == pytest.approx(found.values.sel(batch=0, pos=19).as_dict(), abs=1e-4)
    assert sum(said["components"].values()) == pytest.approx(said["logit"], abs=1e-3)
    assert said["of"] == "'d'"


def test_attribute_says_whose_logit_and_what_is_left_over(toy: Transformer) -> None:
    printed = run("attribute", TOY, "--text", TEXT, "--minus", "a", "--target", "b", "--top", "2").stdout.splitlines()
    assert printed[0] == "effect on the logit difference of 'b' minus 'a'; mean over 20 positions"
    assert printed[1].split() == ["component", "effect"] and len(printed) == 7
    effects = [float(line.split()[-1]) for line in printed[2:5]]
    assert printed[4].startswith("7 others: ") and printed[5].startswith("logit difference ")
    assert sum(effects) == pytest.approx(float(printed[5].split(";")[0].split()[-1]), abs=2e-3)
    assert "left over by the sum of all components: at most " in printed[5] and printed[5].endswith("(rounding)")
    own = run("attribute", TOY, "--text", "abcab", "--position", "5").stdout.splitlines()[0]
    assert own == "effect on the logit of the right answer of its task, 'c'; at position 5, after 'b'"
    following = run("attribute", LANGUAGE, "--text", "the cat sat", "--position", "-2").stdout.splitlines()[0]
    assert following.startswith("effect on the logit of the next token, ")
    assert run("attribute", LANGUAGE, "--text", "the cat").stdout.startswith("effect on the logit of the next token; mean over ")


def test_lens(toy: Transformer) -> None:
    found = lens(toy, TEXT, targets="c")
    said = numbers("lens", TOY, "--text", TEXT, "--target", "c", "--position", "3")
    assert [row["row"] for row in said["rows"]] == ["0_pre", "1_pre", "final"]
    assert said["rows"][1]["target_probability"] == pytest.approx(float(found.values.data[1, 0, 3]), abs=1e-5)
    assert said["rows"][2]["top"][0][0] == found.tops()[2][3]
    assert run("lens", TOY, "--text", TEXT, "--of", "0.1, 1.attn").stdout.splitlines()[2].startswith("0.1 ")


def test_lens_leaves_out_columns_without_numbers() -> None:
    last, before, named = (
        run("lens", LANGUAGE, "--text", "the cat sat", *more).stdout.splitlines()
        for more in ([], ["--position", "1"], ["--target", " the"])
    )
    assert "target" not in last[1] and "no token follows: --target" in last[0]
    assert "target  rank" in before[1] and "the target is the next token, " in before[0]
    assert "target  rank" in named[1] and named[0].endswith("the target is ' the'")
    own = run("lens", TOY, "--text", "abcab").stdout.splitlines()
    assert own[0] == "at position 5, after 'b'; the target is the right answer of its task, 'c'" and "target  rank" in own[1]


def test_predict(tmp_path: Path) -> None:
    model, text = loading.from_pretrained(Transformer, LANGUAGE, device="cpu"), "the cat sat on the mat. " * 40
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    found = predict(model, text)
    said = numbers("predict", LANGUAGE, "--file", str(file))
    assert said["loss"] == pytest.approx(found.loss, abs=1e-4) and len(said["tokens"]) == int(found.counted.sum())
    assert said["windows"] == len(found.tokens) > 1
    printed = run("predict", LANGUAGE, "--file", str(file), "--rows", "4").stdout.splitlines()
    assert printed[0].split()[:3] == ["window", "after", "token"] and printed[5].startswith(f"{len(said['tokens'])} tokens: loss")
    assert f"read in {said['windows']} windows of at most {model.cfg.n_ctx} tokens" in printed[-2]
    short = run("predict", LANGUAGE, "--text", "the cat").stdout.splitlines()
    assert short[0].split()[:2] == ["after", "token"] and not any("window" in line for line in short)


def test_predict_scores_a_model_of_a_task_on_its_answers(toy: Transformer) -> None:
    tokens = toy.tokenizer.encode("?" + TEXT)
    labels = first_unique(torch.tensor([tokens]), 10)
    said = numbers("predict", TOY, "--text", TEXT)
    assert [row["target"] for row in said["tokens"]] == ["abcdefghij?"[label] for label in labels[0].tolist()]
    assert said["accuracy"] == 1 and said["loss"] == pytest.approx(predict(toy, TEXT, targets=labels).loss, abs=1e-5)
    printed = run("predict", TOY, "--text", TEXT, "--rows", "4").stdout.splitlines()
    assert printed[0].split()[:4] == ["position", "token", "answer", "expected"] and printed[5].startswith("20 answers: loss")
    assert printed[-2].startswith("scored on its task and not on next tokens: at each position, the first letter")


def test_a_folder_that_training_wrote_is_a_model(tmp_path: Path) -> None:
    made = run("train", TOY, "--device", "cpu", "--epochs", "1", "--steps", "1", "--batch-size", "2", "--out", str(tmp_path))
    assert made.exit_code == 0, made.output
    by_folder, by_file = (
        run("composition", str(place), "--top", "3").stdout for place in (tmp_path, tmp_path / "model.safetensors")
    )
    assert by_folder.splitlines()[:-1] == by_file.splitlines()[:-1] and by_folder  # the last line names the model


def test_one_of_a_thing_is_not_several() -> None:
    planned = run("plan", TOY, "--text", TEXT, "--what", "z").stdout.splitlines()[0]
    assert planned.startswith("6 cells") and planned.endswith("in 1 pass over 1 batch")


def test_neurons() -> None:
    said = numbers("neurons", TOY, "0.1", "1.2", "--text", TEXT)
    assert set(said["most"]) == {"0.1", "1.2"} and said["positions"] == len(TEXT) + 1
    printed = run("neurons", TOY, "0.1", "--text", TEXT, "--k", "1").stdout
    assert "⟦" in printed and printed.startswith(f"{len(TEXT) + 1} tokens of 1 text\n")


def test_circuit(toy: Transformer) -> None:
    found = ov_circuit(toy, "0.1")
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
        (["predict", TOY, "--text", "ab", "--file", __file__], "predict takes --text or --file, not both"),
        (["predict", TOY, "--file", "nowhere.txt"], "nowhere.txt: No such file"),
        (["heads", TOY, "--random-repeats", "--text", "ab"], "give either a text or --random-repeats"),
        (["heads", TOY, "--length", "99"], "twice that must fit into 20 positions"),
        (["attribute", TOY, "--text", TEXT, "--target", "xy"], "xy"),
        (
            ["attribute", TOY, "--text", TEXT, "--target", "ab"],
            "--target 'ab' is 2 tokens, not one: ['a', 'b']; give one token, such",
        ),
        (["attribute", TOY, "--text", TEXT, "--target", "a", "--minus", ""], "--minus is empty"),
        (["attribute", LANGUAGE, "--text", ""], "attribute needs text, and --text is empty"),
        (["heads", TOY, "--text", "a"], "2 tokens with BOS: too short to tell what heads do"),
        (["heads", TOY, "--text", "a"], "Tokens needed: current 7, previous 4, first 7; duplicate, "),
        (["heads", TOY, "--file", "/dev/null"], "/dev/null is empty"),
        (["heads", TOY, "--html", "picture.png"], "--html writes an HTML page, not .png; call it 'picture.html'"),
        (["heads", TOY, "--html", "no/where.html"], "there is no folder no"),
        (["heads", TOY, "--html", "/"], "is a folder; give the name of a file"),
        (["circuit", TOY, "ov"], "ov needs a head"),
        (["attribute", TOY, "--text", TEXT, "--position", "50"], "no position 50: prompt 0 has 20 tokens"),
        (["attribute", LANGUAGE, "--text", "the cat", "--position", "-1"], "position -1 has no next token; give --target"),
        (["lens", TOY, "--text", TEXT, "--position", "50"], "no position 50"),
        (["lens", TOY, "--text", TEXT, "--of", "4.1"], "no component '4.1'"),
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


def test_a_forgotten_space_is_pointed_out() -> None:
    network = SimpleNamespace(tokenizer=CharTokenizer(["t", "h", "e", " the", " "]))
    assert one_token(network, " the", "--target") == 3
    with pytest.raises(TokenError, match=r"--target 'the' is 3 tokens, .* such as ' the', with a space in front"):
        one_token(network, "the", "--target")
    with pytest.raises(TokenError, match="with its leading space where it has one"):
        one_token(network, "he", "--target")


@pytest.mark.parametrize("command", [one.__name__ for one in (*COMMANDS, *sweeps.COMMANDS, steer, notebook)])
def test_every_command_is_offered(command: str) -> None:
    assert command in [line.strip("│ ").split(" ")[0] for line in run("--help").stdout.splitlines()]
    assert run(command, "--help").exit_code == 0


def test_a_command_leaves_gradients_as_they_are() -> None:
    assert run("composition", TOY, "--top", "1").exit_code == 0
    assert torch.is_grad_enabled()
