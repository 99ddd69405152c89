"""The cells of a sweep: grids of places, each cell's edits bound to a network, and which cells run together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, ShapeError, nearest
from cutaway.model import sites
from cutaway.model.origins import Origin
from cutaway.model.steps import FIRST, LAST, PATTERN, RESULT, SCORES, BlockProgram, Z
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Bound, Change, Edit, Put, Random, Zero, zero
from cutaway.runs.metrics import AnyMetric
from cutaway.runs.places import Places, edits_at, with_places
from cutaway.runs.sweep.regions import BY_HEAD, Region

EDIT_OF = {"pos": "positions", "dest": "positions", "head": "heads", "src": "sources", "neuron": "neurons"}
Edits = Edit | Sequence[Edit | Sequence[Edit]]


@dataclass(frozen=True)
class Grid:
    """One change at many places: a cell for every combination along the axes.

    Args:
        change: what happens at each place.
        site: the short name of a site in every layer, as "z" or "resid_pre"; with layer type, as ("scale", "ln1").
        axes: of "layer", "pos" (or "dest"), "head", "src", "neuron"; an axis that is absent is edited as a whole.
        only: which entries an axis goes over, where not all: {"layer": [0, 1]}; of "pos", also roles of `Prompts`.
        where: the rest of the place, the same in every cell: {"positions": [3]}.
    """

    change: Change
    site: str
    axes: tuple[str, ...] = ("layer", "head")
    only: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)

    def entries(self, axis: str, cfg: HookedTransformerConfig, length: int) -> list[Any]:
        """What an axis goes over."""
        full = {"layer": cfg.n_layers, "pos": length, "dest": length, "src": length, "neuron": cfg.d_mlp or 0}
        full["head"] = self._heads(cfg)
        if axis not in full:
            raise ShapeError(f"a grid has no axis {axis!r}; there are {', '.join(full)}")
        return list(self.only.get(axis, range(full[axis])))

    def _heads(self, cfg: HookedTransformerConfig) -> int:
        words = sites.axes(sites.get_act_name(self.site, 0), cfg) if cfg.n_layers else ()
        return cfg.kv_heads if "kv" in words else cfg.n_heads

    def cells(self, cfg: HookedTransformerConfig, length: int) -> Cells:
        """All cells, the last axis fastest.

        Raises:
            ShapeError: an axis that no grid has, or `only` names one that this grid does not go over.
        """
        for axis in self.only:
            if axis not in self.axes:
                near = nearest(axis, self.axes)
                raise ShapeError(
                    f"the grid goes over {', '.join(self.axes)}, and not over {axis!r}{near}; what is the same in every cell is "
                    "said by `where` of a Grid"
                )
        ranges = [self.entries(axis, cfg, length) for axis in self.axes]
        edits = []
        for place in itertools.product(*ranges):
            at = dict(zip(self.axes, place, strict=True))
            layer = at.pop("layer", None)
            site = sites.get_act_name(self.site) if layer is None else sites.get_act_name(self.site, layer)
            edits.append((self.change.at(site, **{EDIT_OF[axis]: number for axis, number in at.items()}, **self.where),))
        return Cells(tuple(edits), self.axes, tuple(map(len, ranges)), [list(map(str, one)) for one in ranges])


@dataclass(frozen=True)
class Cells:
    """The edits of every cell, and how the cells are arranged."""

    edits: tuple[tuple[Edit, ...], ...]
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    labels: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        sizes = tuple(map(len, self.labels))
        if not len(self.axes) == len(set(self.axes)) == len(self.shape) or sizes != self.shape:
            raise ShapeError(f"cells of shape {self.shape} with the axes {self.axes} and {sizes} labels do not fit each other")
        if math.prod(self.shape) != len(self.edits) or not all(self.edits):
            raise ShapeError(f"{len(self.edits)} cells, or one without an edit, for the shape {self.shape}")

    @staticmethod
    def of(edits: Grid | Edits | Cells, cfg: HookedTransformerConfig, length: int) -> Cells:
        """Cells from a grid, an edit, or a list whose entries are edits or lists of edits that happen together."""
        if isinstance(edits, Cells):
            return edits
        if isinstance(edits, Grid):
            return edits.cells(cfg, length)
        listed = [edits] if isinstance(edits, Edit) else edits
        every = tuple((one,) if isinstance(one, Edit) else tuple(one) for one in listed)
        for one in every:
            if not one or not all(isinstance(edit, Edit) for edit in one):
                raise ShapeError(f"a cell is an edit or several, not {one!r}")
        return Cells(every, ("cell",), (len(every),), [list(map(label_of, every))])


def at_columns(
    cells: Cells, model: Transformer, prompts: Any, tokens: Tensor, mask: Tensor | None, real: Tensor | None = None
) -> Cells:
    """The same cells with their edits at columns, where they are at a row's own tokens or at roles of the prompts.

    Raises:
        ShapeError: a row has no such token, or a cell has nowhere to be edited.
        UnknownRole: the prompts have no such role.
    """
    cells = replace(cells, edits=tuple(tuple(with_places(edit, prompts) for edit in one) for one in cells.edits))
    if not any(isinstance(edit.positions, Places) for one in cells.edits for edit in one):
        return cells
    real = mask if real is None else real
    own = torch.ones(tokens.shape, dtype=torch.bool) if real is None else real.bool().cpu()
    table, out = sites.table(model.cfg), []
    for edits in cells.edits:
        names = [sites.resolve(edit.site, table, model.cfg.n_layers) for edit in edits]
        columns = [one for edit, site in zip(edits, names, strict=True)
                   for one in edits_at(edit, own, own.shape[1], site, table[site])]  # fmt: skip
        if not columns:
            raise ShapeError(f"the edit '{label_of(edits)}' is at no token of these prompts")
        out.append(tuple(columns))
    return replace(cells, edits=tuple(out))


def label_of(edits: Iterable[Edit]) -> str:
    """What to call a cell: its edits."""
    return " + ".join(edit.label for edit in edits)


def heads(change: Change | None = None, site: str = "z", **only: Sequence[int]) -> Grid:
    """Every head at all positions (zeroed, where no change is given), `[layer, head]`."""
    return Grid(change or zero(), site, ("layer", "head"), only)


def heads_by_position(change: Change, site: str = "z", **only: Sequence[int]) -> Grid:
    """Every head at every position, `[layer, pos, head]`."""
    return Grid(change, site, ("layer", "pos", "head"), only)


def residual(change: Change, site: str = "resid_pre", **only: Sequence[int]) -> Grid:
    """The residual stream (or what attention or the MLP adds to it) at every layer and position, `[layer, pos]`."""
    return Grid(change, site, ("layer", "pos"), only)


def patterns(change: Change, axes: tuple[str, ...] = ("layer", "head"), **only: Sequence[int]) -> Grid:
    """Attention patterns: of each head, or also by "dest" and "src"."""
    return Grid(change, "pattern", axes, only)


def neurons(change: Change | None = None, site: str = "post", **only: Sequence[int]) -> Grid:
    """Every neuron at all positions, `[layer, neuron]`."""
    return Grid(change or zero(), site, ("layer", "neuron"), only)


def pairs(edits: Iterable[Edit]) -> list[tuple[Edit, Edit]]:
    """Every pair of some edits, as cells: pairs of heads, for one."""
    return list(itertools.combinations(edits, 2))


# From edits to cells that run.


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a sweep is asked: a network, tokens, cells and a metric."""

    model: Transformer
    tokens: Tensor
    mask: Tensor | None
    cells: Cells
    metric: AnyMetric
    skip: str = "all"
    memory: int | None = None
    between: Callable[[], None] | None = None  # called between layers; may raise

    @property
    def batch(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        """Tokens and mask of some examples."""
        return self.tokens[first:last], None if self.mask is None else self.mask[first:last]


def short(site: str) -> str:
    """The rest of a site's name after its layer."""
    return site.split(".", 2)[2] if site.startswith("blocks.") else site


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of a sweep: its number, its edits, and where it leaves the clean run.

    Args:
        layer: the first layer that an edit reaches; -1 before the embedding is done, `n_layers` after the last.
        start: the first position that an edit can reach.
        way: "join" (one edit, which enters where it is made), "packed" (several edits, made as the cell passes them), or
            "alone" (a batch of its own, at full length).
    """

    number: int
    bounds: tuple[Bound, ...]
    layer: int
    start: int
    way: str

    def declared(self, first: int, last: int, device: torch.device, *, apart: bool = True) -> dict[tuple[int, str], Region]:
        """(layer, value) → what the edits can change there of the examples `first` to `last`.

        Args:
            apart: whether the pattern of some heads can be computed alone.
        """
        found: dict[tuple[int, str], Region] = {}
        alone = len(self.bounds) == 1
        for bound in self.bounds:
            local = bound.local(first, last)
            if local is None or local.layer is None or (alone and (held(local) or local.first == local.length)):
                continue
            name, places = short(local.site), torch.arange(self.start, local.length, device=device)
            some, positions = local.reach()
            examples = heads = None
            if alone and positions is not None:
                places = torch.tensor(sorted(positions), device=device)
            if alone and name != SCORES:
                examples = None if some is None else torch.tensor(some, device=device)
                heads = (local.chosen[-1] if name == "mlp.hook_post" else local.heads) if name in BY_HEAD else None
                heads = None if name == PATTERN and not apart else heads
            rows = last - first if examples is None else len(examples)
            found[local.layer, name] = Region.of_places(examples, rows, places, local.length, heads)
        return found

    def kept(self, program: BlockProgram) -> list[str]:
        """The values of its first layer that the cell needs of the clean run: where it enters, and what it reads unchanged."""
        names = {short(bound.site) for bound in self.bounds if bound.layer == self.layer}
        one = self.bounds[0]
        apart = self.way == "join" and (one.heads is not None or one.chosen[-1] is not None or RESULT in names)
        reached: set[str] = set()
        kept: set[str] = set()
        for step in program.steps:
            if reached & set(step.reads) or names & set(step.passes):
                kept |= set(step.reads) - reached
                kept |= set(step.writes) if apart and (step.weights is not None or Z in step.writes) else set()
                reached |= set(step.writes)
            kept |= names & set(step.writes) - reached
            reached |= names & set(step.writes)
        return sorted(name for name in kept - {FIRST, LAST, *program.writer(Z).reads} if "hook_" in name)


def bind(task: Sweep, means: dict[str, Tensor] | None = None) -> list[Cell]:
    """Every cell with its edits bound to the network, and the way in which it will run.

    Args:
        means: over the task's own examples, by site, where edits take them.
    """
    model, cfg = task.model, task.model.cfg
    alone = task.skip == "layers" or any(point.written for point in model.hook_points())
    from_tokens = model.hook_tokens.written  # what is attached there follows each run from its beginning
    table, unchanged, out = sites.table(cfg), _Unchanged(task), []
    for number, edits in enumerate(task.cells.edits):
        bounds = tuple(_settled(edit, means).bind(cfg, task.batch, task.length, table) for edit in edits)
        if not alone:
            bounds = tuple(_by_input(bound, cfg, table) for bound in bounds)
        layer = -1 if from_tokens else min(_layer(bound.site, cfg) for bound in bounds)
        way = "alone" if alone or not _in_blocks(model, bounds) else "join" if len(bounds) == 1 else "packed"
        if way == "join" and short(bounds[0].site) != SCORES:
            bounds[0].same = unchanged.up_to(edits[0].change, bounds[0])
        causal = cfg.attention_dir == "causal" and way != "alone"
        out.append(Cell(number, bounds, layer, min(map(_start, bounds)) if causal else 0, way))
    return out


def _in_blocks(model: Transformer, bounds: Sequence[Bound]) -> bool:
    """Whether all edits are declared, and at values of the blocks' programs (or at pattern, scores, per-head results)."""
    for bound in bounds:
        name = short(bound.site)
        if not bound.change.declared or bound.layer is None:
            return False
        between = name in (SCORES, PATTERN) or (name == RESULT and len(bounds) == 1)
        if not between and name not in model.program_of(bound.layer).writes:
            return False
    return True


class _Unchanged:
    """Where the values that edits put in are provably the run's own: up to the first token that differs from their run's."""

    def __init__(self, task: Sweep):
        self.task = task
        self.known: dict[int, tuple[Origin, Tensor | None]] = {}
        self.own_mean: Origin | None = None

    def up_to(self, change: Change, bound: Bound) -> Tensor | None:
        """For each example, how many positions at the beginning stay as they are; None: that cannot be told."""
        plain = change.change if isinstance(change, Random) else change
        if not isinstance(plain, Put) or bound.position_axis is None:
            return None
        origin = plain.origin(bound.site)
        if plain.values is None and plain.mean_over == ("batch",):
            origin = self.own_mean = self.own_mean or Origin.of(self.task.model, self.task.tokens, self.task.mask).mean()
        if origin is None:
            return None
        if id(origin) not in self.known:
            self.known[id(origin)] = origin, origin.shared_with(self.task.model, self.task.tokens, self.task.mask)
        return self.known[id(origin)][1]


def _settled(edit: Edit, means: dict[str, Tensor] | None) -> Edit:
    """The edit with the means of the sweep's own examples, where it asks for them."""
    change = edit.change
    if means is None or not isinstance(change, Put) or change.values is not None or not change.mean_over:
        return edit
    rest = {name: getattr(edit, name) for name in ("positions", "heads", "neurons", "examples", "sources")}
    return Put(means, "mean").at(edit.site, **rest)


def _by_input(bound: Bound, cfg: HookedTransformerConfig, table: dict[str, tuple[str, ...]]) -> Bound:
    """Zeroing a head's result is zeroing its z, which needs no per-head results."""
    if short(bound.site) != "attn.hook_result" or not isinstance(bound.change, Zero):
        return bound
    edit = bound.edit
    site = bound.site.replace("hook_result", "hook_z")
    return edit.change.at(site, positions=edit.positions, heads=edit.heads, examples=edit.examples).bind(
        cfg, bound.batch, bound.length, table
    )


def _layer(site: str, cfg: HookedTransformerConfig) -> int:
    if site.startswith("blocks."):
        return int(site.split(".")[1])
    return cfg.n_layers if site.startswith("ln_final.") else -1


def _start(bound: Bound) -> int:
    """The first position that an edit can change. A freeze changes nothing on its own, so it counts as the last position."""
    return bound.length - 1 if held(bound) else bound.first


def held(bound: Bound) -> bool:
    """Whether an edit holds the clean run's own values, and so changes nothing by itself."""
    return isinstance(bound.change, Put) and bound.change.values is None and not bound.change.mean_over


def kept_sites(model: Transformer, cells: Sequence[Cell]) -> list[str]:
    """The sites that the clean run must keep for these cells."""
    names: dict[str, None] = {}
    for cell in cells:
        if cell.way != "alone":
            names |= dict.fromkeys(f"blocks.{cell.layer}.{name}" for name in cell.kept(model.program_of(cell.layer)))
        if cell.way != "join":
            for bound in cell.bounds:
                if isinstance(bound.change, Put) and bound.source is None:
                    names[bound.site] = None
    return list(names)


def own_means(cells: Cells, cfg: HookedTransformerConfig) -> dict[str, tuple[str, ...]]:
    """Sites at which a cell takes the mean over the sweep's own examples → axes of the mean.

    Raises:
        ShapeError: means over different axes at the same site.
    """
    found: dict[str, tuple[str, ...]] = {}
    table = sites.table(cfg)
    for edit in itertools.chain.from_iterable(cells.edits):
        change = edit.change
        if isinstance(change, Put) and change.values is None and change.mean_over:
            site = sites.resolve(edit.site, table, cfg.n_layers)
            if found.setdefault(site, change.mean_over) != change.mean_over:
                raise ShapeError(f"one sweep takes means over {found[site]} and {change.mean_over} at {site!r}; split it")
    return found


def chunks(cells: Sequence[Cell], batch: int, length: int, room: int) -> list[list[Cell]]:
    """Which cells run together: neighbours by layer and start, so that few tokens travel through layers in small numbers.

    Args:
        room: how many tokens may run at once.
    """
    out: list[list[Cell]] = []
    used = 0
    for cell in sorted((cell for cell in cells if cell.way != "alone"), key=lambda cell: (cell.layer, cell.start, cell.number)):
        tokens = batch * (length - cell.start)
        if not out or used + tokens > room:
            out.append([])
            used = 0
        out[-1].append(cell)
        used += tokens
    return out + [[cell] for cell in cells if cell.way == "alone"]


def bytes_per_token(cfg: HookedTransformerConfig) -> int:
    """About how much memory one running token takes at most."""
    wide = 10 * cfg.d_model + 4 * cfg.n_heads * cfg.d_head
    if not cfg.attn_only:
        wide += (3 if cfg.gated_mlp else 2) * (cfg.d_mlp or 0)
    return int(wide * cfg.torch_dtype.itemsize)


def room_for(cfg: HookedTransformerConfig, smallest: int, memory: int | None, default: int) -> int:
    """How many tokens may run at once in this much memory (bytes).

    Args:
        smallest: tokens of one cell that cannot be split.

    Raises:
        ConfigError: not even one cell fits.
    """
    if memory is None:
        return max(default, smallest)
    room = min(memory // bytes_per_token(cfg), max(default, smallest))
    if room < smallest:
        needed = smallest * bytes_per_token(cfg)
        raise ConfigError(
            f"memory={memory} bytes is too small for one cell, which needs about {needed}; give more, or fewer examples"
        )
    return room
