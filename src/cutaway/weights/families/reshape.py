"""The named reshapings of the tables: from a checkpoint's tensor to a canonical one.

Where numbers only move, a view is returned. Where a constant is folded in, the product is taken in float32
at least, so that a checkpoint in half precision is rounded once, by whoever asked for less.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cutaway.weights.families.table import Fields, Place, Rewrite


def transposed(x: Tensor, at: Place) -> Tensor:
    """A linear layer keeps `[out, in]`; ours multiply from the right: `[in, out]`."""
    return x.T


def row_heads(x: Tensor, at: Place) -> Tensor:
    """Rows are heads: `[head × d_head, d_model]` → `[head, d_model, d_head]`."""
    return x.unflatten(0, (-1, at.cfg.d_head)).transpose(1, 2)


def bias_heads(x: Tensor, at: Place) -> Tensor:
    """`[head × d_head]` → `[head, d_head]`."""
    return x.unflatten(0, (-1, at.cfg.d_head))


def column_heads(x: Tensor, at: Place) -> Tensor:
    """Columns are heads, of the output projection: `[d_model, head × d_head]` → `[head, d_head, d_model]`."""
    return x.T.unflatten(0, (-1, at.cfg.d_head))


def stacked(which: str) -> Rewrite:
    """Queries, keys and values lie one below the other: all rows of `q`, then of `k`, then of `v`."""

    def part(x: Tensor, at: Place) -> Tensor:
        sizes = [at.cfg.n_heads * at.cfg.d_head, at.cfg.kv_heads * at.cfg.d_head, at.cfg.kv_heads * at.cfg.d_head]
        return x.split(sizes)["qkv".index(which)]

    return part


def grouped(which: str) -> Rewrite:
    """Queries, keys and values lie together, group by group: the queries of a group, then its key, then its value."""

    def part(x: Tensor, at: Place) -> Tensor:
        queries = at.cfg.n_heads // at.cfg.kv_heads
        groups = x.unflatten(0, (at.cfg.kv_heads, queries + 2, at.cfg.d_head))
        chosen = groups[:, :queries] if which == "q" else groups[:, queries + "kv".index(which), None]
        return chosen.flatten(0, 2)

    return part


def half(which: int) -> Rewrite:
    """The first or the second half of the rows."""
    return lambda x, at: x.chunk(2)[which]


def of_expert(x: Tensor, at: Place) -> Tensor:
    """The entry of one expert, where the experts of a layer share a tensor."""
    return x[at.expert]


def positions_from(first: int) -> Rewrite:
    """Embeddings of as many positions as the model has, from row `first` on."""
    return lambda x, at: x[first : first + at.cfg.n_ctx]


def scaled(factor: Callable[[Fields], float]) -> Rewrite:
    """Times a constant of the config, folded in."""
    return lambda x, at: x if factor(at.hf) == 1 else _wide(x) * factor(at.hf)


def plus_one(x: Tensor, at: Place) -> Tensor:
    """Norms that multiply by `1 + w`."""
    return 1 + _wide(x)


def flat(x: Tensor, at: Place) -> Tensor:
    """All entries in one row: the norm weights of all heads."""
    return x.flatten()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
