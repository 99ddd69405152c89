"""What an option may say, looked at while the command line is read: whatever needs no model is refused before one is loaded."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cutaway.errors import ConfigError

Callback = Callable[[Any], Any]


def each(check: Callable[[str], Any]) -> Callback:
    """A callback of an option that looks at each of its values, and leaves them as they are."""

    def look(given: Any) -> Any:
        for one in given if isinstance(given, list | tuple) else [] if given is None else [given]:
            check(one)
        return given

    return look


def among(place: str, what: str) -> Callback:
    """Words that are known: those of a constant, `module:NAME`, whose module is imported only where the option is given.

    Args:
        what: what they are, in the singular: "kind of patch".
    """
    module, _, name = place.partition(":")

    def check(word: str) -> None:
        from cutaway.numbers_given import one_of

        one_of(word, tuple(getattr(importlib.import_module(module), name)), what)

    return each(check)


@each
def regular_expression(word: str) -> None:
    """A regular expression.

    Raises:
        ConfigError: it is none.
    """
    try:
        re.compile(word)
    except re.error as error:
        raise ConfigError(f"--matches {word!r} is not a regular expression: {error}") from None


@each
def behaviour(word: str) -> None:
    """The name of a behaviour.

    Raises:
        UnknownTask: there is none of that name.
    """
    from cutaway.tasks.behaviours import behaviour as find

    find(word)


@each
def executor(word: str) -> None:
    """The name of an executor; it is not started.

    Raises:
        ConfigError: no executor has it.
    """
    from cutaway.executors.choosing import names

    if not re.fullmatch(r"local|ranks|processes:\d+|ray(:.*)?", word):
        raise ConfigError(f"no executor called {word!r}; there are {', '.join(names)}")


@each
def prompts_file(path: Any) -> None:
    """A file of prompts: it is there, and each line of JSON lines is an object.

    Raises:
        PromptError: it is missing or broken.
    """
    from cutaway.prompts import objects_of

    objects_of(Path(path))


@each
def text_file(path: Any) -> None:
    """A file that can be opened.

    Raises:
        OSError: it is missing, or a folder.
    """
    Path(path).open("rb").close()
