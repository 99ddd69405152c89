"""Tokens: what goes in comes out, BOS is there once, and masks know padding from text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway import tokens as tk
from cutaway.errors import ContextTooLong, TokenError
from tests.architectures import network

LETTERS = "abcdefghij"


@pytest.fixture(scope="session")
def toy() -> tk.CharTokenizer:
    return tk.CharTokenizer([*LETTERS, "?"], bos_token="?")


@pytest.fixture(scope="session")
def gpt2(shared: Path):  # type: ignore[no-untyped-def]
    transformers = pytest.importorskip("transformers")
    return tk.with_special_tokens(transformers.AutoTokenizer.from_pretrained(shared / "data" / "tokenizers" / "gpt2"))


@pytest.fixture(scope="session")
def neox(shared: Path):  # type: ignore[no-untyped-def]
    transformers = pytest.importorskip("transformers")
    return tk.with_special_tokens(transformers.AutoTokenizer.from_pretrained(shared / "data" / "tokenizers" / "gpt-neox-20b"))


class Prepending(tk.CharTokenizer):
    """A tokenizer that puts BOS in front by itself, as Llama's does."""

    def encode(self, text: str, **options: object) -> list[int]:
        return [10, *super().encode(text)]


# Characters.


@given(text=st.text(alphabet=LETTERS + "?", max_size=30))
def test_characters_come_back(text: str) -> None:
    toy = tk.CharTokenizer([*LETTERS, "?"], bos_token="?")
    assert toy.decode(toy.encode(text)) == text
    assert tk.to_string(toy, tk.to_tokens(toy, text)) == [text if text.startswith("?") else "?" + text]
    assert tk.to_str_tokens(toy, text, prepend_bos=False) == list(text)


def test_toy_has_the_published_ids(toy: tk.CharTokenizer) -> None:
    assert tk.to_tokens(toy, "aab").tolist() == [[10, 0, 0, 1]]
    assert tk.to_tokens(toy, "?aab", prepend_bos=False).tolist() == [[10, 0, 0, 1]]
    assert (toy.bos_token_id, toy.pad_token_id, tk.vocabulary_size(toy)) == (10, None, 11)


def test_strange_characters_are_named(toy: tk.CharTokenizer) -> None:
    with pytest.raises(TokenError, match="'z', 'Q' in 'azbQz' is not in the vocabulary a b c d e f g h i j \\?"):
        toy.encode("azbQz")
    with pytest.raises(TokenError, match="there is no token 11; the vocabulary has 11"):
        toy.decode([3, 11])
    with pytest.raises(TokenError, match="bos_token='#' is not in the vocabulary a b"):
        tk.CharTokenizer("ab", bos_token="#")
    with pytest.raises(TokenError, match="must differ"):
        tk.CharTokenizer("aba")


def test_longer_entries_are_found_first() -> None:
    numbers = tk.CharTokenizer(["1", "12", "+", "END", "E"])
    assert numbers.encode("12+1END") == [1, 2, 0, 3]


def test_char_tokenizer_is_written_down_and_read_back(toy: tk.CharTokenizer) -> None:
    assert tk.CharTokenizer.from_dict(toy.to_dict()) == toy
    assert tk.CharTokenizer.from_dict(toy.to_dict() | {"bos_token": None}) != toy


# BOS.


@pytest.mark.parametrize("kind", [tk.CharTokenizer, Prepending])
def test_bos_is_there_once_or_not_at_all(kind: type[tk.CharTokenizer]) -> None:
    tokenizer = kind([*LETTERS, "?"], bos_token="?", pad_token="?")
    assert tk.to_tokens(tokenizer, ["ab", ""]).tolist() == [[10, 0, 1], [10, 10, 10]]
    assert tk.to_tokens(tokenizer, "ab", prepend_bos=False).tolist() == [[0, 1]]
    assert tk.to_single_token(tokenizer, "c") == 2
    assert tk.get_token_position(tokenizer, "b", "abab") == 2
    assert tk.get_token_position(tokenizer, "b", "abab", mode="last", prepend_bos=False) == 3


def test_no_bos_to_put_in_front() -> None:
    with pytest.raises(TokenError, match="no BOS token to put in front; say prepend_bos=False"):
        tk.to_tokens(tk.CharTokenizer("ab"), "ab")


# Padding and masks.


@pytest.mark.parametrize("side", tk.SIDES)
def test_mask_of_tokens_is_the_mask_of_their_text(side: str, gpt2) -> None:  # type: ignore[no-untyped-def]
    """Two routes: the mask known from the lengths, and the mask read off tokens where BOS is padding too."""
    texts = ["Hello there, world", "Hi", "", "One two three four five six seven"]
    tokens, mask = tk.encode(gpt2, texts, padding_side=side)
    assert tokens.shape[1] == 8 and mask.sum(-1).tolist() == [5, 2, 1, 8]
    assert torch.equal(tk.attention_mask(gpt2, tokens, prepend_bos=True, padding_side=side), mask)
    for row, keep, text in zip(tokens, mask.bool(), texts, strict=True):
        assert row[keep].tolist() == tk.to_tokens(gpt2, text)[0].tolist()
        assert (row[~keep] == gpt2.pad_token_id).all()


def test_mask_leaves_tokens_in_the_middle_alone() -> None:
    tokenizer = tk.CharTokenizer("abp?", bos_token="?", pad_token="p")
    tokens = torch.tensor([[2, 2, 3, 2, 0], [3, 0, 2, 1, 2]])
    assert tk.attention_mask(tokenizer, tokens, padding_side="left").tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert tk.attention_mask(tokenizer, tokens, padding_side="right").tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert tk.attention_mask(None, tokens).all()


def test_mask_without_bos_counts_every_pad(gpt2) -> None:  # type: ignore[no-untyped-def]
    tokens, mask = tk.encode(gpt2, ["Hello there, world", "Hi"], prepend_bos=False, padding_side="left")
    assert torch.equal(tk.attention_mask(gpt2, tokens, prepend_bos=False, padding_side="left"), mask)


def test_padding_needs_a_token(toy: tk.CharTokenizer) -> None:
    assert tk.to_tokens(toy, ["ab", "cd"]).shape == (2, 3)
    assert tk.to_tokens(toy, ["ab", "c"], padding_side="left").tolist() == [[10, 0, 1], [10, 10, 2]]  # BOS pads
    with pytest.raises(TokenError, match="no pad_token"):
        tk.to_tokens(tk.CharTokenizer("abc"), ["ab", "c"], prepend_bos=False)
    with pytest.raises(TokenError, match="padding_side='up' is not known"):
        tk.to_tokens(toy, "ab", padding_side="up")


def test_longer_than_the_context(toy: tk.CharTokenizer) -> None:
    assert tk.to_tokens(toy, "abcdef", n_ctx=4).tolist() == [[10, 0, 1, 2]]
    assert tk.to_tokens(toy, "abcdef", n_ctx=4, truncate=False).shape == (1, 7)  # a run checks
    with pytest.raises(ContextTooLong, match="7 tokens are more than the 4 positions"):
        tk.encode(toy, "abcdef", n_ctx=4, truncate=False)
    with pytest.raises(ContextTooLong, match="2 tokens after 3 are more than the 4"):
        tk.check_length(2, 4, past=3)
    tk.check_length(1, 4, past=3)


# Text.


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_real_tokenizers_there_and_back(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    text = "The quick  brown fox — naïve 日本語 \n\t jumps"
    tokens = tk.to_tokens(tokenizer, text)
    assert tokens[0, 0] == tokenizer.bos_token_id and (tokens[0, 1:] != tokenizer.bos_token_id).all()
    assert tk.to_string(tokenizer, tokens[0]) == "<|endoftext|>" + text
    assert tk.to_string(tokenizer, tokens) == ["<|endoftext|>" + text]
    parts = tk.to_str_tokens(tokenizer, "The quick brown fox")
    assert parts == ["<|endoftext|>", "The", " quick", " brown", " fox"]
    assert tokenizer.pad_token == tokenizer.bos_token == "<|endoftext|>"


def test_gpt2_ids(gpt2) -> None:  # type: ignore[no-untyped-def]
    assert tk.to_tokens(gpt2, "Hello, world").tolist() == [[50256, 15496, 11, 995]]
    assert tk.vocabulary_size(gpt2) == 50257
    assert tk.to_single_token(gpt2, " Paris") == 6342
    assert tk.to_single_str_token(gpt2, 6342) == " Paris"
    assert tk.get_token_position(gpt2, " world", "Hello, world") == 3
    assert tk.get_token_position(gpt2, 11, torch.tensor([[5, 11, 11]]), mode="last") == 2
    with pytest.raises(TokenError, match=r"' Parisienne' is 2 tokens, not one: \[' Paris', 'ienne'\]"):
        tk.to_single_token(gpt2, " Parisienne")
    with pytest.raises(TokenError, match="' Paris' is not in 'Hello'"):
        tk.get_token_position(gpt2, " Paris", "Hello")


@pytest.mark.parametrize("form", [torch.tensor([1, 2]), torch.tensor([[1, 2]]), np.array([1, 2]), [1, 2], (1, 2)])
def test_tokens_of_every_kind(form: object, toy: tk.CharTokenizer) -> None:
    assert tk.to_str_tokens(toy, form) == ["b", "c"]


def test_strings_of_every_shape(toy: tk.CharTokenizer) -> None:
    assert tk.to_string(toy, torch.tensor(3)) == "d"
    assert tk.to_string(toy, [torch.tensor([0, 1]), [2]]) == ["ab", "c"]
    assert tk.to_string(toy, [[0, 1], [2, 3]]) == ["ab", "cd"]
    assert tk.to_string(toy, [0, 1]) == "ab"
    assert tk.to_str_tokens(toy, ["a", torch.tensor([1])]) == [["?", "a"], ["b"]]
    assert tk.to_str_tokens(toy, torch.tensor(3)) == ["d"]
    with pytest.raises(TokenError, match=r"shape \[2, 2\] are not one sequence"):
        tk.to_str_tokens(toy, torch.tensor([[1, 2], [3, 4]]))
    with pytest.raises(TokenError, match=r"shape \[1, 1, 1\]"):
        tk.to_string(toy, torch.tensor([[[1]]]))
    with pytest.raises(TokenError, match="must be whole numbers"):
        tk.to_string(toy, torch.tensor([0.5]))


def test_text_without_a_tokenizer() -> None:
    with pytest.raises(TokenError, match="no tokenizer: give tokens instead of text"):
        tk.to_tokens(None, "text")
    with pytest.raises(TokenError, match="no tokenizer"):
        tk.to_string(None, [1])


# What a model asks.


def test_tokens_outside_the_vocabulary() -> None:
    tk.check_tokens(torch.tensor([[0, 6]]), 7)
    with pytest.raises(TokenError, match="no token 7; the model's vocabulary has 7"):
        tk.check_tokens(torch.tensor([[0, 7]]), 7)
    with pytest.raises(TokenError, match="no token -1"):
        tk.check_tokens(torch.tensor([-1]), 7)
    with pytest.raises(TokenError, match="whole numbers, not"):
        tk.check_tokens(torch.tensor([1.0]), 7)
    with pytest.raises(TokenError, match="the text is empty"):
        tk.check_tokens(torch.zeros(1, 0, dtype=torch.long), 7)


def test_every_tokenizer_fits_the_protocol(toy: tk.CharTokenizer, gpt2) -> None:  # type: ignore[no-untyped-def]
    assert isinstance(toy, tk.Tokenizer) and isinstance(gpt2, tk.Tokenizer)


def test_tokenizers_are_kept_as_json(toy: tk.CharTokenizer) -> None:
    assert tk.from_saved(json.loads(json.dumps(tk.to_saved(toy)))) == toy
    with pytest.raises(TokenError, match="cannot be kept with weights"):
        tk.to_saved(object())
    with pytest.raises(TokenError, match="not understood"):
        tk.from_saved({"fast": {"version": "1.0"}})


@pytest.mark.parametrize(("kind", "named", "reloads"), [("gpt2", True, False), ("llama", True, True), ("llama", False, False)])
def test_more_positions_are_advised_only_where_they_can_be_had(kind: str, named: bool, reloads: bool) -> None:
    """Learned positions are as many as they are, and a model of ours has its own."""
    model = network(kind)
    model.cfg.original_architecture = "LlamaForCausalLM" if named else None
    tokens = torch.zeros(1, model.cfg.n_ctx + 1, dtype=torch.long)
    with pytest.raises(ContextTooLong, match="shorten the text") as caught:
        model(tokens)
    assert ("n_ctx=" in str(caught.value)) == reloads
