"""Activation patching: what does a run say when one of its activations is taken from another run?

The first half is the dialect's module: the same names, arguments and results, on top of `sweep`, so that a metric may be
any function of logits and yet only the logits that it looks at are computed. `patch` is the whole experiment in one call:
a clean and a corrupted prompt, in either direction, on a scale where 0 is the corrupted run and 1 the clean one.

Source: Meng et al. 2022 (https://arxiv.org/abs/2202.05262); directions and scales after Heimersheim & Nanda 2024
(https://arxiv.org/abs/2404.15255).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.analysis.shared import Where, aligned, as_tokens, plain_metric, position_names, words_of
from cutaway.errors import ShapeError, UnknownName, UnknownSite, nearest, suggest_names
from cutaway.executors import Executor
from cutaway.model.sites import get_act_name, table, why_absent
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import one_of, options, some_of
from cutaway.prompts import Prompts
from cutaway.runs import metrics
from cutaway.runs.editing import hooks_of
from cutaway.runs.edits import Change, Edit, function
from cutaway.runs.edits import patch as put_in
from cutaway.runs.intervals import interval_of_ratio
from cutaway.runs.metrics import among_real, settled
from cutaway.runs.plain_runs import is_forward
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result
from cutaway.runs.sweep import Audit, Cells, Grid, SweepResult, sweep
from cutaway.runs.sweep.planning import plan
from cutaway.view import Figure, sweep_grid

Setter = Callable[[Tensor, Sequence[int], Tensor], Tensor]
PatchMetric = Callable[[Tensor], Tensor] | metrics.Metric

# Patch setters: where in an activation an index points. The sweep knows these and need not call them.


def layer_pos_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """`index` is layer, position."""
    _, pos = index
    return _set(corrupted_activation, clean_activation, (slice(None), pos))


def layer_pos_head_vector_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """`index` is layer, position, head."""
    _, pos, head = index
    return _set(corrupted_activation, clean_activation, (slice(None), pos, head))


def layer_head_vector_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """`index` is layer, head."""
    _, head = index
    return _set(corrupted_activation, clean_activation, (slice(None), slice(None), head))


def layer_head_pattern_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """`index` is layer, head, of a pattern."""
    _, head = index
    return _set(corrupted_activation, clean_activation, (slice(None), head))


def layer_head_pos_pattern_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """`index` is layer, head, destination, of a pattern."""
    _, head, dest = index
    return _set(corrupted_activation, clean_activation, (slice(None), head, dest))


def layer_head_dest_src_pos_pattern_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """`index` is layer, head, destination, source, of a pattern."""
    _, head, dest, src = index
    return _set(corrupted_activation, clean_activation, (slice(None), head, dest, src))


def _set(x: Tensor, values: Tensor, where: tuple[Any, ...]) -> Tensor:
    out = x.clone()
    out[where] = values[where]
    return out


PLACES: dict[Setter, tuple[str, ...]] = {
    layer_pos_patch_setter: ("positions",),
    layer_pos_head_vector_patch_setter: ("positions", "heads"),
    layer_head_vector_patch_setter: ("heads",),
    layer_head_pattern_patch_setter: ("heads",),
    layer_head_pos_pattern_patch_setter: ("heads", "positions"),
    layer_head_dest_src_pos_pattern_patch_setter: ("heads", "positions", "sources"),
}


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> Any:
    """A pandas frame with a row for every combination, the last column fastest."""
    import pandas as pd

    return pd.DataFrame(list(itertools.product(*map(range, column_max_ranges))), columns=list(column_names))


def generic_activation_patch(
    model: Transformer,
    corrupted_tokens: Tensor,
    clean_cache: Any,
    patching_metric: PatchMetric,
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: Any = None,
    return_index_df: bool = False,
) -> Any:
    """The metric of the corrupted run with one activation after another taken from the clean cache.

    Args:
        patching_metric: a function from logits `[batch, pos, d_vocab]` to a number, or one of `cutaway.runs.metrics`.
        patch_setter: (corrupted activation, index, clean activation) → patched activation. One of this module's, or
            any other, which then runs at full length in a batch of its own.
        activation_name: short name of the site; the first entry of each index is the layer.
        index_axis_names: go over all of "layer", "pos", "head", "head_index", "src_pos", "dest_pos".
        index_df: or, a frame with an index in each row; the result then has one entry per row.

    Returns:
        The metric of each patch, in the shape of the axes; with `return_index_df`, and the frame of indices.

    Raises:
        ShapeError: both or neither of `index_axis_names` and `index_df`; or prompts of different lengths.
    """
    if (index_axis_names is None) == (index_df is None):
        raise ShapeError("give either index_axis_names or index_df: the axes to go over, or a frame of indices")
    tokens = as_tokens(model, corrupted_tokens)
    if index_axis_names is not None:
        shape = tuple(_axis_length(model, activation_name, axis, tokens.shape[1]) for axis in index_axis_names)
        rows = list(itertools.product(*map(range, shape)))
    else:
        rows = [tuple(int(one) for one in row) for row in index_df.itertuples(index=False)]
        shape = (len(rows),)
    store = _store(clean_cache)
    _same_length(model, store, activation_name, rows, tokens.shape[1])
    change = put_in(clean_cache)
    edits = tuple((_edit(patch_setter, change, store, activation_name, row, model),) for row in rows)
    if not isinstance(patching_metric, metrics.Metric) and not is_forward(model, tokens, None):
        found = torch.stack([_by_hand(model, tokens, edit, patching_metric) for edit in edits])
    else:
        cells = Cells(edits, ("cell",), (len(rows),), [list(map(str, rows))])
        found = sweep(model, tokens, cells, patching_metric, audit=0).values.data
    while found.ndim > 1:  # one number for each example
        found = found.mean(-1)
    found = found.reshape(shape).float()
    if not return_index_df:
        return found
    return found, make_df_from_ranges(shape, index_axis_names) if index_axis_names is not None else index_df


def _by_hand(model: Transformer, tokens: Tensor, edit: tuple[Edit, ...], metric: Callable[[Tensor], Tensor]) -> Tensor:
    """One patch in a run of its own, for a model with a forward pass that a sweep knows nothing of."""
    with torch.no_grad():
        return torch.as_tensor(metric(model.run_with_hooks(tokens, fwd_hooks=hooks_of(model, list(edit)))))


def _edit(setter: Setter, change: Change, store: Mapping[str, Tensor], name: str, row: Sequence[int], model: Transformer) -> Edit:
    """The edit of one index."""
    site = get_act_name(name, row[0])
    if (places := PLACES.get(setter)) is not None:
        if len(places) != len(row) - 1:
            raise ShapeError(f"{getattr(setter, '__name__', 'the setter')} takes {len(places) + 1} indices, not {len(row)}")
        return change.at(site, **dict(zip(places, row[1:], strict=True)))
    if site not in table(model.cfg):
        raise UnknownSite(f"no site called {site!r}{why_absent(site, model.sites) or nearest(site, model.sites)}")

    def call(x: Tensor) -> Tensor:
        return setter(x, list(row), store[site])

    return function(call, f"{getattr(setter, '__name__', 'setter')} {tuple(row)}").at(site)


def _axis_length(model: Transformer, name: str, axis: str, length: int) -> int:
    heads = model.cfg.n_heads
    if "kv" in table(model.cfg).get(get_act_name(name, 0), ()):
        heads = model.cfg.kv_heads
    known = {
        "layer": model.cfg.n_layers,
        "pos": length,
        "src_pos": length,
        "dest_pos": length,
        "head": heads,
        "head_index": heads,
    }
    if axis not in known:
        raise UnknownName(f"no axis called {axis!r}{nearest(axis, known)}; there are {', '.join(known)}")
    return known[axis]


def _store(cache: Any) -> Mapping[str, Tensor]:
    store: Mapping[str, Tensor] = getattr(cache, "cache_dict", cache)
    if not getattr(cache, "has_batch_dim", True):
        store = {name: tensor[None] for name, tensor in store.items()}
    return store


def _same_length(model: Transformer, store: Mapping[str, Tensor], name: str, rows: Sequence[Sequence[int]], length: int) -> None:
    if not rows or (site := get_act_name(name, rows[0][0])) not in store:
        return
    axis = model.position_axis(site)
    if axis is not None and store[site].shape[axis] != length:
        raise ShapeError(
            f"the clean cache is of {store[site].shape[axis]} positions and the corrupted tokens of {length}; patching needs "
            "prompts of equal length: choose words of as many tokens, or pad"
        )


class Patching:
    """One of the dialect's patching functions: `generic_activation_patch` with a site, axes and a setter."""

    def __init__(self, name: str, activation_name: str, axes: tuple[str, ...], setter: Setter):
        self.__name__, self.activation_name, self.axes, self.setter = name, activation_name, axes, setter
        self.__doc__ = f"The metric after patching `{activation_name}`, `[{', '.join(axes)}]`. See `generic_activation_patch`."

    def __call__(
        self, model: Transformer, corrupted_tokens: Tensor, clean_cache: Any, patching_metric: PatchMetric, **kwargs: Any
    ) -> Any:
        given: dict[str, Any] = {
            "patch_setter": self.setter,
            "activation_name": self.activation_name,
            "index_axis_names": None if kwargs.get("index_df") is not None else self.axes,
        }
        return generic_activation_patch(model, corrupted_tokens, clean_cache, patching_metric, **(given | kwargs))

    def __repr__(self) -> str:
        return f"<{self.__name__}: {self.activation_name} by {', '.join(self.axes)}>"


def _by_pos(name: str, activation_name: str) -> Patching:
    return Patching(name, activation_name, ("layer", "pos"), layer_pos_patch_setter)


def _by_head_and_pos(name: str, activation_name: str) -> Patching:
    return Patching(name, activation_name, ("layer", "pos", "head"), layer_pos_head_vector_patch_setter)


def _by_head(name: str, activation_name: str) -> Patching:
    return Patching(name, activation_name, ("layer", "head"), layer_head_vector_patch_setter)


get_act_patch_resid_pre = _by_pos("get_act_patch_resid_pre", "resid_pre")
get_act_patch_resid_mid = _by_pos("get_act_patch_resid_mid", "resid_mid")
get_act_patch_attn_out = _by_pos("get_act_patch_attn_out", "attn_out")
get_act_patch_mlp_out = _by_pos("get_act_patch_mlp_out", "mlp_out")
get_act_patch_attn_head_out_by_pos = _by_head_and_pos("get_act_patch_attn_head_out_by_pos", "z")
get_act_patch_attn_head_q_by_pos = _by_head_and_pos("get_act_patch_attn_head_q_by_pos", "q")
get_act_patch_attn_head_k_by_pos = _by_head_and_pos("get_act_patch_attn_head_k_by_pos", "k")
get_act_patch_attn_head_v_by_pos = _by_head_and_pos("get_act_patch_attn_head_v_by_pos", "v")
get_act_patch_attn_head_out_all_pos = _by_head("get_act_patch_attn_head_out_all_pos", "z")
get_act_patch_attn_head_q_all_pos = _by_head("get_act_patch_attn_head_q_all_pos", "q")
get_act_patch_attn_head_k_all_pos = _by_head("get_act_patch_attn_head_k_all_pos", "k")
get_act_patch_attn_head_v_all_pos = _by_head("get_act_patch_attn_head_v_all_pos", "v")
get_act_patch_attn_head_pattern_by_pos = Patching(
    "get_act_patch_attn_head_pattern_by_pos", "pattern", ("layer", "head_index", "dest_pos"), layer_head_pos_pattern_patch_setter
)
get_act_patch_attn_head_pattern_dest_src_pos = Patching(
    "get_act_patch_attn_head_pattern_dest_src_pos", "pattern", ("layer", "head_index", "dest_pos", "src_pos"),
    layer_head_dest_src_pos_pattern_patch_setter,
)  # fmt: skip
get_act_patch_attn_head_pattern_all_pos = Patching(
    "get_act_patch_attn_head_pattern_all_pos", "pattern", ("layer", "head_index"), layer_head_pattern_patch_setter
)


def get_act_patch_attn_head_all_pos_every(
    model: Transformer, corrupted_tokens: Tensor, clean_cache: Any, metric: PatchMetric
) -> Tensor:
    """Outputs, queries, keys, values and patterns of every head, `[5, layer, head]`; absent key and value heads are 0."""
    each = (
        get_act_patch_attn_head_out_all_pos, get_act_patch_attn_head_q_all_pos, get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos, get_act_patch_attn_head_pattern_all_pos,
    )  # fmt: skip
    return _stacked([one(model, corrupted_tokens, clean_cache, metric) for one in each])


def get_act_patch_attn_head_by_pos_every(
    model: Transformer, corrupted_tokens: Tensor, clean_cache: Any, metric: PatchMetric
) -> Tensor:
    """Outputs, queries, keys, values and patterns (by destination) of every head, `[5, layer, pos, head]`."""
    each = (
        get_act_patch_attn_head_out_by_pos, get_act_patch_attn_head_q_by_pos, get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos, get_act_patch_attn_head_pattern_by_pos,
    )  # fmt: skip
    *found, pattern = (one(model, corrupted_tokens, clean_cache, metric) for one in each)
    return _stacked([*found, pattern.transpose(1, 2)])


def get_act_patch_block_every(model: Transformer, corrupted_tokens: Tensor, clean_cache: Any, metric: PatchMetric) -> Tensor:
    """The residual stream before each block, and what attention and MLP add to it, `[3, layer, pos]`."""
    each = (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    return _stacked([one(model, corrupted_tokens, clean_cache, metric) for one in each])


def _stacked(found: Sequence[Tensor]) -> Tensor:
    """One below the other; where there are fewer key and value heads, those that are absent are 0."""
    width = found[0].shape[-1]
    return torch.stack([torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in found])


# The whole experiment.

GRIDS = {  # what is patched → its axes
    "resid_pre": ("layer", "pos"), "resid_mid": ("layer", "pos"), "attn_out": ("layer", "pos"), "mlp_out": ("layer", "pos"),
    "z": ("layer", "head"), "q": ("layer", "head"), "k": ("layer", "head"), "v": ("layer", "head"), "pattern": ("layer", "head"),
}  # fmt: skip
DIRECTIONS = ("denoising", "noising")


@dataclass(frozen=True, eq=False)
class PatchingResult(Result):
    """A patching experiment in one direction.

    Args:
        values: mean over examples for every patch, 0 = corrupted and 1 = clean; of the first kind that was asked for.
        sweeps: what was patched → the sweep, in the metric's own unit, for each example.
        clean, corrupted: the mean metric of the two runs.
        direction: "denoising" patches clean activations into the corrupted run, "noising" the other way round.
        tokens: the tokens of the first pair, as text where there is a tokenizer.
        by_example: the metric of the clean and of the corrupted run, of each pair.
        places: a label for each position, where all were patched: its token or its role, and what it was exchanged for.
    """

    values: Labelled
    sweeps: dict[str, SweepResult]
    clean: float
    corrupted: float
    direction: str
    tokens: tuple[tuple[str, ...], tuple[str, ...]]
    by_example: tuple[Tensor, Tensor] = field(repr=False)
    places: tuple[str, ...] = ()

    @property
    def audit(self) -> Audit:
        """The least exact of the audits."""
        return max((one.audit for one in self.sweeps.values()), key=lambda audit: audit.difference)

    def normalised(self, kind: str) -> Labelled:
        """Means over examples of one kind of patch, 0 = corrupted and 1 = clean.

        Raises:
            UnknownName: nothing of that kind was patched here; `intervals` and `figure` too.
        """
        found = self._sweep_of(kind).averages()
        span = self.clean - self.corrupted
        return Labelled((found.data - self.corrupted) / span, found.axes, found.labels, f"recovered by {kind}")

    def intervals(self, kind: str) -> tuple[Labelled, Labelled]:
        """Lower and upper 95% bounds of `normalised`, over pairs of prompts: both parts of the ratio are uncertain (Fieller)."""
        found, cells = self._sweep_of(kind), self._sweep_of(kind).averages()
        each = found.values.data.cpu().double()
        each = (each.nanmean(-1) if found.clean.data.ndim == 2 else each).movedim(-1, 0)
        clean, corrupted = (one.to(each.device).reshape(-1, *[1] * (each.ndim - 1)) for one in self.by_example)
        bounds = interval_of_ratio(each - corrupted, (clean - corrupted).expand_as(each))
        low, high = (Labelled(part, cells.axes, cells.labels, f"recovered by {kind}") for part in bounds)
        return low, high

    def _sweep_of(self, kind: str) -> SweepResult:
        return self.sweeps[one_of(kind, tuple(self.sweeps), "kind that was patched here")]

    def figure(self, kind: str | None = None) -> Figure:
        """Layer × position or layer × head, for one kind of patch."""
        kind = next(iter(self.sweeps)) if kind is None else kind
        found = self.normalised(kind)
        row, column = found.axes
        names = self.labels(found, column)
        label = "metric, 0 = corrupted and 1 = clean"
        return sweep_grid(
            found.data, found.names(row), names, row_name=row, column_name=column, value_name=label,
            title=f"{self.direction}: {kind} patched",
        )  # fmt: skip

    def labels(self, found: Labelled, axis: str) -> Sequence[str]:
        """The labels of an axis: positions by their token or role."""
        names = found.names(axis)
        return self.places if axis == "pos" and axis not in found.labels and len(self.places) == len(names) else names

    def to_frame(self) -> Any:
        """A row for each patch of every kind: `kind`, its place, `value` (0 = corrupted, 1 = clean), `low` and `high`."""
        import pandas as pd

        parts = []
        for kind in self.sweeps:
            found, (low, high) = self.normalised(kind), self.intervals(kind)
            frame = found.to_frame().assign(low=low.data.flatten().numpy(), high=high.data.flatten().numpy())
            if "pos" in found.axes and "pos" not in found.labels and self.places:
                frame.insert(2, "token", [self.places[at] for at in frame["pos"]])
            parts.append(frame.assign(kind=kind))
        whole = pd.concat(parts, ignore_index=True)
        return whole[["kind", *(name for name in whole.columns if name != "kind")]]

    def summary(self, top: int | None = 3) -> str:
        """In words, with the `top` largest shares of each kind; None: all of them."""
        first = next(iter(self.sweeps.values()))
        lines = [
            f"{self.direction}: {first.values.what} is {self.clean:.4g} for clean and {self.corrupted:.4g} for corrupted prompts",
            "largest shares of that difference " + ("restored:" if self.direction == "denoising" else "destroyed:"),
        ]
        for kind in self.sweeps:
            found = self.normalised(kind)
            share = found.data if self.direction == "denoising" else 1 - found.data
            bounds = [one.data.flatten() for one in self.intervals(kind)]
            bounds = bounds if self.direction == "denoising" else [1 - one for one in reversed(bounds)]
            order = share.flatten().argsort(descending=True)[:top].tolist()
            width = share.shape[1]
            names = self.labels(found, found.axes[0]), self.labels(found, found.axes[1])
            shown = ", ".join(
                f"{found.axes[0]} {names[0][at // width]} {found.axes[1]} {names[1][at % width]} {float(share.flatten()[at]):.2f}"
                + (f" [{float(bounds[0][at]):.2f}, {float(bounds[1][at]):.2f}]" if bounds[0][at] == bounds[0][at] else "")
                for at in order
            )
            lines.append(f"  {kind}: {shown}")
        lines += [f"{kind}: {one.baseline.summary()}" for kind, one in self.sweeps.items() if one.baseline is not None]
        return "\n".join([*lines, str(self.audit)])


@with_provenance
@options(audit=0, baseline=0, seed=0, memory=1)
def patch(
    model: Transformer,
    clean: Any,
    corrupted: Any = None,
    metric: Any = None,
    *,
    kinds: Sequence[str] = ("resid_pre", "attn_out", "mlp_out", "z"),
    layers: Sequence[int] | None = None,
    positions: Where | None = None,
    direction: str = "denoising",
    audit: int = 2,
    seed: int = 0,
    memory: int | str | None = None,
    progress: Callable[[float, float], None] | None = None,
    say: Callable[[int, int, float], None] | None = None,
    baseline: int = 0,
    results: Path | str | None = None,
    executor: str | Executor | None = None,
) -> PatchingResult:
    """Patch everything, one place at a time, between a clean and a corrupted prompt (or several pairs).

    Args:
        clean, corrupted: text, texts or tokens `[batch, pos]`, of as many tokens row by row; or `Prompts` in pairs alone.
        metric: one of `cutaway.metrics`, such as `logit_difference(" Mary", " John")`; None: what `Prompts` say themselves.
        kinds: what to patch: resid_pre, resid_mid, attn_out, mlp_out (layer × position); z, q, k, v, pattern (layer × head).
        positions: where: numbers or roles, each by itself; heads at all of them together. None: every position, or, in
            `Prompts` of different lengths, every role.
        layers: some of the layers; None: all.
        direction: "denoising" (clean into corrupted) or "noising" (corrupted into clean).
        audit, seed, memory, progress, baseline, results, executor: as `sweep` takes them.
        say: told before anything is run how many cells there are, how many `results` holds, and the least seconds of the rest.

    Raises:
        ShapeError: prompts that do not align, a metric that compares with a clean run, or one that is the same for both.
        UnknownName: no such kind or direction, or only kinds that the network lacks.
    """
    kinds = some_of(kinds, tuple(GRIDS), "kind of patch")
    one_of(direction, DIRECTIONS, "direction")
    plain_metric(metric := settled(metric, model, clean), "patch")
    both = aligned(model, clean, corrupted)
    pair = both.clean, both.corrupted
    source, target = pair if direction == "denoising" else pair[::-1]
    there = [kind for kind in GRIDS if get_act_name(kind, 0) in model.hook_dict]
    if not set(kinds) & set(there):
        raise UnknownName(f"this network has none of {', '.join(kinds)} to patch; it has {', '.join(there)}")
    kinds = [kind for kind in kinds if kind in there]
    names = [get_act_name(kind, layer) for kind in kinds for layer in range(model.cfg.n_layers)]
    if torch.equal(*pair):
        raise ShapeError("clean and corrupted prompts are the same, so there is nothing to recover; give prompts that differ")
    means: list[float] = []
    by_example: list[Tensor] = []
    with torch.no_grad():
        cache: dict[str, Tensor] = {}
        for tokens in pair:
            keep = names if tokens is source else []  # the other run's values are the sweep's own clean run's
            logits, store = model.run_with_cache(tokens, names_filter=keep, attention_mask=both.mask)
            each = (metric if both.mask is None else among_real(metric, both.mask.bool(), tokens))(logits).double()
            by_example.append(each if each.ndim == 1 else each.nanmean(1) if each.ndim else each[None])
            means.append(float(each.nanmean()))
            if tokens is source:
                cache = getattr(store, "cache_dict", store)
    if means[0] == means[1]:
        raise ShapeError(f"clean and corrupted prompts have the same {metric.name}, {means[0]:g}; there is nothing to recover")
    prompts = clean if isinstance(clean, Prompts) else None
    places = _places(prompts, positions)
    run = target if prompts is None else replace(prompts if target is both.clean else prompts.counterparts, roles=prompts.roles)
    grids = {kind: _grid(put_in(cache), kind, layers, places, heads_there=positions is not None) for kind in kinds}
    if say is not None:
        _tell(say, model, run, grids, metric, mask=both.mask, memory=memory, results=results, executor=executor)
    sweeps = {}
    for number, kind in enumerate(kinds):
        step = None if progress is None else _share(progress, number, len(kinds))
        sweeps[kind] = sweep(
            model, run, grids[kind], metric, mask=both.mask, audit=audit, seed=seed, memory=memory, progress=step,
            baseline=baseline, results=results, executor=executor,
        )  # fmt: skip
    first = sweeps[kinds[0]].averages()  # scaled so that the corrupted prompt gives 0 and the clean one 1, in both directions
    scaled = (first.data - means[1]) / (means[0] - means[1])
    real = None if both.mask is None else both.mask.bool()
    words = tuple(words_of(model, one, real) for one in pair)
    return PatchingResult(
        Labelled(scaled, first.axes, first.labels, f"recovered by {kinds[0]}"),
        sweeps,
        means[0],
        means[1],
        direction,
        (words[0][0], words[1][0]),
        (by_example[0], by_example[1]),
        () if places is not None else _exchanged(position_names(words[0], prompts), words),
    )


def _tell(say: Callable[[int, int, float], None], model: Transformer, run: Any, grids: Any, metric: Any, **how: Any) -> None:
    """What all grids together cost, before they run."""
    plans = [plan(model, run, grid, metric, **how) for grid in grids.values()]
    say(sum(one.cells for one in plans), sum(one.reused for one in plans), sum(one.seconds or 0.0 for one in plans))


def _places(prompts: Prompts | None, positions: Where | None) -> list[str | int] | None:
    """The places that are patched one by one; None: every column."""
    if positions is not None:
        return [positions] if isinstance(positions, str | int) else list(positions)
    if prompts is None or len(set(prompts.lengths.tolist())) == 1 or len(prompts.roles) < 2:
        return None
    return list(prompts.roles)


def _grid(change: Change, kind: str, layers: Sequence[int] | None, places: list[str | int] | None, *, heads_there: bool) -> Grid:
    axes, only = GRIDS[kind], {} if layers is None else {"layer": layers}
    if places is None or not (heads_there or "pos" in axes):
        return Grid(change, kind, axes, only=only)
    if "pos" in axes:
        return Grid(change, kind, axes, only={**only, "pos": places})
    return Grid(change, kind, axes, only=only, where={"positions": places})


def _exchanged(names: Sequence[str], words: tuple[Sequence[Sequence[str]], ...]) -> tuple[str, ...]:
    """A label for each position; of a single pair, with the token that it is exchanged for."""
    clean, corrupted = words
    if len(clean) > 1:
        return tuple(names)
    every = zip(names, clean[0], corrupted[0], strict=True)
    return tuple(name if one == other else f"{name}→{other}" for name, one, other in every)


def _share(progress: Callable[[float, float], None], number: int, count: int) -> Callable[[float, float], None]:
    """Progress of one of several sweeps, as part of all."""
    return lambda done, total: progress(number + done / total, count)


suggest_names(__name__)
