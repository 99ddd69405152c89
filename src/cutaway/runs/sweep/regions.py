"""Regions: which examples, positions and heads of a value a cell has changed, layer by layer, by the rules of the steps.

A cell's region of a value is *reached ∩ needed*. Reached spreads forward from the edit: token by token, from keys and values
to every later position, from a query to its own. Needed spreads backward from what the metric reads. Everything outside is
the clean run's. `Rules.way_of` is the one place where this is worked out: a plan sums the costs of a way, an executor follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
)  # fmt: skip
from cutaway.model.transformer import Transformer

Entered = Mapping[tuple[int, str], "Region"]  # layer, value → what an edit changes there, beside what was reached before
Layer = dict[str, "Region"]  # value of a layer → what a cell changes of it
Way = dict[int, Layer]  # where a cell goes: the layers from its first on
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

    def on(self, device: torch.device) -> Region:
        """The same, with its indices on this device."""
        if self.places.device == device:
            return self
        examples = None if self.examples is None else self.examples.to(device)
        return replace(self, examples=examples, places=self.places.to(device))

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
        if self.to_end and numbers and self.first <= int(needed[0]):
            kept = needed
        else:
            kept = needed[needed >= self.first] if self.to_end else self.places[torch.isin(self.places, needed)]
        count = int(kept.shape[0])
        if count == self.count or not count:
            return self if count else None
        return Region(self.examples, self.rows, kept, int(kept[0]), False, self.heads)


@dataclass(frozen=True, eq=False)
class Rules:
    """What regions depend on beside the edit: the network, the length of the prompts, and which positions the metric reads.

    Args:
        read_at: positions after the last layer, ascending; None: all.
    """

    cfg: HookedTransformerConfig
    length: int
    read_at: Tensor | None
    programs: Sequence[BlockProgram]
    _wholes: dict[tuple[int, int], Region] = field(default_factory=dict, repr=False)  # (first, rows) → all positions from there
    _alike: dict[tuple[Any, ...], Way | None] = field(default_factory=dict, repr=False)  # ways that differ in their heads only
    _layers: dict[tuple[int, int, int], Layer] = field(default_factory=dict, repr=False)  # of such a whole region

    @staticmethod
    def of(model: Transformer, length: int, read_at: Tensor | None) -> Rules:
        """The rules of a network."""
        return Rules(model.cfg, length, read_at, [model.program_of(layer) for layer in range(model.cfg.n_layers)])

    @cached_property
    def numbers(self) -> frozenset[int]:
        """The positions that the metric reads."""
        return frozenset([] if self.read_at is None else self.read_at.tolist())

    @cached_property
    def last_needed(self) -> int:
        return max(self.numbers, default=-1)

    @cached_property
    def causal(self) -> bool:
        return self.cfg.attention_dir == "causal"

    @cached_property
    def _needed(self) -> dict[str, Tensor | None]:
        """Backward through the last layer: the positions at which each value is needed; None: all."""
        needed: dict[str, Tensor | None] = {LAST: self.read_at}
        for step in reversed(self.programs[-1].steps if self.read_at is not None else ()):
            for at, name in enumerate(step.writes):
                for read, spread in step.read_by[at]:
                    wanted = None if spread is FROM_KEYS else needed.get(name)
                    needed[read] = wanted if read not in needed or needed[read] is not None else None
        return needed

    def needed(self, layer: int, name: str) -> Tensor | None:
        """The positions at which somebody needs a value; None: all."""
        return self._needed.get(name) if layer == self.cfg.n_layers - 1 else None

    def reads_from(self, first: int) -> bool:
        """Whether the metric reads anything that positions from `first` on can change."""
        return self.read_at is None or not self.causal or first <= self.last_needed

    # Ways: layer by layer, step by step.

    def way_of(self, entered: Entered) -> Way | None:
        """The way of a cell that is edited at some values; None where it changes nothing that anybody reads."""
        start, last = min(layer for layer, _ in entered), max(layer for layer, _ in entered)
        way: Way = {}
        before: Region | None = None
        for layer in range(start, self.cfg.n_layers):
            if before is None and layer > last:
                return None
            here = {name: region for (at, name), region in entered.items() if at == layer} if layer <= last else {}
            way[layer] = self._layer(layer, before, here)
            before = self._onward(way[layer].get(LAST))
        return way if LAST in way[self.cfg.n_layers - 1] else None

    def way_from(self, layer: int, name: str, region: Region) -> Way | None:
        """The way of a cell that is edited at one value. Cells at the same place share it, but for the heads that are edited."""
        plain = region.examples is None and (region.count == 1 or region.to_end)
        if not plain or (region.heads is not None and name not in (Z, POST, PATTERN, RESULT)):
            return self.way_of({(layer, name): region})
        key = layer, name, region.first, region.count, region.rows, region.heads is None
        if key not in self._alike:
            self._alike[key] = self.way_of({(layer, name): region})
        way = self._alike[key]
        if way is None or region.heads is None:
            return way
        own = {one: found if found.heads is None else replace(found, heads=region.heads) for one, found in way[layer].items()}
        return {**way, layer: own}

    def _layer(self, layer: int, before: Region | None, entered: Layer) -> Layer:
        """What a cell changes in one layer. Cells that have changed everything from a position on share it."""
        if entered or before is None or before is not self._wholes.get((before.first, before.rows)):
            return self._through(layer, before, entered)
        key = layer, before.first, before.rows
        if key not in self._layers:
            self._layers[key] = self._through(layer, before, entered)
        return self._layers[key]

    def _through(self, layer: int, before: Region | None, entered: Layer) -> Layer:
        """One layer, step by step: each value's region is what reaches it, cut to what somebody needs of it.

        Args:
            before: the region of the stream before the layer that earlier layers have changed.
        """
        reached: Layer = {}
        cuts: dict[int, tuple[Region, Region | None]] = {}  # by identity, so what is cut is kept: another must not get its number
        for step in self.programs[layer].steps:
            touched = not entered.keys().isdisjoint(step.names)
            for at, name in enumerate(step.writes) if reached or touched or before is not None else ():
                region = before if name == FIRST else self._reach(step, at, reached, entered if touched else {})
                if name in entered:  # the edit comes on top of what earlier edits have reached
                    region = _union([one for one in (region, entered[name]) if one is not None], self.length)
                    region = self._onward(region) if name == FIRST else region
                wanted = self.needed(layer, name)
                if region is not None and wanted is not None:  # once for each region: identity says what is shared
                    if id(region) not in cuts:
                        cuts[id(region)] = region, region.cut(wanted, self.numbers)
                    region = cuts[id(region)][1]
                if region is not None:
                    reached[name] = region
            if touched:  # scores, pattern and per-head results are passed inside the step, and no step writes them
                reached |= {name: entered[name] for name in step.passes if name in entered}
            if step.writes == INPUTS and FIRST in reached and self._absorbs(layer, reached[FIRST], entered):
                reached["absorbed"] = reached[FIRST]
        if "absorbed" in reached:  # then nobody projects keys and values
            for name in (K, V):
                reached.pop(name, None)
        return reached

    def _reach(self, step: Step, at: int, reached: Layer, entered: Layer) -> Region | None:
        """The region of one value that a step writes."""
        found = []
        for read, spread in step.read_by[at]:
            region = reached.get(read)
            if region is not None and region.heads is not None:
                region = replace(region, heads=_heads(step, read, region.heads, self.cfg))
            if region is not None:
                found.append(self._spread(region) if spread is FROM_KEYS else region)
        found += [replace(entered[name], heads=None) if name == RESULT else entered[name]
                  for name in (SCORES, PATTERN, RESULT) if name in step.passes and name in entered]  # fmt: skip
        return _union(found, self.length)

    def _spread(self, region: Region) -> Region:
        """Which positions see something else when keys or values of a region change."""
        first = region.first if self.causal else 0
        if region.to_end and region.first == first:
            return region
        key = (first, region.rows) if region.examples is None and region.heads is None else None
        if key is None or key not in self._wholes:
            places = torch.arange(first, self.length, device=region.places.device)
            whole = Region(region.examples, region.rows, places, first, True, region.heads)
            if key is None:
                return whole
            self._wholes[key] = whole
        return self._wholes[key]

    def _onward(self, region: Region | None) -> Region | None:
        """What of a changed stream goes into a layer; None where nobody reads what it can change.

        That is all positions from the first on, unless leaving out those that are the clean run's is worth it.
        """
        if region is None or not self.reads_from(region.first):
            return None
        whole, cfg = self._spread(region), self.cfg
        each = 2 * cfg.d_model * cfg.d_head * (cfg.n_heads + 2 * cfg.kv_heads)
        few = 2 * region.count <= whole.count and (whole.tokens - region.tokens) * each >= WORTH
        return region if few else whole

    def _absorbs(self, layer: int, region: Region, entered: Layer) -> bool:
        """Whether the last layer takes its few queries to the stream, instead of every token to keys and values."""
        cfg = self.cfg
        if layer != cfg.n_layers - 1 or not region.to_end or {Q, K, V, Z, PATTERN, SCORES, RESULT} & set(entered):
            return False
        plain = not cfg.rotates(layer) and not cfg.use_qk_norm and cfg.clip_qkv is None and cfg.attn_scores_soft_cap <= 0
        plain = plain and cfg.n_key_value_heads is None and cfg.torch_dtype in (torch.float32, torch.float64)
        plain = plain and cfg.positional_embedding_type != "alibi"
        return plain and self.read_at is not None and 4 * len(self.read_at) <= self.length

    # Costs.

    def cost(self, way: Way) -> int:
        """Operations of a cell from where it enters to the end of the last layer: the sum of its steps' costs."""
        return sum(
            self._attention_cost(step, regions) if step.writes == (Z,) else self._step_cost(step, regions)
            for layer, regions in way.items() for step in self.programs[layer].steps if not step.names.isdisjoint(regions)
        )  # fmt: skip

    def _step_cost(self, step: Step, regions: Layer) -> int:
        total = 0
        for at, (name, cost) in enumerate(zip(step.writes, step.cost, strict=True)):
            region = regions.get(name)
            if region is None or not cost:
                continue
            if RESULT in step.passes and RESULT in regions:
                result = regions[RESULT]
                total += cost * result.tokens * len(result.heads or range(self.cfg.n_heads)) // self.cfg.n_heads
                total += cost * region.tokens * (name == HEADS_WRITE)
            elif any(read in regions for read, _ in step.read_by[at]):  # otherwise it was put there
                total += self._share(step, regions, cost) * region.tokens
        return total

    def _share(self, step: Step, regions: Layer, cost: int) -> int:
        """Of a linear step whose input has changed in some heads or neurons only, the part that those take."""
        read = regions.get(step.reads[0])
        if step.weights is None or read is None or read.heads is None or step.writes[0] not in (ATTN_OUT, MLP_OUT):
            return cost
        every = self.cfg.n_heads if step.reads[0] == Z else (self.cfg.d_mlp or 1)
        return cost * len(read.heads) // every

    def _attention_cost(self, step: Step, regions: Layer) -> int:
        region, cfg = regions.get(Z), self.cfg  # every query meets every key, those that it may not see included
        if region is None or not any(read in regions for read in (*step.reads, PATTERN, SCORES, "absorbed")):
            return 0
        if "absorbed" in regions:
            own = regions["absorbed"]
            wide, narrow = cfg.n_heads * cfg.d_model, cfg.n_heads * cfg.d_head
            past = 2 * narrow * (own.first + (own.first if own.first > 1 else 0))  # one value is no matrix product
            return region.tokens * (4 * cfg.d_model * narrow + 4 * wide * len(own.places) + 2 * narrow + past)
        heads = cfg.n_heads if region.heads is None else len(region.heads)
        return step.cost[0] * region.tokens * self.length * heads // cfg.n_heads


def _heads(step: Step, read: str, heads: tuple[int, ...], cfg: HookedTransformerConfig) -> tuple[int, ...] | None:
    """Which heads of what a step writes depend on some heads of what it reads; None: all."""
    if not step.by_head:
        return None
    if step.writes != (Z,) or read == step.reads[0]:
        return heads
    times = cfg.n_heads // (cfg.n_heads if cfg.ungroup_grouped_query_attention else cfg.kv_heads)
    return tuple(head * times + one for head in heads for one in range(times))


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
