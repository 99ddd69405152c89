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
from cutaway.errors import MissingActivation, ShapeError, TokenError, UnknownName
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
        ids, mask = model.tokens_and_padding(tokens, None, None)
        return ids, None if mask is None else mask.bool()
    if isinstance(tokens, str) or (isinstance(tokens, list | tuple) and tokens and isinstance(tokens[0], str)):
        side, device = model.default_padding_side, model.W_U.device
        bos = model.cfg.default_prepend_bos
        ids, mask = encode(model.tokenizer, tokens, prepend_bos=bos, padding_side=side, n_ctx=model.cfg.n_ctx, device=device)
        real = mask.bool()
        return ids, None if bool(real.all()) else real
    return real_tokens(model, torch.as_tensor(tokens))


def tokens_of_text(model: Transformer, text: Any) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"] | None]:
    """Like `real_tokens`, but a single text longer than the context becomes several windows, each after a BOS token.

    The windows cover the text once; the last one is padded.
    """
    if not isinstance(text, str):
        return real_tokens(model, text)
    cfg = model.cfg
    ids, _ = encode(model.tokenizer, text, prepend_bos=cfg.default_prepend_bos, truncate=False)
    if ids.shape[1] <= cfg.n_ctx:
        return ids.to(model.W_U.device), None
    bos = getattr(model.tokenizer, "bos_token_id", None) if cfg.default_prepend_bos else None
    has_bos = bos is not None and int(ids[0, 0]) == bos
    body = ids[0, 1:] if has_bos else ids[0]
    room = cfg.n_ctx - has_bos
    rows = -(-len(body) // room)
    padded = torch.cat([body, body.new_zeros(rows * room - len(body))]).view(rows, room)
    real = (torch.arange(rows * room) < len(body)).view(rows, room)
    if has_bos:
        padded = torch.cat([padded.new_full((rows, 1), int(bos or 0)), padded], 1)
        real = torch.cat([torch.ones_like(real[:, :1]), real], 1)
    return padded.to(model.W_U.device), None if bool(real.all()) else real.to(model.W_U.device)


def head_names(cfg: HookedTransformerConfig, layers: Iterable[int] | None = None) -> list[str]:
    """`0.0`, `0.1`, …: layer and head."""
    return [f"{layer}.{head}" for layer in (range(cfg.n_layers) if layers is None else layers) for head in range(cfg.n_heads)]


def head_of(model: Transformer, head: str) -> tuple[int, int]:
    """Layer and head of `1.2`.

    Raises:
        UnknownName: the network has no such head.
    """
    names = head_names(model.cfg)
    if head not in names:
        layers = f"{model.cfg.n_layers} layers of {model.cfg.n_heads} heads"
        raise UnknownName(f"{head!r} is no head; write layer.head, as in '0.1' ({layers})")
    return divmod(names.index(head), model.cfg.n_heads)


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


def target_ids(
    model: Transformer,
    targets: Any,
    tokens: Int[Tensor, "batch pos"] | None,
    shape: Sequence[int],
    vocab: Sequence[str] | None,
    device: torch.device,
    *,
    asker: str,
    real: Bool[Tensor, "batch pos"] | None = None,
    optional: bool = False,
) -> Int[Tensor, "batch pos"]:
    """A target token for every position, negative for none: the next token where `targets` is None.

    `targets` may be one token (text or number), one per example, or one per position. Where `real` says what is no
    padding, padding has no target and is none.

    Raises:
        ShapeError: they do not fit the positions; or there are neither targets nor tokens (unless `optional`).
        TokenError: a text that is no single token, or a token outside the vocabulary.
    """
    batch, length = shape
    if targets is None:
        if tokens is None:
            if optional:
                return torch.full((batch, length), -1, device=device)
            raise ShapeError(f"{asker} needs targets, or tokens whose successors are the targets")
        ids = tokens.to(device)
        if tuple(ids.shape) != (batch, length):
            raise ShapeError(f"tokens are {tuple(ids.shape)}, but the run has {batch} examples of {length} positions")
        following = torch.cat([ids[:, 1:], ids.new_full((batch, 1), -1)], 1)
        if real is None:
            return following
        real = real.to(device)
        ahead = torch.cat([real[:, 1:], torch.zeros_like(real[:, :1])], 1)
        return following.masked_fill(~(real & ahead), -1)
    if isinstance(targets, str):
        targets = single_token(model, targets, vocab)
    elif isinstance(targets, list | tuple) and targets and isinstance(targets[0], str):
        targets = [single_token(model, one, vocab) for one in targets]
    ids = torch.as_tensor(targets, device=device)
    if ids.is_floating_point() or ids.ndim > 2:
        raise ShapeError(
            f"targets are whole numbers, one, one per example or one per position; not {ids.dtype} {tuple(ids.shape)}"
        )
    given, ids = tuple(ids.shape), ids.long()
    if ids.ndim == 1:
        ids = ids[None] if batch == 1 and len(ids) == length else ids[:, None]
    try:
        ids = ids.expand(batch, length)
    except RuntimeError:
        raise ShapeError(f"targets of shape {given} do not fit {batch} examples of {length} positions") from None
    if ids.numel() and int(ids.max()) >= model.cfg.d_vocab_out:
        raise TokenError(f"a target is token {int(ids.max())}, but there are {model.cfg.d_vocab_out} logits")
    return ids if real is None else ids.masked_fill(~real.to(device), -1)
