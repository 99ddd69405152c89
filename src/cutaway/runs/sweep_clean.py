"""The clean run of a sweep: what every cell starts from. One full pass that keeps what cells will need.

`Clean` holds the residual stream before each layer and the keys and values that attention read, so that a cell can
resume at any layer and any position; and the sites at which cells are edited.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway.model.hook_points import KeepActivation, NamedHook
from cutaway.model.positions import Stream, offset_positions
from cutaway.model.transformer import Transformer


@dataclass(frozen=True)
class Recording(Stream):
    """A stream that keeps, for each layer, queries, keys and values as attention reads them."""

    read: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def attend(self, attention: Any, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        self.read[attention.layer_id] = q, k, v
        return super().attend(attention, q, k, v, **given)


@dataclass(frozen=True, eq=False)
class Clean:
    """A clean run of some examples.

    Args:
        first: the number of the first of these examples in the whole batch.
        resid: the residual stream before each layer, and after the last.
        read: for each layer queries, keys and values as attention read them.
        store: the kept sites, by full name.
    """

    model: Transformer
    tokens: Int[Tensor, "batch pos"]
    mask: Tensor | None
    first: int
    stream: Stream
    resid: list[Tensor]
    read: dict[int, tuple[Tensor, Tensor, Tensor]]
    store: dict[str, Tensor]

    @property
    def batch(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def site(self, layer: int, name: str) -> Tensor:
        """A kept site of a layer, by the rest of its name: `attn.hook_z`."""
        return self.store[f"blocks.{layer}.{name}"]


def run_clean(model: Transformer, tokens: Tensor, sites: Collection[str], *, mask: Tensor | None = None, first: int = 0) -> Clean:
    """Run once and keep what a sweep needs.

    Raises:
        HookNeverFired: the run never passes one of the sites.
    """
    store: dict[str, Tensor] = {}
    keep = KeepActivation(store, copies=False)
    hooks: list[NamedHook] = [(name, keep) for name in sites]
    with model.hooks(hooks):
        model.runs += 1
        stream = model.prepare(tokens, mask)
        resid, stream = model.embed_tokens(tokens, stream)
        recording = Recording(stream.start, stream.padding, stream.kept, stream.shortformer)
        resids = [resid]
        for layer in range(model.cfg.n_layers):
            resids.append(model.run_blocks(resids[-1], recording, layer, layer + 1))
        if any(name.startswith("ln_final.") for name in sites):
            model.ln_final(resids[-1])
    return Clean(model, tokens, mask, first, stream, resids, recording.read, store)


@dataclass(frozen=True)
class Rows(Stream):
    """The stream of rows that begin at `start` or, with `at`, whose queries stand at these positions only."""

    at: Int[Tensor, "dest"] | None = None

    def positions(self, length: int) -> Int[Tensor, "batch pos"] | None:
        if self.at is None:
            return super().positions(length)
        return self.at[None] if self.padding is None else offset_positions(self.padding)[:, self.at]

    def end(self, length: int) -> int:
        return super().end(length) if self.at is None else int(self.at[-1]) + 1

    def _visible(self, dest: int, src: int, *, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
        if self.at is None:
            return super()._visible(dest, src, causal=causal, window=window, device=device)
        back = (self.at.to(device)[:, None] - torch.arange(src, device=device))[None, None]
        seen = back >= 0 if causal else torch.ones_like(back, dtype=torch.bool)
        if window is not None:
            seen = seen & (back < window)
        if self.padding is not None:
            seen = seen & self.padding[:, None, None, :src].to(device)
        return seen


def rows_of(clean: Clean, examples: Tensor | None, *, start: int = 0, at: Tensor | None = None) -> Rows:
    """The stream of some examples' rows (None: all) from a position on, or at some positions."""
    padding = clean.stream.padding
    if padding is not None and examples is not None:
        padding = padding[examples]
    return Rows(start, padding, at=at)


@dataclass(frozen=True)
class Group:
    """Rows of a packed run that begin at the same position: those of one or more cells, one below the other."""

    begin: int  # where its tokens begin in the packed run
    rows: int
    start: int
    length: int
    examples: Tensor | None  # which example each row continues; None: all of them in order, `times` over
    times: int
    stream: Stream
    asked: Tensor | None  # which of its tokens, counted from its start, go on after attention; None: all

    @property
    def kept(self) -> int:
        """How many positions of each row go on after attention."""
        return self.length if self.asked is None else len(self.asked)


@dataclass(frozen=True)
class Packed(Stream):
    """The stream of a packed run: all tokens of rows of unequal length as one row, `[1, token, …]`.

    Everything but attention works on tokens by themselves; attention goes group by group, against the clean run's keys
    and values of the positions before each group's start.
    """

    clean: Any = None
    groups: tuple[Group, ...] = ()
    token_positions: Int[Tensor, "1 token"] | None = None
    token_asked: Int[Tensor, "asked"] | None = None
    length: int = 0
    now: list[int] = field(default_factory=lambda: [0], compare=False, repr=False)  # the group that attends now

    def positions(self, length: int) -> Int[Tensor, "1 token"] | None:
        return self.token_positions

    def end(self, length: int) -> int:
        return self.length

    def asked(self, x: Tensor) -> Tensor:
        return x if self.token_asked is None else x[:, self.token_asked]

    def of_queries(self) -> Stream:
        if self.token_asked is None or self.token_positions is None:
            return self
        return Packed(token_positions=self.token_positions[:, self.token_asked], length=self.length)

    def attend(self, attention: Any, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        _, keys, values = self.clean.read[attention.layer_id]
        seen, at = [], 0
        for number, group in enumerate(self.groups):
            self.now[0] = number
            tokens = slice(group.begin, group.begin + group.rows * group.length)
            own = [x[0, tokens].unflatten(0, (group.rows, group.length)) for x in (k, v)]
            if group.start:
                own = [torch.cat([past_of(x, group), mine], 1) for x, mine in zip((keys, values), own, strict=True)]
            mine = q[0, at : at + group.rows * group.kept].unflatten(0, (group.rows, group.kept))
            at += group.rows * group.kept
            seen.append(attention.attend(mine, *own, group.stream).flatten(0, 1))
        return (seen[0] if len(seen) == 1 else torch.cat(seen))[None]


def past_of(x: Tensor, group: Group) -> Tensor:
    """The clean run's keys or values before a group's start, for each of its rows."""
    past = x[:, : group.start]
    if group.examples is not None:
        return past[group.examples]
    return past if group.times == 1 else past.repeat(group.times, 1, 1, 1)
