"""What a state asks, in tokens: the two prompts, how they align, the answers and the metric. Behaviours as examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import PromptError, TokenError, UnknownName
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts, word_token
from cutaway.runs import metrics
from cutaway.runs.metrics import Metric
from cutaway.tasks import behaviour, behaviour_names
from cutaway.tokens import check_length, check_tokens, to_str_tokens
from cutaway.workbench.state import Side, State
from cutaway.workbench.switches import unaligned

DRAWN = 16  # examples of a behaviour that a page can choose from
FALLBACK = "The quick brown fox jumps over the"


@dataclass(frozen=True, eq=False)
class PromptPair:
    """The prompts of a state.

    Args:
        tokens: side → `[1, pos]`; the corrupted one may be missing.
        words: side → the tokens as text.
        why: why positions of the two cannot be exchanged; empty where they can.
    """

    tokens: dict[Side, Int[Tensor, "1 pos"]]
    words: dict[Side, list[str]]
    why: str

    def at(self, side: Side, at: int) -> int:
        """The position whose next token is asked for, counted from the start."""
        length = self.tokens[side].shape[1]
        return length - 1 if at < 0 or at >= length else at

    @property
    def differ(self) -> list[int]:
        """Positions at which aligned prompts have other tokens."""
        if self.why or len(self.tokens) < 2:
            return []
        return (self.tokens["clean"] != self.tokens["corrupted"])[0].nonzero().flatten().tolist()


def other_side(side: Side) -> Side:
    """The other prompt."""
    return "corrupted" if side == "clean" else "clean"


def pair_of(model: Transformer, state: State) -> PromptPair:
    """The prompts of a state as tokens.

    Raises:
        TokenError: text that the model cannot read, or none where it must run.
        ContextTooLong: more tokens than the model has positions.
    """
    tokens: dict[Side, Tensor] = {}
    for side, given in (("clean", state.clean), ("corrupted", state.corrupted)):
        if given or side == state.side:
            tokens[side] = _tokens(model, given, state.chat)  # type: ignore[index]
    words = {side: words_of(model, ids[0]) for side, ids in tokens.items()}
    lengths = [ids.shape[1] for ids in tokens.values()]
    why = unaligned(*lengths) if len(set(lengths)) > 1 else "" if len(lengths) > 1 else "there is one prompt only"
    if state.at >= 0 and state.at >= tokens[state.side].shape[1]:
        raise TokenError(f"there is no position {state.at}: the prompt has {tokens[state.side].shape[1]} tokens, counted from 0")
    return PromptPair(tokens, words, why)


def _tokens(model: Transformer, given: Any, chat: bool) -> Int[Tensor, "1 pos"]:
    if not given:
        raise TokenError("the prompt that runs is empty; write one, or run the other")
    if isinstance(given, list):
        tokens = torch.tensor([given], device=model.W_E.device)
        check_tokens(tokens, model.cfg.d_vocab)
    else:
        message = [{"role": "user", "content": given}] if chat else given
        tokens, _ = model.tokens_and_mask(message, None, None)
    check_length(tokens.shape[1], model.cfg.n_ctx, reload=model.cfg.takes_longer)
    return tokens


def words_of(model: Transformer, ids: Int[Tensor, "pos"]) -> list[str]:
    """Tokens as text; as numbers where there is no tokenizer."""
    if model.tokenizer is None:
        return [str(one) for one in ids.tolist()]
    return [str(word) for word in to_str_tokens(model.tokenizer, ids)]


def check_answers(model: Transformer, state: State) -> None:
    """Whether the answers of a state are tokens of the model.

    Raises:
        TokenError: one is no token, or several.
    """
    for given in (state.right, state.wrong):
        if given is not None:
            answer(model, given)


def answer(model: Transformer, given: str | int) -> int:
    """The token of an answer.

    Raises:
        TokenError: it is none, or several.
    """
    token = given if isinstance(given, int) else word_token(model.tokenizer, given)
    if token >= model.cfg.d_vocab_out:
        raise TokenError(f"there is no token {token}: the vocabulary has {model.cfg.d_vocab_out}")
    return token


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens that a metric compares."""

    right: int
    wrong: int


def answers(model: Transformer, state: State, row: Float[Tensor, "1 d"], other: Float[Tensor, "1 d"] | None) -> AnswerTokens:
    """The answers of a state: given ones, else the likeliest next tokens of the clean and of the corrupted prompt.

    Args:
        row, other: logits after the clean prompt (or the only one), and after the corrupted one.
    """
    first = row[0].topk(min(3, row.shape[1])).indices.tolist()
    right = first[0] if state.right is None else answer(model, state.right)
    likely = first if other is None else [int(other[0].argmax()), *first]
    wrong = next((one for one in likely if one != right), right) if state.wrong is None else answer(model, state.wrong)
    return AnswerTokens(right, wrong)


def metric_of(state: State, known: AnswerTokens, at: int) -> Metric:
    """The metric of a state, read at one position."""
    if state.metric == "KL":
        return metrics.kl([at])
    if state.metric == "logit difference":
        return metrics.logit_difference([known.right], [known.wrong], [at])
    return (metrics.probability if state.metric == "probability" else metrics.log_probability)([known.right], [at])


@torch.no_grad()
def measure(metric: Metric, at: int, row: Float[Tensor, "1 d"], clean: Float[Tensor, "1 d"]) -> float:
    """The metric of one run from its logits at the position that it reads."""
    columns = metric.columns()
    picked = [row, clean] if columns is None else [row[:, columns.to(row.device)], clean[:, columns.to(row.device)]]
    place = torch.zeros(1, dtype=torch.long, device=row.device)
    return float(metric.of_tokens(picked[0], place, place + at, picked[1] if metric.compares else None))


# Examples.


def examples(model: Transformer) -> list[str]:
    """The behaviours whose prompts this model can read."""
    return list(_examples(model))


def _examples(model: Transformer) -> Iterator[str]:
    return (name for name in behaviour_names() if _readable(model, name))


def _readable(model: Transformer, name: str) -> bool:
    try:
        behaviour_prompts(model, name)
    except (PromptError, TokenError):
        return False
    return True


def behaviour_prompts(model: Transformer, name: str, count: int = DRAWN) -> Prompts:
    """Prompts of a behaviour.

    Raises:
        UnknownTask: there is no such behaviour.
        PromptError: the model's vocabulary lacks its words, or has other ones.
    """
    one = behaviour(name)
    if one.vocabulary and (model.cfg.model_name != name or len(one.vocabulary) != model.cfg.d_vocab):
        raise PromptError(f"{name} has a vocabulary of its own, which this model does not read")
    found = one.prompts(count, seed=0, tokenizer=model.tokenizer)
    check_tokens(found.tokens, model.cfg.d_vocab)
    check_length(found.tokens.shape[1], model.cfg.n_ctx, reload=model.cfg.takes_longer)
    return found


def example(model: Transformer, name: str, number: int) -> dict[str, Any]:
    """The fields of a state that hold one example of a behaviour.

    Raises:
        UnknownName: there is no such example.
    """
    found = behaviour_prompts(model, name)
    if number >= len(found):
        raise UnknownName(f"{name} has {len(found)} examples here, counted from 0")
    row = found[[number]]
    at = max(row.right[0]) if row.right and row.right[0] else -1
    pair = row.corrupted
    fields: dict[str, Any] = {
        "clean": row.tokens[0].tolist(), "corrupted": "" if pair is None else pair.tokens[0].tolist(), "chat": False,
        "at": -1 if at == row.tokens.shape[1] - 1 else at, "right": _first(row.right, at), "wrong": _first(row.wrong, at),
        "side": "clean", "switches": [], "roles": {role: int(place) for role, place in row.roles.items() if role != "end"},
    }  # fmt: skip
    return fields


def _first(rows: Sequence[Any], at: int) -> int | None:
    found = rows[0].get(at) if rows else None
    return int(found[0]) if found else None


def opening(model: Transformer) -> dict[str, Any]:
    """The fields of the state that a page opens with."""
    if (known := next(_examples(model), None)) is not None:
        return example(model, known, 0)
    if model.tokenizer is None:
        return {"clean": [index % model.cfg.d_vocab for index in range(min(8, model.cfg.n_ctx))]}
    try:
        _tokens(model, FALLBACK, False)
    except TokenError:
        return {"clean": [index % model.cfg.d_vocab for index in range(min(8, model.cfg.n_ctx))]}
    return {"clean": FALLBACK}
