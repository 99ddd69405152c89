"""The executor: a chunk of cells goes through the layers step by step, each step once for all cells that have a region there.

A sheet is one value of all cells that have changed it, their regions one below the other as one row of tokens, so that each
matrix product is as large as the chunk. Attention goes group by group of rows that begin together. What a cell has changed of
some heads or neurons alone stays a part beside the sheet until a step needs it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from cutaway.model.positions import Stream, offset_positions
from cutaway.model.products import linear
from cutaway.model.steps import ATTN_OUT, FIRST, FROM_KEYS, INPUTS, LAST, MLP_OUT, PATTERN, POST, RESULT, SCORES, K, Q, Step, V, Z
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Bound, index_of
from cutaway.runs.sweep.attend import Group, by_pattern, seen_by_group, seen_by_heads, together
from cutaway.runs.sweep.cells import Cell, short
from cutaway.runs.sweep.clean import Clean, differs
from cutaway.runs.sweep.regions import BY_HEAD, Layer, Region, Rules, Way, way_from, way_of


@dataclass(frozen=True, eq=False)
class Ended:
    """What a cell has changed of the stream after the last layer, where the metric reads it: `value` `[row, place, d_model]`."""

    cell: Cell
    region: Region
    value: Tensor


@dataclass(frozen=True, eq=False)
class Entry:
    """What an edit makes of a clean value: new and old numbers of its region, `[row, place, …]`."""

    region: Region
    new: Tensor
    old: Tensor | None


@dataclass(frozen=True, eq=False)
class Sheet:
    """One value of several cells: `data` is `[1, token, …]`."""

    cells: list[Cell]
    regions: list[Region]
    data: Tensor

    @cached_property
    def offsets(self) -> list[int]:
        """Where each cell's tokens begin, and where the last ones end."""
        return list(accumulate((region.tokens for region in self.regions), initial=0))

    @cached_property
    def place(self) -> dict[int, int]:
        """Cell → its place among them."""
        return {cell.number: at for at, cell in enumerate(self.cells)}

    def tokens(self, at: int) -> Tensor:
        """The tokens of one cell, `[row, place, …]`."""
        region = self.regions[at]
        return self.data[0, self.offsets[at] : self.offsets[at + 1]].unflatten(0, (region.rows, region.count))


@dataclass(frozen=True)
class TokenStream(Stream):
    """The stream of a sheet's tokens: where each stands."""

    token_positions: Tensor | None = None
    length: int = 0
    lengths: tuple[int, int] = (0, 0)

    def texts(self, length: int) -> tuple[int, int]:
        return self.lengths

    def positions(self, length: int) -> Tensor | None:
        return self.token_positions

    def end(self, length: int) -> int:
        return self.length


def run_chunk(
    model: Transformer, clean: Clean, rules: Rules, cells: Sequence[Cell], between: Callable[[], None] | None = None
) -> list[Ended]:
    """Run cells from where they leave the clean run to the end of the last layer; `between` is called before each layer."""
    return _Chunk(model, clean, rules, cells).run(between)


class _Chunk:
    """One pass over the layers."""

    def __init__(self, model: Transformer, clean: Clean, rules: Rules, cells: Sequence[Cell]):
        self.model, self.clean, self.rules = model, clean, rules
        self.entries: dict[tuple[int, int, str], Entry] = {}  # cell, layer, value
        self.ways: list[tuple[Cell, Way]] = []
        for cell in cells:
            way = self._enter(cell)
            if way is not None:
                self.ways.append((cell, way))
        self.ways.sort(key=lambda one: one[0].start)
        self.rank = {cell.number: at for at, (cell, _) in enumerate(self.ways)}
        self.sheets: dict[str, Sheet] = {}
        self.parts: dict[str, dict[int, Entry]] = {}
        self.streams: dict[tuple[int, ...], TokenStream] = {}
        self.groups: dict[tuple[int, ...], list[Group]] = {}

    def run(self, between: Callable[[], None] | None = None) -> list[Ended]:
        if not self.ways:
            return []
        for layer in range(min(way.start for _, way in self.ways), self.model.cfg.n_layers):
            if between is not None:
                between()
            self._layer(layer)
        sheet = self.sheets[LAST]
        values = sheet.data[0].split([region.tokens for region in sheet.regions])
        return [
            Ended(cell, region, value.unflatten(0, (region.rows, region.count)))
            for cell, region, value in zip(sheet.cells, sheet.regions, values, strict=True)
        ]

    # Where cells enter.

    def _enter(self, cell: Cell) -> Way | None:
        """The way of a cell, from what its edits are found to change."""
        clean, entered = self.clean, {}
        if len(cell.bounds) > 1:
            entered = cell.declared(clean.first, clean.first + clean.batch, clean.tokens.device)
            return way_of(self.rules, entered) if entered else None
        bound = cell.bounds[0].local(clean.first, clean.first + clean.batch)
        if bound is None or bound.layer is None:
            return None
        name = short(bound.site)
        if name == PATTERN:
            entry = by_pattern(self.model, clean, bound, self.rules.asked if bound.layer == self.model.cfg.n_layers - 1 else None)
        elif name == SCORES:
            return way_of(self.rules, cell.declared(clean.first, clean.first + clean.batch, clean.tokens.device))
        else:
            entry = self._changed(bound, name)
        if entry is None:
            return None
        self.entries[cell.number, bound.layer, name] = entry
        return way_from(self.rules, bound.layer, name, entry.region)

    def _changed(self, bound: Bound, name: str) -> Entry | None:
        """The new values of an edit where they differ from the clean run's, and the old ones."""
        assert bound.layer is not None
        moved = self.clean.moved(bound, name) if name != RESULT else None
        if moved is not None:
            for axis, some in enumerate((*bound.chosen[:2], bound.chosen[-1] if name == POST else bound.heads)):
                if some is not None and moved.shape[axis] > 1:
                    moved = moved[(slice(None),) * axis + (list(some),)]
            moved = moved.any(-1)
            if not moved.any():
                return None
        places = None if bound.positions is None else torch.tensor(bound.positions, device=self.clean.tokens.device)
        if name == RESULT:
            chosen = list_of(bound.heads)
            z = self.clean.value(bound.layer, Z)
            z = z[index_of([*bound.chosen[:2], None, None], z.shape)][:, :, chosen]
            old, whole = torch.einsum("bphd,hdm->bphm", z, self.model.blocks[bound.layer].attn.W_O[chosen]), None
        else:
            whole = self.clean.value(bound.layer, name)
            old = whole[bound.index()]
        new = bound.change.new(old, bound.value(whole)).to(old.dtype)
        if moved is None:
            apart = differs(new, old, bound.same_of_chosen, places).flatten(2).any(-1)
        else:
            apart = torch.from_numpy(moved).to(old.device)
        new = own_elsewhere(new, old, apart)
        if name not in BY_HEAD and bound.chosen[-1] is not None:  # some neurons before their activation: all of them go on
            assert whole is not None
            every = whole[index_of([*bound.chosen[:-1], None], whole.shape)]
            part, new, old = new, every.clone(), every
            new[..., list(bound.chosen[-1])] = part
        heads = bound.chosen[-1] if name == POST else bound.heads
        return entry_of(bound, apart, places, new, old, heads if name in BY_HEAD else None, self.clean)

    # One layer.

    def _layer(self, layer: int) -> None:
        here = [(cell, way.layers[layer - way.start]) for cell, way in self.ways if way.start <= layer]
        before = self.sheets.get(LAST)
        self.sheets, self.parts = {} if before is None else {"before": before}, {}
        program = self.model.program_of(layer)
        for step in program.steps:
            if step.writes == (FIRST,):
                self._first(layer, here)
            elif FROM_KEYS in step.spread:
                self._attend(layer, step, here)
            else:
                self._step(layer, step, here)
            for name in step.writes:
                self._edit(layer, name, here)
            for name in () if step.writes == (Q, K, V) else (*program.done_after(step), *(INPUTS if Z in step.writes else ())):
                self.sheets.pop(name, None)

    def _first(self, layer: int, here: list[tuple[Cell, Layer]]) -> None:
        """The stream before the layer, of cells that changed it in an earlier one."""
        before = self.sheets.get("before")
        self.sheets.pop("before", None)
        if before is None:
            return
        known = before.place
        layout = [(cell, regions[FIRST]) for cell, regions in here if FIRST in regions and cell.number in known]
        if layout:
            self._write(FIRST, layout, self._gather(before, layout, self.clean.value(layer, FIRST)))

    def _step(self, layer: int, step: Step, here: list[tuple[Cell, Layer]]) -> None:
        """A step that works token by token, for all cells that have changed what it reads."""
        block = self.model.blocks[layer]
        if step.weights is not None:
            self._add_parts(layer, step, here)
        elif step.by_head and step.writes != (Q, K, V):
            for number, part in self.parts.pop(step.reads[0], {}).items():
                stream = self._stream([part.region])
                new = step.run(block, stream, part.new.flatten(0, 1)[None])[0].view_as(part.new)
                self.parts.setdefault(step.writes[0], {})[number] = replace(part, new=new, old=None)
        layouts = [self._layout(step, at, here) for at in range(len(step.writes))]
        if not any(layouts):
            return
        if step.writes == INPUTS:  # one tensor for all three; those that queries need fewer of are cut later
            layouts = [[(cell, regions[FIRST]) for cell, regions in here if FIRST in regions]] * 3
        reads = layouts if len(step.reads) == len(step.writes) else [layouts[0]] * len(step.reads)
        given = [self._read(layer, name, layout) for name, layout in zip(step.reads, reads, strict=True)]
        out = step.run(block, self._stream([region for _, region in layouts[0]]), *given)
        for name, layout, data in zip(step.writes, layouts, out if len(step.writes) > 1 else (out,), strict=True):
            if layout:
                self._write(name, layout, data)

    def _layout(self, step: Step, at: int, here: list[tuple[Cell, Layer]]) -> list[tuple[Cell, Region]]:
        """The cells and regions for which a step computes one of its values."""
        name = step.writes[at]
        reads = (step.reads[at],) if len(step.reads) == len(step.writes) else step.reads
        done = self.sheets.get(name)
        known = set() if done is None else set(done.place)
        known |= self.parts.get(name, {}).keys()
        return [
            (cell, regions[name]) for cell, regions in here
            if name in regions and cell.number not in known and any(read in regions for read in reads)
        ]  # fmt: skip

    def _read(self, layer: int, name: str, layout: list[tuple[Cell, Region]]) -> Tensor:
        """A value of the cells in a layout: what they have changed of it, and the clean run's elsewhere."""
        sheet, parts = self.sheets.get(name), self.parts.get(name, {})
        if not layout:
            assert sheet is not None
            return sheet.data[:, :0]
        if sheet is not None and not parts:
            return self._gather(sheet, layout, None if not self.clean.has(layer, name) else self.clean.value(layer, name))
        clean = self.clean.value(layer, name)
        pieces = []
        for cell, region in layout:
            part = parts.get(cell.number)
            if part is None:
                pieces.append(self._piece(sheet, cell, region, clean))
                continue
            piece = region.of(clean).clone()
            inside = torch.isin(region.places, part.region.places)
            kept = torch.isin(part.region.places, region.places)
            heads = list(part.region.heads or ())
            piece[:, inside.nonzero().flatten()[:, None], torch.tensor(heads)] = part.new[:, kept]
            pieces.append(piece.flatten(0, 1))
        return torch.cat(pieces)[None]

    def _gather(self, sheet: Sheet, layout: list[tuple[Cell, Region]], clean: Tensor | None) -> Tensor:
        regions = [region for _, region in layout]
        if len(regions) == len(sheet.regions) and all(a is b for a, b in zip(regions, sheet.regions, strict=True)):
            return sheet.data
        offsets, place = sheet.offsets, sheet.place
        pieces, at = [], 0
        while at < len(layout):
            cell, region = layout[at]
            found = place.get(cell.number)
            if found is None or sheet.regions[found] is not region:
                pieces.append(self._piece(sheet, cell, region, clean))
                at += 1
                continue
            length = 1
            for (cell, region), there, have in zip(
                layout[at + 1 :], sheet.cells[found + 1 :], sheet.regions[found + 1 :], strict=False
            ):
                if cell is not there or region is not have:
                    break
                length += 1
            pieces.append(sheet.data[0, offsets[found] : offsets[found + length]])
            at += length
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces))[None]

    def _piece(self, sheet: Sheet | None, cell: Cell, region: Region, clean: Tensor | None) -> Tensor:
        """One cell's tokens of a value, where its region is not the sheet's."""
        mine = None if sheet is None else sheet.place.get(cell.number)
        if mine is None or sheet is None:
            assert clean is not None
            return region.of(clean).flatten(0, 1)
        have, own = sheet.regions[mine], sheet.tokens(mine)
        if have.holds(region):
            return own[:, region.within(have)].flatten(0, 1)
        assert clean is not None
        return over(region.of(clean).clone(), region, own, have).flatten(0, 1)

    def _write(self, name: str, layout: list[tuple[Cell, Region]], data: Tensor) -> None:
        """Put values of some cells beside those that are already there, in the order of their starts."""
        cells, regions = [cell for cell, _ in layout], [region for _, region in layout]
        before = self.sheets.get(name)
        if before is None:
            self.sheets[name] = Sheet(cells, regions, data)
            return
        both = [*zip(before.cells, before.regions, before.data[0].split([one.tokens for one in before.regions]), strict=True),
                *zip(cells, regions, data[0].split([one.tokens for one in regions]), strict=True)]  # fmt: skip
        both.sort(key=lambda one: self.rank[one[0].number])
        data = torch.cat([one for _, _, one in both])[None]
        self.sheets[name] = Sheet([one for one, _, _ in both], [one for _, one, _ in both], data)

    def _write_all(self, name: str, entering: list[tuple[Cell, Region, Tensor]]) -> None:
        pieces = [value.flatten(0, 1) for _, _, value in entering]
        data = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        self._write(name, [(cell, region) for cell, region, _ in entering], data[None])

    def tokens(self, name: str, cells: Sequence[Cell]) -> Tensor:
        """The tokens of some neighbouring cells of a value, `[token, …]`."""
        sheet = self.sheets[name]
        first, last = sheet.place[cells[0].number], sheet.place[cells[-1].number]
        assert last - first + 1 == len(cells)
        offsets = sheet.offsets
        return sheet.data[0, offsets[first] : offsets[last + 1]]

    def _edit(self, layer: int, name: str, here: list[tuple[Cell, Layer]]) -> None:
        """Cells that are edited at a value enter there, or edit what they have computed of it."""
        entering = []
        for cell, regions in here:
            bounds = [bound for bound in cell.bounds if bound.layer == layer and short(bound.site) == name]
            if not bounds or name not in regions:
                continue
            region, sheet = regions[name], self.sheets.get(name)
            entry = self.entries.get((cell.number, layer, name))
            if entry is not None:
                if region.heads is not None:
                    self.parts.setdefault(name, {})[cell.number] = entry
                else:
                    entering.append((cell, region, self._fitted(entry, region, layer, name)))
                continue
            mine = None if sheet is None else sheet.place.get(cell.number)
            inside = None if sheet is None or mine is None else sheet.tokens(mine)
            own = region.of(self.clean.value(layer, name)).clone() if inside is None else inside
            for bound in bounds:
                self.edit_region(bound, own, region)
            if inside is None:
                entering.append((cell, region, own))
        if entering:
            self._write_all(name, entering)

    def _fitted(self, entry: Entry, region: Region, layer: int, name: str) -> Tensor:
        """An entry's values over the region that its cell has there, which may be wider or narrower."""
        if region is entry.region:
            return entry.new
        if entry.region.holds(region):
            return entry.new[:, region.within(entry.region)]
        return over(region.of(self.clean.value(layer, name)).clone(), region, entry.new, entry.region)

    def edit_region(self, bound: Bound, x: Tensor, region: Region) -> None:
        """Edit the tokens of a region in place; its examples are all."""
        local = bound.local(self.clean.first, self.clean.first + self.clean.batch)
        if local is not None:
            edit_places(local, x, region.places.tolist(), self.clean.store.get(bound.site))

    def _add_parts(self, layer: int, step: Step, here: list[tuple[Cell, Layer]]) -> None:
        """What changed heads or neurons write beyond the clean run is added to what it wrote, or, before a norm, to their sum."""
        assert step.weights is not None
        (read,), (name,) = step.reads, step.writes
        block, parts = self.model.blocks[layer], self.parts.get(read, {})
        entering = []
        for cell, regions in here:
            region, part = regions.get(name), parts.get(cell.number)
            result = self.entries.get((cell.number, layer, RESULT)) if RESULT in step.passes else None
            if region is None or (part is None and result is None):
                continue
            if result is not None:
                assert result.old is not None
                added = (result.new - result.old).sum(2)[:, region.within(result.region)]
                base = (region.of(self.clean.value(layer, name)) if name == ATTN_OUT
                        else step.run(block, Stream(), region.of(self.clean.value(layer, read))))  # fmt: skip
                entering.append((cell, region, base + added))
                continue
            assert part is not None
            if name not in (ATTN_OUT, MLP_OUT):
                continue
            del parts[cell.number]
            old = self._old(layer, read, part)
            change = part.new - old
            if region.count < part.region.count:
                change = change[:, region.within(part.region)]
            weights = step.weights(block)
            chosen = weights[list_of(part.region.heads)]
            written = linear(change.flatten(2), chosen.flatten(0, -2))
            entering.append((cell, region, region.of(self.clean.value(layer, name)) + written))
        if entering:
            self._write_all(name, entering)

    def _old(self, layer: int, name: str, part: Entry) -> Tensor:
        if part.old is not None:
            return part.old
        return part.region.of(self.clean.value(layer, name))[:, :, list_of(part.region.heads)]

    # Attention.

    def _attend(self, layer: int, step: Step, here: list[tuple[Cell, Layer]]) -> None:
        for name in step.reads:
            for number, part in self.parts.pop(name, {}).items():
                regions = next(regions for cell, regions in here if cell.number == number)
                if Z in regions:
                    self._seen_by_part(layer, step, number, name, part, regions[Z], here)
        for cell, regions in here:
            entry = self.entries.get((cell.number, layer, PATTERN))
            if entry is not None and Z in regions:
                region = regions[Z]
                new = entry.new[:, region.within(entry.region)]
                if region.heads is not None:
                    self.parts.setdefault(Z, {})[cell.number] = Entry(region, new, None)
                else:
                    self._write(Z, [(cell, region)], new.flatten(0, 1)[None])
        done = set(self.sheets[Z].place) if Z in self.sheets else set()
        done |= self.parts.get(Z, {}).keys()
        layout = [(cell, regions) for cell, regions in here if Z in regions and cell.number not in done
                  and (any(name in regions for name in (*step.reads, SCORES, PATTERN)))]  # fmt: skip
        if not layout:
            return
        seen = [seen_by_group(self, layer, step, group) for group in self._groups(layer, step, layout)]
        self._write(Z, [(cell, regions[Z]) for cell, regions in layout], torch.cat(seen)[None])

    def _seen_by_part(
        self, layer: int, step: Step, number: int, name: str, part: Entry, region: Region, here: list[tuple[Cell, Layer]]
    ) -> None:
        if region.heads is None:  # heads that cannot be computed alone
            cell, regions = next((cell, regions) for cell, regions in here if cell.number == number)
            own = regions[name]
            whole = own.of(self.clean.value(layer, name)).clone()
            whole[:, :, list_of(part.region.heads)] = part.new[:, own.within(part.region)]
            self._write(name, [(cell, own)], whole.flatten(0, 1)[None])
            return
        new = seen_by_heads(self.model, self.clean, layer, step.reads.index(name), part.region, part.new, region)
        self.parts.setdefault(Z, {})[number] = Entry(region, new, None)

    def _groups(self, layer: int, step: Step, layout: list[tuple[Cell, Layer]]) -> list[Group]:
        """The rows that attend together: neighbours whose regions are the same in all that attention reads."""
        touched = {cell.number for cell, _ in layout for bound in cell.bounds
                   if bound.layer == layer and short(bound.site) in (SCORES, PATTERN) and PATTERN in step.passes
                   and (cell.number, layer, PATTERN) not in self.entries}  # fmt: skip
        key = tuple(id(one) for _, regions in layout for one in (regions[Z], *(regions.get(name) for name in step.reads)))
        if not touched and key in self.groups:
            return self.groups[key]
        out: list[list[tuple[Cell, Layer]]] = []
        for one in layout:
            apart = {one[0].number, out[-1][0][0].number} & touched if out else True
            if not apart and together(step, out[-1][0][1], one[1]):
                out[-1].append(one)
            else:
                out.append([one])
        groups = [Group.of(self.clean, step, rows, touched=rows[0][0].number in touched) for rows in out]
        if not touched:
            self.groups[key] = groups
        return groups

    def _stream(self, regions: list[Region]) -> TokenStream:
        """Where the tokens of some regions stand."""
        cfg, clean = self.model.cfg, self.clean
        if not regions or cfg.positional_embedding_type not in ("rotary", "shortformer"):
            return TokenStream()
        key = tuple(map(id, regions))
        if key not in self.streams:
            positions = shortformer = None
            if cfg.positional_embedding_type == "rotary":
                every = None if clean.stream.padding is None else offset_positions(clean.stream.padding)
                positions = torch.cat([
                    one.places.repeat(one.rows) if every is None else one.of(every).flatten() for one in regions
                ])[None]  # fmt: skip
            if clean.stream.shortformer is not None:
                shortformer = torch.cat([one.of(clean.stream.shortformer).flatten(0, 1) for one in regions])[None]
            lengths = clean.stream.texts(clean.length)
            self.streams[key] = TokenStream(
                shortformer=shortformer, token_positions=positions, length=clean.length, lengths=lengths
            )
        return self.streams[key]


def entry_of(
    bound: Bound, differs: Tensor, places: Tensor | None, new: Tensor, old: Tensor | None, heads: tuple[int, ...] | None,
    clean: Clean,
) -> Entry | None:  # fmt: skip
    """The examples and positions where new values differ from old ones; None: nowhere.

    Args:
        differs: `[example, place]`, of the chosen ones.
        places: which positions those are; None: all.
    """
    by_place, by_example = differs.any(0), differs.any(1)
    if not bool(by_place.any()):
        return None
    if places is None:
        places = torch.arange(len(by_place), device=differs.device)
    if not bool(by_place.all()):
        places, new, old = places[by_place], new[:, by_place], None if old is None else old[:, by_place]
    if len(places) > 1 and bool((places[1:] < places[:-1]).any()):
        order = places.argsort()
        places, new, old = places[order], new[:, order], None if old is None else old[:, order]
    examples = None if bound.chosen[0] is None else torch.tensor(bound.chosen[0], device=differs.device)
    if not bool(by_example.all()):
        new, old = new[by_example], None if old is None else old[by_example]
        examples = by_example.nonzero().flatten() if examples is None else examples[by_example]
    return Entry(Region.of_places(examples, len(new), places, clean.length, heads), new, old)


def own_elsewhere(new: Tensor, own: Tensor, apart: Tensor) -> Tensor:
    """New values `[example, place, …]` where they differ, and the run's own bits elsewhere."""
    return new if bool(apart.all()) else torch.where(apart[(...,) + (None,) * (new.ndim - 2)], new, own)


def over(x: Tensor, region: Region, new: Tensor, at: Region) -> Tensor:
    """`x`, which is ours and holds a region, with new values of another region where the two meet."""
    if region.holds(at):
        x[:, at.within(region)] = new
    else:
        kept = torch.isin(at.places, region.places)
        x[:, torch.isin(region.places, at.places)] = new[:, kept]
    return x


def edit_places(bound: Bound, x: Tensor, places: Sequence[int], clean: Tensor | None) -> None:
    """Edit `x` in place where an edit's positions are among those that `x` holds."""
    axis = bound.position_axis
    assert axis is not None
    wanted = set(range(bound.length) if bound.positions is None else bound.positions)
    here = [(at, one) for at, one in enumerate(places) if one in wanted]
    if not here:
        return
    chosen = list(bound.chosen)
    chosen[axis] = tuple(at for at, _ in here)
    index = index_of(chosen, x.shape)
    x[index] = bound.change.new(x[index], bound.value(clean, [one for _, one in here])).to(x.dtype)


def list_of(numbers: tuple[int, ...] | None) -> slice | list[int]:
    """An index of some heads; a slice where they are neighbours."""
    if numbers is None:
        return slice(None)
    first = numbers[0]
    return slice(first, first + len(numbers)) if numbers == tuple(range(first, first + len(numbers))) else list(numbers)
