"""`cutaway report MODEL`: what it prints and writes, and one sentence where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cutaway import records
from cutaway.cli import app
from cutaway.report import reporting
from cutaway.report.questions import QUESTIONS
from cutaway.sources import files
from tests.report.test_reporting import copier, prompts_of, random_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "copier.safetensors"
    network = copier()
    files.save(path, dict(network.state_dict()), network.cfg)
    return path


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples.jsonl"
    given = prompts_of()
    lines = [
        json.dumps({"tokens": row, "answers": {str(at): right[0] for at, right in answers.items()}})
        for row, answers in zip(given.tokens.tolist(), given.right, strict=True)
    ]
    path.write_text("\n".join(lines))
    return path


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, words)])


def sentence(result: Any) -> str:
    """The one line on stderr of a command that failed, the plan left out."""
    assert result.exit_code == 2, result.output
    last = [line for line in result.stderr.splitlines() if not line.endswith("of activations")]
    assert len(last) == 1 and last[0].startswith("cutaway: ") and "Traceback" not in result.output
    return str(last[0])


def test_examples_give_a_page_findings_and_a_record(model: Path, examples: Path, tmp_path: Path):
    out, record = tmp_path / "out", tmp_path / "record"
    words = ["--examples", examples, "--out", out, "--record", record, "--html", tmp_path / "page.html"]
    result = run(model, *words, "--questions", "performance", "--questions", "ablation")
    assert result.exit_code == 0, result.output
    assert "2 questions, less than a minute" in result.stderr
    assert "The share of right answers is 100.0%" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == [reporting.HTML, reporting.JSON]
    assert (tmp_path / "page.html").read_text() == (out / reporting.HTML).read_text()
    found = json.loads((out / reporting.JSON).read_text(encoding="utf-8"))
    assert {one["question"] for one in found["findings"]} == {"performance", "ablation"}
    assert [records.replay(one).agrees for one in records.records_in(record)] == [True]


def test_json_prints_what_it_writes(model: Path, examples: Path, tmp_path: Path):
    result = run(model, "--examples", examples, "--out", tmp_path / "out", "--questions", "lens", "--json")
    assert result.stdout == (tmp_path / "out" / reporting.JSON).read_text(encoding="utf-8")


def test_an_interrupt_keeps_what_is_done(model: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(study: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(QUESTIONS, "lens", QUESTIONS["lens"]._replace(ask=interrupted))
    result = run(model, "--examples", examples, "--out", tmp_path / "out")
    done = list(QUESTIONS).index("lens")
    assert result.exit_code == 130 and f"interrupted: {done} questions are answered in" in result.stderr
    found = json.loads((tmp_path / "out" / reporting.JSON).read_text(encoding="utf-8"))
    assert found["left"] == list(QUESTIONS)[done:] and len({one["question"] for one in found["findings"]}) == done
    assert "Unfinished: lens" in (tmp_path / "out" / reporting.HTML).read_text(encoding="utf-8")


def test_a_model_at_chance_stops_unless_told_otherwise(tmp_path: Path, examples: Path):
    network = random_model(3)
    files.save(tmp_path / "noise.safetensors", dict(network.state_dict()), network.cfg)
    words = [tmp_path / "noise.safetensors", "--examples", examples, "--out", tmp_path / "out", "--questions", "lens"]
    assert "noise.safetensors does not do this" in sentence(run(*words))
    assert not (tmp_path / "out").exists()
    result = run(*words, "--anyway")
    assert result.exit_code == 0 and "nothing is claimed" in result.stdout


def text(folder: Path, *lines: Any) -> Path:
    path = folder / "given.jsonl"
    path.write_text("\n".join(json.dumps(line) if isinstance(line, dict) else line for line in lines))
    return path


PAIR = {"clean": "the king", "corrupted": "the men", "answer": " and", "wrong": " of"}


@pytest.mark.parametrize(
    ("option", "lines", "said"),
    [
        ("--examples", [{"tokens": [0, 1], "answers": {"1": 2}}, "{"], "line 2 is not JSON"),
        ("--examples", [{"tokens": [0, 1], "answers": {"1": 2}}, "", {"tokens": [0]}, {"tokens": 3}], "line 4: 'tokens' must be"),
        (
            "--examples",
            [{"tokens": [0, 1], "answers": {"2": 2}}],
            "line 1: 'answers' names position '2', and the tokens are 0 to 1",
        ),
        ("--examples", [{"tokens": [0, 1]}], "needs right answers"),
        ("--examples", [{"tokens": [0] * 9, "answers": {"8": 1}}], "up to 9 tokens, and the model's context is 6"),
        ("--examples", [{"tokens": [0, 50], "answers": {"1": 1}}], "prompt 0 has the token 50"),
        ("--pairs", [{"tokens": [0, 1], "answers": {"1": 1}}], "holds examples, not pairs"),
    ],
)
def test_bad_files(model: Path, tmp_path: Path, option: str, lines: list[Any], said: str):
    assert said in sentence(run(model, option, text(tmp_path, *lines), "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corrupted": "the men of the king"}, "line 1: prompt 0 has"),
        ({"answer": " barks"}, "tokens, not one"),
        ({"answer": None}, "line 1: a pair needs texts"),
    ],
)
def test_bad_pairs(tmp_path: Path, change: dict[str, Any], said: str):
    words = ["attn-only-2l", "--pairs", text(tmp_path, {**PAIR, **change}), "--out", tmp_path / "out"]
    assert said in sentence(run(*words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what copier.safetensors should be asked to do: --behaviour NAME (indirect-objects, "),
        (["--behaviour", "inductoin"], "no behaviour called 'inductoin' (did you mean 'induction'"),
        (["--behaviour", "palindromes"], "has a vocabulary of its own, of 33 tokens, and this model has 8"),
        (["--behaviour", "ioi"], "is a behaviour of language: give the model's tokenizer"),
        (
            ["--behaviour", "induction", "--examples", "x"],
            "give one of --behaviour NAME, --examples FILE, --pairs FILE and --prompts",
        ),
        (["--behaviour", "ioi", "--read-out", "loudest"], "--read-out 'loudest' is not known"),
        (["--behaviour", "ioi", "--size", "1"], "--size 1 must be at least 2"),
        (["--behaviour", "ioi", "--checkpoint", "x.pt"], "--checkpoint is for the report on the task first-unique-char"),
    ],
)
def test_bad_words(model: Path, tmp_path: Path, words: list[str], said: str):
    assert said in sentence(run(model, *words, "--out", tmp_path / "out"))


def test_a_question_that_there_is_not(model: Path, examples: Path, tmp_path: Path):
    words = ["--examples", examples, "--questions", "lense", "--out", tmp_path / "out"]
    assert "no question called 'lense' (did you mean 'lens'" in sentence(run(model, *words))


def test_words_that_a_vocabulary_lacks(tmp_path: Path):
    words = ["first-unique-char", "--behaviour", "ioi", "--out", tmp_path / "out"]
    assert "the vocabulary has 0 of the 40 names as single tokens, and 4 are needed" in sentence(run(*words))


def test_texts_with_answers_and_the_precision_of_weights(tmp_path: Path):
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{front} king of my man was dead. The\n" for front in ("The", "A", "His", "Our")))
    words = ["attn-only-2l", "--prompts", texts, "--questions", "performance", "--anyway", "--out", tmp_path / "out"]
    done = run(*words, "--answer", " king", "--wrong", " lord", "--dtype", "bfloat16")
    assert done.exit_code == 0, done.output
    assert "4 prompts with 4 answers" in done.stdout
    assert "bfloat16" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "texts of --prompts need answers: give --answer WORD" in sentence(run(*words, "--replace"))
    assert "belong to the texts of --prompts FILE" in sentence(run("attn-only-2l", "--answer", "x", "--out", tmp_path / "other"))
