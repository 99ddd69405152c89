"""Behaviours of language models: texts from templates, in whatever tokens a model has, with every role's position.

A template's slots are filled with words that are one token each in the model's vocabulary, so that a text and its
counterpart, which has another word in one slot, align position by position.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from cutaway.axes import Tokens
from cutaway.errors import PromptError, TokenError
from cutaway.prompts import Prompts
from cutaway.tasks.behaviour import Behaviour, Sources, Where, check_count
from cutaway.tokens import to_tokens

SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class FilledTemplate:
    """One filled template: words by slot, and those of its counterpart; answers are texts of one token each."""

    template: str
    words: Mapping[str, str]
    corrupted: Mapping[str, str]
    right: tuple[str, ...]
    wrong: tuple[str, ...]


class Language(Behaviour):
    """A behaviour read at the end of a text. Subclasses draw templates with words; slots that begin with a capital are roles."""

    several = False

    def one(self, tokenizer: Any, generator: torch.Generator) -> FilledTemplate:
        """One filled template.

        Raises:
            PromptError: the vocabulary has too few of the words.
        """
        raise TypeError(f"{type(self).__name__} draws nothing")  # subclasses do

    def prompts(self, count: int, seed: int = 0, tokenizer: Any = None, *, prepend_bos: bool = True) -> Prompts:
        """`count` texts with answers, roles and counterparts; each begins with BOS, whatever the model's own texts do."""
        if tokenizer is None:
            raise PromptError(f"{self.name} is a behaviour of language: give the model's tokenizer")
        check_count(count)
        generator = torch.Generator().manual_seed(seed)
        samples = [self.one(tokenizer, generator) for _ in range(count)]
        clean = [_laid_out(tokenizer, one.template, one.words, prepend_bos) for one in samples]
        other = [_laid_out(tokenizer, one.template, one.corrupted, prepend_bos) for one in samples]
        roles = [role for role in clean[0][2] if all(role in places for _, _, places in clean)]
        ids = [tuple(_ids(tokenizer, words) for words in (one.right, one.wrong)) for one in samples]

        def made(laid: Sequence[tuple[str, list[int], dict[str, int]]], **known: Any) -> Prompts:
            places = {role: torch.tensor([where[role] for _, _, where in laid]) for role in roles}
            return Prompts.of_rows([row for _, row, _ in laid], roles=places, texts=tuple(text for text, _, _ in laid), **known)

        ends = [len(row) - 1 for _, row, _ in clean]
        return made(
            clean,
            right=tuple({end: right} for end, (right, _) in zip(ends, ids, strict=True)),
            wrong=tuple({end: wrong} for end, (_, wrong) in zip(ends, ids, strict=True)),
            corrupted=made(other),
            several=self.several,
        )

    def sources(self, prompts: Prompts) -> dict[str, Sources]:
        """The position of each role, from it on."""
        at = torch.arange(prompts.tokens.shape[1])
        found = {}
        for role, places in prompts.roles.items():
            if role != "end":
                here = at == places[:, None]
                found[role] = here[:, None, :] & (at[:, None] >= at)
        first = (at == 0) & (at[:, None] >= at)
        return {**found, "the first token": first.expand(len(prompts), -1, -1)}

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        return {"all": prompts.answered}

    def mistakes(self, prompts: Prompts, predicted: Tokens) -> dict[str, Where]:
        """The wrong answer, or anything else."""
        missed = prompts.answered & ~_is_one_of(prompts.right, predicted)
        opposite = missed & _is_one_of(prompts.wrong, predicted)
        return {"the wrong answer": opposite, "something else": missed & ~opposite}


def _is_one_of(answers: Sequence[Mapping[int, tuple[int, ...]]], predicted: Tokens) -> Where:
    found = torch.zeros_like(predicted, dtype=torch.bool)
    for row, at in enumerate(answers):
        for position, tokens in at.items():
            found[row, position] = int(predicted[row, position]) in tokens
    return found


def _laid_out(
    tokenizer: Any, template: str, words: Mapping[str, str], prepend_bos: bool
) -> tuple[str, list[int], dict[str, int]]:
    """A filled template: its text, its tokens, and the position of each role."""
    text, starts, end = "", {}, 0
    for slot in SLOT.finditer(template):
        text += template[end : slot.start()]
        if slot[1][0].isupper():
            starts[slot[1]] = len(text)
        text += words[slot[1]]
        end = slot.end()
    text += template[end:]
    row = to_tokens(tokenizer, text, prepend_bos=prepend_bos)[0].tolist()
    places = {
        role: len(to_tokens(tokenizer, text[:start], prepend_bos=prepend_bos)[0]) if start else int(prepend_bos)
        for role, start in starts.items()
    }
    for role, place in places.items():
        expected = _ids(tokenizer, (words[role],))[0]
        if place >= len(row) or row[place] != expected:
            raise PromptError(
                f"the word {words[role]!r} is not a token of its own in {text!r}; this vocabulary cannot be used here"
            )
    return text, row, places


def _ids(tokenizer: Any, words: Sequence[str]) -> tuple[int, ...]:
    return tuple(int(to_tokens(tokenizer, word, prepend_bos=False)[0, 0]) for word in words)


def single(tokenizer: Any, words: Sequence[str], least: int, what: str) -> tuple[str, ...]:
    """Those of the words that are one token in this vocabulary.

    Raises:
        PromptError: fewer than `least`.
    """
    found = _singles(tokenizer, tuple(words))
    if len(found) < least:
        raise PromptError(f"the vocabulary has {len(found)} of the {len(words)} {what} as single tokens, and {least} are needed")
    return found


@lru_cache(maxsize=64)
def _singles(tokenizer: Any, words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in words if is_single(tokenizer, word))


@lru_cache(maxsize=2**14)
def is_single(tokenizer: Any, word: str) -> bool:
    """Whether a word is one token of this vocabulary."""
    try:
        ids = to_tokens(tokenizer, word, prepend_bos=False)[0].tolist()
    except TokenError:  # a vocabulary of characters that lacks some
        return False
    return len(ids) == 1 and tokenizer.decode(ids) == word


def pick(options: Sequence[Any], generator: torch.Generator, count: int = 1) -> list[Any]:
    """`count` different ones, at random."""
    return [options[n] for n in torch.randperm(len(options), generator=generator)[:count].tolist()]


def number(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from `low` up to and without `high`."""
    return int(torch.randint(low, high, (), generator=generator))
