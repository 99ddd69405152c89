"""Grids: one change at many places, and the cells that a sweep makes of it (an edit each, or several that happen together)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ShapeError, nearest, suggest_names
from cutaway.model import sites
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import indices, several, whole
from cutaway.runs.edits import Change, Edit, zero
from cutaway.runs.other_runs import check_values
from cutaway.runs.places import Places, counted, edits_at, with_places
from cutaway.runs.representation import ShortRepr

EDIT_OF = {"pos": "positions", "dest": "positions", "head": "heads", "src": "sources", "neuron": "neurons"}
NAMED = {"layer": "layer", "pos": "position", "dest": "position", "src": "position", "head": "head", "neuron": "neuron"}
Edits = Edit | Sequence[Edit | Sequence[Edit]]


@dataclass(frozen=True, repr=False)
class Grid(ShortRepr):
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
        return list(range(full[axis])) if axis not in self.only else self._chosen(axis, full[axis])

    def _chosen(self, axis: str, size: int) -> list[Any]:
        """Some entries of an axis, as they were given: whole numbers, each once, of "pos" also roles.

        Raises:
            ShapeError: one is neither, or outside, one comes twice, or there are none.
        """
        given: Any = self.only[axis]
        listed = [given] if isinstance(given, str) and axis == "pos" else given
        if axis == "pos" and isinstance(listed, list | tuple) and any(isinstance(one, str) for one in listed):
            numbers = [one for one in listed if not isinstance(one, str)]
            if len(set(listed)) < len(listed):
                raise ShapeError(f"positions {list(listed)} name one twice; give each once")
            if numbers:
                indices(numbers, size, "position")
            return list(listed)
        found = indices(listed, size, NAMED[axis])
        if axis not in ("pos", "dest", "src"):
            return found
        # Numbers from the end stay so: where texts are padded, they count back from each row's own last token.
        return [whole(one, "a position") for one in (listed if several(listed) else [listed])]

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


@dataclass(frozen=True, repr=False)
class Cells(ShortRepr):
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
    cells: Cells, model: Transformer, prompts: Any, tokens: Tensor, mask: Tensor | None, real: Tensor | None = None, *,
    strict: bool = False,
) -> Cells:  # fmt: skip
    """The same cells with their edits at columns, where they are at a row's own tokens or at roles of the prompts.

    Args:
        strict: whether an edit at columns that are all padding in some row is refused.

    Raises:
        ShapeError: a row has no such token, or a cell has nowhere to be edited.
        UnknownRole: the prompts have no such role.
    """
    cells = replace(cells, edits=tuple(tuple(with_places(edit, prompts) for edit in one) for one in cells.edits))
    real = mask if real is None else real
    check_values(model, (edit for one in cells.edits for edit in one), real, (tokens.shape[0], tokens.shape[1]))
    if real is None and not any(isinstance(edit.positions, Places) for one in cells.edits for edit in one):
        return cells
    own = torch.ones(tokens.shape, dtype=torch.bool) if real is None else real.bool().cpu()
    table, out = sites.table(model.cfg), []
    for edits in cells.edits:
        names = [sites.resolve(edit.site, table, model.cfg.n_layers) for edit in edits]
        columns = [one for edit, site in zip(edits, names, strict=True) for one in _columns(edit, own, site, table[site], strict)]
        if not columns:
            raise ShapeError(f"the edit '{label_of(edits)}' is at no token of these prompts")
        out.append(tuple(columns))
    return replace(cells, edits=tuple(out))


def _columns(edit: Edit, own: Tensor, site: str, axes: Sequence[str], strict: bool) -> list[Edit]:
    """An edit as edits at columns, for rows with these tokens of their own."""
    if isinstance(edit.positions, Places):
        return edits_at(edit, own, own.shape[1], site, axes)
    return counted(edit, own, axes, strict=strict)


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


suggest_names(__name__)
