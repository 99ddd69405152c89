"""What an exercise is: a task in words, a function to write, a hint, cases to try it on, and an answer to compare with.

Each is a module of `catalogue`: its docstring is the title and the task, and it has `FUNCTION`, `STARTER`, `HINT`,
`cases` and `solution`.
"""

from __future__ import annotations

import inspect
import pkgutil
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from cutaway.errors import UnknownName, nearest
from cutaway.exercises import catalogue


@dataclass(frozen=True)
class Case:
    """What a function is called with once; `name` says on what, as in "on the bundled model"."""

    name: str
    arguments: tuple[Any, ...] = field(repr=False)


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Args:
        function: the name of the function to write.
        starter: the source that the reader begins with.
        time_limit: seconds for all cases together, importing and the models' making included.
        cases: known ones first, then some on networks drawn by the generator it is given.
        solution: an answer, which never sees the reader's.
        rtol, atol: how far numbers may be apart.
    """

    name: str
    title: str
    task: str
    hint: str
    function: str
    starter: str
    cases: Callable[[random.Random], Iterator[Case]]
    solution: Callable[..., Any]
    time_limit: float = 60.0
    rtol: float = 1e-3
    atol: float = 1e-4

    def file(self) -> str:
        """What the reader begins with: the task, the function, the hint."""
        hint = "\n".join(f"#   {line}".rstrip() for line in self.hint.split("\n"))
        check = f"cutaway exercises check {self.name}"
        head = f'"""{self.title}\n\n{self.task}\n\nCheck your answer with: {check}\n"""'
        gap = "\n\n\n" if self.starter.startswith("def ") else "\n\n"
        return f"{head}{gap}{self.starter}\n\n\n# A hint, if you are stuck:\n#\n{hint}\n"


def names() -> list[str]:
    """All exercises, in the order in which they build on each other."""
    return list(_modules())


def find(name: str) -> Exercise:
    """The exercise of this name.

    Raises:
        UnknownName: there is none; says near ones.
    """
    if module := _modules().get(name):
        return _read(name, import_module(f"{catalogue.__name__}.{module}"))
    raise UnknownName(f"no exercise called {name!r}{nearest(name, names())}; `cutaway exercises list` shows all {len(names())}")


def _modules() -> dict[str, str]:
    """Exercise → its module, in the modules' order."""
    found = sorted(module.name for module in pkgutil.iter_modules(catalogue.__path__))
    return {module.partition("_")[2].replace("_", "-"): module for module in found}


def _read(name: str, module: ModuleType) -> Exercise:
    title, _, task = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    options = {key: getattr(module, key.upper()) for key in ("time_limit", "rtol", "atol") if hasattr(module, key.upper())}
    return Exercise(
        name=name,
        title=title,
        task=task,
        hint=inspect.cleandoc(module.HINT),
        function=module.FUNCTION,
        starter=module.STARTER.strip("\n"),
        cases=module.cases,
        solution=module.solution,
        **options,
    )
