"""How fuzzers damage things: JSON values put in odd places, bytes changed, cut, doubled."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, -7, 2**31, 2**40, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, -1e308, 1e-320,
    5.9, float("nan"), float("inf"), float("-inf"), "", "x", "0", "1e5", "NaN", "\ud800", "\x1b[31m", "\0", "../../x",
    "a" * 5000, [],
    [0], [None], [[]], [1, 2, 3], [-1], [True], ["x"], [1e400], {}, {"x": 1}, {"": None}, {"type": "Zero"}, {"tensor": "t0"},
    {"change": 0}, {"change": -1}, {"function": "f"}, {"map": {}}, "relu", "float16", "torch.int8", "LN", "RMS", "rotary",
    "llama3",
]  # fmt: skip

odd = st.sampled_from(ODD)
small = st.integers(-3, 40) | st.floats() | st.text(max_size=5) | odd


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value[:6]) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths(child, (*at, key))


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """The value with something else at one place."""
    if not at:
        return new
    value = copy.copy(value)
    value[at[0]] = put(value[at[0]], at[1:], new)
    return value


@st.composite
def damaged_json(draw: Any, value: Any) -> Any:
    """The value with one to three changes: something odd in a place, an entry gone, an entry more, one copied elsewhere."""
    for _ in range(draw(st.integers(1, 3))):
        places = list(paths(value))
        at = draw(st.sampled_from(places))
        kind = draw(st.integers(0, 5))
        if kind <= 2 or not at:
            value = put(value, at, draw(small))
        elif kind == 3:
            there = value
            for key in at[:-1]:
                there = there[key]
            rest = {k: v for k, v in there.items() if k != at[-1]} if isinstance(there, dict) else [
                v for i, v in enumerate(there) if i != at[-1]
            ]  # fmt: skip
            value = put(value, at[:-1], rest)
        elif kind == 4:
            other = draw(st.sampled_from(places))
            new = value
            for key in other:
                if not isinstance(new, dict | list) or (isinstance(new, list) and not (isinstance(key, int) and key < len(new))):
                    break
                if isinstance(new, dict) and key not in new:
                    break
                new = new[key]
            value = put(value, at, new)
        else:
            value = put(value, at, [value, {"more": draw(small)}] if draw(st.booleans()) else {"more": draw(small)})
    return value


@st.composite
def damaged_bytes(draw: Any, data: bytes) -> bytes:
    """The bytes with some changed, cut off, doubled or inserted."""
    kind = draw(st.integers(0, 4))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if kind == 0:
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 8))):
            changed[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return bytes(changed)
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + draw(st.binary(max_size=40)) + data[at:]
    if kind == 3:
        end = draw(st.integers(at, min(len(data), at + 200)))
        return data[:end] + data[at:]
    return draw(st.binary(max_size=300))


def dumped(value: Any) -> str:
    """JSON text, NaN and lone surrogates included."""
    return json.dumps(value)


def cases(few: int, many: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test with `few` cases in `make test` and `many` in `make fuzz`; one of those that `-m fuzz` chooses."""

    def budget(function: Callable[..., None]) -> Callable[..., None]:
        common: dict[str, Any] = {
            "deadline": None, "suppress_health_check": list(HealthCheck), "phases": [Phase.generate], "database": None,
        }  # fmt: skip

        def test(budget: int, *args: Any, **more: Any) -> None:
            given(st.data())(settings(max_examples=budget, **common)(lambda data: function(data, *args, **more)))()

        marks = [pytest.param(few, id=str(few)), pytest.param(many, id=str(many), marks=pytest.mark.fuzz)]
        own = list(inspect.signature(function).parameters.values())[1:]
        budget_first = inspect.Parameter("budget", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        test.__name__, test.__doc__ = function.__name__, function.__doc__
        test.__signature__ = inspect.Signature([budget_first, *own])  # type: ignore[attr-defined]
        return pytest.mark.parametrize("budget", marks)(test)

    return budget
