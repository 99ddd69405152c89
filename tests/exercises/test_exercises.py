"""Exercises: right answers pass and wrong ones are told why, whatever a reader's code does."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway import HookedTransformer, exercises
from cutaway.cli import app
from cutaway.errors import UnknownName
from cutaway.exercises.checking import _answer, grade
from cutaway.exercises.comparing import difference
from cutaway.exercises.judge import call, error_line, load
from cutaway.exercises.plain_data import plain
from cutaway.exercises.progress import FILE, ProgressError
from cutaway.tasks import FirstUniqueChar
from tests.exercises.answers import RIGHT, WRONG

NAME = "right-guesses"
ANSWER = "def right_guesses(model, tokens):\n    return int((model(tokens).argmax(-1)[:, :-1] == tokens[:, 1:]).sum())\n"


def judged(name: str, function: Callable[..., Any], seed: int = 1) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    exercise = exercises.find(name)
    cases = list(exercise.cases(random.Random(seed)))
    grade(exercise, cases, lambda number: call(function, copied(cases[number].arguments)), lambda **event: events.append(event))
    return events


def copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one if isinstance(one, HookedTransformer) else copy.deepcopy(one) for one in arguments)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["exercises", *words])


# ------------------------------------------------------------------------------------------------------ the exercises


def test_there_are_enough_of_them_and_each_has_an_answer_here() -> None:
    assert len(exercises.names()) >= 14
    assert set(RIGHT) == set(exercises.names()) == {name for name, _, _ in WRONG}


@pytest.mark.parametrize("name", exercises.names())
def test_each_is_complete(name: str) -> None:
    exercise = exercises.find(name)
    assert exercise.title and len(exercise.task) > 100 and len(exercise.hint) > 40 and exercise.time_limit > 0
    assert f"def {exercise.function}(" in exercise.starter and exercise.function in exercise.task
    cases = list(exercise.cases(random.Random(0)))
    assert len(cases) >= 4 and sum("random network" in case.name for case in cases) >= 3
    names = [case.name for case in cases]
    compile(exercise.file(), name, "exec")
    assert exercise.hint.split("\n")[0] in exercise.file() and names


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_passes(name: str, seed: int) -> None:
    events = judged(name, RIGHT[name], seed)
    assert events[-1] == {"event": "done"}, events[-1]


@pytest.mark.parametrize(
    ("name", "function", "part"), WRONG, ids=[f"{name}-{number}" for number, (name, _, _) in enumerate(WRONG)]
)
def test_a_wrong_answer_is_told_what_differs(name: str, function: Callable[..., Any], part: str) -> None:
    last = judged(name, function)[-1]
    assert last["event"] == "wrong" and part in f"on {last['case']}: {last['message']}", last


@pytest.mark.parametrize("name", exercises.names())
def test_what_begins_empty_does_not_pass(name: str) -> None:
    namespace: dict[str, Any] = {}
    exec(exercises.find(name).file(), namespace)
    try:
        last = judged(name, namespace[exercises.find(name).function])[-1]
    except (TypeError, ValueError, UnboundLocalError) as error:
        last = {"event": "wrong", "message": str(error)}
    assert last["event"] == "wrong"


def test_hidden_networks_are_others_each_time_and_the_same_for_a_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        *_, last = exercises.find("logit-lens").cases(random.Random(seed))
        return last.arguments[0].W_E

    assert torch.equal(weights(3), weights(3)) and weights(3).flatten()[:5].tolist() != weights(4).flatten()[:5].tolist()


def test_the_published_detectors_come_out(shared: Path) -> None:
    model = HookedTransformer(FirstUniqueChar.config(device="cpu"))
    weights = torch.load(shared / "data" / "checkpoints" / "first_unique_char_model.pt", map_location="cpu")
    model.load_and_process_state_dict(weights)
    model.requires_grad_(False)
    _, cache = model.run_with_cache(FirstUniqueChar(200).toks)
    scale = float(cache["scale", 0, "ln1"].mean())
    found = exercises.find("duplicate-detectors").solution(model, scale, 0.30, 0.04)
    letters = {
        kind: ["".join("abcdefghij"[token] for one, token in pairs if one == head) for head in range(3)]
        for kind, pairs in found.items()
    }
    assert letters == {"duplicate": ["", "bcdefghij", "abg"], "anti_duplicate": ["abcdgi", "a", "cefhj"]}
    responsible = exercises.find("responsible-heads").solution(model)
    assert ["".join("abcdefghij"[t] for t, one in enumerate(responsible) if one == head) for head in range(3)] == [
        "ac",
        "defj",
        "bghi",
    ]


# --------------------------------------------------------------------------------------------------------- from outside


def test_from_start_to_passed(tmp_path: Path) -> None:
    started = run("start", NAME, "--folder", str(tmp_path))
    assert started.exit_code == 0 and f"`cutaway exercises check {NAME} --folder {tmp_path}`" in started.stdout
    path = tmp_path / f"{NAME}.py"
    assert "How many next tokens" in path.read_text(encoding="utf-8")
    assert "… " + NAME in run("list", "--folder", str(tmp_path)).stdout
    again = run("start", NAME, "--folder", str(tmp_path))
    assert again.exit_code == 2 and "--force" in again.stderr
    said = run("check", NAME, "--folder", str(tmp_path))
    assert said.exit_code == 1 and "on the bundled model: it returned nothing yet" in said.stdout
    path.write_text(ANSWER)
    said = run("check", NAME, "--folder", str(tmp_path))
    assert said.exit_code == 0 and "right, on all 4 cases" in said.stdout
    noted = json.loads((tmp_path / FILE).read_text())["exercises"][NAME]
    assert noted["attempts"] == 2 and noted["passed"] and "✓ " + NAME in run("list", "--folder", str(tmp_path)).stdout


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("while True: pass", "on the bundled model: it takes longer than the 6 s"),
        ("return [1][5]", "on the bundled model: it raised IndexError: list index out of range (line 2: return [1][5])"),
        ("import os; os._exit(3)", "on the bundled model: the process that ran it ended (code 3)"),
    ],
)
def test_whatever_a_readers_code_does_is_told(tmp_path: Path, body: str, part: str) -> None:
    (tmp_path / f"{NAME}.py").write_text(f"def right_guesses(model, tokens):\n    {body}\n")
    verdict = exercises.check(NAME, tmp_path, time_limit=6 if "while" in body else None)
    assert not verdict.passed and part in verdict.message


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("def right_guesses(model tokens):\n", "it cannot be read: invalid syntax"),
        ("def other(model, tokens):\n    return 1\n", "right-guesses.py defines no function called right_guesses"),
        ("import no_such_package\n", "it raised ModuleNotFoundError: No module named 'no_such_package' (line 1"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, source: str, part: str) -> None:
    path = tmp_path / f"{NAME}.py"
    path.write_text(source)
    with pytest.raises((SyntaxError, UnknownName, ModuleNotFoundError)) as caught:
        load(path, "right_guesses")
    assert part in error_line(caught.value, str(path))


def test_a_hidden_network_can_be_had_again(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.py").write_text(ANSWER.replace("return ", "return -1 if model.tokenizer is None else "))
    verdict = exercises.check(NAME, tmp_path)
    assert verdict.right == 1 and f"--seed {verdict.seed}" in verdict.message
    assert exercises.check(NAME, tmp_path, seed=verdict.seed).message == verdict.message


def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'right-guesses'"):
        exercises.find("right-guess")
    said = run("check", NAME, "--folder", str(tmp_path))
    assert said.exit_code == 2 and f"`cutaway exercises start {NAME}` writes it" in said.stderr
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ProgressError, match="is damaged"):
        exercises.Progress.read(tmp_path)
    assert run("list", "--folder", str(tmp_path)).exit_code == 2


# ------------------------------------------------------------------------------------------------------------ comparing


@pytest.mark.parametrize(
    ("got", "wanted", "part"),
    [
        (torch.zeros(2), torch.zeros(2), None),
        (torch.zeros(2).numpy(), torch.zeros(2), None),
        (torch.ones(2) + 1e-6, torch.ones(2), None),
        (torch.ones(2, 3), torch.ones(3, 2), "are two axes exchanged"),
        (torch.ones(2) + 0.5, torch.arange(2.0), "is right"),
        (torch.arange(4.0) + 2, torch.arange(4.0), "All of it is 2 too large"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "2, and 3 is right"),
        (torch.tensor([1.0]), torch.tensor([1]), "torch.float32 numbers"),
        (3, torch.tensor([1]), "an int, where a tensor of shape [1]"),
        (torch.tensor(2), 2, None),
        (True, 1.0, "a bool, where a number is wanted"),
        (1.0000001, 1.0, None),
        ([[0, 1]], [(0, 1)], None),
        ([(0, 1), (0, 1)], [(0, 1)], "each should be there once"),
        ({(0, 1)}, [(0, 1), (1, 1)], "it lacks (1, 1)"),
        ([0, 1], [1, 0], "at 0 it has 0, and 1 is right"),
        ([1, 1, 0], [1, 0], "it has 3 entries"),
        ({"a": 1, "b": 2}, {"a": 1}, "which nobody asked for"),
        (3, {"a": 1}, "a dictionary with 'a' is wanted"),
    ],
)
def test_differences_in_words(got: Any, wanted: Any, part: str | None) -> None:
    found = difference(got, wanted, rtol=1e-3, atol=1e-4)
    assert (found is None) if part is None else (found is not None and part in found), found


CHEATS = {
    "imports the answer": "from cutaway.exercises.catalogue.e02_right_guesses import solution as right_guesses\n",
    "reads the answer": (
        "import cutaway.exercises.judge as judge\n"
        "def right_guesses(model, tokens):\n"
        "    names = {}\n"
        "    exec(open(judge.ANSWERS / 'e02_right_guesses.py').read(), names)\n"
        "    return names['solution'](model, tokens)\n"
    ),
    "patches the checker": (
        "import cutaway.exercises.comparing as comparing, cutaway.exercises.judge as judge\n"
        "comparing.difference = lambda *given, **more: None\n"
        "judge.left_behind = lambda *given: None\n"
        "def right_guesses(model, tokens):\n    return -5\n"
    ),
    "equals everything": (
        "class Equal(int):\n"
        "    __eq__ = lambda self, other: True\n"
        "    __ne__ = lambda self, other: False\n"
        "    __hash__ = int.__hash__\n"
        "def right_guesses(model, tokens):\n    return Equal(-5)\n"
    ),
    "forges the report": (
        "import sys, json, os, torch\n"
        "from pathlib import Path\n"
        "folder = Path(sys.argv[4])\n"
        "for n in range(9):\n"
        "    torch.save({'value': -5, 'left': None}, folder / f'{n}.pt')\n"
        "(folder / 'report').write_bytes(b'rubbish\\n{\"event\": \"done\"}\\n' + b'[' * 5000 + b'\\xff')\n"
        "os._exit(0)\n"
    ),
    "unbinds the guard": (
        "import importlib.util, sys\n"
        "judge = sys.modules['__main__']\n"
        "path = next(judge.ANSWERS.glob('e02*'))\n"
        "judge.ANSWERS, judge.PROGRAMS, judge.NotAllowed, judge.str = '/nowhere', (), None, None\n"
        "spec = importlib.util.spec_from_file_location('mine', path)\n"
        "mine = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(mine)\n"
        "right_guesses = mine.solution\n"
    ),
    "reads the answer from beside it": (
        "import cutaway.exercises, os\n"
        "os.chdir(os.path.dirname(cutaway.exercises.__file__))\n"
        "names = {}\n"
        "exec(open('./catalogue/../catalogue/' + next(n for n in os.listdir('catalogue') if 'right' in n)).read(), names)\n"
        "right_guesses = names['solution']\n"
    ),
    "opens the answer by an object of its own": (
        "import io, cutaway.exercises.judge as judge\n"
        "class Name(str): pass\n"
        "path, names = next(judge.ANSWERS.glob('e02*.py')), {}\n"
        "def tried(*ways):\n"
        "    for way in ways:\n"
        "        try:\n            return way()\n"
        "        except OSError:\n            pass\n"
        "exec(tried(lambda: io.FileIO(path).readall(), lambda: open(Name(path)).read()), names)\n"
        "right_guesses = names['solution']\n"
    ),
    "changes how names of files are read": (
        "import os, posixpath, cutaway.exercises.judge as judge\n"
        "path, names = bytes(next(judge.ANSWERS.glob('e02*.py'))), {}\n"
        "os.fspath = posixpath.abspath = lambda name: 'nowhere'\n"
        "exec(open(path).read(), names)\nright_guesses = names['solution']\n"
    ),
    "maps the answer into memory": (
        "import torch, cutaway.exercises.judge as judge\n"
        "path, names = next(judge.ANSWERS.glob('e02*.py')), {}\n"
        "read = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)\n"
        "exec(bytes(read.tolist()).decode(), names)\nright_guesses = names['solution']\n"
    ),
    "reads the answer by the system's own functions": (
        "import ctypes, cutaway.exercises.judge as judge\n"
        "c, names = ctypes.CDLL(None), {}\n"
        "got = ctypes.create_string_buffer(100_000)\n"
        "c.read(c.open(bytes(next(judge.ANSWERS.glob('e02*.py'))), 0), got, 100_000)\n"
        "exec(got.value, names)\nright_guesses = names['solution']\n"
    ),
    "links the answer elsewhere": (
        "import ctypes, os, cutaway.exercises.judge as judge\n"
        "c, names = ctypes.CDLL(None), {}\n"
        "c.link(bytes(next(judge.ANSWERS.glob('e02*.py'))), b'mine.txt')\n"
        "exec(open('mine.txt').read(), names)\nright_guesses = names['solution']\n"
    ),
    "has a child import the answer": (
        "import os, sys, torch\nfrom multiprocessing.util import spawnv_passfds\n"
        'code = b"""import sys, torch\n'
        "from importlib import import_module\n"
        "solution = import_module('cutaway.exercises.' + 'catalogue.e02_right' + '_guesses').solution\n"
        "cases = torch.load(sys.argv[1], weights_only=False)\n"
        'torch.save([solution(*case) for case in cases], "mine.pt")\n"""\n'
        "child = spawnv_passfds(sys.executable.encode(), [sys.executable.encode(), b'-c', code, sys.argv[3].encode()], ())\n"
        "os.waitpid(child, 0)\n"
        "mine = iter(torch.load('mine.pt'))\n"
        "def right_guesses(model, tokens):\n    return next(mine)\n"
    ),
    "asks the process that compares": (
        "import os\n"
        "above = int(open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()[1])\n"
        "memory = open(f'/proc/{above}/mem', 'rb')\n" + ANSWER
    ),
    "looks for the answer among objects and frames": (
        "import gc, inspect, sys\n"
        "found = [one for frame in inspect.stack() for one in frame.frame.f_locals.values() if hasattr(one, 'solution')]\n"
        "found += [one for one in sys.modules.values() if hasattr(one, 'solution')]\n"
        "found += [one for one in gc.get_objects() if getattr(one, '__name__', '') == 'solution']\n"
        "right_guesses = getattr(found[0], 'solution', found[0])\n"
    ),
    "changes what comparing is made of": (
        "import builtins, os, torch\n"
        "torch.allclose = torch.equal = lambda *given, **more: True\n"
        "torch.Tensor.__eq__ = torch.Tensor.__sub__ = lambda self, other: torch.zeros(())\n"
        "builtins.abs = lambda x: 0\n"
        "os.environ.update(PYTEST_CURRENT_TEST='', CUTAWAY_JUDGE='', PYTHONOPTIMIZE='2')\n"
        "def right_guesses(model, tokens):\n    return -5\n"
    ),
    "starts a program": "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'pass'])\n" + ANSWER,
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_an_exercise_is_passed_by_writing_it_only(tmp_path: Path, cheat: str) -> None:
    (tmp_path / f"{NAME}.py").write_text(CHEATS[cheat])
    verdict = exercises.check(NAME, tmp_path, seed=1)
    assert not verdict.passed and verdict.message


@pytest.mark.parametrize("before", ["", "os.environ.clear()\n"], ids=["marked", "without environment"])
def test_a_child_that_detaches_itself_does_not_survive(tmp_path: Path, before: str) -> None:
    beacon = tmp_path / "alive"
    child = (
        "import os, pathlib, time\nos.setsid()\n"
        f"while True:\n    pathlib.Path({str(beacon)!r}).write_text(str(time.time()))\n    time.sleep(0.01)\n"
    )
    start = (  # by a way that no audit hook sees
        f"import os, sys, time\n{before}from multiprocessing.util import spawnv_passfds\n"
        f"spawnv_passfds(sys.executable.encode(), [sys.executable.encode(), b'-c', {child.encode()!r}], ())\n"
        f"while not os.path.exists({str(beacon)!r}):\n    time.sleep(0.05)\n"
    )
    (tmp_path / f"{NAME}.py").write_text(start + ANSWER)
    exercises.check(NAME, tmp_path, seed=1, time_limit=20)
    last = beacon.read_text()
    time.sleep(0.3)
    assert beacon.read_text() == last


RUBBISH = [[0] * 3, {"value": torch.eye(2).to_sparse(), "left": None}, {"value": 10**400, "left": None}, {"value": {}, "left": 5}]


@pytest.mark.parametrize("forged", RUBBISH, ids=range(len(RUBBISH)))
@pytest.mark.parametrize("name", [NAME, "logit-lens", "read-a-configuration"])
def test_rubbish_instead_of_an_answer_is_no_answer(tmp_path: Path, name: str, forged: Any) -> None:
    torch.save(forged, tmp_path / "0.pt")
    (tmp_path / "1.pt").write_bytes(b"PK\x03\x04" + b"x" * 100)
    exercise = exercises.find(name)
    events: list[dict[str, Any]] = []
    grade(exercise, list(exercise.cases(random.Random(0))), lambda n: _answer(tmp_path, n), lambda **event: events.append(event))
    assert events[-1]["event"] in ("wrong", "case") and not any(event["event"] == "right" for event in events)
    assert _answer(tmp_path, 1) is None


def test_plain_data_has_a_depth_and_no_classes() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert str(plain(loop)).count("[") == 20 and plain({torch.float32: {frozenset({1})}})
