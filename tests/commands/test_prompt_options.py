"""The options that all commands share: many texts in any of the ways, the analyses' own numbers, JSON of one form, errors."""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cutaway
from cutaway.cli import app
from cutaway.commands import prompt_options
from cutaway.commands.choices import layers_of
from cutaway.commands.prompt_options import LAST, SCREEN, SHARED, Request, positions_of
from cutaway.errors import ConfigError
from cutaway.prompts import Prompts
from cutaway.runs.hashes import model_hash
from tests.commands.schemas import check_schema

MODEL = "attn-only-2l"
PAIR = {"clean": "The king of my man was dead. The", "corrupted": "The lord of my man was dead. The", "answer": " king",
        "wrong": " lord", "roles": {"N": " man"}}  # fmt: skip
SECOND = {**PAIR, "clean": "And so the king of my man was dead. The", "corrupted": "And so the lord of my man was dead. The"}
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


@pytest.mark.parametrize("command", [*COMMANDS, "attention"])
def test_every_command_takes_many_prompts_and_prints_json_of_one_form(command: str, pairs: Path) -> None:
    source = ["--text", "The king of my man"] if command == "attention" else ["--pairs", str(pairs)]
    printed = asked(command, *source, "--json")
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)
    check_schema(command, found)
    assert found["command"] == command and found["model"] == MODEL
    assert command == "circuit" or found["prompts"]["count"] == (1 if command == "attention" else 2)
    said = asked(command, *source).stdout
    assert f"\n{MODEL}" in f"\n{said}" and len(said.splitlines()) <= SCREEN + 15


OTHERS = {
    "composition": ["composition", MODEL],
    "circuit find": ["circuit", "find", MODEL, "--size", "20", "--checks", "1", "--steps", "1", "--pairs"],
    "steer": ["steer", MODEL, "--positive", "king", "--negative", "lord", "--layers", "1", "--tokens", "2", "--pairs"],
}  # fmt: skip


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_print_json_of_one_form(command: str, pairs: Path) -> None:
    words = OTHERS[command]
    printed = run(*words, *([str(pairs)] if words[-1] == "--pairs" else []), "--json")
    assert printed.exit_code == 0, printed.output
    check_schema(command, json.loads(printed.stdout))


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
    total = int(re.search(r"; ([\d,]+) edges", every)[1].replace(",", ""))  # type: ignore[index]
    assert few.count("→") == SCREEN and f"; {total - SCREEN:,} more than are shown: --top N or --all" in few
    assert every.count("→") == total and "more than are shown" not in every and three.count("→") == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["patch", MODEL, "--clean", "The king", "--answer", " king"], "needs pairs: give --corrupted for each --clean"),
        (["patch", MODEL, "--clean", "The king", "--corrupted", "The lord"], "patch needs answers: give --answer"),
        (["patch", MODEL, "--clean", "a king", "--corrupted", "a king of", "--answer", " a"], "3 tokens and its counterpart 4"),
        (["patch", MODEL, "--clean", "a", "--clean", "b", "--corrupted", "c", "--answer", " a"], "2 prompts have 1 counterpart"),
        (["next", MODEL, "--text", "a", "--text", "b", "--answer", " a", "--answer", " b", "--answer", " a"], "3 answers for 2"),
        (["attribute", MODEL, "--text", "a", "--answer", " went"], "--answer ' went' is 2 tokens, not one"),
        (
            ["lens", MODEL, "--text", "a", "--target", " went"],
            "in a command --allow-first-token",
        ),
        (["edges", MODEL, "--clean", "a king", "--corrupted", "a king of", "--answer", " a"], "the two need the same number"),
        (["lens", MODEL, "--text", "a king", "--positions", "S2"], "no role 'S2'; there are end"),
        (["lens", MODEL, "--text", "a", "--pairs", __file__], "lens takes --text or --pairs, not both"),
        (["lens", MODEL, "--behaviour", "iol"], "no behaviour called 'iol'"),
        (["lens", MODEL, "--behaviour", "induction", "--messages"], "a behaviour's prompts are no messages"),
        (["ablate", MODEL, "--text", "a king", "--layers", "7"], "names layer 7, and the model has the layers 0 to 1"),
        (["ablate", MODEL, "--text", "a king", "--dtype", "float8"], "--dtype 'float8' is not known"),
        (["generate", MODEL, "--text", "a king", "--messages"], "--messages needs a model with a chat template"),
        (["attention", MODEL, "--text", "a", "--text", "b"], "attention of 2 texts is a mean between their roles"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(words: list[str], said: str) -> None:
    result = run(*words)
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert result.stderr.count("\n") == 1


def test_induction_is_asked_of_a_vocabulary_that_lacks_its_words(model: Any) -> None:
    """With BOS in front, and without where that is asked for."""
    with_bos, without = (
        json.loads(asked("heads", "--behaviour", "induction", "--count", "3", "--json", *more).stdout)["prompts"]
        for more in ([], ["--no-bos"])
    )
    assert with_bos["bos"] and not without["bos"]
    assert (with_bos["shortest"], with_bos["longest"]) == (without["shortest"] + 1, without["longest"] + 1)


def test_count_takes_the_first_prompts_of_whatever_is_given(tmp_path: Path, model: Any) -> None:
    answers = {"answer": " a", "wrong": " the"}
    rows = [{"clean": f"the {word} was", "corrupted": f"a {word} was", **answers} for word in ("man", "day", "king")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "texts.txt").write_text("the man was\na day was\nthe king was\n")
    sources = (["--pairs", str(tmp_path / "pairs.jsonl")], ["--prompts", str(tmp_path / "texts.txt"), "--answer", " a"])
    for given in (*sources, ["--behaviour", "induction"]):
        assert [
            json.loads(asked("attribute", *given, *count, "--json").stdout)["prompts"]["count"]
            for count in (["--count", "2"], ["--count", "3"])
        ] == [2, 3]


def test_commands_ask_for_options_that_there_are() -> None:
    """An option that a command has no use for is None, so a name that nothing has would be found only where it is used."""
    known = {*dir(Request), *(one.name for one in fields(Request)), *SHARED, *LAST, "text", "corrupted"}
    for path in Path(prompt_options.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "request":
                assert node.attr in known, f"{path.name}, line {node.lineno}: request.{node.attr}"


def test_a_behaviour_is_explained(tmp_path: Path) -> None:
    name = "first-unique-char"
    found = run("explain", name, "--behaviour", name, "--count", "40", "--out", str(tmp_path / "out"))
    assert found.exit_code == 0 and (tmp_path / "out" / "program.py").exists(), found.output
    nameless = run("explain", "--behaviour", name, "--out", str(tmp_path / "other"))
    assert nameless.exit_code == 2 and "explain needs a model" in nameless.output and not (tmp_path / "other").exists()


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
    assert page.count("largest shares of that difference") == 1  # the printed text has it, too


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


def test_options_by_the_names_that_people_reach_for(pairs: Path) -> None:
    text = ["--text", "the king said to the queen"]
    assert asked("ablate", *text, "--layer", "1").stdout == asked("ablate", *text, "--layers", "1").stdout
    assert asked("ablate", *text, "--kinds", "mean").stdout == asked("ablate", *text, "--kind", "mean").stdout
    words = ["patch", MODEL, "--pairs", str(pairs), "--json"]
    assert run(*words, "--kinds", "z").stdout == run(*words, "--what", "z").stdout


def test_of_a_target_of_several_tokens_the_first_is_taken_where_told() -> None:
    words = ["lens", MODEL, "--text", "a king", "--json", "--target"]
    first = run(*words, " went", "--allow-first-token")
    assert first.exit_code == 0 and json.loads(first.stdout)["target"] != " went"


@pytest.mark.parametrize(
    ("meant", "one", "said"),
    [
        ("corrupted", {"corupted": "b"}, "line 2: the key 'corupted' is not known (did you mean 'corrupted'?)"),
        ("clean", {"claen": "b"}, "line 2: the key 'claen' is not known (did you mean 'clean'?)"),
        ("roles", {"role": {"N": " man"}}, "line 2: the key 'role' is not known (did you mean 'roles'?)"),
        ("answer", {"answer": None}, "line 2: a pair needs texts 'clean', 'corrupted', 'answer' and, if any, 'wrong'; 'answer'"),
    ],
)  # fmt: skip
def test_a_key_that_is_misspelt_is_named_with_its_line(meant: str, one: dict[str, Any], said: str, pairs: Path) -> None:
    broken = {**{key: value for key, value in PAIR.items() if key != meant}, **one}
    pairs.write_text(f"{json.dumps(PAIR)}\n{json.dumps(broken)}\n", encoding="utf-8")
    done = run("patch", MODEL, "--pairs", str(pairs))
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_what_else_a_line_says_of_its_pair_is_left_alone(pairs: Path) -> None:
    pairs.write_text(json.dumps({**PAIR, "id": 7, "source": "mine"}) + "\n", encoding="utf-8")
    assert run("next", MODEL, "--pairs", str(pairs)).exit_code == 0


def test_patching_says_each_pair(model: Any, pairs: Path) -> None:
    printed = json.loads(run("patch", MODEL, "--pairs", str(pairs), "--what", "z", "--json").stdout)["by_pair"]
    found = cutaway.patch(model, Prompts.read(pairs, model), kinds=["z"])
    assert printed["clean"] == pytest.approx(found.by_example[0].tolist()) and len(printed["corrupted"]) == 2
    assert printed["patched"]["z"]["axes"] == list(found.sweeps["z"].values.axes)
    assert torch.tensor(printed["patched"]["z"]["values"]).allclose(found.sweeps["z"].values.data.float(), atol=1e-5)


def test_heads_without_a_text_say_what_they_read() -> None:
    few = ["heads", MODEL, "--examples", "2", "--length", "20"]
    note = "no text was given: means over 2 sequences of 20 random tokens that come twice (seed 0)"
    assert note in run(*few).stdout and json.loads(run(*few, "--json").stdout)["random_repeats"] == note
    assert "random tokens" not in run("heads", MODEL, "--text", "the king said to the queen and the king of the land").stdout


def test_a_page_holds_the_rows_that_were_printed(pairs: Path, tmp_path: Path) -> None:
    for name, more in (("few", ["--top", "3"]), ("all", ["--all"])):
        run("attribute", MODEL, "--pairs", str(pairs), *more, "--html", str(tmp_path / f"{name}.html"))
    few, every = (
        page[page.index('<pre class="ct-code"') :].partition("</pre>")[0]
        for page in ((tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in ("few", "all"))
    )
    assert "others:" in few and few.count("\n") < 12 and "others:" not in every and "embed" in every


def test_an_option_that_an_analysis_lacks_is_named_with_the_one_it_has(model: Any) -> None:
    with pytest.raises(TypeError, match=r"patch\(\) has no option kind= \(did you mean 'kinds'\?\)"):
        cutaway.patch(model, "a", "b", kind="z")
    with pytest.raises(TypeError, match=r"did you mean 'positions'"):
        cutaway.lens(model, "a", position=-1)


def test_the_answers_of_many_prompts_are_drawn_beside_each_other(model: Any, pairs: Path) -> None:
    figure = cutaway.predict(model, Prompts.read(pairs, model)).figure()
    assert figure.meta["texts"] == [[" king", " king"]] and figure.title == "How well the answer of each prompt was predicted"
    assert cutaway.predict(model, Prompts.read(pairs, model)).figure(1).meta["texts"] != figure.meta["texts"]


def test_a_map_of_edges_leaves_blank_what_is_no_edge_and_its_colours_are_not_one_edges(model: Any, pairs: Path) -> None:
    found = cutaway.edge_attribution(model, Prompts.read(pairs, model), steps=1)
    figure = found.figure()
    assert figure.meta["absent"] == "no such edge" and figure.meta["range"][1] < float(found.values.data.abs().nan_to_num().max())
    assert found.graph(3).meta["sources"] and "3 edges" in found.graph(3).title


def test_columns_of_prompts_of_other_lengths_are_said_to_be_no_words(pairs: Path) -> None:
    words = ["patch", MODEL, "--what", "resid_pre", "--pairs", str(pairs)]
    assert "differ in length" not in run(*words).stderr
    bare = [{key: value for key, value in one.items() if key != "roles"} for one in (PAIR, SECOND)]
    pairs.write_text("".join(json.dumps(one) + "\n" for one in bare), encoding="utf-8")
    assert "the prompts differ in length and name no roles" in run(*words).stderr
    assert "differ in length" not in run(*words, "--positions", "-1").stderr


def test_attention_of_many_texts_is_the_mean_between_their_roles(model: Any, pairs: Path) -> None:
    printed = run("attention", MODEL, "--pairs", str(pairs), "--json")
    found = json.loads(printed.stdout)
    check_schema("attention", found)
    prompts = Prompts.read(pairs, model)
    assert found["tokens"] == ["first", "N", "end"] and found["prompts"]["count"] == 2
    alone = [model.run_with_cache(prompts[[row]])[1]["pattern", 1][0, 2] for row in range(2)]
    places = [[0, int(prompts.roles["N"][row]), int(prompts.roles["end"][row])] for row in range(2)]
    expected = sum(one[at][:, at] for one, at in zip(alone, places, strict=True)) / 2
    assert torch.tensor(found["heads"]["1.2"]).allclose(expected, atol=1e-3)
    assert "means over 2 texts" in run("attention", MODEL, "--pairs", str(pairs)).stdout
