"""The process in which a reader's function runs: it may hang, crash or print, and only this process suffers.

Called as `python -m cutaway.exercises.judge FILE FUNCTION CASES FOLDER`. It is given the arguments of every case and writes what
the function returns, as plain data; the right answers and the comparison stay in the process that started it, where a reader's
code can neither read nor change them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cutaway.errors import UnknownName
from cutaway.exercises.plain_data import REPORT, plain
from cutaway.model.hooked_root import HookedRootModule

ANSWERS = Path(__file__).parent / "catalogue"
PROGRAMS = (
    "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.spawn", "os.system", "os.kill", "os.killpg", "subprocess.Popen",
    "pty.spawn",
)  # fmt: skip
PLACES = ("open", "os.listdir", "os.scandir", "os.link", "os.symlink", "os.rename")
LOOKING = ("gc.get_objects", "gc.get_referrers", "gc.get_referents")  # how the guard itself could be found


class NoFunction(UnknownName):
    """The reader's file does not define the function."""


class NotAllowed(PermissionError):
    """Something that an answer may not do."""


def main() -> None:
    """Run the function on every case."""
    file, function, cases, folder = sys.argv[1:]

    def say(**event: Any) -> None:
        with (Path(folder) / REPORT).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(event) + "\n")

    def raised(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        say(raised=error_line(error, file))

    sys.excepthook = raised  # whatever a reader's code raises ends this process, and is told
    arguments = torch.load(cases, weights_only=False)  # from the process that started this one
    sys.addaudithook(_guard())
    answer = load(Path(file), function)
    for number, given in enumerate(arguments):
        say(case=number)
        torch.save(call(answer, given), Path(folder) / f"{number}.pt")


def _guard() -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: an answer reads no solution and starts no program. It looks up no name that an answer could change."""
    programs, looking, places, refusal, answers = PROGRAMS, LOOKING, PLACES, NotAllowed, os.path.realpath(ANSWERS)
    modules = tuple(path.stem for path in ANSWERS.glob("e*.py"))
    text, binary, whole, real, catalogue = str, bytes, int, os.path.realpath, "cutaway.exercises.catalogue"

    def forbid(event: str, arguments: tuple[Any, ...]) -> None:
        if event in programs:
            raise refusal("an answer starts no other program, and ends none")
        if event in looking:
            raise refusal("an answer does not look for objects of others")
        for one in arguments[:2]:
            kind = type(one)
            if not issubclass(kind, (text, binary)):
                if event == "open" and one is arguments[0] and kind is not whole:
                    raise refusal("an answer opens files by their names")
                continue
            # By the methods of `str` and `bytes` themselves, which no class of an answer's own can change.
            name = binary.decode(one, "utf-8", "surrogateescape") if issubclass(kind, binary) else text.__str__(one)
            named = name.startswith(catalogue) or any(module in name for module in modules)
            if named or (event in places and real(name).startswith(answers)):
                raise refusal("an answer is written, not read or imported: the exercises' own solutions cannot be had from it")

    return forbid


def call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """What the function returns, as plain data, and what it has left on the models."""
    models = [argument for argument in arguments if isinstance(argument, HookedRootModule)]
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    with torch.no_grad():
        got = function(*arguments)
    return {"value": plain(got), "left": left_behind(models, before)}


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


def error_line(error: BaseException, file: str) -> str:
    """An exception in a sentence, with the reader's line where it came from."""
    if isinstance(error, NoFunction):
        return str(error)
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == Path(file)]
    where = f" (line {lines[-1].lineno}: {lines[-1].line})" if lines else ""
    if isinstance(error, SyntaxError):
        where = f" (line {error.lineno})"
        return f"it cannot be read: {error.msg}{where}"
    line = str(error).strip().split("\n")[0]
    return f"it raised {type(error).__name__}{f': {line}' if line else ''}{where}"


if __name__ == "__main__":
    main()
