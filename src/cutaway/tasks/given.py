"""Prompts from files: what can be named of them without a behaviour, and pairs where none are given.

Where a file has no minimal pairs, each prompt's counterpart is another one of the same form (as many tokens, answers at the same
places) whose answers differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cutaway.axes import Tokens
from cutaway.errors import PromptError
from cutaway.prompts import Prompts
from cutaway.tasks.behaviour import Algorithmic, Behaviour, Sources, Where
from cutaway.tasks.behaviours import behaviour
from cutaway.tasks.induction import Induction
from cutaway.tasks.language import Language

VOCABULARY = "vocabulary.json"
LARGE = 20_000_000  # parameters from which on fewer prompts are drawn
FEW, MANY = 48, 300  # prompts for large models and for small ones
TOKENS = 24_000  # of all prompts that are run, about


class Given(Behaviour):
    """A behaviour that is known by its prompts only."""

    name = "the examples"
    summary = ""

    def __init__(self, answers_are_tokens: bool = True) -> None:
        self.named = answers_are_tokens

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        """Whether the answer stands in the prompt."""
        if prompts.several or not self.named:
            return {}
        there = (self.sources(prompts)["the answer"]).any(-1)
        return {"in the prompt": prompts.answered & there, "not in the prompt": prompts.answered & ~there}

    def sources(self, prompts: Prompts) -> dict[str, Sources]:
        """The position mirrored at the prompt's middle, and the tokens that are the answer.

        Where the mirrored position is the first token, the query's own or the one before it, it has that plainer name alone.
        """
        at = torch.arange(prompts.tokens.shape[1])
        mirrored = at[:, None] + at == prompts.lengths[:, None, None] - 1
        plainer = (at == 0) | (at == at[:, None]) | (at == at[:, None] - 1)
        found = {"the mirrored position": mirrored & ~plainer}
        if self.named and not prompts.several:
            found["the answer"] = (prompts.tokens[:, None, :] == prompts.labels[:, :, None]).tril()
        return found

    def mistakes(self, prompts: Prompts, predicted: Tokens) -> dict[str, Where]:
        """Whether what was said instead stands in the prompt."""
        if not self.named:
            return {}
        wrong = prompts.answered & (predicted != prompts.labels)
        there = (prompts.tokens[:, None, :] == predicted[:, :, None]).tril().any(-1)
        return {"a token of the prompt": wrong & there, "another token": wrong & ~there}


def of_behaviour(
    name: str, model: Any, size: int | None = None, seed: int = 0, *, prepend_bos: bool = True
) -> tuple[Behaviour, Prompts]:
    """A behaviour by its name, and prompts of it in the model's tokens; induction in any tokens where its words are not there.

    Raises:
        UnknownTask: there is no such behaviour.
        PromptError: the vocabulary lacks its words, or is not its own.
    """
    chosen, cfg = behaviour(name), model.cfg
    count = size or (FEW if sum(one.numel() for one in model.parameters()) > LARGE else MANY)
    if isinstance(chosen, Algorithmic) and cfg.d_vocab != len(chosen.vocabulary):
        raise PromptError(
            f"{chosen.name} has a vocabulary of its own, of {len(chosen.vocabulary)} tokens, and this model has {cfg.d_vocab:,}"
        )
    if isinstance(chosen, Induction) and not chosen.has_words(model.tokenizer):
        first = getattr(model.tokenizer, "bos_token_id", None) if prepend_bos else None
        return chosen, chosen.tokens_prompts(count, cfg.d_vocab, seed, first=first)
    if isinstance(chosen, Language):
        return chosen, chosen.prompts(count, seed, model.tokenizer, prepend_bos=prepend_bos)
    return chosen, chosen.prompts(count, seed, model.tokenizer)


def with_pairs(prompts: Prompts, seed: int = 0) -> Prompts:
    """The prompts that have another of the same form with other answers, with it as counterpart; all where too few have."""
    if prompts.corrupted is not None:
        return prompts
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    forms: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row in order:
        forms.setdefault((int(prompts.lengths[row]), tuple(prompts.right[row])), []).append(row)
    partner: dict[int, int] = {}
    for rows in forms.values():
        for number, row in enumerate(rows):
            others = rows[number + 1 :] + rows[:number]
            found = next((other for other in others[:20] if dict(prompts.right[other]) != dict(prompts.right[row])), None)
            if found is not None:
                partner[row] = found
    rows = sorted(partner)
    if len(rows) < max(8, len(prompts) // 4):
        return prompts
    chosen, other = prompts[rows], prompts[[partner[row] for row in rows]]
    both = zip(chosen.right, other.right, strict=True)
    wrong = tuple({at: tokens for at, tokens in theirs.items() if tokens != mine[at]} for mine, theirs in both)
    return replace(chosen, corrupted=other.without_counterparts(), wrong=() if prompts.several else wrong)


def vocabulary(*folders: Path) -> Sequence[str] | None:
    """What tokens are called, where a folder of the model or of the examples says it in `vocabulary.json`."""
    for folder in folders:
        file = folder / VOCABULARY
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(found, list) and all(isinstance(word, str) for word in found):
                return found
    return None


def fitted(prompts: Prompts, model: Any, size: int | None, seed: int) -> Prompts:
    """As many of the prompts as a report runs of a model, drawn at random where there are more."""
    large = sum(one.numel() for one in model.parameters()) > LARGE
    most = size or min(FEW if large else MANY, max(24, TOKENS // prompts.tokens.shape[1]))
    if len(prompts) <= most:
        return prompts
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))[:most]
    return prompts[sorted(order.tolist())]
