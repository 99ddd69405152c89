"""Path patching: what reaches a receiver from a sender directly, everything in between held still.

A sender is anything that writes to the residual stream; a receiver is a head's queries, keys or values, an MLP or one of
its neurons, or the logits. With everything else frozen, what a sender adds to the stream reaches the receiver unchanged, so
its new input is known at once: the frozen stream plus the difference. Each path is then one cell of a sweep that replaces the
receiver's reading.

Source: Wang et al. 2022 (https://arxiv.org/abs/2211.00593), Goldowsky-Dill et al. 2023 (https://arxiv.org/abs/2304.05969).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cutaway.analysis.shared import Pair, Where, aligned, chosen_positions
from cutaway.errors import ShapeError
from cutaway.model.components import (
    LOGITS,
    Component,
    group_size,
    heads,
    norm_after,
    norm_before,
    parse_readers,
    parse_writers,
    reaches,
    sites,
    stream_site,
)
from cutaway.model.frozen_norms import norm_module
from cutaway.model.products import linear
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options
from cutaway.runs.decompose import written
from cutaway.runs.edits import Edit, replace
from cutaway.runs.metrics import settled
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result, layers_by_heads
from cutaway.runs.sweep import Audit, sweep
from cutaway.view import Figure, bar_chart, heat_map, sweep_grid


@dataclass(frozen=True, eq=False)
class PathResult(Result):
    """What each direct path carries.

    Args:
        values: the change of the metric when the path carries the other run's activations, `[sender, receiver, batch]`;
            NaN where the receiver does not come after the sender.
        clean: the metric of the run that is changed, `[batch]`.
        audit: how far cells are from plain full forward passes.
        note: what a reader must know of the receivers: keys and values that heads share.
    """

    values: Labelled
    clean: Labelled
    audit: Audit
    note: str = ""

    def averages(self) -> Labelled:
        """Means over examples, `[sender, receiver]`."""
        return self.values.mean("batch") if "batch" in self.values.axes else self.values

    def figure(self) -> Figure:
        """Senders down, receivers across; bars where there is one receiver."""
        shown = self.averages()
        label = f"{self.values.what} ({self.values.unit})"
        senders, receivers = shown.names("sender"), shown.names("receiver")
        grid = layers_by_heads(shown.sel(receiver=0)) if len(receivers) == 1 else None
        if grid is not None:
            layers = [layer for layer, row in enumerate(grid) if not bool(row.isnan().all())]  # those of some sender
            return sweep_grid(
                grid[layers], list(map(str, layers)), row_name="layer", column_name="head", value_name=label,
                title=f"direct paths to {receivers[0]}",
            )  # fmt: skip
        if len(receivers) == 1:
            return bar_chart(senders, {receivers[0]: shown.data[:, 0]}, x_name="sender", value_name=label, title="direct paths")
        return heat_map(
            shown.data, receivers, senders, x_name="receiver", y_name="sender", value_name=label, title="direct paths",
            absent="no such path",
        )  # fmt: skip

    def top(self, count: int = 10) -> list[tuple[str, str, float]]:
        """The paths that carry most: sender, receiver, mean change."""
        shown = self.averages()
        paths = list(itertools.product(shown.names("sender"), shown.names("receiver")))
        return [(*paths[at], value) for at, value in shown.largest(count)]

    def summary(self) -> str:
        unit = f" {self.values.unit}" if self.values.unit else ""
        lines = [f"direct paths, {self.values.what}; {float(self.clean.data.nanmean()):.4g}{unit} without"]
        lines += [f"  {sender} → {receiver}: {value:+.4g}{unit}" for sender, receiver, value in self.top(8)]
        return "\n".join([*lines, *([self.note] if self.note else []), str(self.audit)])


@with_provenance
@options(audit=0, seed=0, memory=1)
@torch.no_grad()
def path_patch(
    model: Transformer,
    tokens: Any,
    source: Any = None,
    metric: Any = None,
    *,
    senders: Sequence[str] | None = None,
    receivers: Sequence[str] = ("logits",),
    positions: Where | None = None,
    audit: int = 2,
    seed: int = 0,
    memory: int | str | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> PathResult:
    """Let each direct path from a sender to a receiver carry the activations of another run, and measure what changes.

    Args:
        tokens: the run that is changed: text, texts, tokens or `Prompts`.
        source: the run that the senders' activations come from: prompts of as many tokens, row by row; None: the counterparts
            of `Prompts`.
        metric: one of `cutaway.metrics`, or a function of logits; None: what `Prompts` say themselves.
        senders: heads ("0.3"), MLPs ("1.mlp"), neurons ("1.mlp.17"), "embed", …; None: every head. A bias is
            the same in both runs, so its paths carry exactly nothing.
        receivers: heads' queries, keys or values ("1.4.k"), MLPs ("1.mlp"), neurons ("1.mlp.17"), or "logits". Where heads
            share keys and values, a head's stand for those of its group.
        positions: where the senders' outputs are changed: numbers or roles; None: everywhere.
        audit, seed, memory, progress: as `sweep` takes them.

    Raises:
        UnknownName: no such sender or receiver.
        ShapeError: prompts that do not align, a position outside, or no receiver that comes after a sender.
    """
    pair = aligned(model, tokens, source)
    cfg = model.cfg
    froms = heads(cfg) if senders is None else parse_writers(senders, cfg)
    tos = parse_readers(receivers, cfg)
    metric = settled(metric, model, tokens)
    places = chosen_positions(positions, tokens, None if pair.mask is None else pair.mask.bool(), pair.clean.shape)
    own, other = (_kept(model, one, pair, [*sites(cfg, froms), *_whole_sites(cfg, froms), *_read_sites(cfg, tos)])
                  for one in (pair.clean, pair.corrupted))  # fmt: skip
    edits, cells = [], []
    for row, sender in enumerate(froms):
        following = [(column, to) for column, to in enumerate(tos) if reaches(cfg, sender, to)]
        difference = _difference(model, own, other, sender, places) if following else None
        for column, to in following:
            assert difference is not None
            edits.append(_received(model, own, difference, to))
            cells.append((row, column))
    if not edits:
        raise ShapeError(f"none of the receivers {', '.join(map(str, tos))} comes after any of the senders")
    found = sweep(model, pair.clean, edits, metric, mask=pair.mask, audit=audit, seed=seed, memory=memory, progress=progress)
    changes = found.effects
    values = changes.data.new_full((len(froms), len(tos), *changes.data.shape[1:]), torch.nan)
    for (row, column), change in zip(cells, changes.data, strict=True):
        values[row, column] = change
    labels = {"sender": list(map(str, froms)), "receiver": list(map(str, tos))}
    axes = ("sender", "receiver", *changes.axes[1:])
    return PathResult(Labelled(values, axes, labels, changes.what, changes.unit), found.clean, found.audit, _note(model, tos))


def _note(model: Transformer, receivers: Sequence[Component]) -> str:
    """What a receiver on shared keys or values stands for."""
    cfg = model.cfg
    shared = [one for one in receivers if one.reads in ("k", "v")]
    size = group_size(cfg)
    if not shared or size == 1:
        return ""
    first = int(shared[0].index or 0) // size * size
    group = ", ".join(f"{shared[0].layer}.{head}" for head in range(first, first + size))
    return f"heads share keys and values in groups of {size}: {shared[0]} is patched for its whole group, {group}"


class Difference(Mapping[str, Tensor]):
    """Activations of one run minus those of another, by site."""

    def __init__(self, run: Mapping[str, Tensor], less: Mapping[str, Tensor]) -> None:
        self.run, self.less = run, less

    def __getitem__(self, name: str) -> Tensor:
        return self.run[name] - self.less[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.run)

    def __len__(self) -> int:
        return len(self.run)


def _kept(model: Transformer, tokens: Tensor, pair: Pair, names: Sequence[str]) -> Mapping[str, Tensor]:
    _, store = model.run_with_cache(tokens, names_filter=list(dict.fromkeys(names)), return_type=None, attention_mask=pair.mask)
    kept: Mapping[str, Tensor] = getattr(store, "cache_dict", store)
    return kept


def _whole_sites(cfg: Any, senders: Sequence[Component]) -> list[str]:
    """Where a norm follows a part of an output, the sites that the whole output is made of."""
    parts = [one for one in senders if one.kind in ("head", "neuron") and norm_after(cfg, one) is not None]
    return sites(cfg, parts)


def _read_sites(cfg: Any, receivers: Sequence[Component]) -> list[str]:
    """The streams that receivers read."""
    beside = ["hook_pos_embed"] if cfg.positional_embedding_type == "shortformer" else []
    return [*(stream_site(cfg, one) for one in receivers), *beside]


def _difference(
    model: Transformer,
    own: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    sender: Component,
    positions: Bool[Tensor, "batch pos"] | None,
) -> Float[Tensor, "batch pos d_model"]:
    """What a sender adds to the stream in the other run beyond what it adds in this one."""
    shape = next(iter(own.values())).shape[:2]
    apart = Difference(other, own)
    if sender.constant:
        change = model.W_U.new_zeros(*shape, model.cfg.d_model)
    elif (norm := norm_after(model.cfg, sender)) is None or sender.kind not in ("head", "neuron"):
        change = written(model, apart, [sender], shape)[0]
    else:  # a norm follows: exchange the part within the whole output, and pass the norm with a scale of its own
        block, index = model.blocks[int(sender.layer or 0)], int(sender.index or 0)
        if sender.kind == "head":
            z = f"blocks.{sender.layer}.attn.hook_z"
            whole, part = block.attn.output(own[z]), linear(apart[z][:, :, index], block.attn.W_O[index])
        else:
            post = f"blocks.{sender.layer}.mlp.hook_post"
            whole = linear(own[post], block.mlp.W_out, block.mlp.b_out)
            part = apart[post][..., index, None] * block.mlp.W_out[index]
        module = norm_module(model, norm)
        change = module(whole + part) - module(whole)
    if positions is None:
        return change
    return change.masked_fill(~positions[..., None].to(change.device), 0)


def _received(model: Transformer, own: Mapping[str, Tensor], difference: Tensor, receiver: Component) -> Edit:
    """The edit that lets a receiver read the frozen stream plus the difference."""
    cfg, at = model.cfg, places_of(difference)
    site = stream_site(cfg, receiver)
    x = own[site][:, at] + difference[:, at].to(own[site].device)
    if receiver == LOGITS:
        return replace(x).at(site, positions=at)
    layer = int(receiver.layer or 0)
    block, before = model.blocks[layer], norm_before(cfg, receiver)
    if receiver.kind == "neuron":
        norm = nn.Identity() if before is None else norm_module(model, before)
        return neuron_edit(block, layer, int(receiver.index or 0), norm(own[site][:, at]), norm(x), at)
    if receiver.kind == "mlp":
        x = x if before is None else norm_module(model, before)(x)
        after = norm_after(cfg, receiver)
        out = block.mlp(x)
        out = out if after is None else norm_module(model, after)(out)
        return replace(out).at(f"blocks.{layer}.hook_mlp_out", positions=at)
    reads, head = str(receiver.reads), int(receiver.index or 0)
    x = x if before is None else norm_module(model, before)(x)
    if cfg.positional_embedding_type == "shortformer" and reads != "v":
        x = x + own["hook_pos_embed"][:, at]
    weight, bias = {
        "q": (block.attn.W_Q, block.attn.b_Q), "k": (block.attn.W_K, block.attn.b_K), "v": (block.attn.W_V, block.attn.b_V)
    }[reads]  # fmt: skip
    value = linear(x, weight[head], bias[head])[:, :, None]
    if cfg.clip_qkv is not None:
        value = value.clamp(-cfg.clip_qkv, cfg.clip_qkv)
    entry = head if reads == "q" else head // group_size(cfg)
    return replace(value).at(f"blocks.{layer}.attn.hook_{reads}", heads=entry, positions=at)


def neuron_edit(block: Any, layer: int, neuron: int, x: Tensor, apart: Tensor, positions: Sequence[int]) -> Edit:
    """The edit that lets one neuron read `apart` where its MLP reads `x`, both normalised and at these positions."""
    post = block.mlp.post_apart(x, neuron, apart)
    site = f"blocks.{layer}.mlp.hook_post"
    if block.cfg.has_mlp_norm:  # which spreads the change over all neurons
        return replace(post).at(site, positions=positions)
    return replace(post[..., neuron, None]).at(site, neurons=neuron, positions=positions)


def places_of(change: Float[Tensor, "batch pos d_model"], least: float = 0.0) -> list[int]:
    """The positions at which some example's change is larger than `least`; the first one where none is.

    Prompts that begin alike change nothing up to their first difference, so that no edit is needed there.
    """
    changed = (change.abs().amax((0, 2)) > least).nonzero().flatten().tolist()
    return changed or [0]
