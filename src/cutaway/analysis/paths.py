"""Path patching: what reaches a receiver from a sender directly, everything in between held still.

A sender is a head or an MLP; a receiver is a head's queries, keys or values, an MLP, or the logits. With everything else
frozen, what a sender adds to the residual stream reaches the receiver unchanged, so its new input is known at once:
the frozen stream plus the difference. Each path is then one cell of a sweep that replaces the receiver's reading.

Source: Wang et al. 2022 (https://arxiv.org/abs/2211.00593), Goldowsky-Dill et al. 2023 (https://arxiv.org/abs/2304.05969).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.analysis.shared import as_tokens
from cutaway.errors import ShapeError, UnknownName
from cutaway.model.attention import project
from cutaway.model.products import linear
from cutaway.model.steps import ATTN_OUT, BEFORE, MLP_OUT
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Edit, replace
from cutaway.runs.metrics import Function, Metric
from cutaway.runs.results import Labelled, Result
from cutaway.runs.sweep import Audit, sweep
from cutaway.runs.sweep.clean import Clean, run_clean
from cutaway.view import Figure, bar_chart, heat_map

NODE = re.compile(r"(?:(\d+)\.(\d+)(?:\.([qkv]))?|mlp(\d+)|logits)")


@dataclass(frozen=True, order=True)
class Node:
    """A head (with `reads`, its queries, keys or values), an MLP (`head` None), or the logits (`layer` = `n_layers`)."""

    layer: int
    head: int | None = None
    reads: str | None = None
    logits: bool = False

    def __str__(self) -> str:
        if self.logits:
            return "logits"
        if self.head is None:
            return f"mlp{self.layer}"
        return f"{self.layer}.{self.head}" + (f".{self.reads}" if self.reads else "")


def node(text: str, model: Transformer) -> Node:
    """`0.3` (head 3 of layer 0), `1.4.k` (its keys), `mlp2`, `logits`.

    Raises:
        UnknownName: the text is none of these, or the network has no such part.
    """
    found = NODE.fullmatch(text)
    if found is None:
        raise UnknownName(f"no node called {text!r}; write a head as '0.3', its keys as '0.3.k', an MLP as 'mlp2', or 'logits'")
    layer, head, reads, mlp = found.groups()
    cfg = model.cfg
    if text == "logits":
        return Node(cfg.n_layers, logits=True)
    made = Node(int(layer), int(head), reads) if mlp is None else Node(int(mlp))
    if made.layer >= cfg.n_layers or (made.head or 0) >= cfg.n_heads or (mlp is not None and cfg.attn_only):
        parts = f"{cfg.n_layers} layers of {cfg.n_heads} heads, {'without' if cfg.attn_only else 'with'} MLPs"
        raise UnknownName(f"no node {text!r} in a network of {parts}")
    return made


@dataclass(frozen=True, eq=False)
class PathResult(Result):
    """What each direct path carries.

    Args:
        values: the change of the metric when the path carries the other run's activations, `[sender, receiver, batch]`;
            NaN where the receiver does not come after the sender.
        clean: the metric of the run that is changed, `[batch]`.
        audit: how far cells are from plain full forward passes.
    """

    values: Labelled
    clean: Labelled
    audit: Audit

    def averages(self) -> Labelled:
        """Means over examples, `[sender, receiver]`."""
        return self.values.mean("batch") if "batch" in self.values.axes else self.values

    def figure(self) -> Figure:
        """Senders down, receivers across; bars where there is one receiver."""
        shown = self.averages()
        said = f"{self.values.what} ({self.values.unit})"
        senders, receivers = shown.names("sender"), shown.names("receiver")
        if len(receivers) == 1:
            return bar_chart(senders, {receivers[0]: shown.data[:, 0]}, x_name="sender", value_name=said, title="direct paths")
        return heat_map(shown.data, receivers, senders, x_name="receiver", y_name="sender", value_name=said, title="direct paths")

    def top(self, count: int = 10) -> list[tuple[str, str, float]]:
        """The paths that carry most: sender, receiver, mean change."""
        shown = self.averages()
        flat = shown.data.flatten()
        order = flat.abs().nan_to_num(-1).argsort(descending=True, stable=True)[:count].tolist()
        senders, receivers = shown.names("sender"), shown.names("receiver")
        width = len(receivers)
        return [(senders[at // width], receivers[at % width], float(flat[at])) for at in order if not flat[at].isnan()]

    def summary(self) -> str:
        unit = f" {self.values.unit}" if self.values.unit else ""
        lines = [f"direct paths, {self.values.what}; {float(self.clean.data.nanmean()):.4g}{unit} without"]
        lines += [f"  {sender} → {receiver}: {value:+.4g}{unit}" for sender, receiver, value in self.top(8)]
        return "\n".join([*lines, str(self.audit)])


def path_patch(
    model: Transformer,
    tokens: Any,
    source: Any,
    metric: Metric | Function | Callable[[Tensor], Any],
    *,
    senders: Sequence[str] | None = None,
    receivers: Sequence[str] = ("logits",),
    positions: Sequence[int] | None = None,
    audit: int = 2,
    seed: int = 0,
    memory: int | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> PathResult:
    """Let each direct path from a sender to a receiver carry the activations of another run, and measure what changes.

    Args:
        tokens: the run that is changed.
        source: the run that the senders' activations come from; text or tokens of the same shape.
        senders: heads ("0.3") and MLPs ("mlp1"); None: every head.
        receivers: heads' queries, keys or values ("1.4.k"), MLPs, or "logits".
        positions: where the senders' outputs are changed; None: everywhere.
        audit, seed, memory, progress: as `sweep` takes them.

    Raises:
        UnknownName: no such sender or receiver.
        ShapeError: prompts of different shapes, or a receiver head without q, k or v.
    """
    tokens, source = as_tokens(model, tokens), as_tokens(model, source)
    if tokens.shape != source.shape:
        raise ShapeError(f"both runs need tokens of one shape, not {tuple(tokens.shape)} and {tuple(source.shape)}")
    cfg = model.cfg
    names = [f"{layer}.{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)] if senders is None else senders
    froms, tos = [node(name, model) for name in names], [node(name, model) for name in receivers]
    _check(froms, tos)
    with torch.no_grad():
        sites = sorted({site for one in froms for site in _sites(one)})
        target = run_clean(model, tokens, sites)
        other = run_clean(model, source, sites)
        edits, places = [], []
        for row, one in enumerate(froms):
            difference = _difference(model, target, other, one, positions)
            for column, to in enumerate(tos):
                if _follows(model, one, to):
                    edits.append(_received(model, target, difference, to))
                    places.append((row, column))
    if not edits:
        raise ShapeError(f"none of the receivers {', '.join(map(str, tos))} comes after any of the senders")
    found = sweep(model, tokens, edits, metric, audit=audit, seed=seed, memory=memory, progress=progress)
    changes = found.effects
    values = changes.data.new_full((len(froms), len(tos), *changes.data.shape[1:]), torch.nan)
    for (row, column), change in zip(places, changes.data, strict=True):
        values[row, column] = change
    labels = {"sender": [str(one) for one in froms], "receiver": [str(one) for one in tos]}
    axes = ("sender", "receiver", *changes.axes[1:])
    return PathResult(Labelled(values, axes, labels, changes.what, changes.unit), found.clean, found.audit)


def _check(senders: Sequence[Node], receivers: Sequence[Node]) -> None:
    for one in senders:
        if one.logits or one.reads:
            raise ShapeError(f"{one} sends nothing; senders are heads, as '0.3', and MLPs, as 'mlp1'")
    for one in receivers:
        if one.head is not None and one.reads is None:
            raise ShapeError(f"a receiver head says what it reads with: '{one}.q', '{one}.k' or '{one}.v'")


def _follows(model: Transformer, sender: Node, receiver: Node) -> bool:
    """Whether the receiver reads the stream after the sender has written to it."""
    if receiver.logits or receiver.layer > sender.layer:
        return True
    same = receiver.layer == sender.layer
    in_layer = model.blocks[sender.layer].program.reaches(ATTN_OUT, MLP_OUT)
    return same and sender.head is not None and receiver.head is None and in_layer


def _sites(sender: Node) -> list[str]:
    block = f"blocks.{sender.layer}."
    return [f"{block}hook_mlp_out"] if sender.head is None else [f"{block}attn.hook_z", f"{block}hook_attn_out"]


def _difference(model: Transformer, target: Clean, other: Clean, sender: Node, positions: Sequence[int] | None) -> Tensor:
    """What the sender adds to the stream in the other run beyond what it adds in this one, `[batch, pos, d_model]`."""
    if sender.head is None:
        change = other.site(sender.layer, "hook_mlp_out") - target.site(sender.layer, "hook_mlp_out")
    else:
        block, head = model.blocks[sender.layer], sender.head
        mine, theirs = (run.site(sender.layer, "attn.hook_z") for run in (target, other))
        if isinstance(block.ln1_post, nn.Identity):
            change = linear(theirs[:, :, head] - mine[:, :, head], block.attn.W_O[head])
        else:
            patched = mine.clone()
            patched[:, :, head] = theirs[:, :, head]
            change = block.ln1_post(block.attn.output(patched)) - target.site(sender.layer, "hook_attn_out")
    if positions is None:
        return change
    kept = torch.zeros_like(change)
    kept[:, list(positions)] = change[:, list(positions)]
    return kept


def _received(model: Transformer, target: Clean, difference: Tensor, receiver: Node) -> Edit:
    """The edit that lets a receiver read the frozen stream plus the difference."""
    cfg = model.cfg
    if receiver.logits:
        return replace(target.resid[-1] + difference).at(f"blocks.{cfg.n_layers - 1}.hook_resid_post")
    block, layer = model.blocks[receiver.layer], receiver.layer
    if receiver.head is None:
        (site,) = block.program.writer("mlp.input").reads
        stream = block.compute(site, {BEFORE: target.resid[layer]}, target.stream)
        return replace(block.compute(MLP_OUT, {site: stream + difference}, target.stream)).at(f"blocks.{layer}.hook_mlp_out")
    assert receiver.reads is not None
    which = "qkv".index(receiver.reads)
    resid = block.attention_inputs(target.resid[layer] + difference, target.stream)[which]
    weight, bias = block.attn._weights()[which]
    own = receiver.head * len(weight) // cfg.n_heads  # heads in a group share keys and values
    value = project(resid, weight[own : own + 1], bias[own : own + 1])
    if cfg.clip_qkv is not None:
        value = value.clamp(-cfg.clip_qkv, cfg.clip_qkv)
    return replace(value).at(f"blocks.{layer}.attn.hook_{receiver.reads}", heads=own)
