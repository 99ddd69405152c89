"""The options that all commands share: many texts in any of the ways, the analyses' own numbers, JSON of one form, errors."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cutaway
from cutaway.cli import app
from cutaway.commands.asking import SCREEN, layers_of, positions_of
from cutaway.errors import ConfigError
from cutaway.prompts import Prompts
from cutaway.runs.hashes import model_hash

MODEL = "attn-only-2l"
PAIR = {"clean": "The king of my man was dead. The", "corrupted": "The lord of my man was dead. The", "answer": " king",
        "wrong": " lord", "roles": {"N": " man"}}  # fmt: skip
SECOND = {**PAIR, "clean": "And so the king of my man was dead. The", "corrupted": "And so the lord of my man was dead. The"}
SCHEMAS = Path(__file__).with_name("schemas.json")
COMMANDS = {
    "heads": [], "attribute": [], "lens": [], "predict": [], "neurons": ["0.1"], "circuit": ["ov 0.1"], "next": [],
    "generate": ["--tokens", "2", "--zero", "0.1"], "ablate": ["--site", "z"], "patch": ["--what", "z"],
    "paths": ["--layers", "1"], "edges": ["--steps", "1", "--exact", "2"], "plan": [],
}  # fmt: skip
BEFORE = {"neurons": ["neurons", MODEL, "0.1"], "circuit": ["circuit", MODEL, "ov 0.1"]}


@pytest.fixture(scope="module")
def model() -> Any:
    return cutaway.HookedTransformer.from_pretrained(MODEL, device="cpu")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (PAIR, SECOND)), encoding="utf-8")
    return path


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def asked(command: str, *words: str) -> Any:
    start = BEFORE.get(command, [command, MODEL, *COMMANDS.get(command, [])])
    return run(*start, *words)


def form(value: Any) -> Any:
    """The form of JSON: the words of a table's keys, what lists hold, and kinds; numbers of whatever kind are numbers."""
    if isinstance(value, dict):
        named = {key: form(one) for key, one in sorted(value.items())}
        alike = len(named) > 2 and len({json.dumps(one) for one in named.values()}) == 1
        return {"…": next(iter(named.values()))} if alike else named
    if isinstance(value, list):
        kinds = sorted({json.dumps(form(one)) for one in value})
        return [json.loads(one) for one in kinds]
    return {bool: "yes or no", int: "number", float: "number", str: "text", type(None): "nothing"}[type(value)]


@pytest.mark.parametrize("command", [*COMMANDS, "attention"])
def test_every_command_takes_many_prompts_and_prints_json_of_one_form(command: str, pairs: Path) -> None:
    source = ["--text", "The king of my man"] if command == "attention" else ["--pairs", str(pairs)]
    printed = asked(command, *source, "--json")
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)
    kept = json.loads(SCHEMAS.read_text(encoding="utf-8"))
    assert form(found) == kept[command], "a schema changed; users read this: say so in the changelog"
    assert found["command"] == command and found["model"] == MODEL
    assert command == "circuit" or found["prompts"]["count"] == (1 if command == "attention" else 2)
    said = asked(command, *source).stdout
    assert f"\n{MODEL}" in f"\n{said}" and len(said.splitlines()) <= SCREEN + 15


def test_the_same_prompts_in_four_ways_give_the_same_numbers(pairs: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text(f"{PAIR['clean']}\n{SECOND['clean']}\n", encoding="utf-8")
    words = ["--answer", " king", "--wrong", " lord"]
    ways = [
        ["--pairs", str(pairs)],
        ["--text", PAIR["clean"], "--text", SECOND["clean"], *words],
        ["--prompts", str(texts), *words],
        ["--prompts", str(texts), "--answer", " king", "--answer", " king", "--wrong", " lord"],
    ]
    found = [json.loads(asked("attribute", *way, "--json").stdout)["components"] for way in ways]
    assert all(one == pytest.approx(found[0], abs=1e-6) for one in found[1:])


def test_patching_at_roles_is_the_analysis(model: Any, pairs: Path) -> None:
    printed = json.loads(asked("patch", "--pairs", str(pairs), "--what", "resid_pre", "--json").stdout)
    prompts = Prompts.read(pairs, model)
    expected = cutaway.patch(model, prompts, kinds=["resid_pre"]).normalised("resid_pre")
    assert printed["recovered"]["resid_pre"]["labels"]["pos"] == ["N", "end"]
    assert torch.tensor(printed["recovered"]["resid_pre"]["values"]).allclose(expected.data.float(), atol=1e-5)


def test_a_table_ends_with_the_screen_unless_asked(pairs: Path) -> None:
    few, every, three = (asked("edges", "--pairs", str(pairs), *more).stdout for more in ([], ["--all"], ["--top", "3"]))
    assert few.count("→") == SCREEN and "more rows; --all prints them" in few
    assert every.count("→") == 100 and "more rows" not in every and three.count("→") == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["patch", MODEL, "--clean", "The king", "--answer", " king"], "needs pairs: give --corrupted for each --clean"),
        (["patch", MODEL, "--clean", "The king", "--corrupted", "The lord"], "patch needs answers: give --answer"),
        (["patch", MODEL, "--clean", "a king", "--corrupted", "a king of", "--answer", " a"], "3 tokens and its counterpart 4"),
        (["patch", MODEL, "--clean", "a", "--clean", "b", "--corrupted", "c", "--answer", " a"], "2 prompts have 1 counterpart"),
        (["next", MODEL, "--text", "a", "--text", "b", "--answer", " a", "--answer", " b", "--answer", " a"], "3 answers for 2"),
        (["attribute", MODEL, "--text", "a", "--answer", " went"], "--answer ' went' is 2 tokens, not one"),
        (["lens", MODEL, "--text", "a king", "--positions", "S2"], "no role 'S2'; there are end"),
        (["lens", MODEL, "--text", "a", "--pairs", "x"], "lens takes --text or --pairs, not both"),
        (["lens", MODEL, "--behaviour", "iol"], "no behaviour called 'iol'"),
        (["ablate", MODEL, "--text", "a king", "--layers", "7"], "names layer 7, and the model has the layers 0 to 1"),
        (["ablate", MODEL, "--text", "a king", "--dtype", "float8"], "--dtype 'float8' is not known"),
        (["generate", MODEL, "--text", "a king", "--messages"], "--messages needs a model with a chat template"),
        (["attention", MODEL, "--text", "a", "--text", "b"], "attention draws one text, and there are 2"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(words: list[str], said: str) -> None:
    result = run(*words)
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert result.stderr.count("\n") == 1


def test_a_broken_line_is_numbered(pairs: Path) -> None:
    pairs.write_text(pairs.read_text() + "{\n", encoding="utf-8")
    assert "pairs.jsonl, line 3 is not JSON" in asked("patch", "--pairs", str(pairs)).stderr


def test_the_first_token_of_an_answer_can_be_taken() -> None:
    found = asked("attribute", "--text", "a king", "--answer", " went", "--allow-first-token")
    assert found.exit_code == 0, found.output


def test_ranges_of_layers_and_positions() -> None:
    assert layers_of("0-2,5", 6) == [0, 1, 2, 5] and layers_of(None, 2) == [0, 1]
    assert positions_of("S2, end,-1") == ["S2", "end", -1]
    for wrong in ("a", "1-", "2-b", ""):
        with pytest.raises(ConfigError):
            layers_of(wrong, 6)
    with pytest.raises(ConfigError, match="has an empty part"):
        positions_of("1,,2")


def test_a_page_says_what_it_shows(pairs: Path, tmp_path: Path, model: Any) -> None:
    path = tmp_path / "page.html"
    words = ["patch", MODEL, "--pairs", str(pairs), "--what", "z", "--baseline", "2", "--html", str(path)]
    assert run(*words).exit_code == 0
    page = path.read_text(encoding="utf-8")
    assert shlex.join(["cutaway", *words]) in page and model_hash(model) in page and "UTC" in page
    facts = page[page.index("<dl") : page.index("</dl>")]
    names = re.findall("<dt>(.*?)</dt>", facts)
    assert names == ["model", "hash", "made", "command", "prompts", "metric", "clean", "corrupted", "audit", "baseline"]
    for said in ("2 prompts of", PAIR["corrupted"], "&#x27; king&#x27;", "run again in full"):
        assert said in facts
    assert page.index("</dl>") < page.index("largest shares of that difference") < page.index("text/cutaway")


def test_a_file_that_is_there_is_replaced_only_where_asked(pairs: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine", encoding="utf-8")
    words = ["next", MODEL, "--pairs", str(pairs), "--html", str(path)]
    refused = run(*words)
    assert refused.exit_code == 2 and "is there already; give another name, or --replace" in refused.stderr
    assert path.read_text(encoding="utf-8") == "mine" and not refused.stdout
    assert run(*words, "--replace").exit_code == 0 and "<!doctype html>" in path.read_text(encoding="utf-8")


def test_an_answer_without_its_space_is_said(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**PAIR, "answer": "I", "wrong": "A"}) + "\n", encoding="utf-8")
    done = run("next", MODEL, "--pairs", str(path), "--json")
    assert done.exit_code == 0 and "an answer is taken as written, without a space in front: 'I'" in done.stderr
    assert json.loads(done.stdout)
    done = run("next", MODEL, "--text", PAIR["clean"], "--word", "I")
    assert done.exit_code == 0 and "--word: 'I' is taken as it stands" in done.stderr and "' I'" in done.stderr
    spaced = run("next", MODEL, "--text", PAIR["clean"], "--word", " I")
    assert spaced.exit_code == 0 and not spaced.stderr
