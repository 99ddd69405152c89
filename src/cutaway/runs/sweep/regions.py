"""Regions: which examples, positions and heads of a value a cell has changed, layer by layer, by the rules of the steps.

A cell's region of a value is *reached ∩ needed*. Reached spreads forward from the edit: token by token, from keys and values
to every later position, from a query to its own. Needed spreads backward from what the metric reads. Everything outside is
the clean run's. `way_of` is the one place where this is worked out: a plan sums the costs of a way, an executor follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.model.steps import (
    ATTN_OUT,
    FIRST,
    FROM_KEYS,
    HEADS_WRITE,
    INPUTS,
    LAST,
    MLP_OUT,
    PATTERN,
    POST,
    RESULT,
    SCORES,
    BlockProgram,
    K,
    Q,
    Step,
    V,
    Z,
    program,
)  # fmt: skip

BY_HEAD = frozenset((Q, K, V, Z, "attn.hook_rot_q", "attn.hook_rot_k", PATTERN, RESULT, POST))  # where a part may be edited alone
WORTH = 2**22  # operations that leaving clean positions out must save, to be worth a call of attention for each cell


@dataclass(frozen=True, eq=False)
class Region:
    """Some positions of some examples of a value, and some of its heads (or neurons).

    Args:
        examples: None for all; `rows` is how many.
        places: ascending positions.
        to_end: whether they are all from the first on.
        heads: None for all.
    """

    examples: Tensor | None
    rows: int
    places: Tensor
    first: int
    to_end: bool
    heads: tuple[int, ...] | None = None

    @staticmethod
    def of_places(
        examples: Tensor | None, rows: int, places: Tensor, length: int, heads: tuple[int, ...] | None = None
    ) -> Region:
        """The region of some ascending places in rows of this length."""
        first = int(places[0])
        return Region(examples, rows, places, first, len(places) == length - first, heads)

    @cached_property
    def count(self) -> int:
        """How many positions."""
        return int(self.places.shape[0])

    @cached_property
    def tokens(self) -> int:
        return self.rows * self.count

    @cached_property
    def index(self) -> slice | Tensor:
        """The places as an index of positions: a slice where they are neighbours, so that a view suffices."""
        if self.to_end or self.count == 1:
            return slice(self.first, self.first + self.count)
        last = int(self.places[-1])
        return slice(self.first, last + 1) if last - self.first + 1 == self.count else self.places

    def of(self, x: Tensor) -> Tensor:
        """This region of a whole activation, all heads: `[row, place, …]`."""
        return x[:, self.index] if self.examples is None else x[self.examples][:, self.index]

    def holds(self, other: Region) -> bool:
        """Whether all places of another region are among these."""
        if other is self or (self.to_end and other.first >= self.first):
            return True
        return other.count <= self.count and bool(torch.isin(other.places, self.places).all())

    def within(self, other: Region) -> slice | Tensor:
        """Where these places stand among those of another region that holds them."""
        if isinstance(other.index, slice):
            if isinstance(self.index, slice):
                return slice(self.index.start - other.first, self.index.stop - other.first)
            return self.places - other.first
        return torch.searchsorted(other.places, self.places)

    def cut(self, needed: Tensor, numbers: frozenset[int]) -> Region | None:
        """The part at these positions; None where nothing is left."""
        if self.count == 1:
            return self if self.first in numbers else None
        kept = needed[needed >= self.first] if self.to_end else self.places[torch.isin(self.places, needed)]
        count = int(kept.shape[0])
        if count == self.count or not count:
            return self if count else None
        return Region(self.examples, self.rows, kept, int(kept[0]), False, self.heads)


@dataclass(frozen=True, eq=False)
class Rules:
    """What regions depend on beside the edit: the network, the length of the prompts, and which positions the metric reads.

    Args:
        asked: positions after the last layer, ascending; None: all.
    """

    cfg: HookedTransformerConfig
    length: int
    asked: Tensor | None
    programs: Sequence[BlockProgram] = ()
    needed: Mapping[str, Tensor | None] = field(default_factory=dict)  # of values of the last layer
    wholes: dict[tuple[int, int], Region] = field(default_factory=dict, repr=False)  # (first, rows) → all positions from there
    alike: dict[tuple[Any, ...], Way | None] = field(default_factory=dict, repr=False)  # ways that differ in their heads only
    rests: dict[tuple[int, int, int], list[Layer]] = field(default_factory=dict, repr=False)  # the way of such a region on

    @staticmethod
    def of(
        cfg: HookedTransformerConfig, length: int, asked: Tensor | None, programs: Sequence[BlockProgram] | None = None
    ) -> Rules:
        programs = [program(cfg, layer) for layer in range(cfg.n_layers)] if programs is None else programs
        needed = _needed(programs[-1], asked) if programs and asked is not None else {}
        return Rules(cfg, length, asked, programs, needed)

    @cached_property
    def numbers(self) -> frozenset[int]:
        """The positions that the metric reads."""
        return frozenset([] if self.asked is None else self.asked.tolist())

    @cached_property
    def last_asked(self) -> int:
        return max(self.numbers, default=-1)

    @property
    def causal(self) -> bool:
        return self.cfg.attention_dir == "causal"

    def reads_something(self, first: int) -> bool:
        """Whether the metric reads anything that positions from `first` on can change."""
        return self.asked is None or not self.causal or first <= self.last_asked

    def spread(self, region: Region) -> Region:
        """Which positions see something else when keys or values of a region change."""
        first = region.first if self.causal else 0
        if region.to_end and region.first == first:
            return region
        if region.examples is not None or region.heads is not None:
            return self._whole(region, first)
        key = first, region.rows
        if key not in self.wholes:
            self.wholes[key] = self._whole(region, first)
        return self.wholes[key]

    def _whole(self, region: Region, first: int) -> Region:
        places = torch.arange(first, self.length, device=region.places.device)
        return Region(region.examples, region.rows, places, first, True, region.heads)

    def widened(self, region: Region) -> Region:
        """All positions from the first on, where leaving out those that are the clean run's would not be worth it."""
        whole = self.spread(region)
        cfg = self.cfg
        each = 2 * cfg.d_model * cfg.d_head * (cfg.n_heads + 2 * cfg.kv_heads)
        few = 2 * region.count <= whole.count and (whole.tokens - region.tokens) * each >= WORTH
        return region if few else whole

    def absorbs(self, layer: int, region: Region) -> bool:
        """Whether the last layer takes its few queries to the stream, instead of every token to keys and values."""
        cfg = self.cfg
        plain = not cfg.rotates(layer) and not cfg.use_qk_norm and cfg.clip_qkv is None and cfg.attn_scores_soft_cap <= 0
        plain = plain and cfg.n_key_value_heads is None and cfg.torch_dtype in (torch.float32, torch.float64)
        plain = plain and cfg.positional_embedding_type != "alibi"
        few = self.asked is not None and 4 * len(self.asked) <= self.length
        return plain and few and region.to_end and layer == cfg.n_layers - 1


def _needed(last: BlockProgram, asked: Tensor | None) -> dict[str, Tensor | None]:
    """Backward through the last layer: the positions at which each value is needed."""
    needed: dict[str, Tensor | None] = {LAST: asked}
    for step in reversed(last.steps):
        for at, name in enumerate(step.writes):
            for read, spread in zip(step.reads, step.spread, strict=True):
                if len(step.writes) == len(step.reads) and read is not step.reads[at]:
                    continue
                wanted = None if spread is FROM_KEYS else needed.get(name)
                needed[read] = wanted if read not in needed or needed[read] is not None else None
    return needed


Layer = dict[str, Region]  # value of the layer → region


@dataclass(frozen=True, eq=False)
class Way:
    """Where a cell goes: for each layer from `start` on, the region of each value that it changes there."""

    start: int
    layers: Sequence[Layer]

    def steps(self, rules: Rules) -> Iterator[tuple[int, Step, Layer]]:
        """Layer by layer, the steps that write something of the cell."""
        for layer, regions in enumerate(self.layers, self.start):
            for step in rules.programs[layer].steps:
                if any(name in regions for name in step.writes):
                    yield layer, step, regions


def way_of(rules: Rules, entered: Mapping[tuple[int, str], Region]) -> Way | None:
    """The way of a cell that is edited at some values; None where it changes nothing that anybody reads.

    Args:
        entered: (layer, value) → the region that an edit changes there, beside what was reached before.
    """
    start, last = min(layer for layer, _ in entered), max(layer for layer, _ in entered)
    layers: list[Layer] = []
    before: Region | None = None
    for layer in range(start, rules.cfg.n_layers):
        if before is not None:
            before = rules.widened(before) if rules.reads_something(before.first) else None
        if layer > last and (before is None or before is rules.wholes.get((before.first, before.rows))):
            return None if before is None else Way(start, [*layers, *_rest(rules, layer, before)])
        here = {name: region for (at, name), region in entered.items() if at == layer}
        layers.append(_through(rules, layer, before, here))
        before = layers[-1].get(LAST)
    return None if before is None else Way(start, layers)


def way_from(rules: Rules, layer: int, name: str, region: Region) -> Way | None:
    """The way of a cell that is edited at one value. Cells at the same place share it, but for the heads that are edited."""
    plain = region.examples is None and (region.count == 1 or region.to_end)
    if not plain or (region.heads is not None and name not in (Z, POST, PATTERN, RESULT)):
        return way_of(rules, {(layer, name): region})
    key = layer, name, region.first, region.count, region.rows, region.heads is None
    if key not in rules.alike:
        rules.alike[key] = way_of(rules, {(layer, name): region})
    way = rules.alike[key]
    if way is None or region.heads is None:
        return way
    first = {
        one: found if found.heads is None else Region(None, found.rows, found.places, found.first, found.to_end, region.heads)
        for one, found in way.layers[0].items()
    }
    return Way(way.start, [first, *way.layers[1:]])


def _rest(rules: Rules, layer: int, before: Region) -> list[Layer]:
    """The layers from one on, of cells that have changed everything from a position on; they share it."""
    key = layer, before.first, before.rows
    if key not in rules.rests:
        here = _through(rules, layer, before, {})
        after = here.get(LAST)
        rest = [] if after is None or layer == rules.cfg.n_layers - 1 else _rest(rules, layer + 1, rules.widened(after))
        if rest and rest[0].get(FIRST) is before and rest[0].keys() == here.keys() and layer + 1 < rules.cfg.n_layers - 1:
            here = rest[0]
        rules.rests[key] = [here, *rest]
    return rules.rests[key]


def _through(rules: Rules, layer: int, before: Region | None, entered: Mapping[str, Region]) -> Layer:
    """One layer, step by step."""
    reached: Layer = {}
    needed = rules.needed if layer == rules.cfg.n_layers - 1 else {}
    cuts: dict[int, tuple[Region, Region | None]] = {}  # by identity, so what is cut is kept: another one must not get its number
    for step in rules.programs[layer].steps:
        touched = bool(entered) and not entered.keys().isdisjoint(step.names)
        for at, name in enumerate(step.writes) if reached or touched or before is not None else ():
            region = before if name == FIRST else _reach(rules, step, at, reached, entered if touched else {})
            if name in entered:
                region = _union([one for one in (region, entered[name]) if one is not None], rules.length)
                if name == FIRST and region is not None:
                    region = rules.widened(region) if rules.reads_something(region.first) else None
            if region is None:
                continue
            wanted = needed.get(name)
            if wanted is not None:
                key = id(region)
                if key not in cuts:
                    cuts[key] = region, region.cut(wanted, rules.numbers)
                region = cuts[key][1]
            if region is not None:
                reached[name] = region
        if touched:
            reached |= {name: entered[name] for name in step.passes if name in entered}
        if step.writes == INPUTS and _absorbed(rules, layer, reached, entered):
            reached["absorbed"] = reached[FIRST]
    if "absorbed" in reached:
        for name in (K, V):
            reached.pop(name, None)
    return reached


def _absorbed(rules: Rules, layer: int, reached: Layer, entered: Mapping[str, Region]) -> bool:
    inside = {Q, K, V, Z, PATTERN, SCORES, RESULT}
    return FIRST in reached and not inside & set(entered) and rules.absorbs(layer, reached[FIRST])


def _reach(rules: Rules, step: Step, at: int, reached: Layer, entered: Mapping[str, Region]) -> Region | None:
    """The region of one value that a step writes."""
    found = []
    for read, spread in zip(step.reads, step.spread, strict=True):
        region = reached.get(read)
        if region is None or (len(step.writes) == len(step.reads) and read is not step.reads[at]):
            continue
        if region.heads is not None:
            heads = _heads(step, read, region, rules.cfg)
            region = replace(region, heads=heads)
        found.append(rules.spread(region) if spread is FROM_KEYS else region)
    found += [entered[name] for name in step.passes if name in entered and name in (SCORES, PATTERN)]
    found += [replace(entered[name], heads=None) for name in step.passes if name in entered and name == RESULT]
    return _union(found, rules.length)


def _heads(step: Step, read: str, region: Region, cfg: HookedTransformerConfig) -> tuple[int, ...] | None:
    """Which heads of what a step writes depend on some heads of what it reads; None: all."""
    assert region.heads is not None
    if not step.by_head:
        return None
    if step.writes != (Z,) or read == step.reads[0]:
        return region.heads
    times = cfg.n_heads // (cfg.n_heads if cfg.ungroup_grouped_query_attention else cfg.kv_heads)
    return tuple(head * times + one for head in region.heads for one in range(times))


def _union(regions: Sequence[Region], length: int) -> Region | None:
    """All positions and heads of some regions of one cell, which have their examples in common."""
    if len(regions) < 2:
        return regions[0] if regions else None
    if all(region is regions[0] for region in regions):
        return regions[0]
    widest = max(regions, key=lambda region: region.count)
    heads = None
    if all(region.heads is not None for region in regions):
        heads = tuple(sorted({head for region in regions for head in region.heads or ()}))
    if all(widest.holds(region) for region in regions):
        return widest if heads == widest.heads else replace(widest, heads=heads)
    places = torch.cat([region.places for region in regions]).unique()
    return Region.of_places(widest.examples, widest.rows, places, length, heads)


# Costs.


def cost_of(rules: Rules, way: Way) -> int:
    """Operations of a cell from where it enters to the end of the last layer: the sum of its steps' costs."""
    return sum(_step_cost(rules, layer, step, regions) for layer, step, regions in way.steps(rules))


def _step_cost(rules: Rules, layer: int, step: Step, regions: Layer) -> int:
    if step.writes == (Z,):
        return _attention_cost(rules, layer, step, regions)
    total = 0
    for at, (name, cost) in enumerate(zip(step.writes, step.cost, strict=True)):
        region = regions.get(name)
        if region is None or not cost:
            continue
        if len(step.writes) == len(step.reads) and step.reads[at] not in regions:
            continue  # it was put there
        if RESULT in step.passes and RESULT in regions:
            result = regions[RESULT]
            total += cost * result.tokens * len(result.heads or range(rules.cfg.n_heads)) // rules.cfg.n_heads
            total += cost * region.tokens * (name == HEADS_WRITE)
        elif any(read in regions for read in step.reads):
            total += _share(rules, step, regions, cost) * region.tokens
    return total


def _share(rules: Rules, step: Step, regions: Layer, cost: int) -> int:
    """Of a linear step whose input has changed in some heads or neurons only, the part that those take."""
    read = regions.get(step.reads[0])
    if step.weights is None or read is None or read.heads is None or step.writes[0] not in (ATTN_OUT, MLP_OUT):
        return cost
    every = rules.cfg.n_heads if step.reads[0] == Z else (rules.cfg.d_mlp or 1)
    return cost * len(read.heads) // every


def _attention_cost(rules: Rules, layer: int, step: Step, regions: Layer) -> int:
    region, cfg = regions[Z], rules.cfg  # every query meets every key, those that it may not see included
    queries = region.tokens
    if "absorbed" in regions:
        own = regions["absorbed"]
        wide, narrow = cfg.n_heads * cfg.d_model, cfg.n_heads * cfg.d_head
        past = 2 * narrow * (own.first + (own.first if own.first > 1 else 0))  # one value is no matrix product
        return queries * (4 * cfg.d_model * narrow + 4 * wide * len(own.places) + 2 * narrow + past)
    if not any(read in regions for read in (*step.reads, PATTERN, SCORES)):
        return 0
    heads = cfg.n_heads if region.heads is None else len(region.heads)
    return step.cost[0] * queries * rules.length * heads // cfg.n_heads
