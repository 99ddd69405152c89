"""Heads: what each one attends to. Scores are mean attention probabilities over the pairs where a condition holds.

A model is read while it runs, layer by layer: patterns are scored as they pass and never kept. A condition on
(query, key) is a boolean mask or a function of the two positions; it is evaluated once, and where it picks few
pairs only those are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.analysis.shared import Subject, head_names, network, real_tokens, run_for
from cutaway.errors import ShapeError, TokenError, UnknownName, nearest
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.bars import watched
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Means, Result
from cutaway.view import Figure, head_types

KINDS = {
    "current": "the token itself",
    "previous": "the token before",
    "first": "the first token",
    "duplicate": "earlier occurrences of the same token",
    "last_occurrence": "the last earlier occurrence of the same token",
    "induction": "the token after the last earlier occurrence",
}
OF_TOKENS = ("duplicate", "last_occurrence", "induction")
DENSE = 16  # a mask with more than 1/16 of the pairs is applied as a product, a sparser one by its indices
Condition = Callable[[Any, Any], Any] | Tensor


@dataclass(frozen=True, eq=False)
class HeadScores(Result):
    """Mean attention to each kind of token, `[kind, head, batch]`; NaN where an example has no such pair.

    `baseline` is what a head would score that attends evenly to all tokens it sees.
    """

    values: Labelled
    baseline: Labelled
    n_heads: int

    @property
    def mean(self) -> Labelled:
        """The mean over examples, `[kind, head]`."""
        return self.values.mean("batch")

    def means(self) -> Means:
        """The mean over examples, with intervals."""
        return self.values.means("batch")

    def of(self, kind: str) -> Labelled:
        """The mean score of each head for one kind, `[head]`."""
        return self.mean.sel(kind=kind)

    def heads(self, kind: str, threshold: float = 0.4) -> list[str]:
        """The heads that score above the threshold, highest first."""
        scores = self.of(kind)
        names, order = scores.names("head"), scores.data.nan_to_num(-1).argsort(descending=True).tolist()
        return [names[i] for i in order if float(scores.data[i]) > threshold]

    def report(self, threshold: float = 0.4) -> dict[str, list[str]]:
        """Kind → the heads above the threshold."""
        return {kind: self.heads(kind, threshold) for kind in self.values.names("kind")}

    def grid(self, kind: str) -> Float[Tensor, "layer head"]:
        """The mean scores of one kind, by layer and head."""
        return self.of(kind).data.view(-1, self.n_heads)

    def figure(self, threshold: float = 0.4) -> Figure:
        """A map of layers × heads: each head's strongest kind."""
        return head_types({kind: self.grid(kind) for kind in self.values.names("kind")}, threshold=threshold)

    def summary(self, threshold: float = 0.4, top: int = 10) -> str:
        """Which heads are of which kind, at most `top` of each."""
        mean = self.mean
        count = self.values.shape[2]
        lines = [f"heads whose mean attention is above {threshold:g}, over {count} example{'s' * (count != 1)}"]
        for kind, even in zip(self.values.names("kind"), self.baseline.data.tolist(), strict=True):
            what = KINDS.get(kind, "")
            if bool(mean.sel(kind=kind).data.isnan().all()):
                lines.append(f"{kind}: no pair of positions to look at ({what})" if what else f"{kind}: no pair to look at")
                continue
            every = self.heads(kind, threshold)
            found = ", ".join(f"{head} {mean.sel(kind=kind, head=head).item():.2f}" for head in every[:top])
            found += f" and {len(every) - top} more" if len(every) > top else ""
            lines.append(f"{kind}{f' ({what})' if what else ''}: {found or 'none'}; even attention {even:.3f}")
        return "\n".join(lines)


# Conditions.


def mask_of(condition: Condition, dest: int, src: int, device: torch.device | None = None) -> Bool[Tensor, "#batch dest src"]:
    """The mask of a condition: of a mask itself, or of a function of (query, key) positions.

    The function is given all positions at once, as tensors; one that can only take numbers is asked pair by pair.

    Raises:
        ShapeError: the mask does not fit the pattern, or the function answers with something else.
    """
    if not isinstance(condition, Tensor):
        query, key = torch.arange(dest)[:, None], torch.arange(src)[None]
        try:
            mask = condition(query, key)
        except (RuntimeError, TypeError, ValueError):
            mask = None
        if not isinstance(mask, Tensor):
            mask = torch.tensor([[bool(condition(q, k)) for k in range(src)] for q in range(dest)])
    else:
        mask = condition
    if mask.dtype != torch.bool or mask.ndim not in (2, 3):
        raise ShapeError(
            f"a condition gives a boolean mask [dest, src] or [batch, dest, src], not {mask.dtype} {tuple(mask.shape)}"
        )
    mask = mask if mask.ndim == 3 else mask[None]
    try:
        mask = mask.expand(mask.shape[0], dest, src)
    except RuntimeError:
        raise ShapeError(f"a mask of shape {tuple(mask.shape)} does not fit patterns of {dest} queries × {src} keys") from None
    return mask.to(device)


def kind_mask(
    kind: str, tokens: Int[Tensor, "batch pos"] | None, length: int, real: Bool[Tensor, "batch pos"] | None = None
) -> Bool[Tensor, "#batch dest src"]:
    """The pairs (query, key) that a kind is about; see `KINDS`. `real` says which positions are no padding.

    Raises:
        UnknownName: no such kind.
        ShapeError: the kind compares tokens, and none were given.
    """
    if kind not in KINDS:
        raise UnknownName(f"there is no kind of head {kind!r}{nearest(kind, KINDS)}; there are {', '.join(KINDS)}")
    place = torch.arange(length, device=None if tokens is None else tokens.device)
    query, key = place[:, None], place[None]
    if kind == "current":
        return (query == key)[None]
    if kind == "previous":
        return (query == key + 1)[None]
    if kind == "first":
        start = torch.zeros(1, 1, 1, dtype=torch.long) if real is None else real.long().argmax(-1)[:, None, None]
        return (key == start.to(key.device)).expand(-1, length, length)
    if tokens is None:
        raise ShapeError(f"{kind!r} compares tokens; pass tokens beside the cache, or ask for kinds of positions only")
    same = (tokens[:, :, None] == tokens[:, None, :]) & (key < query)
    if kind == "duplicate":
        return same
    last = torch.where(same, key, -1).amax(-1, keepdim=True)  # of the same token, the last position before
    return (last >= 0) & (key == last + (kind == "induction"))


# Scores.


class _Pairs:
    """A mask made ready to average many patterns over."""

    def __init__(self, mask: Bool[Tensor, "#batch dest src"]) -> None:
        flat = mask.flatten(1)
        self.counts = flat.sum(1)
        self.one = len(flat) == 1
        self.dense = flat if int(self.counts.max()) * DENSE > flat.shape[1] else None
        self.example, self.pair = flat.nonzero(as_tuple=True) if self.dense is None else (flat.new_empty(0), flat.new_empty(0))

    def mean(self, pattern: Float[Tensor, "batch head dest src"]) -> Float[Tensor, "head batch"]:
        """The mean over the pairs, for each head and example; NaN where there are none."""
        flat = pattern.flatten(2)
        if self.dense is not None:
            weights = self.dense.to(flat.dtype)
            total = flat @ weights[0] if self.one else torch.einsum("bhp,bp->bh", flat, weights)
        elif self.one:
            total = flat.index_select(2, self.pair).sum(-1)
        else:
            total = flat.new_zeros(flat.shape[:2]).index_add_(0, self.example, flat[self.example, :, self.pair])
        total = total.float() if total.dtype in (torch.float16, torch.bfloat16) else total
        return (total / self.counts[:, None]).T


class _Scorer:
    """A reader of patterns: scores each as it passes, for all masks, and keeps no pattern."""

    reads = True

    def __init__(self, masks: Sequence[Bool[Tensor, "#batch dest src"]], device: torch.device) -> None:
        self.pairs, self.device = [_Pairs(mask.to(device)) for mask in masks], device
        self.scores: list[Float[Tensor, "kind head batch"]] = []

    def __call__(self, pattern: Tensor, hook: Any = None) -> None:
        pattern = pattern.detach().to(self.device)
        self.scores.append(torch.stack([pairs.mean(pattern) for pairs in self.pairs]))


@with_provenance
@options(batch_size=1)
def head_scores(
    subject: Subject,
    tokens: Any = None,
    *,
    kinds: Sequence[str] | Mapping[str, Condition] | None = None,
    batch_size: int = 16,
) -> HeadScores:
    """How much each head attends to each kind of token.

    Args:
        subject: a network, run on `tokens` in batches, or a cache that holds all patterns (with `tokens` for kinds
            that compare tokens).
        tokens: text, texts, `Prompts` or token ids `[batch, pos]`; padding of texts does not count.
        kinds: names (see `KINDS`; all of them where None), or name → condition.

    Raises:
        MissingActivation: the cache lacks patterns.
        TokenError: a kind was asked for by name that needs repeated tokens, and there are none.
    """
    if isinstance(kinds, str):
        kinds = [kinds]
    if kinds is not None and not kinds:
        raise ShapeError(f"an empty list of kinds scores nothing; there are {', '.join(KINDS)}")
    conditions = dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(KINDS if kinds is None else kinds)
    model = network(subject)
    causal = model.cfg.attention_dir == "causal"
    sites = [f"blocks.{l}.attn.hook_pattern" for l in range(model.cfg.n_layers)]
    ids, real = (None, None) if tokens is None else real_tokens(model, tokens)
    if isinstance(subject, ActivationCache):
        cache = run_for(subject, tokens, sites, "head_scores")
        patterns = [cache.cache_dict[site].detach() for site in sites]
        patterns = patterns if cache.has_batch_dim else [pattern[None] for pattern in patterns]
        if ids is None and kinds is None:  # nobody asked for kinds that compare tokens, and a cache alone knows none
            conditions = {kind: None for kind in conditions if kind not in OF_TOKENS}
        masks = _masks(conditions, ids, real, patterns[0].shape[-2:])
        scorer = _Scorer(masks, patterns[0].device)
        for pattern in patterns:
            scorer(pattern)
        parts, evens = [torch.cat(scorer.scores, 1)], [_even(masks, len(patterns[0]), causal)]
    else:
        if ids is None:
            raise ShapeError("head_scores needs tokens to run the network on: pass tokens, or a cache of a run")
        parts, evens = [], []
        for at in watched("reading patterns", range(0, len(ids), batch_size)):
            some, some_real = ids[at : at + batch_size], None if real is None else real[at : at + batch_size]
            # Patterns are scored as they pass: those of all layers and prompts together may not fit into memory.
            masks = _masks(conditions, some, some_real, (some.shape[1], some.shape[1]))
            scorer = _Scorer(masks, model.device)
            with torch.no_grad(), model.hooks(fwd_hooks=[(site, scorer) for site in sites]):
                model(some, return_type=None, attention_mask=None if some_real is None else some_real.long())
            parts.append(torch.cat(scorer.scores, 1))
            evens.append(_even(masks, len(some), causal))
    data, even = torch.cat(parts, 2), torch.cat(evens, 1).nanmean(1)
    needy = [kind for index, kind in enumerate(conditions) if kind in OF_TOKENS and bool(data[index].isnan().all())]
    if needy and kinds is not None and not isinstance(kinds, Mapping):
        raise TokenError(
            f"no token of this text is repeated, so there is nothing to score for {', '.join(needy)}; try random_repeats"
        )
    labels = {"kind": list(conditions)}
    values = Labelled(data, ("kind", "head", "batch"), labels | {"head": head_names(model.cfg)}, "mean attention", "probability")
    return HeadScores(values, Labelled(even, ("kind",), labels, "even attention", "probability"), model.cfg.n_heads)


def _masks(
    conditions: Mapping[str, Condition | None], tokens: Tensor | None, real: Tensor | None, shape: Any
) -> list[Bool[Tensor, "#batch dest src"]]:
    dest, src = shape
    if tokens is not None and tokens.shape[1] != src:
        raise ShapeError(f"tokens have {tokens.shape[1]} positions, but the patterns {src} keys")
    masks = []
    for kind, condition in conditions.items():
        mask = kind_mask(kind, tokens, src, real) if condition is None else mask_of(condition, dest, src)
        masks.append(mask if real is None else mask.to(real.device) & real[:, :, None] & real[:, None, :])
    return masks


def _even(masks: Sequence[Tensor], batch: int, causal: bool) -> Float[Tensor, "kind batch"]:
    """What even attention scores: to everything up to the query, or to everything."""
    rows = []
    for mask in masks:
        dest, src = mask.shape[1:]
        seen = torch.arange(1, dest + 1, dtype=torch.float32).clamp(max=src) if causal else torch.full((dest,), float(src))
        mask = mask.cpu() & (torch.arange(src) < seen[:, None])
        looked_at = mask.sum(-1)
        rows.append(((looked_at / seen).sum(-1) / looked_at.sum(-1)).expand(batch))
    return torch.stack(rows)


def fewest_tokens(kind: str, evenness: float, *, causal: bool = True) -> int:
    """How long a text must be for a kind to say something: a head that attends evenly then scores at most `evenness`.

    Raises:
        ShapeError: the kind compares tokens, so it depends on the text; or `evenness` is not above zero.
    """
    if evenness <= 0:
        raise ShapeError(f"evenness={evenness:g}: even attention is never that small; give a number above 0")
    length = 1
    while not float(_even([kind_mask(kind, None, length)], 1, causal)) <= evenness:
        length += 1
    return length


@options(batch_size=1)
def average_over(
    subject: Subject | Float[Tensor, "*any dest src"], condition: Condition, tokens: Any = None, *, batch_size: int = 16
) -> Labelled | Tensor:
    """The mean attention over the pairs where a condition holds.

    Args:
        subject: a network with `tokens`, a cache, or patterns `[…, head, dest, src]` themselves.
        condition: a boolean mask `[dest, src]` or `[batch, dest, src]`, or a function of (query, key).

    Returns:
        Of patterns, a tensor `[…, head]`; otherwise `[head, batch]`, labelled.
    """
    if not isinstance(subject, Tensor):
        return head_scores(subject, tokens, kinds={"condition": condition}, batch_size=batch_size).values.sel(kind="condition")
    mask = mask_of(condition, subject.shape[-2], subject.shape[-1], subject.device)
    stacked = subject.reshape(-1, *subject.shape[-3:]) if subject.ndim >= 3 else subject[None, None]
    if len(mask) not in (1, len(stacked)):
        raise ShapeError(f"a mask for {len(mask)} examples does not fit patterns of shape {tuple(subject.shape)}")
    mean = _Pairs(mask).mean(stacked).T
    return mean.reshape(subject.shape[:-2])


# The standard measurement.


@options(length=1, examples=1, seed=0)
def random_repeats(
    model: Transformer, *, length: int | None = None, examples: int = 32, seed: int = 0
) -> Int[Tensor, "batch pos"]:
    """Sequences of random tokens that come twice: BOS (where the model uses one), `length` tokens, the same again.

    No token comes twice within a half, where the vocabulary is large enough; special tokens are left out.
    """
    cfg = model.cfg
    bos = getattr(model.tokenizer, "bos_token_id", None) if cfg.default_prepend_bos and model.tokenizer is not None else None
    room = (cfg.n_ctx - (bos is not None)) // 2
    length = min(50, room) if length is None else length
    if not 1 <= length <= room:
        raise ShapeError(f"length={length}: twice that must fit into {cfg.n_ctx} positions, so give 1 to {room}")
    special = set(getattr(model.tokenizer, "all_special_ids", None) or ([] if bos is None else [bos]))
    usable = torch.tensor([token for token in range(cfg.d_vocab) if token not in special])
    generator = torch.Generator().manual_seed(seed)
    if len(usable) >= length:
        half = torch.stack([usable[torch.randperm(len(usable), generator=generator)[:length]] for _ in range(examples)])
    else:
        half = usable[torch.randint(len(usable), (examples, length), generator=generator)]
    start = [] if bos is None else [torch.full((examples, 1), bos)]
    return torch.cat([*start, half, half], 1).to(model.W_U.device)


@with_provenance
@options(length=1, examples=1, seed=0, batch_size=1)
def on_random_repeats(
    model: Transformer, *, length: int | None = None, examples: int = 32, seed: int = 0, batch_size: int = 16
) -> HeadScores:
    """The scores of all kinds on random tokens that come twice, where nothing but looking back predicts anything."""
    return head_scores(model, random_repeats(model, length=length, examples=examples, seed=seed), batch_size=batch_size)
