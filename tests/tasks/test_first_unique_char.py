"""The dataset against the published problem's sequences, and its labels against a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import ConfigError, TokenError, UnknownTask
from cutaway.tasks import FirstUniqueChar, FirstUniqueCharTask, find, names
from cutaway.tasks.first_unique_dataset import NULL, first_unique


def by_loop(row: list[int], null: int) -> list[int]:
    """The definition, said plainly."""
    answers = [null]
    for end in range(2, len(row) + 1):
        prefix = row[1:end]
        answers.append(next((letter for letter in prefix if prefix.count(letter) == 1), null))
    return answers


def test_published_examples_of_three_letters():
    dataset = FirstUniqueChar(size=2, vocab=list("abc"), seq_len=6, seed=42)
    assert ["".join(row) for row in dataset.str_toks] == ["?acbba", "?cbcbc"]
    assert ["".join(row) for row in dataset.str_tok_labels] == ["?aaaac", "?ccb??"]


def test_published_examples_of_ten_letters():
    dataset = FirstUniqueChar(size=1000, vocab=list("abcdefghij"), seq_len=20, seed=42)
    first = ["".join(row) for row in dataset.str_toks[:3]]
    assert first == ["?chgegfaeadieaebcffh", "?gjgdbjdbjhjcafjdejg", "?cagchjhddedhajajgjf"]
    assert dataset.vocab == [*"abcdefghij", NULL]
    assert dataset.toks.shape == dataset.labels.shape == (1000, 20)
    assert dataset.toks.dtype == dataset.labels.dtype == torch.int64


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 6), st.integers(0, 2**31))
def test_labels_are_those_of_a_plain_loop(letters: int, length: int, size: int, seed: int):
    dataset = FirstUniqueChar(size, [chr(97 + i) for i in range(letters)], length, seed)
    assert dataset.labels.tolist() == [by_loop(row, letters) for row in dataset.toks.tolist()]


@pytest.mark.parametrize("word", ["?aabbccddeeffgghhiij", "?abcdefghijjihgfedcb", "?aaaaaaaaaaaaaaaaaaa", "?abcdabcd", "?"])
def test_labels_of_chosen_words(word: str):
    row = [10 if letter == NULL else ord(letter) - 97 for letter in word]
    assert first_unique(torch.tensor([row]), 10).tolist() == [by_loop(row, 10)]


def test_slices_give_tokens_and_labels():
    dataset = FirstUniqueChar(7, seq_len=5, seed=1)
    toks, labels = dataset[2:5]
    assert torch.equal(toks, dataset.toks[2:5]) and torch.equal(labels, dataset.labels[2:5])
    assert len(dataset) == dataset.size == 7


def test_torchs_global_state_is_left_alone():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    FirstUniqueChar(10)
    assert torch.equal(torch.rand(4), wanted)


def test_training_draws_are_sequences_of_the_task():
    task = FirstUniqueCharTask(vocab=tuple("abcd"), seq_len=9)
    tokens = task.draw(50, torch.Generator().manual_seed(0))
    labels = task.answers(tokens)
    assert labels.tolist() == [by_loop(row, 4) for row in tokens.tolist()]
    again = task.draw(50, torch.Generator().manual_seed(0))
    other = task.draw(50, torch.Generator().manual_seed(1))
    assert torch.equal(tokens, again) and not torch.equal(tokens, other)


def test_the_tokenizer_agrees_with_the_dataset():
    task = FirstUniqueCharTask()
    dataset = task.dataset(size=3)
    assert task.tokenizer().encode("".join(dataset.str_toks[1])) == dataset.toks[1].tolist()


def test_the_default_configuration_is_the_published_models():
    cfg = FirstUniqueChar.config()
    sizes = (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_head, cfg.n_ctx, cfg.d_vocab, cfg.d_vocab_out)
    assert sizes == (2, 3, 42, 14, 20, 11, 11)
    assert cfg.attn_only and cfg.normalization_type == "LN" and cfg.seed == 42
    assert cfg.use_split_qkv_input and cfg.use_attn_result


@pytest.mark.parametrize(
    "wrong",
    [{"size": -1}, {"seq_len": 0}, {"vocab": []}, {"vocab": list("aab")}, {"vocab": list("ab?")}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_impossible_datasets_are_refused(wrong: dict):
    with pytest.raises(ConfigError):
        FirstUniqueChar(**({"size": 2} | wrong))


@pytest.mark.parametrize("row", [[10, 11], [10, -1], [0, 1], [10, 1, 10]])
def test_labels_of_strange_tokens_are_refused(row: list[int]):
    with pytest.raises(TokenError):
        first_unique(torch.tensor([row]), 10)


def test_an_unknown_task_names_the_nearest():
    assert "first-unique-char" in names()
    with pytest.raises(UnknownTask, match="did you mean 'first-unique-char'"):
        find("first-uniqe-char")


def test_a_task_without_text_takes_none():
    with pytest.raises(ConfigError, match="takes no text"):
        find("first-unique-char", text=["story.txt"])
    with pytest.raises(ConfigError, match="--text FILE"):
        find("attn-only-2l")
