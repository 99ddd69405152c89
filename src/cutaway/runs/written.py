"""Edits and metrics as JSON and tensors, and back: what records and interrupted sweeps keep.

Everything that is data can be written. Functions cannot: they are named in what is written, and reading them back fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import CheckpointError, NotReadable
from cutaway.model.origins import Kept, Origin
from cutaway.model.sites import resolve, table
from cutaway.model.transformer import Transformer
from cutaway.runs import answer_metrics, edits, metrics
from cutaway.runs.grids import Cells, Grid
from cutaway.runs.places import Places
from cutaway.runs.values import origin_in

KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        edits.Zero, edits.Put, edits.Add, edits.Scale, edits.ProjectOut, edits.Random, edits.Function, edits.Edit, Places, Grid,
        Cells,
        metrics.LogitDifference, metrics.LogProbability, metrics.Probability, metrics.Rank, metrics.Loss, metrics.Accuracy,
        metrics.KL, metrics.Normalised, metrics.ProbabilityDifference, answer_metrics.AnswerMetric,
    )
} | {"MetricFunction": metrics.CustomMetric}  # fmt: skip
NAMES = {kind: name for name, kind in KINDS.items()} | {metrics.OfRows: "OfRows"}  # (a part of a sweep: written, never read)


class Writer:
    """Collects tensors while values are turned into JSON. Each tensor is kept once."""

    def __init__(self, sites: Collection[str] = (), model: Any = None):
        self.sites = sites  # which sites of a cache are worth keeping
        self.model = model  # of what a run of this network kept, the run's tokens are written, too
        self.tensors: dict[str, Tensor] = {}
        self.known: dict[tuple[Any, ...], str] = {}
        self.changes: list[Any] = []  # each change once; edits point to them
        self.known_changes: dict[int, tuple[Any, int]] = {}

    def write(self, value: Any) -> Any:
        """`value` as JSON."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value)}
        if isinstance(value, np.integer | np.floating):
            return value.item()
        if isinstance(value, Mapping):
            names = [name for name in self.sites if name in value] if self.sites else list(value)
            names = names or list(value)
            return {"map": {str(name): self.write(value[name]) for name in names}} | self._origin(value, names)
        if isinstance(value, list | tuple | range):
            return [self.write(one) for one in value]
        if isinstance(value, edits.Change) and type(value) in NAMES:
            return {"change": self._change(value)}
        if type(value) in NAMES:
            return self._fields(value)
        if callable(value):
            return {"function": getattr(value, "__qualname__", type(value).__name__)}
        raise CheckpointError(f"a {type(value).__name__} cannot be written into a record")

    def _fields(self, value: Any) -> dict[str, Any]:
        fields = {one.name: self.write(getattr(value, one.name)) for one in dataclasses.fields(value)}
        return {"type": NAMES[type(value)]} | fields

    def _origin(self, values: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
        """The run that entries of a store come from, where it was one of this network as it is now."""
        found = {name: one for name in names if (one := origin_in(values, name)) is not None and one.is_of(self.model)}
        if not found:
            return {}
        first = next(iter(found.values()))
        sites = [name for name, one in found.items() if one.same_run(first)]
        return {"origin": {"tokens": self.write(first.tokens), "padding": self.write(first.padding), "sites": sites}}

    def _change(self, change: edits.Change) -> int:
        if id(change) not in self.known_changes:
            self.changes.append(self._fields(change))
            self.known_changes[id(change)] = change, len(self.changes) - 1
        return self.known_changes[id(change)][1]

    def _tensor(self, x: Tensor) -> str:
        key = x.data_ptr(), x.dtype, tuple(x.shape), tuple(x.stride())
        if key not in self.known:
            self.known[key] = f"t{len(self.tensors)}"
            self.tensors[self.known[key]] = x.detach()
        return self.known[key]


def read(value: Any, tensors: Mapping[str, Tensor], changes: Sequence[edits.Change] = (), model: Any = None) -> Any:
    """The reverse of `Writer.write`; `changes` are those that edits point to, already read.

    With `model`, the network that it was written with, stores know the run that they come from again.

    Raises:
        CheckpointError: it holds a function, which only a program can give.
    """
    if isinstance(value, list):
        return tuple(read(one, tensors, changes, model) for one in value)
    if not isinstance(value, dict):
        return value
    if "change" in value and isinstance(value["change"], int):
        if not 0 <= value["change"] < len(changes):
            raise NotReadable(f"the record is damaged: it points to change {value['change']}, and has {len(changes)} before it")
        return changes[value["change"]]
    if "tensor" in value:
        if value["tensor"] not in list(tensors):
            raise NotReadable(f"the record is damaged: it points to a tensor {value['tensor']!r} that it lacks")
        return tensors[value["tensor"]]
    if "map" in value:
        if not isinstance(value["map"], dict):
            raise NotReadable("the record is damaged: it holds a map without names")
        store = {name: read(one, tensors, changes, model) for name, one in value["map"].items()}
        return store if model is None or "origin" not in value else _kept(store, value["origin"], tensors, model)
    if "function" in value:
        raise CheckpointError(
            f"the record holds the function {value['function']}, which cannot be read back; run its program again"
        )
    kind = KINDS.get(str(value.get("type")))
    if kind is None:
        raise CheckpointError(f"the record holds a {value.get('type')!r}, which this version does not know")
    fields = {name: read(one, tensors, changes, model) for name, one in value.items() if name != "type"}
    _check_fields(kind, fields)
    return kind(**fields)


def _kept(store: dict[str, Tensor], origin: Any, tensors: Mapping[str, Tensor], model: Any) -> Kept:
    """A store with its origin."""
    fields = origin if isinstance(origin, dict) else {}
    tokens, padding, sites = (read(fields.get(name), tensors) for name in ("tokens", "padding", "sites"))
    whole = isinstance(tokens, Tensor) and tokens.ndim == 2 and tokens.dtype in (torch.int64, torch.int32)
    fits = padding is None or (isinstance(padding, Tensor) and whole and padding.shape == tokens.shape)
    if not whole or not fits or not isinstance(sites, tuple) or not set(sites) <= set(store):
        raise NotReadable("the record is damaged: it does not say which run a cache comes from")
    return Kept(store, Origin.of(model, tokens, padding), dict.fromkeys(sites))


def _check_fields(kind: Any, fields: Mapping[str, Any]) -> None:
    """Whether these are the fields of a kind, of the types that it declares."""
    declared = {one.name: one for one in dataclasses.fields(kind)}
    needed = {name for name, one in declared.items() if one.default is one.default_factory is dataclasses.MISSING}
    if not needed <= set(fields) <= set(declared):
        wrong = sorted(needed - set(fields)) or sorted(set(fields) - set(declared))
        raise NotReadable(f"the record's {NAMES[kind]} is damaged: {wrong[0]!r} is missing or not one of its fields")
    for name, hint in _hints(kind).items():
        if name in fields and not _fits(fields[name], hint):
            raise NotReadable(f"the record's {NAMES[kind]} is damaged: {name} is a {type(fields[name]).__name__}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that was read has a declared type. (A schema library cannot say it: the types are Torch's and ours.)"""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items())
    if origin is tuple and inner[1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value)
    return not isinstance(hint, type) or isinstance(value, hint)


def sites_of(model: Transformer, cells: Cells) -> list[str]:
    """The sites that are edited."""
    known = table(model.cfg)
    every = (resolve(edit.site, known, model.cfg.n_layers) for one in cells.edits for edit in one)
    return list(dict.fromkeys(every))
