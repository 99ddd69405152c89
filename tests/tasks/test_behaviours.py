"""Behaviours: right answers by plain loops, classes that cover what counts once, minimal pairs, roles where the words are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from cutaway.errors import PromptError, UnknownTask
from cutaway.model.transformer import Transformer
from cutaway.prompts import UNCOUNTED, Prompts
from cutaway.tasks import answers as task_answers
from cutaway.tasks import behaviour, behaviour_names, find
from cutaway.tasks.balanced_brackets import BalancedBrackets
from cutaway.tasks.behaviours import ALGORITHMIC, LANGUAGE
from cutaway.tasks.datasets import (
    BracketsDataset,
    CumulativeSumDataset,
    ModularAdditionDataset,
    PalindromeDataset,
    SortedListDataset,
    SumDataset,
)
from cutaway.tasks.modular_addition import ModularAddition
from cutaway.tokens import CharTokenizer, with_special_tokens

algorithmic = pytest.mark.parametrize("kind", ALGORITHMIC, ids=lambda kind: kind.name)
of_language = pytest.mark.parametrize("kind", LANGUAGE, ids=lambda kind: kind.name)


def is_balanced(words: list[str]) -> bool:
    text = "".join(word for word in words if word in "()")
    while "()" in text:
        text = text.replace("()", "")
    return not text


PLAIN: dict[str, Callable[[list[str]], dict[int, str]]] = {
    "palindromes": lambda w: {len(w) - 1: str(int(w[1:-1] == w[:0:-1][1:]))},
    "sorted-list": lambda w: dict(enumerate(sorted(w[: w.index("SEP")], key=int), start=w.index("SEP"))),
    "sum-of-two": lambda w: dict(enumerate(f"{int(''.join(w[:4])) + int(''.join(w[5:9])):04}", start=9)),
    "cumulative-sum": lambda w: {n: str((s > 0) - (s < 0) + 1) for n in range(len(w)) for s in [sum(map(int, w[: n + 1]))]},
    "modular-addition": lambda w: {2: str((int(w[0]) + int(w[1])) % 113)},
    "balanced-brackets": lambda w: {0: str(int(is_balanced(w)))},
    "first-unique-char": lambda w: {
        n: next((c for c in w[1 : n + 1] if w[1 : n + 1].count(c) == 1), "?") for n in range(len(w))
    },
}  # fmt: skip


@algorithmic
def test_right_answers_are_those_of_a_plain_loop(kind: Any):
    task = kind()
    words_out = task.vocabulary if task.d_vocab_out == len(task.vocabulary) else [str(n) for n in range(task.d_vocab_out)]
    prompts = task.prompts(60, seed=4)
    for part in (prompts, prompts.corrupted):
        for row, right in zip(part.tokens.tolist(), part.right, strict=True):
            expected = PLAIN[task.name]([task.vocabulary[token] for token in row])
            assert {at: words_out[token] for at, (token,) in right.items()} == expected


@pytest.mark.parametrize("name", [kind.name for kind in ALGORITHMIC])
def test_classes_cover_each_answer_once_and_names_have_shapes(name: str):
    task = behaviour(name)
    prompts = task.prompts(80, seed=1)
    counted = sum(where.long() for where in task.classes(prompts).values())
    assert torch.equal(counted, prompts.answered.long())
    length = prompts.tokens.shape[1]
    assert all(where.shape == (80, length, length) and where.dtype == torch.bool for where in task.sources(prompts).values())
    assert all(values.shape == (80, length) for values in task.features(prompts).values())


@algorithmic
def test_kinds_of_mistakes_cover_the_wrong_answers(kind: Any):
    task = kind()
    prompts = task.prompts(80, seed=2)
    guessed = torch.randint(0, task.d_vocab_out, prompts.tokens.shape, generator=torch.Generator().manual_seed(0))
    wrong = prompts.answered & (guessed != prompts.labels)
    kinds = sum(where.long() for where in task.mistakes(prompts, guessed).values())
    assert torch.equal(kinds, wrong.long())
    assert not any(bool(where.any()) for where in task.mistakes(prompts, prompts.labels).values())


@algorithmic
def test_counterparts_are_sequences_of_the_task_and_mostly_have_other_answers(kind: Any):
    task = kind()
    prompts = task.prompts(200, seed=3)
    other = prompts.corrupted
    assert torch.equal(other.labels, task.answers(other.tokens))
    assert (other.labels != prompts.labels).any(1).float().mean() > 0.4
    assert (other.tokens != prompts.tokens).any(1).all()
    wrong = prompts.wrong_labels
    assert torch.equal(wrong != UNCOUNTED, (other.labels != prompts.labels) & prompts.answered)


@pytest.mark.parametrize(
    "dataset",
    [PalindromeDataset, SortedListDataset, SumDataset, CumulativeSumDataset, ModularAdditionDataset, BracketsDataset],
    ids=lambda kind: kind.__name__,
)
def test_datasets_give_the_same_for_the_same_seed_and_feed_a_loader(dataset: Any):
    one, again, other = dataset(size=12, seed=1), dataset(size=12, seed=1), dataset(size=12, seed=2)
    assert torch.equal(one.toks, again.toks) and not torch.equal(one.toks, other.toks)
    tokens, labels = next(iter(DataLoader(one, batch_size=12)))
    assert torch.equal(tokens, one.toks) and torch.equal(labels, one.labels)
    assert len(one.str_toks) == len(one) == 12 and one.str_toks[0][0] == one.vocab[int(one.toks[0, 0])]


@algorithmic
def test_a_model_of_the_task_runs_and_its_answers_are_known(kind: Any):
    task = kind()
    model = Transformer(task.config())
    tokens = task.draw(5, torch.Generator().manual_seed(0))
    assert model(tokens).shape == (5, task.length, task.d_vocab_out)
    assert torch.equal(task_answers(model, tokens), task.answers(tokens))
    assert find(task.name).name == task.name


def test_brackets_have_equal_shares_and_every_kind_of_failure():
    task = BalancedBrackets()
    tokens = task.draw(3000, torch.Generator().manual_seed(0))
    balanced = (task.answers(tokens)[:, 0] == 1).float().mean()
    assert 0.3 < balanced < 0.45
    counts, below = task.failures(tokens)
    assert min((counts & ~below).sum(), (~counts & below).sum(), (counts & below).sum()) > 300


def test_pairs_for_training_and_for_validation_are_all_pairs_once():
    task = ModularAddition(p=7, share=0.4)
    train, rest = task.parts()
    assert sorted(torch.cat([train, rest])[:, :2].tolist()) == [[a, b] for a in range(7) for b in range(7)]


# Language.


def word_tokenizer() -> CharTokenizer:
    """One token for each word with the space in front of it, and for each sign; as real tokenizers do for short words."""
    from cutaway.tasks import docstring_arguments, greater_than, indirect_objects, induction, subject_verb

    listed: set[str] = set(greater_than.DIGITS)
    for module in (indirect_objects, induction, docstring_arguments, subject_verb, greater_than):
        for words in vars(module).values():
            if isinstance(words, tuple) and all(isinstance(word, str) for word in words):
                for word in words:
                    listed |= set(re.findall(r" ?[A-Za-z_]+|\d|[^\w]", re.sub(r"\{[^}]*\}", "", word)))
                    listed |= {f" {word}", f" {word}s"} if re.fullmatch(r"[a-z ]+", word) else set()
    listed |= set(re.findall(r" ?[A-Za-z_]+|[^\w{}]", re.sub(r"\{[^}]*\}", "", docstring_arguments.TEMPLATE)))
    more = ["def", " port", " make", " read", " show", " find", " self", "self", " is", " are", "The", " lasted", " from", " the"]
    listed |= {*more, " year", " to", " ", ",", "."} | {f" {century}" for century in greater_than.CENTURIES}
    return CharTokenizer(["#", *sorted(listed - {"#"})], bos_token="#", pad_token="#")


@pytest.mark.parametrize("kind", [*ALGORITHMIC, *LANGUAGE], ids=lambda kind: kind.name)
@pytest.mark.parametrize("count", [0, -1])
def test_no_prompts_are_refused(kind: Any, count: int):
    draws = [kind().prompts] + ([kind().tokens_prompts] if hasattr(kind, "tokens_prompts") else [])
    for draw in draws:
        with pytest.raises(PromptError, match=f"asked for {count} prompts; at least one is needed"):
            draw(count, **({"d_vocab": 50} if draw.__name__ == "tokens_prompts" else {"tokenizer": word_tokenizer()}))


@of_language
def test_texts_say_the_words_at_the_positions_of_their_roles(kind: Any):
    check_language(kind(), word_tokenizer())


@of_language
@pytest.mark.parametrize("tokenizer", ["gpt2", "gpt-neox-20b"])
def test_texts_work_with_real_tokenizers(kind: Any, tokenizer: str, shared: Path):
    transformers = pytest.importorskip("transformers")
    found = transformers.AutoTokenizer.from_pretrained(shared / "data" / "tokenizers" / tokenizer)
    check_language(kind(), with_special_tokens(found))


def check_language(task: Any, tokenizer: Any) -> None:
    prompts, again = (task.prompts(24, seed=5, tokenizer=tokenizer) for _ in range(2))
    assert torch.equal(prompts.tokens, again.tokens)
    assert not torch.equal(prompts.tokens, task.prompts(24, seed=6, tokenizer=tokenizer).tokens)
    assert ((prompts.tokens != prompts.corrupted.tokens).sum(1) == 1).all()  # one word
    for row, text in enumerate(prompts.texts):
        words = {role: tokenizer.decode([int(prompts.tokens[row, place[row]])]) for role, place in prompts.roles.items()}
        assert all(word.strip() in text for word in words.values())
        right, wrong = (
            {tokenizer.decode([t]) for t in next(iter(side[row].values()))} for side in (prompts.right, prompts.wrong)
        )
        assert right and wrong and not right & wrong
        if task.name == "indirect-objects":
            assert words["S1"] == words["S2"] == next(iter(wrong)) and words["IO"] == next(iter(right))
        if task.name == "induction":
            assert words["Earlier"] == words["Repeated"] == words["end"] and words["Answer"] == next(iter(right))
        if task.name == "greater-than":
            check_years(text, right, wrong)
    counted = sum(where.long() for where in task.classes(prompts).values())
    assert torch.equal(counted, prompts.answered.long())
    assert all(source.shape == (*prompts.tokens.shape, prompts.tokens.shape[1]) for source in task.sources(prompts).values())


def check_years(text: str, right: set[str], wrong: set[str]) -> None:
    """By the years themselves, however they are split: what can go on to a later one is right, what cannot is wrong."""
    begin, century = re.findall(r"\d+", text)
    year, tens = int(begin[2:]), {len(word) for word in right | wrong} == {1}
    last = {word: 10 * int(word) + 9 if tens else int(word) for word in right | wrong}  # the latest year it can go on to
    first = {word: 10 * int(word) if tens else int(word) for word in right | wrong}
    assert begin.startswith(century) and all(first[word] > year for word in right) and all(last[word] <= year for word in wrong)
    assert not tens or right | wrong == set("0123456789")


def test_a_vocabulary_without_the_words_is_refused():
    with pytest.raises(PromptError, match="0 of the 40 names as single tokens, and 4 are needed"):
        behaviour("ioi").prompts(2, tokenizer=CharTokenizer(list("abcdefghijklmnopqrstuvwxyz "), bos_token="a"))
    with pytest.raises(PromptError, match="give the model's tokenizer"):
        behaviour("induction").prompts(2)
    with pytest.raises(PromptError, match="asked for 0 prompts"):
        behaviour("induction").prompts(0, tokenizer=word_tokenizer())


def test_unknown_names_are_refused_with_those_that_there_are():
    with pytest.raises(UnknownTask, match="did you mean 'palindromes'"):
        behaviour("palindrome")
    assert {"indirect-objects", "greater-than", "first-unique-char"} <= set(behaviour_names())


def test_random_tokens_can_repeat_without_a_tokenizer():
    task = behaviour("induction")
    prompts = task.tokens_prompts(20, 50, seed=1, first=0)  # type: ignore[attr-defined]
    for row, length in zip(prompts.tokens.tolist(), prompts.lengths.tolist(), strict=True):
        row = row[:length]
        assert row[0] == 0 and 0 not in row[1:]
        earlier = row.index(row[-1])
        assert row[1 + task.length :] == row[1 : earlier + 1]  # type: ignore[attr-defined]
    assert torch.equal(prompts.answers, prompts.tokens.gather(1, prompts.place("Answer")[:, None])[:, 0])
    assert isinstance(prompts, Prompts)
