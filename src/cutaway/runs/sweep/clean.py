"""The clean run of a sweep: what every cell starts from. One full pass that keeps what cells will need.

`Clean` holds the residual stream before each layer and the keys and values that attention read, so that a cell can
resume at any layer and any position; and the sites at which cells are edited.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.model.dialect_attention import has_masks
from cutaway.model.hook_points import KeepActivation, NamedHook
from cutaway.model.key_values import KeyValueCache, KeyValues
from cutaway.model.origins import shared_beginning
from cutaway.model.positions import Stream
from cutaway.model.sites import axes
from cutaway.model.steps import FIRST, LAST, POST, Z
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Bound, Put
from cutaway.runs.storage import DISK, MEMORY, RECOMPUTE, OnDisk, Recomputed

WORTH_SHARING = 64  # tokens that running a shared beginning once must save


@dataclass(frozen=True, eq=False)
class Clean:
    """A clean run of some examples.

    Args:
        first: the number of the first of these examples in the whole batch.
        resid: the residual stream before each layer, by its number, and under `n_layers` that after the last.
        read: for each layer queries, keys and values as attention read them.
        store: the kept sites, by full name.
    """

    model: Transformer
    tokens: Int[Tensor, "batch pos"]
    mask: Tensor | None
    first: int
    stream: Stream
    resid: MutableMapping[int, Tensor]
    read: Mapping[int, tuple[Tensor, ...]]
    store: MutableMapping[str, Tensor]
    _differing: dict[tuple[int, str], Any] = field(default_factory=dict, repr=False)

    @property
    def batch(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    @property
    def last(self) -> Tensor:
        """The stream after the last layer."""
        return self.resid[self.model.cfg.n_layers]

    @cached_property
    def reads(self) -> list[tuple[str, ...]]:
        """By layer, the values that attention reads (`read` holds them in this order)."""
        return [self.model.program_of(layer).writer(Z).reads for layer in range(self.model.cfg.n_layers)]

    def find(self, layer: int, name: str) -> Tensor | None:
        """A value of a layer, by its name in `steps`: the stream, what attention reads, or a kept site; None: it was not kept."""
        if name in (FIRST, LAST):
            return self.resid[layer + (name == LAST)]
        reads = self.reads[layer]
        return self.read[layer][reads.index(name)] if name in reads else self.store.get(f"blocks.{layer}.{name}")

    def value(self, layer: int, name: str) -> Tensor:
        """The same, of a value that was kept."""
        found = self.find(layer, name)
        assert found is not None, f"the clean run did not keep {name} of layer {layer}"
        return found

    def rows(self, examples: Tensor | None, at: Tensor | None) -> Stream:
        """The stream of some examples' rows (None: all), whose queries stand at these positions only (None: to the end)."""
        padding = self.stream.padding
        if padding is not None and examples is not None:
            padding = padding[examples]
        return Stream(padding=padding, at=at, lengths=None if at is None else self.stream.texts(self.length))

    def differing(self, bound: Bound, name: str) -> Any | None:
        """Where the activations of another run differ from this one's, as an array `[example, position, head or 1]` (or neuron).

        Worked out once for all cells that take their values from there. None: the edit does not put in whole activations.
        """
        source, change = bound.source, bound.change
        if not isinstance(change, Put) or source is None or bound.layer is None:
            return None
        own = self.value(bound.layer, name)
        if source.shape[0] not in (1, self.batch) or source.shape[1:] != own.shape[1:]:
            return None
        key = id(change), bound.site
        if key not in self._differing:
            found = differs(source.to(own), own, bound.same)
            found = found if name == POST else found.any(-1) if own.ndim > 3 else found.any(-1, keepdim=True)
            self._differing[key] = found.cpu().numpy()
        return self._differing[key]


def differs(new: Tensor, own: Tensor, same: Tensor | None, places: Tensor | None = None, *, axis: int = 1) -> Bool[Tensor, "..."]:
    """Which numbers of an activation are not the run's own.

    Where they provably come from the same computation, they may be apart by rounding: attention patterns that were looked at took
    another path. More than that is a change after all (somebody wrote into the cache where no counter sees it).

    Args:
        same: for each example, how many positions at the beginning are the run's own.
        places: which positions `new` and `own` hold, along `axis`; None: all.
    """
    apart = new != own
    if same is None:
        return apart
    places = torch.arange(own.shape[axis], device=own.device) if places is None else places
    proven = places < same.to(own.device)[:, None]
    proven = proven.reshape(len(proven), *[1] * (axis - 1), -1, *[1] * (own.ndim - axis - 1))
    near = (new - own).abs() <= torch.finfo(own.dtype).eps ** 0.5 * own.abs().amax(-1, keepdim=True)
    return apart & ~(proven & near)


def beginning(model: Transformer, tokens: Tensor, mask: Tensor | None, sites: Collection[str]) -> int:
    """How many positions all examples begin with in common, where running those once is worth a pass of its own; else 0."""
    shared = min(shared_beginning(tokens, mask), tokens.shape[1] - 1)
    cfg = model.cfg
    plain = cfg.attention_dir == "causal" and cfg.positional_embedding_type != "shortformer"
    if cfg.longrope_long_factor is not None or has_masks(model.blocks.children()):
        return 0  # a beginning alone is rotated, or masked, as a shorter text is
    if (len(tokens) - 1) * shared < WORTH_SHARING or not plain:
        return 0
    words = [axes(site, cfg) for site in sites]
    by_position = all("src" not in one and {"pos", "dest"} & set(one) for one in words)
    return shared if by_position and model.untouched() else 0


def run_clean(
    model: Transformer, tokens: Tensor, sites: Collection[str], *, mask: Tensor | None = None, first: int = 0,
    share: bool = False, keep: str = MEMORY,
) -> Clean:  # fmt: skip
    """Run once and keep what a sweep needs.

    Args:
        share: whether what all examples begin with may run once, for all of them. Its bits are not those of a plain pass.
        keep: where, as `where_kept` decides: "memory", "disk", or "recompute".

    Raises:
        HookNeverFired: the run never passes one of the sites.
        NotWritten: the disk does not take what is kept.
    """
    shared = beginning(model, tokens, mask, sites) if share else 0
    if shared:
        head = run_clean(model, tokens[:1, :shared], sites, mask=None if mask is None else mask[:1, :shared])
        return _continued(head, tokens, sites, mask, first, keep)
    return _run(model, tokens, sites, mask, first, None, keep)


def _run(
    model: Transformer, tokens: Tensor, sites: Collection[str], mask: Tensor | None, first: int, kept: KeyValueCache | None,
    keep: str,
) -> Clean:  # fmt: skip
    resids, reads, store = _places(keep)
    hold = KeepActivation(store, copies=False)
    hooks: list[NamedHook] = [(name, hold) for name in sites]
    with model.hooks(hooks):
        model.runs += 1
        stream = model.prepare(tokens, mask, kept)
        resid, stream = model.embed_tokens(tokens, stream)
        passing = stream if keep == RECOMPUTE else replace(stream, read=reads)
        resids[0] = resid
        for layer in range(model.cfg.n_layers):
            resid = model.run_blocks(resid, passing, layer, layer + 1)
            resids[layer + 1] = resid = model.placed(resid, layer + 1)
        if any(name.startswith("ln_final.") for name in sites):
            model.ln_final(resid)
    found = reads if keep != RECOMPUTE else _recomputed(model, resids, stream)
    return Clean(model, tokens, mask, first, stream, resids, found, store)


def _places(keep: str) -> tuple[MutableMapping[int, Tensor], MutableMapping[int, Any], MutableMapping[str, Tensor]]:
    """Where streams, what attention reads, and sites go."""
    return (OnDisk(), OnDisk(), OnDisk()) if keep == DISK else ({}, {}, {})


def _recomputed(model: Transformer, resids: Mapping[int, Tensor], stream: Stream) -> Recomputed:
    """What attention reads, from the stream before each layer."""

    def read(layer: int) -> tuple[Tensor, ...]:
        steps = model.program_of(layer)
        found: tuple[Tensor, ...] = steps.between((FIRST,), steps.writer(Z).reads)(model.blocks[layer], stream, resids[layer])
        return found

    return Recomputed(read)


def _continued(head: Clean, tokens: Tensor, sites: Collection[str], mask: Tensor | None, first: int, keep: str) -> Clean:
    """The run of examples that all begin with the one example of `head`, each from there on."""
    model, count, shared = head.model, len(tokens), head.length

    def both(one: Tensor, rest: Tensor, axis: int = 1) -> Tensor:
        return torch.cat([one.expand(count, *one.shape[1:]), rest], axis)

    read = ([x.expand(count, *x.shape[1:]) for x in head.read[layer][1:]] for layer in range(model.cfg.n_layers))
    entries = [KeyValues(keys, values) for keys, values in read]
    kept = KeyValueCache(entries, tokens.new_ones(count, shared) if mask is None else mask[:, :shared].long())
    kept.freeze()
    rest = _run(model, tokens[:, shared:], sites, None if mask is None else mask[:, shared:], first, kept, keep)
    stream, (resids, reads, store) = model.prepare(tokens, mask), _places(keep)
    for layer in head.resid:
        resids[layer] = both(head.resid[layer], rest.resid[layer])
    for layer in head.read if keep != RECOMPUTE else ():
        reads[layer] = tuple(map(both, head.read[layer], rest.read[layer]))
    for name in rest.store:
        store[name] = both(head.store[name], rest.store[name], model.position_axis(name) or 1)
    found = reads if keep != RECOMPUTE else _recomputed(model, resids, stream)
    return Clean(model, tokens, mask, first, stream, resids, found, store)
