"""Kinds of mechanisms: from the answers alone, the program of every kind is found, and agrees on inputs that it has not seen.

Answers are computed by oracles (automata, sums, brackets), as a model that does its task perfectly would give them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cutaway.explain import fitting
from cutaway.explain.subject import InputSet, Subject
from cutaway.explain.verdict import agreement
from cutaway.prompts import Prompts

Automaton = dict[int, dict[int, int]]  # state → token → state


def dyck(depth: int) -> tuple[Automaton, set[int], int]:
    states = range(depth + 1)
    return {s: ({0: s + 1} if s < depth else {}) | ({1: s - 1} if s else {}) for s in states}, {0}, 2


# Automaton (it starts in state 0), states in which a word may end, and number of letters. Tomita's grammars by their numbers.
LANGUAGES: dict[str, tuple[Automaton, set[int], int]] = {
    "tomita 2": ({0: {1: 1}, 1: {0: 0}}, {0}, 2),
    "tomita 3": ({0: {0: 0, 1: 1}, 1: {1: 0, 0: 2}, 2: {0: 3}, 3: {0: 2, 1: 1}}, {0, 1, 3}, 2),
    "tomita 4": ({0: {0: 1, 1: 0}, 1: {0: 2, 1: 0}, 2: {1: 0}}, {0, 1, 2}, 2),
    "tomita 5": ({0: {0: 1, 1: 2}, 1: {0: 0, 1: 3}, 2: {0: 3, 1: 0}, 3: {0: 2, 1: 1}}, {0}, 2),
    "tomita 6": ({0: {0: 1, 1: 2}, 1: {0: 2, 1: 0}, 2: {0: 0, 1: 1}}, {0}, 2),
    "tomita 7": ({0: {0: 0, 1: 1}, 1: {1: 1, 0: 2}, 2: {0: 2, 1: 3}, 3: {1: 3}}, {0, 1, 2, 3}, 2),
    "parity": ({0: {0: 0, 1: 1}, 1: {0: 1, 1: 0}}, {0}, 2),
    "(aaaa)*": ({0: {0: 1}, 1: {0: 2}, 2: {0: 3}, 3: {0: 0}}, {0}, 1),
    "(abab)*": ({0: {0: 1}, 1: {1: 2}, 2: {0: 3}, 3: {1: 0}}, {0}, 2),
    "{a,b}*d{b,c}*": ({0: {0: 0, 1: 0, 3: 1}, 1: {1: 1, 2: 1}}, {1}, 4),
    "{0,1,2}*02*": ({0: {0: 1, 1: 0, 2: 0}, 1: {0: 1, 1: 0, 2: 1}}, {1}, 3),
    "depth 4": dyck(4),
    "depth 12": dyck(12),
}


def words(name: str, seed: int, count: int, longest: int = 36) -> tuple[Prompts, int]:
    """Words of a language; after every prefix, which tokens may follow (the end of a word is a token, too)."""
    delta, ends, letters = LANGUAGES[name]
    dice, rows, right = random.Random(seed), [], []
    while len(rows) < count:
        state, row, answers, wanted = 0, [letters], {}, dice.randint(1, longest)
        again = dice.choice([0.0, 0.7])  # how often a letter is repeated where it may be: runs are short, and long
        while len(row) < longest + 20:
            options = [*delta[state], *([letters + 2] if state in ends else [])]
            answers[len(row) - 1] = tuple(sorted(options))
            token = letters + 2 if state in ends and len(row) >= wanted else dice.choice([*delta[state]] or [letters + 2])
            if token < letters and row[-1] in delta[state] and dice.random() < again:
                token = row[-1]
            row.append(token)
            if token == letters + 2:
                rows.append(row)
                right.append(answers)
                break
            state = delta[state][token]
    return Prompts.of_rows(rows, right=tuple(right), several=True), letters + 4


def interleaved(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    """Two lists of 0 and 1 in turns; after the separator which is more frequent in each."""
    half = dice.randrange(1, 9, 2)
    bits = [dice.randint(0, 1) for _ in range(2 * half)]
    said = [int(2 * sum(bits[turn::2]) > half) for turn in range(2)]
    end = len(bits) + 1
    return [2, *bits, 3, *said, 4], dict(zip(range(end, end + 3), [*said, 4], strict=True))


def most_frequent(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    row = [dice.randrange(8) for _ in range(dice.randint(1, 25))]
    row.append(max(range(8), key=row.count))
    return [8, *row, 9], {len(row) + 1: max(range(8), key=row.count)}


def sum_of_five(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    row = [dice.randrange(10) for _ in range(5)]
    return [*row, 10], {5: sum(row) % 10}


def cipher(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    row = [dice.randrange(10) for _ in range(6)]
    return [10, *row], {at + 1: (token + 3) % 10 for at, token in enumerate(row)}


def group(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    """The product of two permutations of three things."""
    every = list(itertools.permutations(range(3)))
    a, b = dice.randrange(6), dice.randrange(6)
    return [a, b, 6], {2: every.index(tuple(every[a][every[b][n]] for n in range(3)))}


def two_kinds_of_brackets(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    """After every prefix, which bracket closes next; 4 where none is open."""
    row, stack, answers = [5], [], {0: 4}
    for _ in range(dice.randint(2, 20)):
        token = stack.pop() + 1 if stack and dice.random() < 0.5 else dice.choice([0, 2])
        if token in (0, 2):
            stack.append(token)
        row.append(token)
        answers[len(row) - 1] = stack[-1] + 1 if stack else 4
    return row, answers


def reversed_list(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    row = dice.sample(range(20), dice.randint(2, 10))
    said = [*row[::-1], 22]
    return [20, *row, 21, *said], {len(row) + 1 + at: token for at, token in enumerate(said)}


def sum_with_carries(dice: random.Random, step: int = 1) -> tuple[list[int], dict[int, int]]:
    """Two numbers of four digits and the five digits of their sum, the most significant first; with step -1 it comes last."""
    a, b = (dice.choice([dice.randrange(10**4), 9999 - dice.randrange(3)]) for _ in range(2))
    digits = [[int(digit) for digit in f"{number:0{width}}"][::step] for number, width in ((a, 4), (b, 4), (a + b, 5))]
    return [*digits[0], 10, *digits[1], 11, *digits[2]], {9 + at: digit for at, digit in enumerate(digits[2])}


def sum_with_an_end(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    """As before, a token before all and one behind all."""
    row, answers = sum_with_carries(dice)
    return [12, *row, 13], {at + 1: digit for at, digit in answers.items()} | {15: 13}


def reversed_with_separators(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    """Digits that may be the same, a separator behind each; then the digits from behind, which no constant offset finds."""
    row = [dice.randrange(10) for _ in range(5)]
    begun = [token for digit in row for token in (digit, 10)]
    return [*begun[:-1], 11, *row[::-1], 12], dict(enumerate([*row[::-1], 12], start=9))


def copy_of_few_letters(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    row = [dice.randrange(2) for _ in range(dice.randint(2, 12))]
    said = [*row, 4]
    return [2, *row, 3, *said], dict(enumerate(said, start=len(row) + 1))


def sorted_with_repetitions(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    row = [dice.randrange(8) for _ in range(6)]
    return [8, *row, 9, *sorted(row)], dict(enumerate(sorted(row), start=7))


def sorted_from_the_first(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    """No token begins the input, so counts have to take the first one in."""
    row = [dice.randrange(12) for _ in range(dice.randint(2, 9))]
    said = [*sorted(row), 13]
    return [*row, 12, *said], dict(enumerate(said, start=len(row)))


def member(name: str) -> Callable[[random.Random], tuple[list[int], dict[int, int]]]:
    """After a word, whether it is of a language: half of the words are, most of the others have one letter changed."""
    delta, ends, letters = LANGUAGES[name]

    def accepted(row: list[int]) -> bool:
        state = 0
        for token in row:
            if token not in delta[state]:
                return False
            state = delta[state][token]
        return state in ends

    def make(dice: random.Random) -> tuple[list[int], dict[int, int]]:
        row, state = [], 0
        for _ in range(dice.randint(1, 12)):
            row.append(dice.choice([*delta[state]]))
            state = delta[state][row[-1]]
        if dice.random() < 0.5:
            row[dice.randrange(len(row))] = dice.randrange(letters)
        return [letters, *row, letters + 1], {len(row) + 1: int(accepted(row))}

    return make


def ciphered_by_key(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    """Each letter shifted by the first token."""
    key, row = dice.randrange(26), [dice.randrange(26) for _ in range(8)]
    return [key, 26, *row], {at: (token + key) % 26 for at, token in enumerate(row, start=2)}


def of_five(answer: Callable[[list[int]], int]) -> Callable[[random.Random], tuple[list[int], dict[int, int]]]:
    """Five digits with separators between, and what is asked of them behind the last."""

    def make(dice: random.Random) -> tuple[list[int], dict[int, int]]:
        row = [dice.randrange(10) for _ in range(5)]
        tokens = [token for digit in row for token in (digit, 11)]
        return [10, *tokens[:-1], 12], {10: answer(row)}

    return make


def difference(dice: random.Random) -> tuple[list[int], dict[int, int]]:
    """The larger of two numbers of four digits, the smaller, and the digits of their difference; zeros pass a borrow on."""
    a = dice.randrange(10**4)
    b = int("".join(digit if dice.random() < 0.5 else dice.choice("0123456789") for digit in f"{a:04}"))
    digits = [[int(digit) for digit in f"{number:04}"] for number in (max(a, b), min(a, b), abs(a - b))]
    return [*digits[0], 10, *digits[1], 11, *digits[2]], dict(enumerate(digits[2], start=9))


def of_two(answer: Callable[[int, int], int]) -> Callable[[random.Random], tuple[list[int], dict[int, int]]]:
    """Two numbers below 20, and what is asked of them; answers may be larger."""

    def make(dice: random.Random) -> tuple[list[int], dict[int, int]]:
        a, b = dice.randrange(20), dice.randrange(20)
        return [40, a, 41, b, 42], {4: answer(a, b)}

    return make


def each_once(dice: random.Random, begins: tuple[int, ...] = (10,)) -> tuple[list[int], dict[int, int]]:
    """The tokens of a list without repetitions, in the order in which they came."""
    row = [dice.randrange(8) for _ in range(dice.randint(1, 9))]
    given, said = [*begins, *row, 11], [*dict.fromkeys(row), 12]
    return [*given, *said], dict(enumerate(said, start=len(given) - 1))


LISTS: dict[str, tuple[Callable[[random.Random], tuple[list[int], dict[int, int]]], int]] = {
    "interleaved majorities": (interleaved, 6), "most frequent": (most_frequent, 10), "sum": (sum_of_five, 11),
    "cipher": (cipher, 11), "group": (group, 7), "two kinds of brackets": (two_kinds_of_brackets, 6),
    "reversed": (reversed_list, 23), "sum with carries": (sum_with_carries, 12),
    "sum with carries from behind": (partial(sum_with_carries, step=-1), 12),
    "sum with an end": (sum_with_an_end, 14),
    "reversed with separators": (reversed_with_separators, 13), "copy of few letters": (copy_of_few_letters, 6),
    "sorted with repetitions": (sorted_with_repetitions, 11), "sorted from the first": (sorted_from_the_first, 14),
    "cipher by a key": (ciphered_by_key, 27), "difference": (difference, 12), "each once": (each_once, 13),
    "each once from the first": (partial(each_once, begins=()), 13),
    "sum of two": (of_two(lambda a, b: a + b), 43), "apart": (of_two(lambda a, b: abs(a - b)), 43),
    "sum of five as it is": (of_five(sum), 50),
    "second largest": (of_five(lambda row: sorted(row)[-2]), 13), "second smallest": (of_five(lambda row: sorted(row)[1]), 13),
    "next to the largest": (of_five(lambda row: max([one for one in row if one < max(row)], default=row[-1])), 13),
    "place of the largest": (of_five(lambda row: row.index(max(row))), 13),
    "place of the last smallest": (of_five(lambda row: 4 - row[::-1].index(min(row))), 13),
    **{f"words of {name}": (member(name), 4) for name in ("tomita 3", "tomita 4", "tomita 5", "tomita 7", "depth 12")},
}  # fmt: skip


class Oracle(Subject):
    """A subject whose answers are the right ones."""

    def __init__(self, prompts: Prompts, d_vocab: int, attention_dir: str = "causal") -> None:
        self.cfg: Any = SimpleNamespace(d_vocab=d_vocab, d_vocab_out=d_vocab, n_ctx=64, attention_dir=attention_dir)
        self.several = prompts.several
        self.sets = [] if self.several else [(token,) for token in range(d_vocab)]
        self._number = {tokens: number for number, tokens in enumerate(self.sets)}

    def answered(self, prompts: Prompts) -> InputSet:
        return InputSet(prompts, self.right(prompts).clamp(min=0))


class Forgetful(Oracle):
    """An oracle that gives another right answer's number in one of 40 places."""

    def answered(self, prompts: Prompts) -> InputSet:
        right = super().answered(prompts)
        dice = torch.Generator().manual_seed(0)
        wrong = torch.rand(right.answers.shape, generator=dice) < 1 / 40
        return InputSet(prompts, torch.where(wrong, right.answers.roll(1, 0), right.answers))


def found_and_true(known: Prompts, unseen: Prompts, d_vocab: int, monkeypatch: Any, attention_dir: str = "causal") -> float:
    monkeypatch.setattr(fitting, "node_proposals", lambda *_: [])  # there is no network to read
    monkeypatch.setattr(fitting, "product_of", lambda *_: None)
    subject = Oracle(known, d_vocab, attention_dir)
    fitted, test = fitting.fit(subject, subject.answered(known)), subject.answered(unseen)
    return agreement(test.answers[test.counted], fitting.tree_answers(fitted, test), subject.set_table())


def drawn_of(name: str, seed: int, count: int) -> Prompts:
    make, dice = LISTS[name][0], random.Random(seed)
    rows, answers = zip(*(make(dice) for _ in range(count)), strict=True)
    return Prompts.of_rows(list(rows), right=tuple({at: (token,) for at, token in one.items()} for one in answers))


def test_brackets_where_attention_sees_everything(monkeypatch: Any):
    """Depths are counts of what stands before, and heads that see everything have to look away from the rest."""
    known, unseen = drawn_of("words of depth 12", 0, 500), drawn_of("words of depth 12", 1, 200)
    assert found_and_true(known, unseen, 4, monkeypatch, "bidirectional") >= 0.999


def test_mistakes_do_not_hide_the_rule(monkeypatch: Any):
    """A model that errs at random in 2% of places is described by the rule, though its answers are a function of nothing."""
    monkeypatch.setattr(fitting, "node_proposals", lambda *_: [])
    monkeypatch.setattr(fitting, "product_of", lambda *_: None)
    prompts, unseen = drawn_of("place of the largest", 0, 400), drawn_of("place of the largest", 1, 200)
    subject = Forgetful(prompts, 13)
    known, test = subject.answered(prompts), Oracle.answered(subject, unseen)
    assert 0.95 < subject.accuracy(known) < 1
    of_rule, alone = fitting.fit(subject, known, examples=known), fitting.fit(subject, known)
    says = test.answers[test.counted]
    assert agreement(says, fitting.tree_answers(of_rule, test)) == 1 > agreement(says, fitting.tree_answers(alone, test)) + 0.02


SLOW = [pytest.param(name, marks=pytest.mark.fuzz) for name in LANGUAGES if name not in ("tomita 6", "depth 4")]


@pytest.mark.parametrize("name", ["tomita 5", "depth 4", *SLOW])
def test_regular_languages(name: str, monkeypatch: Any):
    known, d_vocab = words(name, 0, 500)
    assert found_and_true(known, words(name, 1, 150)[0], d_vocab, monkeypatch) >= 0.999


RARE = (
    "second smallest",
    "place of the last smallest",
    "each once from the first",
    "sum with carries from behind",
    "copy of few letters",
    "cipher",
    "sum",
    "cipher by a key",
)
RARE += ("words of tomita 5", "words of tomita 7")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.fuzz] * (name in RARE)) for name in LISTS])
def test_lists(name: str, monkeypatch: Any):
    known, unseen = drawn_of(name, 0, 500), drawn_of(name, 1, 200)
    assert found_and_true(known, unseen, LISTS[name][1], monkeypatch) >= 0.999
