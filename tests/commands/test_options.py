"""Options of all commands: a name means one thing, commands that deal with a thing take its options, errors name real ones."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import cutaway
from cutaway.cli import app
from tests.commands.test_interrupts import commands

PACKAGE = Path(cutaway.__file__).parent
COMMANDS = dict(commands(typer.main.get_command(app)))
OPTIONS = {
    name: {option: one for one in command.params if one.param_type_name == "option" for option in one.opts}
    for name, command in COMMANDS.items()
}
SPELLINGS = [  # of one option: a command that takes one of them takes all
    {"--layers", "--layer"}, {"--positions", "--position"}, {"--component", "--components"}, {"--head", "--heads"},
    {"--sender", "--senders"}, {"--receiver", "--receivers"}, {"--questions", "--question"},
]  # fmt: skip
DEAL_WITH = {  # an option → the commands that deal with what it says
    "--layers": ["heads", "lens", "attention", "ablate", "patch", "paths", "plan", "steer"],
    "--positions": ["attribute", "lens", "ablate", "patch", "paths", "plan", "steer", "collect"],
    "--heads": ["attention", "ablate"],
    "--site": ["ablate", "patch", "plan", "collect"],
    "--ablation": ["ablate", "edges", "circuit find"],
    "--baseline": ["ablate", "patch", "plan", "steer"],
    "--memory": ["ablate", "patch", "paths", "plan"],
    "--results": ["patch", "plan", "across"],
    "--record": ["ablate", "patch", "circuit find", "steer", "report"],
    "--allow-first-token": ["patch", "lens", "next", "steer", "report", "explain", "across"],
    "--seed": ["patch", "report", "explain", "across", "circuit find", "train"],
    "--replace": ["patch", "report", "explain", "across", "notebook", "exercises start"],
    "--json": [name for name, given in OPTIONS.items() if "--html" in given],
    "--top": [name for name, given in OPTIONS.items() if "--all" in given and name != "models"],
}
SAME = {  # said in other words by some commands, and meaning the same
    "--all", "--baseline", "--behaviour", "--count", "--device", "--executor", "--json", "--layer", "--layers", "--minus",
    "--out", "--pairs", "--plan", "--replace", "--results", "--seed", "--temperature", "--what",
}  # fmt: skip
OTHERWISE = {  # what means something else in a command, and why it is called so
    "--kind": "an activation in `patch` and `plan`, zero or mean in `ablate`: as `kinds=` in Python",
    "--kinds": "as --kind",
    "--site": "the sites that each command can change, or keep",
    "--sites": "as --site",
    "--ablation": "edges can also carry another prompt's activations",
    "--head": "patterns that are drawn, or heads that are ablated",
    "--heads": "as --head",
    "--position": "of a set of texts that `steer` reads, also their mean",
    "--positions": "as --position; `collect` keeps all, the last, or those of tokens",
    "--dtype": "`collect` also stores: there the precision of weights is --compute",
    "--examples": "a file; in `heads`, which needs none, how many random sequences",
    "--file": "a text, or an answer to an exercise",
    "--folder": "of exercises, or one that a cluster's machines see",
    "--k": "how many for each row: likeliest tokens, or texts of a neuron",
    "--length": "tokens of a row, or of a random half",
    "--method": "of making a vector, or of searching a circuit",
    "--rows": "of what `predict` prints; of prompts in each part that `across` asks",
    "--size": "of a circuit; `report` takes it for --count, as its first version did",
    "--steps": "of training, or of a gradient",
    "--target": "a token; what a circuit recovers (`target=`); a folder of packages, as pip has it",
    "--text": "`train` and `steer` take files, too",
}
FOREIGN = {"--no-deps", "--json'", "--help", "--version"}  # options of other programs, and Click's own
NAMED = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")


def named_in(text: str) -> set[str]:
    """The options that a text names."""
    return set(NAMED.findall(text))


def test_a_name_means_one_thing() -> None:
    said: dict[str, set[str]] = {}
    for given in OPTIONS.values():
        for name, one in given.items():
            said.setdefault(name, set()).add(one.help or "")
    several = {name for name, texts in said.items() if len(texts) > 1}
    assert several == SAME | OTHERWISE.keys(), "say of an option that two commands describe differently what it means in each"


@pytest.mark.parametrize("spellings", SPELLINGS, ids=lambda one: sorted(one)[0])
def test_every_spelling_is_taken_everywhere(spellings: set[str]) -> None:
    takers = [name for name, given in OPTIONS.items() if spellings & given.keys()]
    assert takers and all(spellings <= OPTIONS[name].keys() for name in takers)


@pytest.mark.parametrize("option", DEAL_WITH)
def test_commands_that_deal_with_a_thing_take_its_option(option: str) -> None:
    assert [name for name in DEAL_WITH[option] if option not in OPTIONS[name]] == []


# An option that an error names is one of the command that prints it.


def texts_of(node: ast.AST) -> str:
    return " ".join(one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_errors_name_options_that_there_are(path: Path) -> None:
    """Errors in a command's own function name its options; those of libraries and helpers some command's."""
    every = {name for given in OPTIONS.values() for name in given} | FOREIGN
    own = {command.callback.__name__: name for name, command in COMMANDS.items()
           if Path(inspect.unwrap(command.callback).__code__.co_filename) == path or path.parent.name == "commands"}  # fmt: skip
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)]:
        for raised in (one for one in ast.walk(function) if isinstance(one, ast.Raise)):
            known = OPTIONS[own[function.name]].keys() if function.name in own else every
            assert named_in(texts_of(raised)) <= {*known, *FOREIGN}, f"line {raised.lineno}"


SEVERAL = " antidisestablishment"  # several tokens of the toy
FILES = {"--pairs": {"clean": "the cat", "corrupted": "the dog", "answer": SEVERAL}}
WORDS = {
    "collect": ["--sites", "z1", "--token", SEVERAL, "--out"], "across": ["--results", "OUT", "--pairs"],
    "report": ["--out", "OUT", "--pairs"], "patch": ["--pairs"], "circuit find": ["--pairs"], "edges": ["--pairs"],
    "next": ["--text", "the cat", "--word", SEVERAL], "lens": ["--text", "the cat", "--target", SEVERAL],
    "attribute": ["--text", "the cat", "--minus", SEVERAL],
    "steer": ["--text", "a", "--positive", "a", "--negative", "b", "--effect", SEVERAL],
}  # fmt: skip


@pytest.mark.parametrize("command", WORDS)
def test_what_is_advised_for_a_word_of_several_tokens_can_be_done(command: str, tmp_path: Path) -> None:
    words = [str(tmp_path / "out") if one == "OUT" else one for one in WORDS[command]]
    if words[-1] in FILES:
        (tmp_path / "prompts.jsonl").write_text(json.dumps(FILES[words[-1]]) + "\n")
        words.append(str(tmp_path / "prompts.jsonl"))
    model = ["attn-only-2l"]
    if command == "collect":
        (tmp_path / "corpus.txt").write_text("the cat")
        model, words = [*model, str(tmp_path / "corpus.txt")], [*words, str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command.split(), *(["patch"] if command == "across" else []), *model, *words])
    assert done.exit_code == 2 and "tokens, not one" in done.stderr, done.output
    assert named_in(done.stderr) <= OPTIONS[command].keys()
    assert ("--allow-first-token" in done.stderr) == (command != "collect")


@pytest.mark.parametrize("option", ["--memory", "--stream"])
def test_sizes_are_texts(option: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("the cat")
    start = ["ablate", "--text", "the cat"] if option == "--memory" else ["collect", "attn-only-2l", str(tmp_path / "c.txt")]
    start += [] if option == "--memory" else ["--sites", "z0", "--out", str(tmp_path / "out")]
    for wrong in ("a lot", "0", "-1", "5 tons"):
        done = CliRunner().invoke(app, [*start, option, wrong])
        assert done.exit_code == 2 and "is a size such as '512 MiB'" in done.stderr, done.output
    for right in ("512 MiB", "0.5GiB", "700"):
        assert CliRunner().invoke(app, [*start, option, right]).exit_code == 0
