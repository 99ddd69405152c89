"""Programs run alone, print as Python that gives the same answers, and come back from JSON as they were."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from cutaway import programs
from cutaway.errors import ContextTooLong, ProgramError, TokenError, UnknownName
from cutaway.programs import Attend, Bucket, Map, Multiply, Program, ReadOut, Weigh
from cutaway.programs.interpreter import run, weights
from cutaway.programs.language import among, equal, hard, latest, offset, one_hot, says, scores, soft
from tests.programs.inputs import inputs

ABC = ("a", "b", "c")
EVERY = [*programs.names(), *range(12)]


def made(name: str | int) -> Program:
    return programs.draw(name) if isinstance(name, int) else programs.find(name)


@pytest.mark.parametrize("name", EVERY)
def test_printed_programs_give_the_same_answers(name: str | int) -> None:
    program = made(name)
    space: dict[str, Any] = {}
    exec(str(program), space)
    for tokens in inputs(program, upto=4, at_most=16, long=1):
        assert space["predict"](tokens) == programs.predict(program, tokens), tokens


@pytest.mark.parametrize("name", EVERY)
def test_json_gives_the_same_program(name: str | int) -> None:
    program = made(name)
    again = programs.from_json(programs.to_json(program))
    assert again == program
    assert programs.to_json(again) == programs.to_json(program)


def test_programs_run_without_torch() -> None:
    code = "import sys\nfrom cutaway import programs\nprint(programs.predict(programs.find('induction'), [0, 1, 2, 0])[3])\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "False"]


# What the shipped programs say they do, written a second time.


def texts(program: Program, count: int = 20) -> list[list[int]]:
    return inputs(program, upto=5, at_most=count, long=3)


def answers(name: str, tokens: list[int]) -> list[int]:
    return list(programs.predict(programs.find(name), tokens).values())


SECOND: dict[str, Any] = {
    "previous_token": lambda x: [x[max(q - 1, 0)] for q in range(len(x))],
    "first_token": lambda x: [x[0]] * len(x),
    "shift_cipher": lambda x: [(token + 1) % 4 for token in x],
    "histogram": lambda x: [Counter(x[1:])[token] for token in x],
    "seen_before": lambda x: [int(token in x[1:q]) for q, token in enumerate(x)],
    "dyck_depth": lambda x: [max(x[1 : q + 1].count(1) - x[1 : q + 1].count(2), 0) for q in range(len(x))],
    "majority": lambda x: [int(x[: q + 1].count(1) > x[: q + 1].count(0)) for q in range(len(x))],
    "most_frequent": lambda x: [min(range(4), key=lambda t: (-x[: q + 1].count(t), t)) for q in range(len(x))],
    "fraction_of_previous": lambda x: [
        4 * x[: q + 1].count(0) // (q + 1) if x[: q + 1].count(0) <= q else 3 for q in range(len(x))
    ],
    "maximum": lambda x: [max(x[: q + 1]) for q in range(len(x))],
    "parity": lambda x: [x[: q + 1].count(2) % 2 for q in range(len(x))],
    "two_pointers": lambda x: [int(x[max(q - 1, 0)] == x[max(q - 2, 0)]) for q in range(len(x))],
    "mostly_a": lambda x: [int(token == 0 and 2 * x.count(0) > len(x)) for token in x],
}


@pytest.mark.parametrize("name", SECOND)
def test_shipped_programs_do_what_they_say(name: str) -> None:
    for tokens in texts(programs.find(name)):
        assert answers(name, tokens) == SECOND[name](tokens), tokens


def test_texts_are_sorted_reversed_and_compared() -> None:
    for tokens in texts(programs.find("sort")):
        if 0 not in tokens[1:]:
            assert answers("sort", tokens)[1:] == sorted(tokens[1:])
            assert answers("reverse", tokens)[1:] == tokens[:0:-1]
    for letters in itertools.product(range(2), repeat=6):
        assert programs.predict(programs.find("palindrome"), [4, *letters, 5]) == {7: int(letters == letters[::-1])}


def test_induction_and_copying_find_what_followed() -> None:
    program = programs.find("induction")
    assert [
        programs.predict(program, tokens)[len(tokens) - 1] for tokens in ([0, 1, 2, 0], [0, 1, 0, 2, 0], [1, 0, 3, 3, 1])
    ] == [1, 2, 0]
    copied = programs.predict(programs.find("copied_text"), [0, 5, 3, 2, 1, 5, 3])
    assert [copied[q] for q in (5, 6)] == [3, 2]


def test_texts_in_order_end() -> None:
    tokens = [8, 5, 2, 7, 9, 2, 5, 7]
    assert [programs.predict(programs.find("sorted_text"), tokens)[q] for q in (4, 5, 6)] == [2, 5, 7]


def test_the_first_unique_token_is_found_or_none() -> None:
    assert set(answers("first_unique", [4, 0, 1, 0, 2])) == {1}
    assert set(answers("first_unique", [4, 0, 1, 0, 1])) == {4}


def test_sums_and_what_may_follow() -> None:
    program = programs.find("modular_sum")
    assert all(programs.predict(program, [a, b, 5]) == {2: (a + b) % 5} for a in range(5) for b in range(5))
    assert programs.predict(programs.find("may_follow"), [0, 1, 1, 1]) == {0: [1, 2], 1: [1], 2: [1, 2], 3: [1]}


# What the language means.


def test_selectors_prefer_the_first_term_and_share_ties() -> None:
    values = {"tokens": [0, 1, 0, 1], "positions": [0, 1, 2, 3]}
    among_ones = among("tokens", [1])
    assert weights(hard(among_ones), values, 3, range(4)) == {1: 0.5, 3: 0.5}
    assert weights(hard(among_ones, latest()), values, 3, range(4)) == {3: 1.0}
    assert weights(hard(latest(), among_ones), values, 2, range(3)) == {2: 1.0}
    assert weights(hard(), values, 3, range(4)) == dict.fromkeys(range(4), 0.25)
    softly = weights(soft(scores("tokens", [[0.0, 1.0]]), temperature=0.5), values, 3, range(4))
    assert softly[1] / softly[0] == pytest.approx(2.718281828**2)


def test_lines_that_nothing_reads_are_not_live() -> None:
    lines = (Attend("unused", hard(offset(2))), Attend("used", hard(offset(1))))
    program = Program("two", ABC, 5, lines, says("used", 3))
    assert [line.name for line in program.live] == ["used"]
    assert "unused" not in str(program)


def test_numbers_are_multiplied() -> None:
    lines = (
        Attend("shares", hard(), how="mean"),
        Multiply("squares", "shares", "shares"),
        Weigh("total", (("squares", ((1.0,), (1.0,), (1.0,))),), (0.0,)),
        Bucket("even", "total", (0.4,), 0.01),
    )
    program = Program("evenness", ABC, 6, lines, says("even", 2), ("even", "uneven"))
    assert run(program, [0, 1, 2]).values["total"][2][0] == pytest.approx(1 / 3)
    assert [programs.predict(program, [0, 1, 2])[2], programs.predict(program, [0, 0, 2])[2]] == [0, 1]
    space: dict[str, Any] = {}
    exec(str(program), space)
    assert space["predict"]([0, 1, 2, 2]) == programs.predict(program, [0, 1, 2, 2])


LINES = {
    "reads 'befor', which no line": Attend("x1", hard(equal("befor", "tokens"), latest())),
    "copies from keys that may differ": Attend("x1", hard(among("tokens", [1]))),
    "table of 4 entries; its inputs have 3": Map("x1", ("tokens",), (0, 1, 0, 1), 2),
    "gives values from 0 to 5": Map("x1", ("tokens",), (0, 1, 5), 2),
    "compares one number, and 'tokens'|needs numbers": Bucket("x1", "tokens", (0.5,), 0.1),
    "not every term of its selector says yes or no": Attend("x1", hard(latest()), how="count"),
    "aggregates by 'copie' .did you mean 'copy'": Attend("x1", hard(offset(1)), how="copie"),
    "the temperature 0": Attend("x1", soft(temperature=0.0), how="mean"),
    "selects values": Attend("x1", hard(among("tokens", [7]), latest())),
    "cannot be called 'tokens'": Attend("tokens", hard(offset(1))),
    "rows of": Weigh("x1", (("tokens", one_hot(2)),), (0.0, 0.0)),
}


@pytest.mark.parametrize("words", LINES)
def test_lines_that_make_no_sense_are_refused_by_number(words: str) -> None:
    with pytest.raises(ProgramError, match=words) as caught:
        Program("wrong", ABC, 5, (Attend("fine", hard(offset(1))), LINES[words]), says("fine", 3))
    assert str(caught.value).startswith("line 2 (")


def test_read_outs_that_make_no_sense_are_refused() -> None:
    for read in (
        says("tokens", 2),
        says("nothing", 3),
        ReadOut((), (0.0,) * 3, "most"),
        says("tokens", 3, at="end"),
        says("tokens", 3, at=(9,)),
    ):
        with pytest.raises(ProgramError, match=r"^the read-out"):
            Program("wrong", ABC, 5, (), read)


def test_inputs_outside_the_program_are_refused() -> None:
    with pytest.raises(TokenError, match="begins with the token 0"):
        programs.predict(programs.find("histogram"), [1, 2])
    with pytest.raises(TokenError, match="tokens 0 to 3, not 9"):
        programs.predict(programs.find("induction"), [9])
    with pytest.raises(TokenError, match="at least one"):
        programs.predict(programs.find("induction"), [])
    with pytest.raises(ContextTooLong, match="21 positions"):
        programs.predict(programs.find("induction"), [0] * 22)
    with pytest.raises(UnknownName, match="did you mean 'induction'"):
        programs.find("inductoin")


FAULTS = {
    "no JSON": "{",
    "no program": "[]",
    "the program lacks name": {"name": None},
    "a field 'colour' that is not known": {"colour": 3},
    "n_ctx is a whole number": {"n_ctx": "21"},
    "n_ctx is a whole number, not True": {"n_ctx": True},
    "line 1 is an object whose field": {"lines": [{"line": "attent"}]},
    "line 1: a term has a field 'ky'": {
        "lines": [{"line": "attend", "name": "a1", "select": {"terms": [{"relation": "offset", "ky": 1}]}}]
    },
    "line 1: select is an object": {"lines": [{"line": "attend", "name": "a1", "select": 3}]},
    "line 1 lacks select": {"lines": [{"line": "attend", "name": "a1"}]},
    "the read-out is an object": {"read_out": 3},
    "the program's lines": {"lines": {}},
}


@pytest.mark.parametrize("words", FAULTS)
def test_files_that_are_no_programs_are_refused(words: str) -> None:
    fault = FAULTS[words]
    data = programs.to_dict(programs.find("induction"))
    if isinstance(fault, dict):
        data = {name: value for name, value in (data | fault).items() if value is not None}
    with pytest.raises(ProgramError, match=words):
        programs.from_json(fault if isinstance(fault, str) else json.dumps(data))


def test_random_programs_are_decided_by_their_seed_and_differ() -> None:
    assert programs.draw(3) == programs.draw(3)
    assert len({programs.to_json(programs.draw(seed)).partition("vocabulary")[2] for seed in range(40)}) > 35
