"""Attention of cells: against the clean run's keys and values, with what a cell has changed of them in place.

In the last layer a few queries want to know what they see of many tokens. Instead of projecting every token to keys and values,
the query is taken to the stream and what it has seen is projected: `(q W_Kᵀ) x` and `(Σ p x) W_V`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cutaway.model.attention import Attention
from cutaway.model.positions import Stream
from cutaway.model.steps import Step, Z
from cutaway.runs.sweep.cells import Cell
from cutaway.runs.sweep.clean import Clean
from cutaway.runs.sweep.entering import Changed, filled, some_heads
from cutaway.runs.sweep.regions import Layer, Region

Read = tuple[Tensor, ...]  # the clean run's queries, keys and values of a layer, as attention read them
Touch = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of neighbouring cells that attend in one call.

    Args:
        regions: of the first of them, which the others have in common but for their examples.
        kind: "regular" (keys, values and queries are new from the first position on), "absorbed" (the same, with the query
            taken to the stream), or "apart" (one cell, some of whose keys, values or queries are the clean run's).
        first: the position from which keys and values are new.
        examples: which example each row continues; None: all in order, `times` over.
    """

    regions: Layer
    kind: str
    rows: int
    first: int
    examples: Tensor | None
    times: int
    stream: Stream

    @staticmethod
    def of(clean: Clean, step: Step, layout: Sequence[tuple[Cell, Layer]], *, apart: bool) -> Group:
        """The group of some neighbouring cells."""
        regions = layout[0][1]
        region = regions[Z]
        kind = "absorbed" if "absorbed" in regions else "regular" if regular(step, regions) and not apart else "apart"
        first = regions["absorbed" if kind == "absorbed" else step.reads[1]].first if kind != "apart" else 0
        own = [one[Z].examples for _, one in layout]
        examples = None
        if any(one is not None for one in own):
            every = torch.arange(clean.batch, device=region.places.device)
            examples = torch.cat([every if one is None else one for one in own])
        to_the_end = region.count == clean.length - region.first  # then the last query stands at the last key
        stream = clean.rows(examples, None if to_the_end else region.places)
        if examples is None and stream.padding is not None:
            stream = replace(stream, padding=stream.padding.repeat(len(layout), 1))
        return Group(regions, kind, sum(one[Z].rows for _, one in layout), first, examples, len(layout), stream)

    def past(self, x: Tensor) -> Tensor:
        """The clean run's keys or values before the first position, for each row."""
        past = x[:, : self.first]
        if self.examples is not None:
            return past[self.examples]
        return past if self.times == 1 else past.repeat(self.times, 1, 1, 1)


def regular(step: Step, regions: Layer) -> bool:
    """Whether all that attention reads of a cell is new from its first position on."""
    q, k, v = (regions.get(name) for name in step.reads)
    if q is None or k is None or v is None or not (k.to_end and v.to_end and k.first == v.first):
        return False
    return q is regions[Z] or q.count == regions[Z].count


def together(step: Step, a: Layer, b: Layer) -> bool:
    """Whether two cells' rows can attend in one call."""
    if "absorbed" in a or "absorbed" in b:
        return "absorbed" in a and "absorbed" in b and a["absorbed"].first == b["absorbed"].first
    return regular(step, a) and regular(step, b) and a[step.reads[1]].first == b[step.reads[1]].first


def seen(read: Read, attention: Attention, group: Group, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What each head of a group's queries has seen, from its own queries, keys and values `[row, place, head, d_head]`."""
    if group.first:
        k, v = (torch.cat([group.past(x), own], 1) for x, own in zip(read[1:], (k, v), strict=True))
    return attention.attend(q, k, v, group.stream)


def seen_apart(
    read: Read, attention: Attention, step: Step, z: Region, own: Mapping[str, Changed], stream: Stream,
    touch: Touch | None = None,
) -> Tensor:  # fmt: skip
    """What the queries in a region have seen, where what a cell has not changed of queries, keys and values is the clean run's.

    Args:
        own: what it has changed of them.
        touch: edits scores or pattern.
    """
    length = read[0].shape[1]
    every = Region.of_places(z.examples, z.rows, torch.arange(length, device=z.places.device), length)
    out = []
    for name, x, region in zip(step.reads, read, (z, every, every), strict=True):
        changed = own.get(name)
        if z.heads is not None:
            x = some_heads(x, z.heads, attention.cfg.n_heads)
            changed = None if changed is None else changed.widened(x.shape[2])
        x = filled(x, region, changed)
        out.append(x if changed is None or region is z else x.contiguous())
    q, k, v = out
    return attention.attend(q, k, v, stream, touch=touch)


def seen_absorbed(read: Read, attention: Attention, group: Group, q: Tensor, keys_of: Tensor, values_of: Tensor) -> Tensor:
    """The last layer's attention with its keys and values taken to the query's side.

    Args:
        keys_of, values_of: what keys and values are projections of, `[row, place, d_model]`.
    """
    q = q / attention.attn_scale
    W_K, b_K, W_V, b_V = attention.W_K, attention.b_K, attention.W_V, attention.b_V
    reach = torch.einsum("rqhd,hmd->rhqm", q, W_K).flatten(1, 2)  # head and query side by side
    new = (reach @ keys_of.transpose(1, 2)).unflatten(1, (q.shape[2], q.shape[1]))
    new = new + torch.einsum("rqhd,hd->rhq", q, b_K)[..., None]
    scores, past_values = new, None
    if group.first:
        past_keys, past_values = (group.past(x) for x in read[1:])
        scores = torch.cat([torch.einsum("rqhd,rkhd->rhqk", q, past_keys), new], -1)
    causal = attention.cfg.attention_dir == "causal"
    visible = group.stream.visible(q.shape[1], scores.shape[-1], causal=causal, window=attention.window, device=q.device)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    pattern = scores.softmax(-1)
    if group.stream.padding is not None:
        pattern = pattern.masked_fill(pattern.isnan(), 0)
    own = pattern[..., group.first :]
    mixed = (own.flatten(1, 2) @ values_of).unflatten(1, (q.shape[2], q.shape[1]))
    z = torch.einsum("rhqm,hmd->rqhd", mixed, W_V) + own.sum(-1).transpose(1, 2)[..., None] * b_V
    if past_values is not None:
        z = z + torch.einsum("rhqk,rkhd->rqhd", pattern[..., : group.first], past_values)
    return z
