"""The process in which a reader's function runs: it may hang, crash or print, and only this process suffers.

Called as `python -m cutaway.exercises.judge NAME FILE REPORT SEED`; what happens is written to REPORT, a JSON object a line.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cutaway.errors import UnknownName
from cutaway.exercises.comparing import difference
from cutaway.exercises.exercise import Exercise, find
from cutaway.model.hooked_root import HookedRootModule


class NoFunction(UnknownName):
    """The reader's file does not define the function."""


def main() -> None:
    """Try the function on every case until one goes wrong."""
    name, file, report, seed = sys.argv[1:]
    current = {"case": ""}

    def say(**event: Any) -> None:
        current.update(case=event.get("case", ""))
        with Path(report).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(event) + "\n")

    def raised(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        say(event="wrong", case=current["case"], message=told(error, file))

    sys.excepthook = raised  # whatever a reader's code raises ends this process, and is told
    exercise = find(name)
    judge_answer(exercise, load(Path(file), exercise.function), int(seed), say)


def judge_answer(exercise: Exercise, function: Callable[..., Any], seed: int, say: Callable[..., None]) -> None:
    """Call the function on each case and compare what it returns."""
    for case in exercise.cases(random.Random(seed)):
        say(event="case", case=case.name)
        with torch.no_grad():
            wanted = exercise.solution(*case.arguments)
            given = tuple(one if isinstance(one, HookedRootModule) else copy.deepcopy(one) for one in case.arguments)
            models = [argument for argument in case.arguments if isinstance(argument, HookedRootModule)]
            before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
            got = function(*given)
        message = difference(got, wanted, rtol=exercise.rtol, atol=exercise.atol) or left_behind(models, before)
        if message is not None:
            say(event="wrong", case=case.name, message=message)
            return
        say(event="right", case=case.name)
    say(event="done")


def load(path: Path, function: str) -> Callable[..., Any]:
    """The reader's function.

    Raises:
        NoFunction: the file defines none of this name.
    """
    spec = importlib.util.spec_from_file_location("answer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise NoFunction(f"{path.name} defines no function called {function}")
    return found


def left_behind(models: list[Any], before: list[dict[str, Any]]) -> str | None:
    """What the function has left on the models, in a sentence."""
    for model, state in zip(models, before, strict=True):
        if hooks := [name for name, functions in model.list_hooks().items() if functions]:
            return f"the answer is right, but hooks are still on {', '.join(hooks[:3])}; take them off, or use model.hooks(…)"
        for name, value in model.state_dict().items():
            if not torch.equal(value, state[name]):
                return f"the answer is right, but {name} of the model is another now; leave the weights as they are"
    return None


def told(error: BaseException, file: str) -> str:
    """An exception in a sentence, with the reader's line where it came from."""
    if isinstance(error, NoFunction):
        return str(error)
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == Path(file)]
    where = f" (line {lines[-1].lineno}: {lines[-1].line})" if lines else ""
    if isinstance(error, SyntaxError):
        where = f" (line {error.lineno})"
        return f"it cannot be read: {error.msg}{where}"
    said = str(error).strip().split("\n")[0]
    return f"it raised {type(error).__name__}{f': {said}' if said else ''}{where}"


if __name__ == "__main__":
    main()
