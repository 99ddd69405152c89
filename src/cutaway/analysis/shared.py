"""Shared helpers of analyses: run a model for the sites they need, resolve target tokens, name heads and tokens.

Analyses take a network (and tokens, which it then runs on, keeping no more than needed) or a cache of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import MissingActivation, NotFinite, PromptError, ShapeError, TokenError, UnknownRole
from cutaway.model.components import heads
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import several, whole
from cutaway.prompts import UNCOUNTED, Prompts
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.metrics import Metric
from cutaway.tokens import check_length, encode, to_single_token

Subject = Transformer | ActivationCache
ARROW = " → "


def network(subject: Subject) -> Transformer:
    """The network that is asked about."""
    return subject.model if isinstance(subject, ActivationCache) else subject


def run_for(subject: Subject, tokens: Any, sites: Sequence[str], caller: str) -> ActivationCache:
    """A cache that holds these sites: the given one, or that of a run on `tokens`.

    Raises:
        MissingActivation: the given cache lacks some; says which, and the call that keeps them.
        ShapeError: a network without tokens.
    """
    if isinstance(subject, ActivationCache):
        subject._check_weights(caller)
        if absent := [name for name in sites if name not in subject.cache_dict]:
            shown = ", ".join(map(repr, absent[:3])) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
            raise MissingActivation(
                f"{caller} needs {shown}, which this run did not keep; run again with them: "
                f"model.run_with_cache(tokens, names_filter={_filter(sites)}), or pass the model and the tokens instead"
            )
        return subject
    if tokens is None:
        raise ShapeError(f"{caller} needs tokens to run the network on: pass tokens, or a cache of a run instead of the model")
    with torch.no_grad():
        _, store = subject.run_with_cache(tokens, names_filter=list(sites), return_type=None)
    return store if isinstance(store, ActivationCache) else ActivationCache(store, subject)


def _filter(sites: Sequence[str]) -> str:
    if len(sites) <= 3:
        return repr(list(sites))
    lasts = tuple(dict.fromkeys(".".join(name.split(".")[2:]) if name.startswith("blocks.") else name for name in sites))
    return f"lambda name: name.endswith({lasts!r})"


def kept(cache: ActivationCache, name: str) -> Tensor:
    """A kept activation with a batch axis, in float32 at least.

    Raises:
        NotFinite: it holds NaN, of which means, ranks and largest values would say something all the same.
    """
    tensor = cache.cache_dict[name].detach()
    if bool(tensor.isnan().any()):
        raise NotFinite(f"{name} holds NaN in this run; look at the model and the tokens")
    tensor = tensor if cache.has_batch_dim else tensor.unsqueeze(0)
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def finite(logits: Float[Tensor, "*any d_vocab"]) -> Float[Tensor, "*any d_vocab"]:
    """The same logits, where they rank tokens.

    Raises:
        NotFinite: some are NaN, or the largest is infinite.
    """
    if not bool(logits.amax(-1).isfinite().all()):
        raise NotFinite("the logits are NaN or infinite, so no token is the likeliest; look at the model and the tokens")
    return logits


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
    """Tokens of a text, texts, `Prompts` or token ids, and which of them are no padding (None: all).

    Of token ids, padding is what the model takes for it.

    Raises:
        ContextTooLong: more tokens than the model has positions.
        TokenError: no whole numbers, or tokens outside the vocabulary.
    """
    side, device, cfg = model.default_padding_side, model.W_U.device, model.cfg
    mask: Tensor | None
    if isinstance(tokens, Prompts):
        ids, mask = model.tokens_and_padding(tokens, None, None)
    elif is_text(tokens):
        ids, mask = encode(
            model.tokenizer, tokens, prepend_bos=cfg.default_prepend_bos, padding_side=side, truncate=False, device=device
        )
    else:
        ids, mask = model.tokens_and_padding(torch.as_tensor(tokens), None, None)
    check_length(ids.shape[1], cfg.n_ctx, reload=cfg.takes_longer)
    real = None if mask is None else mask.bool()
    return ids, None if real is None or bool(real.all()) else real


def is_text(tokens: Any) -> bool:
    """Whether this is a text or texts, not token ids."""
    return isinstance(tokens, str) or (isinstance(tokens, list | tuple) and bool(tokens) and isinstance(tokens[0], str))


@dataclass(frozen=True, eq=False)
class Pair:
    """Clean and corrupted prompts, row by row of as many tokens, with the same padding.

    Args:
        mask: 1 for tokens and 0 for padding; None: no padding.
    """

    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"] | None


def aligned(model: Transformer, clean: Any, corrupted: Any = None) -> Pair:
    """Two prompts (or batches of them) that are compared position by position; of `Prompts`, they and their counterparts.

    Raises:
        ShapeError: they do not pair up, or one row has more tokens than its partner; says which, and where they differ.
    """
    if corrupted is None:
        if not isinstance(clean, Prompts):
            raise ShapeError("corrupted prompts are missing: give them, or Prompts in pairs in the place of the clean ones")
        corrupted = clean.counterparts
    (one, real), (other, other_real) = real_tokens(model, clean), real_tokens(model, corrupted)
    if len(one) != len(other):
        raise ShapeError(f"there are {len(one)} clean prompts and {len(other)} corrupted ones; give one for each")
    lengths = [row_lengths(ids, mask) for ids, mask in ((one, real), (other, other_real))]
    for row, (mine, theirs) in enumerate(zip(*lengths, strict=True)):
        if mine != theirs:
            texts = [_words(model, ids[row], mask) for ids, mask in ((one, _row(real, row)), (other, _row(other_real, row)))]
            at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
            raise ShapeError(
                f"pair {row} has {mine} tokens in the clean prompt and {theirs} in the corrupted one; pairs are compared "
                f"position by position. They differ from position {at} on: {texts[0][at : at + 4]} and "
                f"{texts[1][at : at + 4]}; choose words of as many tokens"
            )
    if one.shape != other.shape:  # token ids, one batch padded further than the other
        raise ShapeError(f"clean and corrupted tokens are {tuple(one.shape)} and {tuple(other.shape)}; pad both to one length")
    return Pair(one, other, None if real is None else real.long())


def row_lengths(ids: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"] | None) -> list[int]:
    """How many tokens each row has, padding left out."""
    lengths: list[int] = [ids.shape[1]] * len(ids) if real is None else real.sum(-1).tolist()
    return lengths


def plain_metric(metric: Any, caller: str) -> None:
    """Refuse what an analysis cannot measure two runs by.

    Raises:
        ShapeError: a function, or a metric that compares each run with a clean one.
    """
    if not isinstance(metric, Metric):
        raise ShapeError(f"{caller} takes one of cutaway.metrics, such as metrics.logit_difference(…), not {metric!r}")
    if metric.compares:
        raise ShapeError(
            f"{caller} measures two runs by one scale, and {metric.name} compares a run with a clean one; take a metric of one "
            "run, such as metrics.logit_difference(…)"
        )


def _row(real: Bool[Tensor, "batch pos"] | None, row: int) -> Bool[Tensor, "pos"] | None:
    return None if real is None else real[row]


def _words(model: Transformer, row: Int[Tensor, "pos"], real: Bool[Tensor, "pos"] | None) -> list[str]:
    return [token_name(model, token) for token in (row if real is None else row[real]).tolist()]


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


class KeptSites(Mapping[str, Tensor]):
    """The activations of a cache as analyses read them: with a batch axis, in float32 at least, at chosen places.

    Args:
        at: picks examples and positions of `[batch, pos, …]`; None: all.
    """

    def __init__(self, cache: ActivationCache, at: Callable[[Tensor], Tensor] | None = None) -> None:
        self.cache, self.at = cache, at

    def __getitem__(self, name: str) -> Tensor:
        tensor = scale_of(self.cache, name) if name.endswith("hook_scale") else kept(self.cache, name)
        return tensor if self.at is None else self.at(tensor)

    def __contains__(self, name: object) -> bool:
        return name in self.cache.cache_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache.cache_dict)

    def __len__(self) -> int:
        return len(self.cache.cache_dict)


def head_names(cfg: HookedTransformerConfig, layers: Iterable[int] | None = None) -> list[str]:
    """`0.0`, `0.1`, …: layer and head."""
    return list(map(str, heads(cfg, layers)))


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
        return whole(token, "a token")
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
    caller: str,
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
            raise ShapeError(f"{caller} needs targets, or tokens whose successors are the targets")
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
    try:
        ids = torch.as_tensor(targets, device=device)
    except (RuntimeError, TypeError, ValueError):
        raise ShapeError(f"targets are whole numbers, one, one per example or one per position; not {targets!r}") from None
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim > 2:
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


def answers_of(tokens: Any, targets: Any, minus: Any = None) -> tuple[Any, Any]:
    """The targets of an analysis, and what they are compared with: where none are given, the answers that `Prompts` have."""
    if targets is not None or minus is not None or not isinstance(tokens, Prompts) or not tokens.right:
        return targets, minus
    wrong = tokens.wrong_labels if tokens.wrong else None
    return tokens.labels, wrong if wrong is not None and bool((wrong != UNCOUNTED).any()) else None


Where = str | int | Sequence[str | int]


def chosen_positions(
    positions: Where | None, tokens: Any, real: Bool[Tensor, "batch pos"] | None, shape: Sequence[int]
) -> Bool[Tensor, "batch pos"] | None:
    """A mask of positions named by role or by number (of a row's own tokens; negative from its end); None: all.

    Raises:
        UnknownRole: a role without `Prompts` that have it.
        PromptError: a row has no such position.
    """
    if positions is None:
        return None
    own = torch.ones(*shape, dtype=torch.bool) if real is None else real.cpu()
    place, lengths, found = own.long().cumsum(1) - 1, own.sum(1), torch.zeros_like(own)
    given: Any = [positions] if isinstance(positions, str) or not several(positions) else positions
    listed: list[str | int] = [one if isinstance(one, str) else whole(one, "a position") for one in given]
    if not listed:
        raise PromptError("an empty list of positions means nothing; leave it out for all of them")
    if len(set(listed)) < len(listed):
        raise PromptError(f"positions {listed} name one twice; give each once")
    for one in listed:
        found |= own & (place == _own_place(one, tokens, lengths)[:, None])
    return found


def _own_place(position: str | int, tokens: Any, lengths: Int[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    if isinstance(position, str) and isinstance(tokens, Prompts):
        return tokens.place(position)
    if isinstance(position, str) and position != "end":
        raise UnknownRole(f"no role {position!r}: roles are those of Prompts; give Prompts with roles, or numbers")
    number = -1 if isinstance(position, str) else whole(position, "a position")
    places = torch.full_like(lengths, number) if number >= 0 else lengths + number
    outside = ((places < 0) | (places >= lengths)).nonzero().flatten()
    if len(outside):
        row = int(outside[0])
        raise ShapeError(f"there is no position {number}: prompt {row} has {int(lengths[row])} tokens, the first at position 0")
    return places


def words_of(
    model: Transformer, ids: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"] | None, vocab: Sequence[str] | None = None
) -> Words:
    """What the tokens of each example are called, padding as an empty string."""
    known = {token: token_name(model, token, vocab) for token in ids.unique().tolist()}
    rows = ids.tolist()
    if real is None:
        return tuple(tuple(known[token] for token in row) for row in rows)
    return tuple(
        tuple(known[token] if yes else "" for token, yes in zip(row, mask, strict=True))
        for row, mask in zip(rows, real.tolist(), strict=True)
    )


Words = tuple[tuple[str, ...], ...]


def position_names(words: Words, prompts: Any = None) -> list[str]:
    """A label for each position of many prompts: the role that it has in all, else its token, with … where tokens differ."""
    width = max(map(len, words))
    roles: dict[int, str] = {}
    if isinstance(prompts, Prompts):
        for role, places in prompts.roles.items():
            if len(set(places.tolist())) == 1:
                roles.setdefault(int(places[0]), role)
    names = []
    for at in range(width):
        here = [row[at] for row in words if at < len(row) and row[at]]
        token = here[0] if here else ""
        same = len(set(here)) <= 1
        name = f"{at} {token}" if same else f"{at} {roles.get(at, token + '…')}"
        names.append(f"{name} ({roles[at]})" if same and at in roles else name)
    return names
