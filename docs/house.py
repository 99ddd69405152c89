"""Writes `docs/house.md`: the tree of files, a line each, from the first sentence of every module and package.

Rooms come in the order of the dataflow, which is that of the import rows in `tests/test_house.py`, lowest first.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "cutaway"
ORDER = ["axes", "config", "errors", "tokens", "prompts", "sources", "weights", "model", "view", "executors", "loading", "runs", "programs", "hooked_transformer", "analysis", "circuits", "tasks", "collect", "records", "report", "explain", "workbench", "verify", "notebooks", "exercises", "compat", "commands", "cli"]
HEAD = """# The house, file by file

The listing is the dataflow: where a model comes from, its canonical weights, the network, what happens when it runs,
questions asked of runs, what people see. Imports point only downwards; `tests/test_house.py` holds the rows.
Written by `make house` from the first sentence of each file.

"""


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def place(path: Path) -> tuple[int, str]:
    """Where a top-level room stands in the listing; one that nobody listed comes last."""
    return (ORDER.index(path.stem) if path.stem in ORDER else len(ORDER), path.name)


def tree(folder: Path, lead: str = "") -> list[str]:
    """The lines below a folder; modules of the package's own level first by dataflow, elsewhere files before folders."""
    there = [p for p in folder.iterdir() if p.name != "__init__.py" and (p.suffix == ".py" or (p / "__init__.py").is_file())]
    there.sort(key=place if folder == PACKAGE else lambda p: (p.is_dir(), p.name))
    lines = []
    for path in there:
        last = path == there[-1]
        says = first_sentence(path / "__init__.py" if path.is_dir() else path)
        name = path.name + "/" * path.is_dir()
        lines.append(f"{lead}{'└' if last else '├'}── {name:<{max(30 - len(lead), len(name) + 1)}}{says}".rstrip())
        if path.is_dir():
            lines += tree(path, lead + ("    " if last else "│   "))
    return lines


def page() -> str:
    """The page as it should be."""
    return HEAD + "\n".join(["```", "src/cutaway/", *tree(PACKAGE), "```"]) + "\n"


if __name__ == "__main__":
    target = ROOT / "docs" / "house.md"
    target.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{target.relative_to(ROOT)} is written\n")
