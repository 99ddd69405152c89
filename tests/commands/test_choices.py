"""What needs no model is refused before one is loaded: every option of every command that takes words of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cutaway import loading
from cutaway.cli import app
from cutaway.commands import choices
from cutaway.commands.prompt_options import TOKENS

NONSENSE = "no-such-word"
FROM_PRETRAINED = loading.from_pretrained
FREE = {  # words of a user, and names that only a model has
    "--text", "--clean", "--corrupted", "--answer", "--wrong", "--word", "--target", "--minus", "--effect", "--positive",
    "--negative", "--side", "--device", "--vector", "--token", "--column",
    "--positions", "--matches", "--html", "--record", "--save", "--out", "--results", "--examples", "--test", "--checkpoint",
    "--questions", "--file",
}  # fmt: skip
NEEDED = {  # what else a command needs before it looks at its options
    "neurons": ["m", "0.mlp.1", "--text", "a"],
    "circuit weights": ["m", "ov 0.1"],
    "steer": ["m", "--text", "a", "--positive", "a", "--negative", "b"],
    "across": ["patch", "m", "--results", "no-such-folder", "--behaviour", "ioi"],
    "explain": ["m", "--out", "no-such-folder"],
    "train": ["first-unique-char", "--out", "no-such-folder"],
    "verify": ["m"],
    "collect": ["m", __file__, "--out", "no-such-folder", "--sites", "z0"],
}
ASKED = ["heads", "attribute", "lens", "predict", "neurons", "composition", "ablate", "patch", "paths", "edges", "plan", "next",
         "generate", "attention", "circuit weights", "circuit find", "steer", "across", "report", "explain",
         "collect", "train", "verify"]  # fmt: skip


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in group.commands.items():
        whole = f"{before} {name}".strip()
        if hasattr(one, "commands"):
            yield from commands(one, whole)
        else:
            yield whole, one


def cases() -> Iterator[tuple[str, str]]:
    found = dict(commands(typer.main.get_command(app)))
    for command in ASKED:
        for option in found[command].params:
            if option.opts[0].startswith("--") and not option.is_flag and not set(option.opts) & FREE:
                yield command, option.opts[0]


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "from_pretrained", loaded)


@pytest.mark.parametrize(("command", "option"), list(cases()))
def test_a_word_that_an_option_does_not_know_is_refused_first(command: str, option: str, tmp_path: Path) -> None:
    words = [*command.split(), *NEEDED.get(command, ["m", "--text", "a"] if command != "composition" else ["m"])]
    if command in ("report",):
        words = ["report", "m", "--out", str(tmp_path / "out")]
    if option in ("--prompts", "--pairs", "--behaviour"):
        words = [one for one in words if one not in ("--text", "a")]
    done = CliRunner().invoke(app, [*words, option, NONSENSE])
    assert done.exit_code == 2, f"{done.output} {done.exception!r}"
    said = re.sub(r"[\s│]", "", done.output).lower()
    assert NONSENSE in said or f"invalidvaluefor'{option}'" in said, done.output


def test_there_are_such_options() -> None:
    assert {("patch", "--what"), ("heads", "--behaviour"), ("ablate", "--kind"), ("circuit find", "--metric")} <= set(cases())
    assert len(list(cases())) > 80


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ablate", "m", "--text", "a", "--layers", "0-x"], "write numbers and ranges"),
        (["steer", "m", "--text", "a", "--positive", "a", "--negative", "b", "--matches", "("], "not a regular expression"),
        (["steer", "m", "--text", "a", "--positive", "a"], "--negative is missing"),
        (["steer", "m", "--positive", "a", "--negative", "b"], "steer needs text"),
        (["attribute", "m", "--text", "a", "--positions", "3,"], "has an empty part"),
        (["lens", "m"], "lens needs text"),
        (["lens", "m", "--text", "a", "--behaviour", "ioi"], "not both"),
        (["patch", "m", "--text", "a"], "needs pairs"),
        (["patch", "m", "--text", "a", "--corrupted", "b"], "needs answers"),
        (["paths", "m", "--text", "a", "--corrupted", "b"], "needs answers"),
        (["plan", "m", "--text", "a", "--answer", "b"], "both --answer and --wrong"),
        (["composition", "m", "--modes", "QX"], "composition goes by Q, K or V"),
        (["neurons", "m", "0.x", "--text", "a"], "no component is called '0.x'"),
        (["circuit", "m", "ov", "0.x"], "no component is called '0.x'"),
        (["circuit", "m", "embed -> x -> logits"], "'x' is no step of a path"),
        (["circuit", "m", "nowhere -> 0.1"], "no start of a path is called 'nowhere'"),
        (["paths", "m", "--clean", "a", "--receiver", "0.3"], "a head reads with '0.3.q'"),
        (["paths", "m", "--clean", "a", "--sender", "0.3.q"], "the head itself is '0.3'"),
        (["attention", "m", "--text", "a", "--head", "0.mlp"], "'0.mlp' is no head"),
        (["generate", "m", "--text", "a", "--zero", "mlp0"], "did you mean '0.mlp'?"),
        (["lens", "m", "--text", "a", "--of", "resid,0.1"], "no component is called 'resid'"),
    ],
)
def test_what_needs_no_model_is_refused_first(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and said in done.output, f"{done.output} {done.exception!r}"


# Options of texts and tokens, in which a comma may stand, and of numbers; layers read their commas themselves.
TEXTS = {"text", "corrupted", "answer", "wrong", "word", "token", "positive", "negative", "side", "layers", "strength", "pairs",
         "option"}  # fmt: skip


def test_every_repeatable_option_of_names_takes_commas() -> None:
    found = {
        f"{name} {option.opts[0]}"
        for name, command in commands(typer.main.get_command(app))
        for option in command.params
        if option.param_type_name == "option" and option.multiple and option.name not in TEXTS
    }
    assert {"patch --what", "ablate --site", "paths --sender", "report --questions", "collect --sites"} <= found
    for words in found:
        done = CliRunner().invoke(app, [*words.split(), "z, "])
        assert done.exit_code == 2 and "'z, ' has an empty part; write names" in done.output, f"{words}: {done.output}"


def test_commas_and_repetition_mean_the_same() -> None:
    read = choices.names()
    assert read(["z,q", " k"]) == read(["z", "q", "k"]) == ["z", "q", "k"] and read(None) is None
    misspelt = CliRunner().invoke(app, ["patch", "m", "--kinds", "resid_pre,zz"])
    assert misspelt.exit_code == 2 and "no kind of patch is called 'zz' (did you mean 'z'?)" in misspelt.output


def test_a_broken_line_is_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"clean": "a", "corrupted": "b", "answer": "c"}\n{"clean": \n')
    done = CliRunner().invoke(app, ["patch", "m", "--pairs", str(file)])
    assert done.exit_code == 2 and "line 2 is not JSON" in done.output


TEXT, PAIR = ["--text", "the cat"], ["--clean", "the cat", "--corrupted", "the dog", "--answer", " the"]
LACKING = {  # what option names → what bundled toy has not, in the command that it belongs to
    "layers": [["ablate", "attn-only-2l", *TEXT, "--layers", "2"], ["attention", "attn-only-2l", *TEXT, "--layers", "0-7"],
               ["paths", "attn-only-2l", *PAIR, "--layers", "9"],
               ["steer", "attn-only-2l", *TEXT, "--positive", "a", "--negative", "b", "--layers", "5"]],
    "component": [["ablate", "attn-only-2l", *TEXT, "--component", one] for one in ("0.mlp", "7.1", "mlps")],
    "zero": [["generate", "attn-only-2l", *TEXT, "--zero", "2.0"]],
    "sender": [["paths", "attn-only-2l", *PAIR, "--sender", "0.99"]],
    "receiver": [["paths", "attn-only-2l", *PAIR, "--receiver", "1.99.k"]],
    "head": [["attention", "attn-only-2l", *TEXT, "--head", "0.99"], ["circuit", "attn-only-2l", "ov", "4.1"]],
    "of": [["lens", "attn-only-2l", *TEXT, "--of", "mlp_out"], ["lens", "attn-only-2l", *TEXT, "--of", "0.1,8.1"]],
    "features": [["neurons", "attn-only-2l", "0.mlp.1", *TEXT]],
    "path": [["circuit", "attn-only-2l", "embed -> 3.1 -> logits"]],
    "target": [["lens", "attn-only-2l", *TEXT, "--target", " antidisestablishment"]],
    "minus": [["attribute", "attn-only-2l", *TEXT, "--minus", " antidisestablishment"]],
    "word": [["next", "attn-only-2l", *TEXT, "--word", " antidisestablishment"]],
    "effect": [["steer", "attn-only-2l", *TEXT, "--positive", "a", "--negative", "b", "--effect", " antidisestablishment"]],
    "answer": [["predict", "attn-only-2l", *TEXT, "--answer", " antidisestablishment"]],
    "sites": [["collect", "attn-only-2l", __file__, "--out", "no-such-folder", "--sites", "resid_post2"]],
}  # fmt: skip


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "from_pretrained", FROM_PRETRAINED)
    monkeypatch.setattr(loading, "build", read)
    monkeypatch.setattr(loading.processing, "process", read)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("words", [one for several in LACKING.values() for one in several], ids=" ".join)
def test_what_a_model_lacks_is_refused_before_its_weights_are_read(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("a text")
    done = CliRunner().invoke(app, [str(tmp_path / "corpus.txt") if one == __file__ else one for one in words])
    assert done.exit_code == 2 and done.stderr.startswith("cutaway: "), f"{done.output} {done.exception!r}"


@pytest.mark.usefixtures("no_weights")
def test_a_model_too_large_to_explain_is_refused_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cutaway.explain.subject.LARGEST", 1000)
    done = CliRunner().invoke(app, ["explain", "attn-only-2l", "--behaviour", "induction", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and "explanations are for at most 1,000" in done.stderr, f"{done.output} {done.exception!r}"


def test_every_check_of_a_model_has_a_case() -> None:
    assert {*choices.WITHIN, *TOKENS} <= LACKING.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sites", "resid_pst3"], "no site called 'resid_pst3' (did you mean 'resid_post'?)"),
        (["--sites", "resid_post"], "give a layer, as in 'resid_post0'"),
        (["--sites", "z0", "--column", "story"], "is plain text, which has no columns; leave --column out"),
        (["--sites", "z0", "--token", "a", "--positions", "last"], "give one of them"),
    ],
)
def test_collect_refuses_what_would_be_ignored(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("a text")
    done = CliRunner().invoke(app, ["collect", "m", str(tmp_path / "corpus.txt"), "--out", str(tmp_path / "out"), *words])
    assert done.exit_code == 2 and said in done.stderr, f"{done.output} {done.exception!r}"
