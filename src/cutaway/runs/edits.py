"""Edits: an activation goes in, the activation that replaces it comes out.

A `Change` says what happens to numbers (`zero()`, `patch(cache)`, `add(vector)`); an `Edit` is a change at a place:
a site, and there some positions, heads, neurons or examples. An edit never changes its input in place, so one
cache can feed many of them.

Declared changes work on each position and example by itself, which is what lets a sweep recompute only what they
reach. A `function` is not declared: it may read across positions and examples, and is never shortened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, MissingActivation, ShapeError, suggest_names
from cutaway.model import sites
from cutaway.model.origins import Origin
from cutaway.numbers_given import EVERY, check_options, indices, number
from cutaway.runs.places import Places
from cutaway.runs.random_numbers import normal
from cutaway.runs.representation import ShortRepr
from cutaway.runs.values import (
    AveragedValues,
    Index,
    ReorderedValues,
    Values,
    finite_numbers,
    index_of,
    mean_over,
    origin_in,
    other_examples,
    values_of,
)
from cutaway.tokens import check_mask

# What happens to numbers.


class Change(ShortRepr, ABC):
    """What happens to an activation. `word` is its name in labels and records."""

    word: str
    declared: bool = True  # each position and example by itself
    order: int = 0  # below 0: made before the other edits of its site; above 0: after them

    @abstractmethod
    def new(self, x: Tensor, value: Any) -> Tensor:
        """What replaces `x`, the selected part of an activation; `value` is `Bound.value`, the same part of `source`."""

    def source(self, site: str) -> Tensor | None:
        """A tensor whose axes broadcast with the site's, of which each edit uses its own part; None: there is none."""
        return None

    def at(self, site: str | tuple[Any, ...], **where: Any) -> Edit:
        """This change at a place: a site (full or short name), and `positions`, `heads`, `neurons`, `examples`, `sources`."""
        return Edit(site, self, **where)


@dataclass(frozen=True, eq=False, repr=False)
class Zero(Change):
    """Everything becomes 0."""

    word = "zero"

    def new(self, x: Tensor, value: Tensor | None) -> Tensor:
        return torch.zeros_like(x)


@dataclass(frozen=True, eq=False, repr=False)
class Put(Change):
    """Numbers from elsewhere take the place: patch, mean, resample, replace, freeze.

    Args:
        values: one tensor, or site → tensor; None: those of the clean run of the sweep that the edit is part of.
        word: what these numbers are.
        mean_over: with `values=None`, axes to take the mean over, of "batch" and "pos"; empty: none.
        real: which tokens `[batch, pos]` a mean counts; None: all. Runs fill it in where texts are padded.
    """

    values: Values | None
    word: str = "replace"
    mean_over: tuple[str, ...] = ()
    real: Tensor | None = None

    def new(self, x: Tensor, value: Tensor | None) -> Tensor:
        assert value is not None
        return value.to(x).expand_as(x)

    def source(self, site: str) -> Tensor | None:
        if isinstance(self.values, Tensor) or self.values is None:
            return self.values
        if site not in self.values:
            raise MissingActivation(
                f"the {self.word} edit at {site!r} takes its values from a cache that lacks this site; "
                f"keep it: model.run_with_cache(tokens, names_filter=[{site!r}, …])"
            )
        return self.values[site]

    def origin(self, site: str) -> Origin | None:
        """The run that these numbers come from; None: that is not known."""
        return origin_in(self.values, site)


@dataclass(frozen=True, eq=False, repr=False)
class Add(Change):
    """A vector is added, `strength` times."""

    vector: Tensor
    strength: float = 1.0
    word = "add"

    def __post_init__(self) -> None:
        check_options({"strength": self.strength}, strength=EVERY)
        object.__setattr__(self, "vector", finite_numbers(self.vector, "the vector of an add edit"))

    def new(self, x: Tensor, value: Tensor | None) -> Tensor:
        assert value is not None
        return x + self.strength * value.to(x)

    def source(self, site: str) -> Tensor | None:
        return self.vector


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Change):
    """Everything is multiplied by a number."""

    factor: float
    word = "scale"

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", number(self.factor, *EVERY, "the factor of a scale edit"))

    def new(self, x: Tensor, value: Tensor | None) -> Tensor:
        return x * self.factor


@dataclass(frozen=True, eq=False, repr=False)
class ProjectOut(Change):
    """The component along a direction (of the last axis) is removed, or set to `instead` times the unit direction."""

    direction: Tensor
    instead: float = 0.0
    word = "project_out"

    def __post_init__(self) -> None:
        check_options({"instead": self.instead}, instead=EVERY)
        direction = finite_numbers(self.direction, "the direction of a project_out edit")
        if direction.ndim and not bool(direction.norm(dim=-1).all()):
            raise ShapeError("a direction of length 0 points nowhere, so nothing can be projected out along it")
        object.__setattr__(self, "direction", direction)

    def new(self, x: Tensor, value: Tensor | None) -> Tensor:
        assert value is not None
        unit = (value / value.norm(dim=-1, keepdim=True)).to(x)
        return x + (self.instead - (x * unit).sum(-1, keepdim=True)) * unit

    def source(self, site: str) -> Tensor | None:
        return self.direction


@dataclass(frozen=True, eq=False, repr=False)
class Function(Change):
    """Anything: a function of the whole activation at the site, which may be edited in place or returned."""

    function: Callable[[Tensor], Tensor | None]
    word: str = "function"
    declared = False

    def new(self, x: Tensor, value: Tensor | None) -> Tensor:
        own = x.clone(memory_format=torch.contiguous_format)
        out = self.function(own)
        out = own if out is None else out
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ShapeError(f"the function of an edit returned {got}, where {tuple(x.shape)} is needed (or None)")
        return out


@dataclass(frozen=True, eq=False, repr=False)
class Random(Change):
    """A random change as large as another: at each example and position in a direction of its own.

    Directions are hashes of the seed and of the numbers of example, position and entry, so they do not depend on what runs
    together. Entries that are not finite, before or after the other change, stay as they are.

    Raises:
        ConfigError: the other change is a function, is random itself, or takes its values from the run that it is part of.
    """

    change: Change
    seed: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        own = isinstance(self.change, Put) and self.change.values is None
        if own or isinstance(self.change, Random) or not self.change.declared:
            raise ConfigError(
                f"a random change needs another whose size is known at each position, not {self.change.word!r}"
                + (" of the run itself; give it the values of another run (a cache)" if own else "")
            )

    @property
    def word(self) -> str:  # type: ignore[override]
        return f"random {self.change.word}"

    def new(self, x: Tensor, value: RandomDraw) -> Tensor:
        new = self.change.new(x, value.value)
        wide = torch.promote_types(x.dtype, torch.float32)
        known = x.isfinite() & new.isfinite()
        old = x.to(wide)
        apart = (new.to(wide) - old).masked_fill(~known, 0)
        noise = value.noise.to(x.device, wide).masked_fill(~known, 0)
        size, length = (torch.linalg.vector_norm(one, dim=value.over, keepdim=True) for one in (apart, noise))
        return old + noise * (size / length.clamp(min=torch.finfo(wide).tiny))

    def source(self, site: str) -> Tensor | None:
        return self.change.source(site)


@dataclass(frozen=True, eq=False, repr=False)
class RandomDraw(ShortRepr):
    """What a `Random` change is given: the other change's values, random numbers, and the axes of one direction."""

    value: Tensor | None
    noise: Tensor
    over: list[int]


def zero() -> Zero:
    """Set to zero."""
    return Zero()


def replace(value: Tensor | float) -> Put:
    """Set to given numbers, of the shape of the site or of the selected part, or broadcastable to either.

    Raises:
        ShapeError: no numbers.
    """
    return Put(finite_numbers(value, "the value of a replace edit", finite=False), "replace")


def patch(cache: Values | Any) -> Put:
    """Set to the activations of another run: a cache (site → tensor), or one tensor."""
    return Put(values_of(cache), "patch")


def freeze(cache: Values | Any | None = None) -> Put:
    """Hold at the activations of another run, or (None) of the sweep's own clean run, whatever is changed before."""
    return Put(None if cache is None else values_of(cache), "freeze")


def mean(reference: Values | Any | None = None, over: Sequence[str] = ("batch",), *, mask: Tensor | None = None) -> Put:
    """Set to the mean over a reference: a cache, or (None) the examples of the sweep itself, without their padding.

    Args:
        mask: `[batch, pos]`, 1 for tokens and 0 for padding of the reference's run; None: as the cache of a run knows it
            (plain tensors do not).
        over: axes of the mean: ("batch",) gives each position its own mean, ("batch", "pos") one for all.

    Raises:
        ShapeError, TokenError: other axes, or no such mask.
    """
    over = tuple(over)
    if not over or set(over) - {"batch", "pos"} or len(set(over)) < len(over):
        raise ShapeError(f"a mean is taken over 'batch', 'pos' or both, not {over}")
    if mask is not None:
        mask = check_mask(mask, mask).bool()
    if reference is None:
        return Put(None, "mean", over, mask)
    return Put(AveragedValues(values_of(reference), over, mask), "mean")


def resample(cache: Values | Any, seed: int = 0, order: Tensor | None = None) -> Put:
    """Set to the activations of other examples: those of a run, in a random order in which no example keeps its own.

    Args:
        order: for each example the one whose activations it gets, instead of a random order.

    Raises:
        ShapeError: there is one example only, or the order is none in which every example gets another's activations.
    """
    values = values_of(cache)
    check_options({"seed": seed}, seed=0)
    order = None if order is None else other_examples(order, values)
    if order is None and len(values if isinstance(values, Tensor) else next(iter(values.values()), (0, 0))) < 2:
        raise ShapeError("resampling takes the values of another example, and there is only one; give a cache of several")
    return Put(ReorderedValues(values, seed, order), "resample")


def add(vector: Tensor, strength: float = 1.0) -> Add:
    """Add a vector, or anything that broadcasts with the place.

    Raises:
        ShapeError, ConfigError: no finite numbers.
    """
    return Add(vector, strength)


def scale(factor: float) -> Scale:
    """Multiply by a finite number."""
    return Scale(factor)


def project_out(direction: Tensor, instead: float = 0.0) -> ProjectOut:
    """Remove the component along a direction.

    Raises:
        ShapeError, ConfigError: no finite numbers, or a direction of length 0.
    """
    return ProjectOut(direction, instead)


def random(change: Change, seed: int = 0) -> Random:
    """A random change of the same size: what `change` is to be compared with."""
    check_options({"seed": seed}, seed=0)
    return Random(change, (seed,))


def function(function: Callable[[Tensor], Tensor | None], word: str = "function") -> Function:
    """Any function of the whole activation at the site; never shortened, never batched with other edits."""
    return Function(function, word)


# Where.


@dataclass(frozen=True, eq=False)
class Edit:
    """A change at a place. Numbers count from 0, or from the end where they are negative; None takes all.

    Args:
        site: full or short name of a site, or a tuple as ("z", 3).
        positions: columns, of the destination for patterns and scores; or a row's own tokens (`places.own(-1)`); or roles of the
            `Prompts` that run ("S2", "end"), which a sweep or a run finds in each row.
        heads: heads; groups of them for keys and values that heads share.
        neurons: entries of the last axis of an MLP's sites.
        examples: entries of the batch.
        sources: positions that are looked at, for patterns and scores.
    """

    site: str | tuple[Any, ...]
    change: Change
    positions: Any = None  # int | str | Sequence[int | str] | Places | None
    heads: int | Sequence[int] | None = None
    neurons: int | Sequence[int] | None = None
    examples: int | Sequence[int] | None = None
    sources: int | Sequence[int] | None = None

    def __repr__(self) -> str:
        return f"<Edit {self.label}>"

    def bind(
        self, cfg: HookedTransformerConfig, batch: int, length: int, table: dict[str, tuple[str, ...]] | None = None
    ) -> Bound:
        """This edit for runs of a network on `[batch, length]` tokens; `table`: its sites and their axes, where known.

        Raises:
            UnknownSite: there is no such site.
            ShapeError: an index outside, an axis that the site lacks, or values of the wrong shape.
        """
        return Bound(self, cfg, batch, length, sites.table(cfg) if table is None else table)

    def apply(self, x: Tensor, cfg: HookedTransformerConfig) -> Tensor:
        """The edited activation; `x` stays as it is."""
        table = sites.table(cfg)
        words = table[sites.resolve(self.site, table, cfg.n_layers)]
        length = x.shape[next((i for i, word in enumerate(words) if word in ("pos", "dest")), 0)]
        return self.bind(cfg, len(x), length, table).applied(x)

    @property
    def label(self) -> str:
        """A short description: `zero blocks.0.attn.hook_z head 3`."""
        site = self.site if isinstance(self.site, str) else ".".join(map(str, self.site))
        parts = [("pos", self.positions), ("head", self.heads), ("neuron", self.neurons), ("example", self.examples)]
        parts.append(("src", self.sources))
        shown = [f"{name} {_short(chosen)}" for name, chosen in parts if chosen is not None]
        return " ".join([self.change.word, site, *shown])


AXIS_OF = {"batch": "examples", "pos": "positions", "dest": "positions", "head": "heads", "kv": "heads", "src": "sources",
           "d_mlp": "neurons", "expert": "neurons"}  # fmt: skip


class Bound:
    """An edit bound to a network and to the shape of its tokens: names resolved, indices and values checked."""

    def __init__(self, edit: Edit, cfg: HookedTransformerConfig, batch: int, length: int, table: dict[str, tuple[str, ...]]):
        self.edit, self.change = edit, edit.change
        self.site = sites.resolve(edit.site, table, cfg.n_layers)
        self.axes = table[self.site]
        self.layer = int(self.site.split(".")[1]) if self.site.startswith("blocks.") else None
        self.batch, self.length = batch, length
        self.begin = 0  # the number of the first example
        self.same: Int[Tensor, "batch"] | None = None  # how many positions each example begins with where nothing changes
        self.sizes = tuple(sites.axis_length(word, cfg, batch, length) for word in self.axes)
        self.chosen = tuple(self._chosen(axis, word) for axis, word in enumerate(self.axes))
        known = {AXIS_OF.get(word) for word in self.axes}
        for name in ("positions", "heads", "neurons", "examples", "sources"):
            if getattr(edit, name) is not None and name not in known:
                raise ShapeError(f"the site {self.site!r} has the axes {', '.join(self.axes)}, so an edit there has no {name}")
        if not self.change.declared and any(chosen is not None for chosen in self.chosen):
            raise ShapeError(f"the function of an edit is given the whole activation at {self.site!r}; let it select by itself")
        self.source = self.change.source(self.site)
        if self.source is not None:
            self._check(self.source)
            self.source = _padded(self.source, len(self.sizes))

    def _chosen(self, axis: int, word: str) -> tuple[int, ...] | None:
        given = getattr(self.edit, AXIS_OF.get(word, ""), None) if word in AXIS_OF else None
        if given is None:
            return None
        if isinstance(given, Places):
            raise ShapeError(f"the edit '{self.edit.label}' counts a row's own tokens; only a run or a sweep knows their columns")
        try:
            return tuple(indices(given, self.sizes[axis], AXIS_OF[word].removesuffix("s")))
        except ShapeError as error:
            raise ShapeError(f"an edit at {self.site!r}: {error}") from None

    def _check(self, source: Tensor) -> None:
        wanted = [size if chosen is None else len(chosen) for size, chosen in zip(self.sizes, self.chosen, strict=True)]
        padded = _padded(source, len(self.sizes))
        fits = padded.ndim == len(self.sizes) and all(
            have in (1, full, part) for have, full, part in zip(padded.shape, self.sizes, wanted, strict=True)
        )
        if not fits:
            raise ShapeError(
                f"the {self.change.word} edit at {self.site!r} has values of shape {tuple(source.shape)}; the site has "
                f"({', '.join(f'{word} {size}' for word, size in zip(self.axes, self.sizes, strict=True))}), "
                f"and the selected part {tuple(wanted)}"
            )

    @cached_property
    def position_axis(self) -> int | None:
        """Which axis is the position (of the destination)."""
        return next((i for i, word in enumerate(self.axes) if word in ("pos", "dest")), None)

    @property
    def positions(self) -> tuple[int, ...] | None:
        """The chosen positions; None: all."""
        return None if self.position_axis is None else self.chosen[self.position_axis]

    @property
    def heads(self) -> tuple[int, ...] | None:
        """The chosen heads; None: all, or no such axis."""
        return next((c for c, word in zip(self.chosen, self.axes, strict=True) if word in ("head", "kv")), None)

    @property
    def first(self) -> int:
        """The first position that a declared edit can change; `length` where it changes none."""
        _, places = self.reach()
        return 0 if places is None or not self.change.declared else min(places, default=self.length)

    def reach(self) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """The examples and positions at which a declared edit can change anything; None: all."""
        if self.same is None:
            return self.chosen[0], self.positions
        limits = self.same.tolist()
        rows, places = (range(size) if chosen is None else chosen
                        for size, chosen in ((self.batch, self.chosen[0]), (self.length, self.positions)))  # fmt: skip
        least = min((limits[row] for row in rows), default=self.length)
        changed = tuple(place for place in places if place >= least)
        last = max(changed, default=-1)
        some = tuple(row for row in rows if limits[row] <= last)
        return None if len(some) == self.batch else some, None if len(changed) == self.length else changed

    @property
    def same_of_chosen(self) -> Int[Tensor, "example"] | None:
        """`same`, of the chosen examples."""
        return self.same if self.same is None or self.chosen[0] is None else self.same[list(self.chosen[0])]

    def index(self) -> Index:
        """The index of the selected part in a whole activation."""
        return index_of(self.chosen, self.sizes)

    def local(self, first: int, last: int) -> Bound | None:
        """This edit for a run of the examples `first` to `last` only; None: it changes none of them."""
        if first == 0 and last == self.batch:
            return self
        own = copy(self)
        own.batch, own.begin = last - first, self.begin + first
        own.sizes = (own.batch, *self.sizes[1:])
        own.same = None if self.same is None else self.same[first:last]
        which = self.chosen[0]
        if which is not None:
            kept = [number for number in which if first <= number < last]
            if not kept:
                return None
            own.chosen = (tuple(number - first for number in kept), *self.chosen[1:])
        if self.source is not None and self.source.shape[0] > 1:
            if self.source.shape[0] == self.batch:
                own.source = self.source[first:last]
            else:  # one for each chosen example
                assert which is not None
                rows = [row for row, number in enumerate(which) if first <= number < last]
                if len(rows) == own.batch:  # then `value` takes them for one of every example, in order
                    rows.sort(key=which.__getitem__)
                own.source = self.source[rows]
        return own

    def value(self, clean: Tensor | None = None, positions: Sequence[int] | None = None) -> Any:
        """What the change is given for the selected part: a part of its values, or for a `Random` one `RandomDraw`.

        Args:
            clean: a whole activation, which stands in where values are the run's own.
            positions: for these of the chosen positions only.
        """
        value = self._value(clean, positions)
        return self._random_draw(self.change.seed, value, positions) if isinstance(self.change, Random) else value

    def _random_draw(self, seed: tuple[int, ...], value: Tensor | None, positions: Sequence[int] | None) -> RandomDraw:
        """With random numbers, by the numbers of examples, positions and entries in the whole batch."""
        at = self.position_axis
        numbers: list[Sequence[int]] = [
            range(size) if chosen is None else chosen for size, chosen in zip(self.sizes, self.chosen, strict=True)
        ]
        numbers[0] = [number + self.begin for number in numbers[0]]
        if at is not None and positions is not None:
            numbers[at] = positions
        over = [axis for axis in range(1, len(numbers)) if axis != at]
        if not over:
            raise ConfigError(f"there are no directions at {self.site!r}, which has one number for each position")
        noise = normal(seed, numbers[0], [0] if at is None else numbers[at], *(numbers[axis] for axis in over))
        return RandomDraw(value, noise[:, 0] if at is None else noise.movedim(1, at), over)

    def _value(self, clean: Tensor | None, positions: Sequence[int] | None) -> Tensor | None:
        source = self.source
        if source is None and isinstance(self.change, Put) and clean is not None:
            over, real = self.change.mean_over, self.change.real
            real = None if real is None else real[self.begin : self.begin + len(clean)]
            source = mean_over(clean, self.site, over, real) if over else clean
        if source is None:
            return None
        picks: list[tuple[int, ...] | None] = []
        for axis, (chosen, have, full) in enumerate(zip(self.chosen, source.shape, self.sizes, strict=True)):
            whole = have == full and have > 1
            if axis == self.position_axis and positions is not None and have > 1:
                places = chosen if chosen is not None and not whole else range(full)
                picks.append(tuple(places.index(one) for one in positions))
            else:
                picks.append(chosen if whole else None)
        return source[index_of(picks, source.shape)]

    def write(self, x: Tensor, places: Sequence[int], clean: Tensor | None) -> None:
        """Edit `x` in place (the caller owns it) where it holds positions of this edit. It holds every example.

        Args:
            places: the positions that `x` holds, in their order.
            clean: a whole activation, which stands in where values are the run's own.
        """
        axis, wanted = self.position_axis, set(range(self.length) if self.positions is None else self.positions)
        assert axis is not None
        here = [(at, one) for at, one in enumerate(places) if one in wanted]
        if not here:
            return
        chosen = list(self.chosen)
        chosen[axis] = tuple(at for at, _ in here)
        index = index_of(chosen, x.shape)
        x[index] = self.change.new(x[index], self.value(clean, [one for _, one in here])).to(x.dtype)

    def applied(self, x: Tensor, clean: Tensor | None = None) -> Tensor:
        """A whole activation, edited; `x` stays as it is. `clean` is the clean run's, where a change takes its own."""
        if not self.change.declared:
            return self.change.new(x, None)
        out = x.clone(memory_format=torch.contiguous_format)
        index = self.index()
        out[index] = self.change.new(x[index], self.value(x if clean is None else clean)).to(x.dtype)
        return out


def _padded(x: Tensor, ndim: int) -> Tensor:
    return x[(None,) * (ndim - x.ndim)] if x.ndim < ndim else x


def _short(chosen: int | str | Sequence[int | str] | Places) -> str:
    return ",".join(map(str, chosen)) if isinstance(chosen, list | tuple | range) else str(chosen)


suggest_names(__name__)
