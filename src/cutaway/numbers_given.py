"""Numbers from outside, read strictly: indices are whole numbers, each once, all of them there; options are in their range.

A bool is no 0 or 1, 5.9 is no 5, "12" is not 1 and 2, a duplicate would count twice, an empty list would change nothing: each
is refused with a sentence that says what was asked and what there is.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from cutaway.errors import ConfigError, ShapeError, UnknownName, nearest

P = ParamSpec("P")
R = TypeVar("R")
EVERY = (-math.inf, math.inf)
Rule = int | tuple[float | int, float | int]
SIZE = re.compile(r"(\d+(?:\.\d*)?) ?([kKmMgG]i?[bB]|[bB])?")
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
SIZES = ("memory", "stream")  # options that are bytes


def index(given: Any, size: int, what: str) -> int:
    """One index, counted from 0; a negative one counts back from the end.

    Args:
        what: what is counted, in the singular: "head", "layer", "position".

    Raises:
        ShapeError: it is no whole number, or outside.
    """
    number = whole(given, f"a {what}")
    if not -size <= number < size:
        last = f", 0 to {size - 1}" if size else ""
        raise ShapeError(f"there is no {what} {number}; there are {size}{last}")
    return number % size


def indices(given: Any, size: int, what: str) -> list[int]:
    """One or several indices, counted from 0, in the order given; negative ones count back from the end.

    Args:
        given: a whole number, or a sequence, range, or one-dimensional array of them.

    Raises:
        ShapeError: one is no whole number or outside, one comes twice, or there are none.
    """
    return each_once(given, what, lambda one: index(one, size, what))


def each_once(given: Any, what: str, read: Callable[[Any], int] | None = None) -> list[int]:
    """One or several whole numbers, each once, in the order given.

    Args:
        read: reads one of them; None: any whole number will do.

    Raises:
        ShapeError: one is no whole number, one comes twice, or there are none.
    """
    read = read or (lambda one: whole(one, f"a {what}"))
    if isinstance(given, set | frozenset | Mapping):
        raise ShapeError(f"{what}s are a list in an order, not a {type(given).__name__}: {given!r}")
    if isinstance(given, str | bytes) or not several(given):
        return [read(given)]
    found = [read(one) for one in given]
    if not found:
        raise ShapeError(f"an empty list of {what}s means nothing; leave it out for all of them")
    if len(set(found)) < len(found):
        twice = next(one for one in found if found.count(one) > 1)
        raise ShapeError(f"{what} {twice} is given twice; give each once")
    return found


def whole(given: Any, what: str) -> int:
    """A whole number.

    Raises:
        ShapeError: it is a bool, a float, a text or anything else.
    """
    if type(given).__name__ in ("bool", "bool_") or (getattr(given, "dtype", None) is not None and "bool" in str(given.dtype)):
        raise ShapeError(f"{what} is a whole number, not {given!r}; a mask of bools is no list of numbers")
    try:
        return operator.index(given)
    except TypeError:
        raise ShapeError(f"{what} is a whole number, not {given!r}") from None


def at_least(given: Any, least: int, what: str) -> int:
    """A whole number that counts something: how many steps, draws, examples.

    Raises:
        ShapeError: it is no whole number, or less than `least`.
    """
    number = whole(given, what)
    if number < least:
        raise ShapeError(f"{what} is at least {least}, not {number}")
    return number


def number(given: Any, low: float | int, high: float | int, what: str) -> float:
    """A finite number from `low` to `high`.

    Raises:
        ShapeError: it is a bool, a text, NaN, or outside.
    """
    real = isinstance(given, numbers.Real) and not isinstance(given, bool)
    if not real or not math.isfinite(given) or not low <= given <= high:
        bounds = "" if low == -math.inf else f" of at least {low:g}" if high == math.inf else f" from {low:g} to {high:g}"
        raise ShapeError(f"{what} is a finite number{bounds}, not {given!r}")
    return float(given)


def size(given: Any, what: str, unit: str = "") -> int:
    """Bytes: a whole number of them, or a text, such as "512 MiB" or "2 GB".

    Args:
        unit: what a number alone counts in a text; "": a text needs its own.

    Raises:
        ShapeError: it is neither, or nothing.
    """
    if not isinstance(given, str):
        return at_least(given, 1, what)
    found = SIZE.fullmatch(given.strip())
    named = "" if found is None else (found[2] or unit).lower()
    if found is None or named not in UNITS or float(found[1]) * UNITS[named] < 1:
        alone = f"a number alone counts {unit}" if unit else "or a number of bytes"
        raise ShapeError(f"{what} is a size such as '512 MiB' or '2 GiB' ({alone}), not {given!r}")
    return int(float(found[1]) * UNITS[named])


def options(**rules: Rule) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function whose options are looked at before it does anything; None stays what it means there.

    Args:
        rules: for each option, the least whole number that it may be, or the range of a number; `SIZES` may be texts.

    Raises:
        ConfigError: (when the function is called) an option is no such number. Names it.

    Example:
        >>> @options(steps=1, target=(0, 1))
        ... def search(steps=5, *, target=0.9): return steps
        >>> search(2)
        2
        >>> search(2.5)
        Traceback (most recent call last):
        cutaway.errors.ConfigError: steps is a whole number, not 2.5
    """

    def checked(function: Callable[P, R]) -> Callable[P, R]:
        names = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            check_options({**dict(zip(names, args, strict=False)), **kwargs}, **rules)
            return function(*args, **kwargs)

        return call

    return checked


def check_options(given: Mapping[str, Any], **rules: Rule) -> None:
    """Look at options by their rules (see `options`).

    Raises:
        ConfigError: one is no such number. Names it.
    """
    for name, rule in rules.items():
        if (value := given.get(name)) is None:
            continue
        try:
            if name in SIZES:
                size(value, name)
            else:
                number(value, *rule, name) if isinstance(rule, tuple) else at_least(value, rule, name)
        except ShapeError as error:
            raise ConfigError(str(error)) from None


def one_of(given: Any, known: Sequence[str], what: str) -> str:
    """A word among those that are known.

    Raises:
        UnknownName: it is none of them; says the nearest.
    """
    if given not in known:
        near = nearest(given, known) if isinstance(given, str) else ""
        raise UnknownName(f"no {what} is called {given!r}{near}; there are {', '.join(known)}")
    return str(given)


def some_of(given: Any, known: Sequence[str], what: str) -> list[str]:
    """Some of the words that are known, each once; one word stands for itself alone.

    Raises:
        UnknownName: a word that is none of them.
        ShapeError: there are none, or one comes twice.
    """
    found = [one_of(one, known, what) for one in ([given] if isinstance(given, str) else list(given))]
    if not found:
        raise ShapeError(f"an empty list of {what}s means nothing; there are {', '.join(known)}")
    if len(set(found)) < len(found):
        raise ShapeError(f"a {what} is given twice: {', '.join(found)}")
    return found


def several(given: Any) -> bool:
    """Whether this is a list of some kind (arrays of one axis and more too), and no single thing."""
    return getattr(given, "ndim", 1) > 0 and hasattr(given, "__iter__")
