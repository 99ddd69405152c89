"""Attention of cells: against the clean run's keys and values, with what a cell has changed of them in place.

In the last layer a few queries want to know what they see of many tokens. Instead of projecting every token to keys and values,
the query is taken to the stream and what it has seen is projected: `(q W_Kᵀ) x` and `(Σ p x) W_V`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cutaway.model.attention import Attention
from cutaway.model.positions import Stream
from cutaway.model.steps import INPUTS, Step, Z
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Bound, index_of
from cutaway.runs.sweep.cells import Cell, short
from cutaway.runs.sweep.clean import Clean, differs, rows_of
from cutaway.runs.sweep.regions import Layer, Region

if TYPE_CHECKING:
    from cutaway.runs.sweep.execute import Entry


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of one or more cells that attend in one call.

    Args:
        regions: of the first of them, which the others have in common but for their examples.
        kind: "regular" (keys, values and queries are new from the first position on), "absorbed" (the same, with the query
            taken to the stream), "mixed" (some are the clean run's), or "touched" (scores or pattern are edited).
        examples: which example each row continues; None: all in order, `times` over.
    """

    cells: Sequence[Cell]
    regions: Layer
    kind: str
    rows: int
    first: int
    dest: Tensor
    examples: Tensor | None
    times: int
    stream: Stream

    @staticmethod
    def of(clean: Clean, step: Step, rows: Sequence[tuple[Cell, Layer]], *, touched: bool) -> Group:
        """The group of some neighbouring cells."""
        regions = rows[0][1]
        region = regions[Z]
        kind = "touched" if touched else "absorbed" if "absorbed" in regions else "regular" if regular(step, regions) else "mixed"
        wide = regions["absorbed"] if kind == "absorbed" else regions[step.reads[1]] if kind == "regular" else region
        own = [one[Z].examples for _, one in rows]
        examples = None
        if any(one is not None for one in own):
            every = torch.arange(clean.batch, device=region.places.device)
            examples = torch.cat([every if one is None else one for one in own])
        to_the_end = region.count == clean.length - region.first
        stream = rows_of(clean, examples, start=region.first, at=None if to_the_end else region.places)
        if examples is None and stream.padding is not None:
            stream = replace(stream, padding=stream.padding.repeat(len(rows), 1))
        count = sum(one[Z].rows for _, one in rows)
        return Group([cell for cell, _ in rows], regions, kind, count, wide.first, region.places, examples, len(rows), stream)

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


def seen_by_group(chunk: Any, layer: int, step: Step, group: Group) -> Tensor:
    """What each head of a group's queries has seen, `[token, head, d_head]`."""
    attention, clean = chunk.model.blocks[layer].attn, chunk.clean
    if group.kind == "absorbed":
        return _absorbed(chunk, attention, group, layer)
    if group.kind == "regular":
        q, k, v = (chunk.tokens(name, group.cells).unflatten(0, (group.rows, -1)) for name in step.reads)
        if group.first:
            k, v = (torch.cat([group.past(clean.read[layer][at]), x], 1) for at, x in ((1, k), (2, v)))
        return attention.attend(q, k, v, group.stream).flatten(0, 1)
    (cell,) = group.cells
    every = [_replaced(chunk, clean.read[layer][at], cell, group.regions, name) for at, name in enumerate(step.reads)]
    q = every[0][:, group.regions[Z].index]
    touch = None
    if group.kind == "touched":

        def touch(site: str, x: Tensor) -> Tensor:
            for bound in cell.bounds:
                if bound.layer == layer and short(bound.site) == site:
                    chunk.edit_region(bound, x, group.regions[Z])
            return x

    return attention.attend(q, every[1], every[2], group.stream, touch=touch).flatten(0, 1)


def _replaced(chunk: Any, clean: Tensor, cell: Cell, regions: Layer, name: str) -> Tensor:
    """A cell's queries, keys or values at all positions: the clean run's, with its own in place."""
    z = regions[Z]
    out = clean if z.examples is None else clean[z.examples]
    region = regions.get(name)
    if region is None:
        return out
    out = out.clone() if z.examples is None else out
    out[:, region.index] = chunk.tokens(name, [cell]).unflatten(0, (region.rows, region.count))
    return out


def _absorbed(chunk: Any, attention: Attention, group: Group, layer: int) -> Tensor:
    """The last layer's attention with its keys and values taken to the query's side."""
    clean, step_inputs = chunk.clean, INPUTS
    q = chunk.tokens("attn.hook_q", group.cells).unflatten(0, (group.rows, -1)) / attention.attn_scale
    keys_of, values_of = (chunk.tokens(name, group.cells).unflatten(0, (group.rows, -1)) for name in step_inputs[1:])
    W_K, b_K, W_V, b_V = attention.W_K, attention.b_K, attention.W_V, attention.b_V
    reach = torch.einsum("rqhd,hmd->rhqm", q, W_K).flatten(1, 2)  # head and query side by side
    new = (reach @ keys_of.transpose(1, 2)).unflatten(1, (q.shape[2], q.shape[1]))
    new = new + torch.einsum("rqhd,hd->rhq", q, b_K)[..., None]
    scores, past_values = new, None
    if group.first:
        past_keys, past_values = (group.past(x) for x in clean.read[layer][1:])
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
    return z.flatten(0, 1)


# Some heads alone.


def seen_by_heads(model: Transformer, clean: Clean, layer: int, which: int, region: Region, new: Tensor, z: Region) -> Tensor:
    """What some heads have seen, where an edit has changed their queries (0), keys (1) or values (2): `[row, place, head, …]`."""
    cfg, attention = model.cfg, model.blocks[layer].attn
    assert z.heads is not None and region.heads is not None
    q, k, v = (_picked(x, z.examples, _matching(x, z.heads, cfg.n_heads)) for x in clean.read[layer])
    if which == 0:
        q = new if z.count == region.count else new[:, z.within(region)]
    else:
        edited = (k if which == 1 else v).clone()
        times = edited.shape[2] // len(region.heads)
        edited[:, region.index] = new if times == 1 else new.repeat_interleave(times, dim=2)
        k, v = (edited, v) if which == 1 else (k, edited)
        q = q[:, z.index]
    at = None if z.count == clean.length else z.places
    seen: Tensor = attention.attend(q, k, v, rows_of(clean, z.examples, at=at))
    return seen


def by_pattern(model: Transformer, clean: Clean, bound: Bound, needed: Tensor | None) -> Entry | None:
    """From an edited pattern to what the chosen heads have seen at the rows where it differs.

    Args:
        needed: the rows that somebody needs; None: all.
    """
    from cutaway.runs.sweep.execute import entry_of, own_elsewhere

    layer, cfg = bound.layer, model.cfg
    assert layer is not None
    heads = bound.heads if cfg.positional_embedding_type != "alibi" else None
    q, k, v = (_picked(x, None, _matching(x, heads, cfg.n_heads)) for x in clean.read[layer])
    _, places = bound.reach()
    rows = None if places is None else tuple(sorted(places))
    if needed is not None:
        rows = tuple(one for one in needed.tolist() if rows is None or one in rows)
    if rows == ():
        return None
    at = None if rows is None else torch.tensor(rows, device=q.device)
    attention = model.blocks[layer].attn
    pattern = attention.pattern(q if at is None else q[:, at], k, rows_of(clean, None, at=at))
    inner = list(bound.chosen)
    inner[1] = None if heads is not None else inner[1]
    inner[2] = None if rows is None else tuple(range(len(rows)))
    if bound.chosen[0] is not None:  # rows that are not edited are as they were
        pattern = pattern[list(bound.chosen[0])]
        inner[0] = None
        v = v[list(bound.chosen[0])]
    new = pattern.clone()
    index = index_of(inner, pattern.shape)
    ordered = None if rows is None else list(rows)
    new[index] = bound.change.new(new[index], bound.value(None, ordered)).to(new.dtype)
    apart = differs(new, pattern, bound.same_of_chosen, at, axis=2).any(-1).any(1)  # example, dest
    new = own_elsewhere(new.transpose(1, 2), pattern.transpose(1, 2), apart)
    entry = entry_of(bound, apart, at, new, None, heads, clean)
    if entry is None:
        return None
    own = v if bool(apart.any(1).all()) else v[apart.any(1)]
    return replace(entry, new=attention.mixed(entry.new.transpose(1, 2).to(own.dtype), own))


def _matching(x: Tensor, heads: tuple[int, ...] | None, n_heads: int) -> list[int] | None:
    """The heads of `x` that these attention heads read: groups of them share keys and values."""
    if heads is None:
        return None
    times = n_heads // x.shape[2]
    return [head // times for head in heads]


def _picked(x: Tensor, examples: Tensor | None, heads: list[int] | None) -> Tensor:
    x = x if examples is None else x[examples]
    if heads is None:
        return x
    first = heads[0]
    neighbours = heads == list(range(first, first + len(heads)))
    return x[:, :, first : first + len(heads)] if neighbours else x[:, :, heads]
