"""What an analysis asks of a model or a cache: the sites it needs, with a batch axis, and names to call things by.

Analyses take a network (and tokens, which it then runs on, keeping no more than needed) or a cache of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import MissingActivation, ShapeError
from cutaway.model.transformer import Transformer
from cutaway.runs.activation_cache import ActivationCache
from cutaway.tokens import encode, to_single_token

Subject = Transformer | ActivationCache
ARROW = " → "


def network(subject: Subject) -> Transformer:
    """The network that is asked about."""
    return subject.model if isinstance(subject, ActivationCache) else subject


def run_for(subject: Subject, tokens: Any, sites: Sequence[str], asker: str) -> ActivationCache:
    """A cache that holds these sites: the given one, or that of a run on `tokens`.

    Raises:
        MissingActivation: the given cache lacks some; says which, and the call that keeps them.
        ShapeError: a network without tokens.
    """
    if isinstance(subject, ActivationCache):
        if absent := [name for name in sites if name not in subject.cache_dict]:
            shown = ", ".join(map(repr, absent[:3])) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
            raise MissingActivation(
                f"{asker} needs {shown}, which this run did not keep; run again with them: "
                f"model.run_with_cache(tokens, names_filter={_filter(sites)}), or pass the model and the tokens instead"
            )
        return subject
    if tokens is None:
        raise ShapeError(f"{asker} needs tokens to run the network on: pass tokens, or a cache of a run instead of the model")
    with torch.no_grad():
        _, store = subject.run_with_cache(tokens, names_filter=list(sites), return_type=None)
    return store if isinstance(store, ActivationCache) else ActivationCache(store, subject)


def _filter(sites: Sequence[str]) -> str:
    if len(sites) <= 3:
        return repr(list(sites))
    lasts = tuple(dict.fromkeys(".".join(name.split(".")[2:]) if name.startswith("blocks.") else name for name in sites))
    return f"lambda name: name.endswith({lasts!r})"


def kept(cache: ActivationCache, name: str) -> Tensor:
    """A kept activation with a batch axis, in float32 at least."""
    tensor = cache.cache_dict[name].detach()
    tensor = tensor if cache.has_batch_dim else tensor.unsqueeze(0)
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def scale_of(cache: ActivationCache, name: str) -> Tensor:
    """A kept norm scale `[batch, pos, 1]`; where inputs are split by head they must agree.

    Raises:
        ShapeError: they differ, because somebody edited one of the inputs.
    """
    scale = kept(cache, name)
    if scale.ndim == 4:
        if not torch.equal(scale, scale[:, :, :1].expand_as(scale)):
            raise ShapeError(f"{name!r} differs between heads, so no one scale fits the stream that they read")
        scale = scale[:, :, 0]
    return scale


def as_tokens(model: Transformer, tokens: Any) -> Int[Tensor, "batch pos"]:
    """Text, a list of texts, or token ids as `[batch, pos]`."""
    return real_tokens(model, tokens)[0]


def real_tokens(model: Transformer, tokens: Any) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"] | None]:
    """Tokens of a text or texts, and which of them are no padding (None: all)."""
    if isinstance(tokens, Tensor):
        return (tokens if tokens.ndim == 2 else tokens[None]), None
    if isinstance(tokens, str) or (isinstance(tokens, list | tuple) and tokens and isinstance(tokens[0], str)):
        side, device = model.default_padding_side, model.W_U.device
        bos = model.cfg.default_prepend_bos
        ids, mask = encode(model.tokenizer, tokens, prepend_bos=bos, padding_side=side, n_ctx=model.cfg.n_ctx, device=device)
        real = mask.bool()
        return ids, None if bool(real.all()) else real
    return real_tokens(model, torch.as_tensor(tokens))


def head_names(cfg: HookedTransformerConfig, layers: Iterable[int] | None = None) -> list[str]:
    """`0.0`, `0.1`, …: layer and head."""
    return [f"{layer}.{head}" for layer in (range(cfg.n_layers) if layers is None else layers) for head in range(cfg.n_heads)]


def vocabulary(model: Transformer, vocab: Sequence[str] | None = None, size: int | None = None) -> list[str]:
    """What each token is called: `vocab`, else the tokenizer's strings, else numbers.

    Raises:
        ShapeError: `vocab` has not as many names as there are tokens.
    """
    size = model.cfg.d_vocab if size is None else size
    if vocab is not None:
        if len(vocab) < size:
            raise ShapeError(f"vocab has {len(vocab)} names, but there are {size} tokens")
        return list(vocab[:size])
    if model.tokenizer is None:
        return [str(token) for token in range(size)]
    known = len(model.tokenizer)
    return [token_name(model, token) if token < known else str(token) for token in range(size)]


def token_name(model: Transformer, token: int, vocab: Sequence[str] | None = None) -> str:
    """What one token is called."""
    if vocab is not None:
        return vocab[token]
    return str(token) if model.tokenizer is None else str(model.tokenizer.decode([token]))


def single_token(model: Transformer, token: str | int, vocab: Sequence[str] | None = None) -> int:
    """The id of one token, given as text or as a number.

    Raises:
        TokenError: the text is no single token, or there is no tokenizer to ask.
    """
    if not isinstance(token, str):
        return int(token)
    if vocab is not None and token in vocab:
        return list(vocab).index(token)
    return to_single_token(model.tokenizer, token)
