"""Where a cell enters: what its edit makes of a value of the clean run, and where that differs.

An edit of a pattern enters as what its heads have seen by it, one of per-head results as what all heads write with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cutaway.model.foreign import part_with
from cutaway.model.positions import Stream
from cutaway.model.steps import ATTN_OUT, PATTERN, POST, RESULT, SCORES, Z
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Bound
from cutaway.runs.sweep.cells import Cell, short
from cutaway.runs.sweep.clean import Clean, differs
from cutaway.runs.sweep.regions import BY_HEAD, Region, Rules, Way
from cutaway.runs.values import index_of


@dataclass(frozen=True, eq=False)
class Changed:
    """What a cell has changed of a value: `data` is `[row, place, …]`, over a region."""

    region: Region
    data: Tensor

    def widened(self, heads: int) -> Changed:
        """The same for so many heads, which read its own in equal groups."""
        assert self.region.heads is not None
        times = heads // len(self.region.heads)
        data = self.data if times == 1 else self.data.repeat_interleave(times, dim=2)
        return Changed(replace(self.region, heads=None), data)


def filled(clean: Tensor | None, region: Region, own: Changed | None) -> Tensor:
    """A value over a region, `[row, place, …]`: what a cell has changed of it, and the clean run's elsewhere."""
    if own is not None and own.region is region:
        return own.data
    if own is not None and own.region.heads is None and own.region.holds(region):
        return own.data[:, region.within(own.region)]
    assert clean is not None
    if own is None:
        return region.of(clean)
    out, at, new = region.of(clean).clone(), own.region, own.data
    places: slice | Tensor
    if region.holds(at):
        places = at.within(region)
    else:
        places, new = torch.isin(region.places, at.places), new[:, torch.isin(at.places, region.places)]
    if at.heads is None:
        out[:, places] = new
    else:
        rows = torch.arange(region.count, device=out.device)[places]
        out[:, rows[:, None], torch.tensor(at.heads, device=out.device)] = new
    return out


def enter(model: Transformer, clean: Clean, rules: Rules, cell: Cell) -> tuple[Way | None, dict[tuple[int, str], Changed]]:
    """The way of a cell, from what its edits are found to change, and what it enters with, by layer and value."""
    first, last = clean.first, clean.first + clean.batch
    name = short(cell.bounds[0].site)
    if cell.way == "packed" or name == SCORES:
        declared = cell.declared(first, last, clean.tokens.device)
        return rules.way_of(declared) if declared else None, {}
    bound = cell.bounds[0].local(first, last)
    if bound is None or bound.layer is None or not rules.reads_from(min(bound.positions or [0])):
        return None, {}
    layer = bound.layer
    if name == PATTERN:
        found = _by_pattern(model, clean, bound, rules)
    elif name == RESULT:
        found = _of_results(model, clean, bound)
    else:
        found = _of_value(clean, bound, name)
    if found is None:
        return None, {}
    found = Changed(found.region.on(clean.tokens.device), found.data)
    entry, at = found, Z if name == PATTERN else name
    if name == RESULT:
        at = model.program_of(layer).writer(RESULT).writes[0]
        entry = _written(model, clean, rules, layer, at, found)
    return rules.way_from(layer, name, found.region), {(layer, at): entry}


def _of_value(clean: Clean, bound: Bound, name: str) -> Changed | None:
    """The new values of an edit where they differ from the clean run's."""
    assert bound.layer is not None
    whole = clean.value(bound.layer, name)
    own_heads = bound.chosen[-1] if name == POST else bound.heads
    differing = clean.differing(bound, name)
    if differing is not None:
        for axis, some in enumerate((*bound.chosen[:2], own_heads)):
            if some is not None and differing.shape[axis] > 1:
                differing = differing.take(some, axis)
        differing = differing.any(-1)
        if not differing.any():
            return None
    old = whole[bound.index()]
    new = bound.change.new(old, bound.value(whole)).to(old.dtype)
    places = _places(bound, old.device)
    apart: Tensor | None
    if differing is None:
        apart = differs(new, old, bound.same_of_chosen, places).flatten(2).any(-1)
    else:
        apart = None if differing.all() else torch.from_numpy(differing).to(old.device)
    new = _own_elsewhere(new, old, apart)
    if name not in BY_HEAD and bound.chosen[-1] is not None:  # some neurons before their activation: all of them go on
        part, new = new, whole[index_of([*bound.chosen[:-1], None], whole.shape)].clone()
        new[..., list(bound.chosen[-1])] = part
    return _where(bound, apart, places, new, own_heads if name in BY_HEAD else None)


def _of_results(model: Transformer, clean: Clean, bound: Bound) -> Changed | None:
    """How an edit changes what heads write by themselves, summed over them: `[row, place, d_model]`."""
    assert bound.layer is not None
    chosen = list_of(bound.heads)
    z = clean.value(bound.layer, Z)
    z = z[index_of([*bound.chosen[:2], None, None], z.shape)][:, :, chosen]
    old = torch.einsum("bphd,hdm->bphm", z, part_with(model, bound.layer, "attn", "W_O").W_O[chosen])
    new = bound.change.new(old, bound.value()).to(old.dtype)
    places = _places(bound, old.device)
    apart = differs(new, old, bound.same_of_chosen, places).flatten(2).any(-1)
    return _where(bound, apart, places, (_own_elsewhere(new, old, apart) - old).sum(2), bound.heads)


def _written(model: Transformer, clean: Clean, rules: Rules, layer: int, name: str, added: Changed) -> Changed:
    """What all heads write, where this is added to it."""
    region = replace(added.region, heads=None)
    needed = rules.needed(layer, name)
    region = region if needed is None else region.cut(needed, rules.numbers) or region
    if name == ATTN_OUT:
        base = region.of(clean.value(layer, name))
    else:
        base = model.program_of(layer).writer(name).run(model.blocks[layer], Stream(), region.of(clean.value(layer, Z)))
    return Changed(region, base + added.data[:, region.within(added.region)])


def _by_pattern(model: Transformer, clean: Clean, bound: Bound, rules: Rules) -> Changed | None:
    """From an edited pattern to what the chosen heads have seen at the rows where it differs, and somebody needs it."""
    assert bound.layer is not None
    needed = rules.needed(bound.layer, Z)
    cfg, attention, some = model.cfg, model.blocks[bound.layer].attn, bound.chosen[0]
    heads = bound.heads if cfg.positional_embedding_type != "alibi" else None
    q, k, v = (x if heads is None else some_heads(x, heads, cfg.n_heads) for x in clean.read[bound.layer])
    _, places = bound.reach()
    rows = None if places is None else tuple(sorted(places))
    if needed is not None:
        rows = tuple(one for one in needed.tolist() if rows is None or one in rows)
    if rows is not None and (not rows or not rules.reads_from(rows[0])):
        return None
    at = None if rows is None else torch.tensor(rows, device=q.device)
    pattern = attention.pattern(q if at is None else q[:, at], k, clean.rows(None, at))
    inner = list(bound.chosen)
    inner[1] = None if heads is not None else inner[1]
    inner[2] = None if rows is None else tuple(range(len(rows)))
    if some is not None:  # examples that are not edited are as they were
        pattern, v, inner[0] = pattern[list(some)], v[list(some)], None
    new = pattern.clone()
    index = index_of(inner, pattern.shape)
    new[index] = bound.change.new(new[index], bound.value(None, None if rows is None else list(rows))).to(new.dtype)
    apart = differs(new, pattern, bound.same_of_chosen, at, axis=2).any(-1).any(1)  # example, dest
    new = _own_elsewhere(new.transpose(1, 2), pattern.transpose(1, 2), apart)
    entry = _where(bound, apart, at, new, heads)
    if entry is None:
        return None
    own = v if bool(apart.any(1).all()) else v[apart.any(1)]
    return Changed(entry.region, attention.mixed(entry.data.transpose(1, 2).to(own.dtype), own))


def _places(bound: Bound, device: torch.device) -> Tensor | None:
    """The positions that an edit chooses; None: all."""
    return None if bound.positions is None else torch.tensor(bound.positions, device=device)


def _own_elsewhere(new: Tensor, own: Tensor, apart: Tensor | None) -> Tensor:
    """New values `[example, place, …]` where they differ (None: everywhere), and the run's own bits elsewhere."""
    return new if apart is None or bool(apart.all()) else torch.where(apart[(...,) + (None,) * (new.ndim - 2)], new, own)


def _where(
    bound: Bound, apart: Tensor | None, places: Tensor | None, new: Tensor, heads: tuple[int, ...] | None
) -> Changed | None:
    """New values cut to the examples and positions where they differ from old ones; None: nowhere.

    Args:
        apart: `[example, place]`, of the chosen ones; None: they differ everywhere.
        places: which positions those are; None: all.
    """
    places = torch.arange(new.shape[1], device=new.device) if places is None else places
    examples = None if bound.chosen[0] is None else torch.tensor(bound.chosen[0], device=new.device)
    if apart is not None:
        by_place, by_example = apart.any(0), apart.any(1)
        if not bool(by_place.any()):
            return None
        if not bool(by_place.all()):
            places, new = places[by_place], new[:, by_place]
        if not bool(by_example.all()):
            new = new[by_example]
            examples = by_example.nonzero().flatten() if examples is None else examples[by_example]
    if len(places) > 1 and bool((places[1:] < places[:-1]).any()):
        order = places.argsort()
        places, new = places[order], new[:, order]
    return Changed(Region.of_places(examples, len(new), places, bound.length, heads), new)


def list_of(numbers: Sequence[int] | None) -> slice | list[int]:
    """An index of some heads; a slice where they are neighbours."""
    if numbers is None:
        return slice(None)
    first = numbers[0]
    return slice(first, first + len(numbers)) if list(numbers) == list(range(first, first + len(numbers))) else list(numbers)


def some_heads(x: Tensor, heads: Sequence[int], n_heads: int) -> Tensor:
    """Of queries, keys or values those that these heads of attention read; groups of heads may share keys and values."""
    times = n_heads // x.shape[2]
    return x[:, :, list_of([head // times for head in heads])]
