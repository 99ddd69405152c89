"""Generation: tokens one after another, with kept keys and values, under whatever hooks are attached.

Each step is an ordinary run of the network from where the last one stood, so hooks fire at every step; those
that need to know where they are read `model.current.start`, the position of the step's first token, and `model.prompt_columns`.
Logits are computed where a token is drawn: at the last position only. Where nobody listens, a step may check several tokens of a
draft at once (see `drafts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway import tokens as text
from cutaway.axes import Tokens
from cutaway.errors import ConfigError, NotFinite, TokenError, nearest
from cutaway.model.key_values import KeyValueCache
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import at_least, check_options, options
from cutaway.runs.drafts import Drafts

RETURN_TYPES = ("input", "str", "tokens", "tensor", "embeds")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from logits.

    Args:
        do_sample: draw; otherwise the likeliest token is taken.
        top_k: only among this many likeliest tokens.
        top_p: only among the likeliest tokens that together have this probability.
        temperature: divides the logits; 0 takes the likeliest token.
        freq_penalty: lowers a token's logit by this much for each time it occurs already.

    Raises:
        ConfigError: a number that makes no sense.
    """

    do_sample: bool = True
    top_k: int | None = None
    top_p: float | None = None
    temperature: float = 1.0
    freq_penalty: float = 0.0

    def __post_init__(self) -> None:
        check_options(vars(self), top_k=1, top_p=(0, 1), temperature=(0, math.inf), freq_penalty=(0, math.inf))
        if self.top_p == 0:
            raise ConfigError("top_p=0 leaves no token; take temperature=0 for the likeliest one")
        named = "do_sample=False" if not self.do_sample else "temperature=0" if self.temperature == 0 else None
        drawing = {"top_k": self.top_k, "top_p": self.top_p, "freq_penalty": self.freq_penalty or None}
        if not self.do_sample and self.temperature not in (0, 1):
            drawing["temperature"] = self.temperature
        without = [f"{name}={value}" for name, value in drawing.items() if value is not None]
        if named and without:
            raise ConfigError(
                f"with {named} the likeliest token is taken, so {', '.join(without)} can have no effect; leave it out"
            )
        if self.top_k is not None and self.top_p is not None:
            raise ConfigError(f"with top_k={self.top_k}, top_p={self.top_p} can have no effect; give one of them")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return not self.do_sample or self.temperature == 0


def sample_logits(
    final_logits: Float[Tensor, "batch d_vocab_out"],
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    tokens: Tokens | None = None,
    mask: Tokens | None = None,
) -> Int[Tensor, "batch"]:
    """One token per row, drawn as `Sampling` describes; a frequency penalty counts in `tokens`, where `mask` is not 0."""
    if temperature == 0:
        return final_logits.argmax(-1)
    logits = final_logits.float() / temperature
    if freq_penalty > 0:
        if tokens is None:
            raise ConfigError("a frequency penalty needs the tokens so far: pass tokens=")
        counted = (torch.ones_like(tokens) if mask is None else mask).to(logits)
        counts = torch.zeros_like(logits).scatter_add_(1, tokens.long().to(logits.device), counted)
        logits = logits - freq_penalty * counts
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    elif top_p is not None:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)
        before[:, 0] = 0  # the likeliest token always stays
        logits = logits.masked_fill((before > top_p).scatter(-1, order, before > top_p), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, replacement=True)[:, 0]


def stream(
    model: Transformer,
    tokens: Tokens,
    max_new_tokens: int,
    *,
    attention_mask: Tokens | None = None,
    sampling: Sampling = Sampling(),
    stop_tokens: Sequence[int] = (),
    use_past_kv_cache: bool = True,
) -> Iterator[Int[Tensor, "batch"]]:
    """Yield the next token of each row, up to `max_new_tokens` times, until every row has drawn a stop token.

    A row that has finished goes on yielding the first of the stop tokens. The likeliest tokens of one row are drafted from what
    it repeats, where nobody listens (see `drafts.py`).

    Args:
        attention_mask: `[batch, pos]`, 0 where a row is padded (on the left).

    Raises:
        ContextTooLong: prompt and new tokens together are more than the model's positions.
    """
    text.check_length(tokens.shape[1] + max_new_tokens, model.cfg.n_ctx, reload=model.cfg.takes_longer)
    kept = KeyValueCache.init_cache(model.cfg, tokens.device, len(tokens)) if use_past_kv_cache else None
    finished: Bool[Tensor, "batch"] = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    drafts = Drafts() if sampling.greedy and len(tokens) == 1 and attention_mask is None else None
    foreseen: list[int] = []
    so_far, new, real = tokens, tokens, attention_mask
    for step in range(max_new_tokens):
        with _generating(model, tokens.shape[1]):
            if step and drafts is not None and kept is not None and not foreseen:
                foreseen = drafts.foreseen(model, so_far, kept, max_new_tokens - step - 1)
            if not foreseen:
                logits = model.last_logits(new if kept is not None else so_far, attention_mask, kept)[:, 0]
        if foreseen:
            sampled = new.new_tensor([foreseen.pop(0)])
        elif bool(logits.amax(-1).isfinite().all()):
            sampled = _draw(logits, sampling, so_far, real)
        else:
            raise NotFinite(f"the logits after {so_far.shape[1]} tokens are NaN or infinite, so there is no next token")
        if stop_tokens:
            sampled = sampled.masked_fill(finished, stop_tokens[0])
            finished = finished | torch.isin(sampled, torch.tensor(stop_tokens, device=sampled.device))
        yield sampled
        if stop_tokens and bool(finished.all()):
            return
        new = sampled[:, None]
        so_far = torch.cat([so_far, new.to(so_far.dtype)], dim=1)
        real = None if real is None else torch.cat([real, torch.ones_like(new).to(real)], dim=1)
        if attention_mask is not None:
            one = torch.ones_like(new)
            attention_mask = one if kept is not None else torch.cat([attention_mask, one], dim=1)


@contextmanager
def _generating(model: Transformer, prompt_columns: int) -> Iterator[None]:
    model.prompt_columns = prompt_columns
    try:
        with torch.no_grad():
            yield
    finally:
        model.prompt_columns = None


def _draw(logits: Float[Tensor, "batch d_vocab_out"], how: Sampling, tokens: Tokens, mask: Tokens | None) -> Int[Tensor, "batch"]:
    temperature = 0.0 if how.greedy else how.temperature
    return sample_logits(logits, how.top_k, how.top_p, temperature, how.freq_penalty, tokens, mask)


@options(max_new_tokens=0)
def generate(
    model: Transformer,
    input: Any,
    max_new_tokens: int,
    *,
    stop_at_eos: bool = True,
    eos_token_id: int | Sequence[int] | None = None,
    sampling: Sampling = Sampling(),
    use_past_kv_cache: bool = True,
    prepend_bos: bool | None = None,
    padding_side: str | None = None,
    return_type: str | None = "input",
    verbose: bool = True,
) -> Any:
    """Continue a text, texts (padded on the left) or tokens; gives back the prompt with what was generated.

    Args:
        stop_at_eos: stop a row when it draws `eos_token_id` (or any of several; where None, the tokenizer's, and those that the
            model's `generation_config.json` names).
        return_type: "input" (as the input came), "str", "tokens" (or "tensor"), or "embeds".
        verbose: show progress.

    Raises:
        ConfigError: `return_type` is not known, or an option can have no effect.
        NotFinite: the model's logits are NaN or infinite.
        TokenError: `stop_at_eos` without an EOS token, or tokens outside the vocabulary.
        ContextTooLong: prompt and new tokens together are more than the model's positions.
    """
    kind = _return_type(input, return_type)
    if eos_token_id is not None and not stop_at_eos:
        raise ConfigError(f"with stop_at_eos=False, eos_token_id={eos_token_id} can have no effect; leave it out")
    tokens, mask = _prompts(model, input, prepend_bos, padding_side or "left")
    stops = _stop_tokens(model, eos_token_id) if stop_at_eos else []
    steps = stream(
        model,
        tokens,
        max_new_tokens,
        attention_mask=mask,
        sampling=sampling,
        stop_tokens=stops,
        use_past_kv_cache=use_past_kv_cache,
    )
    columns = [column[:, None] for column in _with_progress(steps, max_new_tokens, shown=verbose)]
    out = torch.cat([tokens, *(column.to(tokens.dtype) for column in columns)], dim=1)
    if kind == "str":
        rows = [_words(model, row, None if mask is None else mask[index]) for index, row in enumerate(out)]
        several = isinstance(input, list) and not text.is_conversation(input)
        return rows if several else rows[0] if len(rows) == 1 else rows
    return model.embed(out) if kind == "embeds" else out


def _prompts(model: Transformer, input: Any, prepend_bos: bool | None, side: str) -> tuple[Tokens, Tokens | None]:
    """Tokens and mask of prompts that end where generation begins.

    Raises:
        TokenError: rows end in padding, after which there is nothing to go on with.
    """
    tokens, padding = model.tokens_and_padding(input, prepend_bos, side)
    if padding is None and isinstance(input, Tensor) and len(tokens) > 1:  # padded on the right, and taken for prompts
        padding = model.tokens_and_padding(input, prepend_bos, "right")[1]
    if padding is not None and not bool(padding[:, -1].all()):
        row = int((padding[:, -1] == 0).nonzero()[0])
        raise TokenError(
            f"row {row} of the prompts ends in padding, and generation goes on after the last token: pad on the left "
            "(padding_side='left'), or give the rows as texts"
        )
    return tokens, padding


def _words(model: Transformer, row: Int[Tensor, "pos"], mask: Int[Tensor, "prompt"] | None) -> str:
    """One row as text, without padding and special tokens."""
    ids = row if mask is None else torch.cat([row[: len(mask)][mask.bool()], row[len(mask) :]])
    return str(model.tokenizer.decode(ids.tolist(), skip_special_tokens=True))


def _return_type(input: Any, return_type: str | None) -> str:
    if return_type not in (*RETURN_TYPES, None):
        hint = nearest(str(return_type), RETURN_TYPES)
        raise ConfigError(f"return_type={return_type!r} is not known{hint}; there are {', '.join(RETURN_TYPES)}")
    if return_type in ("input", None):
        return "tokens" if isinstance(input, Tensor | Mapping) else "str"
    return "tokens" if return_type == "tensor" else str(return_type)


def _stop_tokens(model: Transformer, given: int | Sequence[int] | None) -> list[int]:
    """The tokens that end a row, the one that fills up finished rows first."""
    own = None if model.tokenizer is None else model.tokenizer.eos_token_id
    if given is None:
        if model.end_tokens:
            return list(dict.fromkeys([int(own), *model.end_tokens] if own is not None else model.end_tokens))
        if own is None:
            raise TokenError("stop_at_eos needs an EOS token, and there is none: pass eos_token_id=, or stop_at_eos=False")
        return [int(own)]
    stops = [at_least(one, 0, "eos_token_id") for one in ([given] if isinstance(given, int) else given)]
    if not stops or max(stops) >= model.cfg.d_vocab_out:
        raise TokenError(f"eos_token_id={given!r} can never be drawn: the vocabulary has {model.cfg.d_vocab_out} tokens, from 0")
    return [int(own), *stops] if own in stops else stops


def stops_of(model: Transformer) -> list[int]:
    """What ends a row by default; nothing, where there is no EOS token."""
    own = None if model.tokenizer is None else model.tokenizer.eos_token_id
    return _stop_tokens(model, None) if own is not None or model.end_tokens else []


def _with_progress(steps: Iterator[Tensor], total: int, *, shown: bool) -> Iterator[Tensor]:
    if not shown:
        yield from steps
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(steps, description="Generating", total=total, transient=True, console=Console(stderr=True))
