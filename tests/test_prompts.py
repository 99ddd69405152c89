"""Prompts: positions by role, answers, files with numbered errors; what is known of a row stays with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import PromptError, ShapeError, TokenError, UnknownRole
from cutaway.prompts import UNCOUNTED, Prompts, join, word_token
from cutaway.tokens import CharTokenizer

LETTERS = CharTokenizer([*"abcdefgh#", "gh"], bos_token="#", pad_token="#")


def three(**known: Any) -> Prompts:
    return Prompts.of_rows([[1, 2, 3], [4, 5], [6, 7, 8]], **known)


def test_a_rows_own_last_token_is_its_end():
    prompts = three(roles={"S": torch.tensor([0, 1, 2])})
    assert prompts.place("end").tolist() == prompts.place(-1).tolist() == [2, 1, 2]
    assert prompts.place(0).tolist() == [0, 0, 0] and prompts.place("S").tolist() == [0, 1, 2]
    with pytest.raises(PromptError, match="prompt 1 has 2 tokens and no position 2"):
        prompts.place(2)
    with pytest.raises(UnknownRole, match="no role 'T'; there are S, end"):
        prompts.place("T")


def test_answers_stand_where_they_are_right():
    prompts = three(right=({2: (5,)}, {1: (6,)}, {2: (7,)}), wrong=({2: (1,)}, {1: (2,)}, {2: (3,)}))
    assert prompts.answers.tolist() == [5, 6, 7] and prompts.wrong_answers.tolist() == [1, 2, 3]
    assert prompts.at.tolist() == [2, 1, 2]
    assert prompts.labels.tolist() == [[UNCOUNTED, UNCOUNTED, 5], [UNCOUNTED, 6, UNCOUNTED], [UNCOUNTED, UNCOUNTED, 7]]
    assert prompts.allowed(9).sum() == 3 and bool(prompts.allowed(9)[1, 1, 6])
    with pytest.raises(PromptError, match="one answer in each prompt is needed here; prompt 0 has 2"):
        _ = three(right=({1: (5,), 2: (5,)}, {}, {})).answers


def test_some_rows_keep_what_is_known_of_them():
    full = three(
        right=({2: (5,)}, {1: (6,)}, {2: (7,)}), texts=("x", "y", "z"), roles={"S": torch.tensor([0, 1, 2])},
        corrupted=Prompts.of_rows([[1, 2, 0], [4, 0], [6, 7, 0]]),
    )  # fmt: skip
    for part in (full[[1]], full[1:2], full[torch.tensor([1])]):
        assert part.tokens.tolist() == [[4, 5]] and part.texts == ("y",) and part.place("S").tolist() == [1]
        assert part.answers.tolist() == [6] and part.corrupted.tokens.tolist() == [[4, 0]]
    again = join([full[[0]], full[1:]])
    assert torch.equal(again.tokens, full.tokens) and again.right == full.right and again.texts == full.texts
    assert torch.equal(again.corrupted.tokens, full.corrupted.tokens) and torch.equal(again.place("S"), full.place("S"))
    one, other = full.halves(seed=3)
    assert sorted([*one.texts, *other.texts]) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: three(right=({3: (1,)}, {}, {})), "prompt 0 has an answer at position 3, and its 3 tokens from 0"),
        (lambda: three(right=({},)), "1 rows of right answers for 3 prompts"),
        (lambda: three(roles={"S": torch.tensor([0, 2, 0])}), "prompt 1 has the role 'S' at 2, and 2 tokens from 0"),
        (lambda: three(corrupted=Prompts.of_rows([[1] * 3] * 3)), "prompt 1 has 2 tokens and its counterpart 3"),
        (lambda: three(corrupted=Prompts.of_rows([[1]])), "3 prompts have 1 counterparts"),
        (lambda: Prompts.of_rows([[1], []]), "each prompt needs at least one token"),
        (lambda: Prompts.of_rows([]), "there must be one prompt at least"),
        (lambda: Prompts(torch.tensor([[1, 2]]), torch.tensor([[False, True]])), "padded on the right only"),
        (lambda: join([]), "no prompts to put together"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(make: Any, message: str):
    with pytest.raises((PromptError, ShapeError), match=message):
        make()


def test_words_are_answers_where_they_are_one_token():
    prompts = Prompts.of_texts(LETTERS, ["ab", "abc"], answers="d", wrong=["e", "f"], corrupted=["ba", "bac"])
    assert prompts.answers.tolist() == [3, 3] and prompts.wrong_answers.tolist() == [4, 5]
    assert prompts.tokens[0].tolist() == [8, 0, 1, 8]  # `#` in front, and as padding
    with pytest.raises(TokenError, match="'ab' is 2 tokens, not one: \\['a', 'b'\\]; take the first with allow_first_token"):
        Prompts.of_texts(LETTERS, ["a"], answers="ab")
    assert word_token(LETTERS, "ab", allow_first_token=True) == 0
    assert word_token(LETTERS, "gh") == 9
    with pytest.raises(PromptError, match="2 answers for 1 prompts"):
        Prompts.of_texts(LETTERS, ["a"], answers=["b", "c"])
    with pytest.raises(PromptError, match=r"1 answers for 2 prompts; give one for each, or 'b' for all, which is no list$"):
        Prompts.of_texts(LETTERS, ["a", "c"], answers=["b"])
    assert Prompts.of_texts(LETTERS, ["a", "c"], answers="b").answers.tolist() == [1, 1]


def written(folder: Path, *lines: Any, name: str = "x.jsonl") -> Path:
    (folder / name).write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return folder / name


def test_examples_and_pairs_come_from_files(tmp_path: Path):
    file = written(tmp_path, {"tokens": [1, 2, 3], "answers": {"2": 4}}, "", {"text": "ab", "answers": {"1": ["c", "d"]}})
    prompts = Prompts.read(file, LETTERS)
    assert prompts.lengths.tolist() == [3, 3] and prompts.right == ({2: (4,)}, {1: (2, 3)}) and prompts.several
    file = written(
        tmp_path, {"clean": "ab", "corrupted": "ac", "answer": "d", "wrong": "e"}, {"clean": "a", "corrupted": "b", "answer": "c"}
    )
    pairs = Prompts.read(file, LETTERS)
    assert pairs.answers.tolist() == [3, 2] and pairs.corrupted.tokens[0].tolist() == [8, 0, 2]
    assert Prompts.read(written(tmp_path, "ab", "c", name="x.txt"), LETTERS).texts == ("ab", "c")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[1]", r"line 2 must be an object \{…\}, not \[1\]"),
        ({"tokens": []}, "line 2: 'tokens' must be a list of token ids"),
        ({"tokens": [1.5]}, "line 2: 'tokens' must be a list of token ids"),
        ({"tokens": [True]}, "line 2: 'tokens' must be a list of token ids"),
        ({"tokens": [1], "text": "a"}, "line 2: an example needs 'tokens' or 'text'"),
        ({"tokens": [1], "answers": {"1": 0}}, "line 2: 'answers' names position '1', and the tokens are 0 to 0"),
        ({"tokens": [1], "answers": {"-1": 0}}, "line 2: 'answers' names position '-1'"),
        ({"tokens": [1], "answers": {"0": -3}}, "line 2: an answer must be a token id or a word, not '-3'"),
        ({"tokens": [1], "answers": {"0": "xyz"}}, "line 2: .*is not in the vocabulary"),
        ({"clean": "a"}, "mixes pairs"),
    ],
)
def test_a_wrong_line_is_numbered(tmp_path: Path, line: Any, message: str):
    file = written(tmp_path, {"tokens": [1, 2], "answers": {"1": 3}}, line)
    with pytest.raises(PromptError, match=message):
        Prompts.read(file, LETTERS)


def test_all_wrong_lines_are_named(tmp_path: Path):
    wrong, right = {"clean": "ab", "corrupted": "abc", "answer": "d"}, {"clean": "ab", "corrupted": "cb", "answer": "d"}
    with pytest.raises(PromptError, match=r"line 2: .*counterpart 4.* \(2 more lines have an error: 4, 5\)$"):
        Prompts.read(written(tmp_path, right, wrong, right, wrong, wrong), LETTERS)
    with pytest.raises(PromptError, match=r"line 1: .* \(1 more line has an error: 3\)$"):
        Prompts.read(written(tmp_path, {"tokens": []}, {"tokens": [1]}, {"tokens": [1.5]}), LETTERS)


def test_files_that_cannot_be_read_are_said(tmp_path: Path):
    with pytest.raises(PromptError, match="cannot be read"):
        Prompts.read(tmp_path / "none.jsonl")
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(PromptError, match="is not UTF-8"):
        Prompts.read(tmp_path / "latin")
    with pytest.raises(PromptError, match="holds no prompt"):
        Prompts.read(written(tmp_path, "", " "))
    file = written(tmp_path, {"clean": "ab", "corrupted": "abc", "answer": "d"})
    with pytest.raises(PromptError, match="line 1: prompt 0 has 3 tokens and its counterpart 4"):
        Prompts.read(file, LETTERS)


def test_published_subjects_are_read(shared: Path):
    folders = sorted((shared / "data" / "subjects").iterdir())
    for folder in folders:
        prompts = Prompts.read(folder / "test.jsonl")
        assert len(prompts) == 500
        assert prompts.several == ("threshold" in (folder / "about.md").read_text())
