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


def names(check: Callable[[str], Any] = str) -> Callback:
    """A callback of a repeatable option whose values are names: commas separate some too, so that `z,q` is `z` and `q`.

    Raises:
        ConfigError: (when the option is read) there is nothing between two commas.
    """

    def split(given: Any) -> Any:
        found = [one.strip() for listed in given or () for one in listed.split(",")]
        if not all(found):
            raise ConfigError(f"{','.join(given)!r} has an empty part; write names with one comma between them")
        for one in found:
            check(one)
        return found or given

    return split


def among(place: str, what: str) -> Callback:
    """A word that is known: of a constant, `module:NAME`, whose module is imported only where the option is given.

    Args:
        what: what it is, in the singular: "kind of patch".
    """
    return each(_known(place, what))


def some_among(place: str, what: str) -> Callback:
    """The same for `names`."""
    return names(_known(place, what))


def _known(place: str, what: str) -> Callable[[str], None]:
    module, _, name = place.partition(":")

    def check(word: str) -> None:
        from cutaway.numbers_given import one_of

        one_of(word, tuple(getattr(importlib.import_module(module), name)), what)

    return check


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
