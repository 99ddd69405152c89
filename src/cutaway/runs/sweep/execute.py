"""The executor: a chunk of cells goes through the layers step by step, each step once for all cells that have a region there.

A sheet is one value of all cells that have changed it, their regions one below the other as one row of tokens, so that each
matrix product is as large as the chunk. Attention goes group by group of rows that begin together. What a cell has changed of
some heads or neurons alone stays a part beside the sheet until a step needs it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from cutaway.model.positions import Stream, offset_positions
from cutaway.model.products import linear
from cutaway.model.steps import ATTN_OUT, FIRST, FROM_KEYS, INPUTS, LAST, MLP_OUT, PATTERN, SCORES, K, Q, Step, V, Z
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Bound
from cutaway.runs.sweep.attend import Group, seen, seen_absorbed, seen_apart, together
from cutaway.runs.sweep.cells import Cell, short
from cutaway.runs.sweep.clean import Clean
from cutaway.runs.sweep.entering import Changed, enter, filled, list_of
from cutaway.runs.sweep.regions import Layer, Region, Rules, Way

Layout = list[tuple[Cell, Region]]  # cells in the order of their starts, and the region of each


@dataclass(frozen=True, eq=False)
class Sheet:
    """One value of several cells: `data` is `[1, token, …]`."""

    layout: Layout
    data: Tensor

    @cached_property
    def offsets(self) -> list[int]:
        """Where each cell's tokens begin, and where the last ones end."""
        return list(accumulate((region.tokens for _, region in self.layout), initial=0))

    @cached_property
    def place(self) -> dict[int, int]:
        """Cell → its place among them."""
        return {cell.number: at for at, (cell, _) in enumerate(self.layout)}

    @cached_property
    def pieces(self) -> tuple[Tensor, ...]:
        """The tokens of each cell, `[token, …]`."""
        return self.data[0].split([region.tokens for _, region in self.layout])

    def of(self, number: int) -> Changed | None:
        """What a cell has changed; None: it has no region here."""
        at = self.place.get(number)
        if at is None:
            return None
        region = self.layout[at][1]
        return Changed(region, self.pieces[at].unflatten(0, (region.rows, region.count)))

    def tokens(self, cells: Sequence[Cell]) -> Tensor:
        """The tokens of some neighbouring cells, `[token, …]`."""
        first, last = self.place[cells[0].number], self.place[cells[-1].number]
        assert last - first + 1 == len(cells)
        return self.data[0, self.offsets[first] : self.offsets[last + 1]]


def run_chunk(
    model: Transformer, clean: Clean, rules: Rules, cells: Sequence[Cell], between: Callable[[], None] | None = None
) -> list[tuple[Cell, Changed]]:
    """Run cells from where they leave the clean run: what each has changed of the stream after the last layer, where it is read.

    Args:
        between: called before each layer.
    """
    return _Chunk(model, clean, rules, cells).run(between)


class _Chunk:
    """One pass over the layers."""

    def __init__(self, model: Transformer, clean: Clean, rules: Rules, cells: Sequence[Cell]):
        self.model, self.clean, self.rules = model, clean, rules
        self.entries: dict[tuple[int, str], dict[int, Changed]] = {}  # layer, value → cell → what it enters with
        self.edited: set[tuple[int | None, str]] = set()  # layer, site
        self.ways: list[tuple[Cell, Way]] = []
        for cell in cells:
            way, entries = enter(model, clean, rules, cell)
            if way is None:
                continue
            self.ways.append((cell, way))
            self.edited |= {(bound.layer, short(bound.site)) for bound in cell.bounds} | entries.keys()
            for place, entry in entries.items():
                self.entries.setdefault(place, {})[cell.number] = entry
        self.ways.sort(key=lambda one: one[0].start)
        self.rank = {cell.number: at for at, (cell, _) in enumerate(self.ways)}
        self.sheets: dict[str, Sheet] = {}
        self.parts: dict[str, dict[int, Changed]] = {}  # value → cell → what it has changed of some heads
        self.streams: dict[tuple[int, ...], Stream] = {}
        self.groups: dict[tuple[int, ...], list[tuple[slice, Group]]] = {}

    def run(self, between: Callable[[], None] | None = None) -> list[tuple[Cell, Changed]]:
        if not self.ways:
            return []
        for layer in range(min(min(way) for _, way in self.ways), self.model.cfg.n_layers):
            if between is not None:
                between()
            self._layer(layer)
        sheet = self.sheets[LAST]
        return [(cell, Changed(region, piece.unflatten(0, (region.rows, region.count))))
                for (cell, region), piece in zip(sheet.layout, sheet.pieces, strict=True)]  # fmt: skip

    def _layer(self, layer: int) -> None:
        here = [(cell, way[layer]) for cell, way in self.ways if layer in way]
        before = self.sheets.get(LAST)
        self.sheets, self.parts = {}, {}
        program = self.model.program_of(layer)
        for step in program.steps:
            if step.writes == (FIRST,):
                self._first(layer, before, here)
            elif FROM_KEYS in step.spread:
                self._attend(layer, step, here)
            else:
                self._step(layer, step, here)
            for name in step.writes:
                self._edit(layer, name, here)
            for name in () if step.writes == (Q, K, V) else (*program.done_after(step), *(INPUTS if Z in step.writes else ())):
                self.sheets.pop(name, None)

    def _first(self, layer: int, before: Sheet | None, here: list[tuple[Cell, Layer]]) -> None:
        """The stream before the layer, of cells that changed it in an earlier one."""
        known = {} if before is None else before.place
        layout = [(cell, regions[FIRST]) for cell, regions in here if FIRST in regions and cell.number in known]
        if before is not None and layout:
            before = Sheet(before.layout, self.model.placed(before.data, layer))
            self._write(FIRST, layout, self._gathered(layer, FIRST, before, layout))

    def _step(self, layer: int, step: Step, here: list[tuple[Cell, Layer]]) -> None:
        """A step that works token by token, for all cells that have changed what it reads."""
        block = self.model.blocks[layer]
        if step.weights is not None and step.writes[0] in (ATTN_OUT, MLP_OUT):
            self._add_parts(layer, step, here)
        elif step.by_head and len(step.writes) == 1:
            for number, part in self.parts.pop(step.reads[0], {}).items():
                new = step.run(block, self._stream([part.region]), part.data.flatten(0, 1)[None])[0].view_as(part.data)
                self.parts.setdefault(step.writes[0], {})[number] = Changed(part.region, new)
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

    def _layout(self, step: Step, at: int, here: list[tuple[Cell, Layer]]) -> Layout:
        """The cells and regions for which a step computes one of its values."""
        name = step.writes[at]
        reads = (step.reads[at],) if len(step.reads) == len(step.writes) else step.reads
        sheet = self.sheets.get(name)
        known = self.parts.get(name, {}).keys() | (set() if sheet is None else sheet.place.keys())
        return [
            (cell, regions[name]) for cell, regions in here
            if name in regions and cell.number not in known and any(read in regions for read in reads)
        ]  # fmt: skip

    def _read(self, layer: int, name: str, layout: Layout) -> Tensor:
        """A value of the cells in a layout: what they have changed of it, and the clean run's elsewhere."""
        sheet = self.sheets.get(name)
        if not layout:
            assert sheet is not None
            return sheet.data[:, :0]
        return self._gathered(layer, name, sheet, layout)

    def _gathered(self, layer: int, name: str, sheet: Sheet | None, layout: Layout) -> Tensor:
        """Tokens from a sheet (and parts beside it) in another layout, `[1, token, …]`."""
        parts, same = self.parts.get(name, {}), False
        if sheet is not None and not parts and len(layout) == len(sheet.layout):
            same = all(a is c and b is d for (a, b), (c, d) in zip(layout, sheet.layout, strict=True))
        if sheet is not None and same:
            return sheet.data
        clean, out = self.clean.find(layer, name), []
        for cell, region in layout:
            at = None if sheet is None else sheet.place.get(cell.number)
            if sheet is not None and at is not None and sheet.layout[at][1] is region:
                out.append(sheet.pieces[at])
            else:
                own = parts.get(cell.number) or (None if sheet is None else sheet.of(cell.number))
                out.append(filled(clean, region, own).flatten(0, 1))
        return (out[0] if len(out) == 1 else torch.cat(out))[None]

    def _write(self, name: str, layout: Layout, data: Tensor) -> None:
        """Put values of some cells beside those that are already there, in the order of their starts."""
        new, before = Sheet(layout, data), self.sheets.get(name)
        if before is not None:
            both = [*zip(before.layout, before.pieces, strict=True), *zip(layout, new.pieces, strict=True)]
            both.sort(key=lambda one: self.rank[one[0][0].number])
            new = Sheet([one for one, _ in both], torch.cat([piece for _, piece in both])[None])
        self.sheets[name] = new

    def _write_all(self, name: str, entering: list[tuple[Cell, Region, Tensor]]) -> None:
        """The same of values `[row, place, …]`."""
        if entering:
            pieces = [value.flatten(0, 1) for _, _, value in entering]
            data = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            self._write(name, [(cell, region) for cell, region, _ in entering], data[None])

    def _edit(self, layer: int, name: str, here: list[tuple[Cell, Layer]]) -> None:
        """Cells that are edited at a value enter there, or edit what they have computed of it."""
        if (layer, name) not in self.edited:
            return
        entering, entries, sheet = [], self.entries.get((layer, name), {}), self.sheets.get(name)
        clean = self.clean.find(layer, name)
        for cell, regions in here:
            if name not in regions:
                continue
            region, entry = regions[name], entries.get(cell.number)
            if entry is not None and region.heads is not None:
                self.parts.setdefault(name, {})[cell.number] = entry
            elif entry is not None:
                entering.append((cell, region, filled(clean, region, entry)))
            elif bounds := [bound for bound in cell.bounds if bound.layer == layer and short(bound.site) == name]:
                own = None if sheet is None else sheet.of(cell.number)
                value = filled(clean, region, None).clone() if own is None else own.data
                for bound in bounds:
                    self._edit_region(bound, value, region)
                if own is None:
                    entering.append((cell, region, value))
        self._write_all(name, entering)

    def _edit_region(self, bound: Bound, x: Tensor, region: Region) -> None:
        """Edit the tokens of a region in place; its examples are all."""
        local = bound.local(self.clean.first, self.clean.first + self.clean.batch)
        if local is not None:
            local.write(x, region.places.tolist(), self.clean.store.get(bound.site))

    def _add_parts(self, layer: int, step: Step, here: list[tuple[Cell, Layer]]) -> None:
        """What changed heads or neurons write beyond the clean run is added to what it wrote."""
        assert step.weights is not None
        (read,), (name,) = step.reads, step.writes
        parts, weights, entering = self.parts.get(read, {}), step.weights(self.model.blocks[layer]), []
        for cell, regions in here if parts else ():
            region, part = regions.get(name), parts.get(cell.number)
            if region is None or part is None:
                continue
            del parts[cell.number]
            heads = list_of(part.region.heads)
            change = part.data - part.region.of(self.clean.value(layer, read))[:, :, heads]
            change = change if region.count == part.region.count else change[:, region.within(part.region)]
            written = linear(change.flatten(2), weights[heads].flatten(0, -2))
            entering.append((cell, region, region.of(self.clean.value(layer, name)) + written))
        self._write_all(name, entering)

    # Attention.

    def _attend(self, layer: int, step: Step, here: list[tuple[Cell, Layer]]) -> None:
        entries, layout = self.entries.get((layer, Z), {}), []
        for cell, regions in here:
            if Z not in regions or cell.number in entries or not any(name in regions for name in (*step.reads, SCORES, PATTERN)):
                continue
            z = regions[Z]
            if z.heads is None:
                layout.append((cell, regions))
            else:
                stream = self.clean.rows(z.examples, None if z.count == self.clean.length else z.places)
                self.parts.setdefault(Z, {})[cell.number] = Changed(z, self._seen_apart(layer, step, cell, z, stream))
        if layout:
            groups = self._groups(layer, step, layout)
            out = [self._seen(layer, step, group, layout[place]).flatten(0, 1) for place, group in groups]
            self._write(Z, [(cell, regions[Z]) for cell, regions in layout], torch.cat(out)[None])
        for name in step.reads:
            self.parts.pop(name, None)

    def _seen(self, layer: int, step: Step, group: Group, layout: list[tuple[Cell, Layer]]) -> Tensor:
        """What a group's queries have seen, `[row, place, head, d_head]`."""
        cells, attention = [cell for cell, _ in layout], self.model.blocks[layer].attn
        if group.kind == "apart":
            return self._seen_apart(layer, step, cells[0], group.regions[Z], group.stream)
        regular = group.kind == "regular"
        names = step.reads if regular else (step.reads[0], *INPUTS[1:])
        q, k, v = (self.sheets[name].tokens(cells).unflatten(0, (group.rows, -1)) for name in names)
        return (seen if regular else seen_absorbed)(self.clean.read[layer], attention, group, q, k, v)

    def _seen_apart(self, layer: int, step: Step, cell: Cell, z: Region, stream: Stream) -> Tensor:
        """The same of one cell, with the clean run's queries, keys and values where it has not changed them."""
        own = {name: found for name in step.reads if (found := self._own(name, cell)) is not None}
        touch = self._touch(layer, cell, z) if self._touches(layer, cell) else None
        return seen_apart(self.clean.read[layer], self.model.blocks[layer].attn, step, z, own, stream, touch)

    def _own(self, name: str, cell: Cell) -> Changed | None:
        """What a cell has changed of a value so far."""
        sheet, part = self.sheets.get(name), self.parts.get(name, {}).get(cell.number)
        return part if part is not None or sheet is None else sheet.of(cell.number)

    def _touches(self, layer: int, cell: Cell) -> bool:
        """Whether scores or pattern of a cell are edited between what attention reads and what it has seen."""
        if not {(layer, SCORES), (layer, PATTERN)} & self.edited:
            return False
        return any(bound.layer == layer and short(bound.site) in (SCORES, PATTERN) for bound in cell.bounds)

    def _touch(self, layer: int, cell: Cell, z: Region) -> Callable[[str, Tensor], Tensor]:
        def touch(site: str, x: Tensor) -> Tensor:
            for bound in cell.bounds:
                if bound.layer == layer and short(bound.site) == site:
                    self._edit_region(bound, x, z)
            return x

        return touch

    def _groups(self, layer: int, step: Step, layout: list[tuple[Cell, Layer]]) -> list[tuple[slice, Group]]:
        """The rows that attend together, by place in the layout: neighbours with the same regions of what attention reads."""
        touched = [self._touches(layer, cell) for cell, _ in layout]
        key = tuple(id(one) for _, regions in layout for one in (regions[Z], *(regions.get(name) for name in step.reads)))
        if key in self.groups and not any(touched):
            return self.groups[key]
        starts = [at for at in range(len(layout)) if at == 0 or touched[at] or touched[at - 1]
                  or not together(step, layout[at - 1][1], layout[at][1])]  # fmt: skip
        places = [slice(start, end) for start, end in zip(starts, [*starts[1:], len(layout)], strict=True)]
        groups = [(place, Group.of(self.clean, step, layout[place], apart=touched[place.start])) for place in places]
        if not any(touched):
            self.groups[key] = groups
        return groups

    def _stream(self, regions: Sequence[Region]) -> Stream:
        """Where the tokens of some regions stand."""
        cfg, clean = self.model.cfg, self.clean
        if not regions or cfg.positional_embedding_type not in ("rotary", "shortformer"):
            return Stream()
        key = tuple(map(id, regions))
        if key not in self.streams:
            positions = shortformer = None
            if cfg.positional_embedding_type == "rotary":
                every = None if clean.stream.padding is None else offset_positions(clean.stream.padding)
                positions = torch.cat([
                    one.of(every).flatten() if every is not None else one.places if one.rows == 1 else one.places.repeat(one.rows)
                    for one in regions
                ])[None]  # fmt: skip
            if clean.stream.shortformer is not None:
                shortformer = torch.cat([one.of(clean.stream.shortformer).flatten(0, 1) for one in regions])[None]
            self.streams[key] = Stream(shortformer=shortformer, at=positions, lengths=clean.stream.texts(clean.length))
        return self.streams[key]
