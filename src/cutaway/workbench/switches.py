"""Switches as edits: what each one changes, given the runs of both prompts; which ones a model and its prompts allow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cutaway.analysis.steering import activations
from cutaway.errors import ConfigError, PromptError, ShapeError
from cutaway.model import components
from cutaway.model.components import Component, parse_readers, parse_writers
from cutaway.model.transformer import Transformer
from cutaway.runs import edits
from cutaway.runs.decompose import written
from cutaway.runs.edits import Edit
from cutaway.workbench.runs import KeptRun
from cutaway.workbench.state import AnySwitch, EdgeSwitch, HeadSwitch, LookSwitch, MlpSwitch, PositionSwitch, SteerSwitch, Switch

WORDS = {"zero": "zero", "mean": "mean", "resample": "resampled", "patch": "patched", "scale": "×"}
SEED = 0  # of the order in which resampling takes positions of the other prompt


def label(switch: AnySwitch) -> str:
    """A short name: `head 5.3 zero`, `MLP 4 at 7 patched`."""
    if isinstance(switch, SteerSwitch):
        return f"steer {switch.plus!r} − {switch.minus!r} at layer {switch.layer} × {switch.factor:g}"
    if isinstance(switch, LookSwitch):
        return f"head {switch.layer}.{switch.head}: {switch.query} does not look at {switch.key}"
    how = f"× {switch.factor:g}" if switch.how == "scale" else WORDS[switch.how]
    if isinstance(switch, EdgeSwitch):
        return f"{switch.writer} → {switch.reader} {how}"
    if isinstance(switch, PositionSwitch):
        return f"position {switch.position} before layer {switch.layer} {how}"
    assert isinstance(switch, HeadSwitch | MlpSwitch)
    name = f"head {switch.layer}.{switch.head}" if isinstance(switch, HeadSwitch) else f"MLP {switch.layer}"
    return f"{name}{'' if switch.position is None else f' at {switch.position}'} {how}"


def check(switch: AnySwitch, model: Transformer, length: int, other: int | None) -> None:
    """Whether a switch fits a model, the tokens of the prompt that runs, and those of the other one (None: there is none).

    Raises:
        ShapeError: a layer, head or position that is not there.
        PromptError: values of the other prompt where there is none, or where it does not align.
        UnknownName: no such edge.
    """
    cfg = model.cfg
    limits = {"layer": cfg.n_layers, "head": cfg.n_heads, "position": length, "query": length, "key": length}
    for name, limit in limits.items():
        value = getattr(switch, name, None)
        if value is not None and value >= limit:
            raise ShapeError(f"there is no {name} {value}: there are {limit}, counted from 0")
    if isinstance(switch, MlpSwitch) and cfg.attn_only:
        raise ConfigError("this model has no MLPs")
    if isinstance(switch, EdgeSwitch):
        writer, reader = edge(model, switch)
        if not components.reaches(cfg, writer, reader):
            raise ConfigError(f"there is no edge {writer} → {reader}: {reader} reads before {writer} has written")
    if isinstance(switch, Switch) and switch.how in ("patch", "resample"):
        if other is None:
            raise PromptError(f"'{label(switch)}' takes values of the other prompt, and there is none; write one")
        if switch.how == "patch" and other != length:
            raise PromptError(unaligned(length, other))


def unaligned(length: int, other: int) -> str:
    """Why positions of the two prompts cannot be exchanged."""
    return f"the prompts have {length} and {other} tokens, so no position of one is a position of the other: patching is off"


def edge(model: Transformer, switch: EdgeSwitch) -> tuple[Component, Component]:
    """The ends of an edge."""
    writer, reader = parse_writers([switch.writer], model.cfg)[0], parse_readers([switch.reader], model.cfg)[0]
    if writer.kind not in ("embed", "pos_embed", "head", "mlp"):
        raise ConfigError(f"{writer} is no writer that a switch knows; there are embed, pos_embed, heads (0.1) and MLPs (0.mlp)")
    if reader.kind == "neuron":
        raise ConfigError(f"{reader} is no reader that a switch knows; there are heads' inputs (0.1.k), MLPs (0.mlp) and logits")
    return writer, reader


def layer_of(switch: AnySwitch, model: Transformer) -> int:
    """The layer in which a switch changes something."""
    if not isinstance(switch, EdgeSwitch):
        return switch.layer
    reader = edge(model, switch)[1]
    return model.cfg.n_layers - 1 if reader.layer is None else reader.layer


def edits_of(switches: Sequence[AnySwitch], own: KeptRun, other: KeptRun | None) -> list[Edit]:
    """The edits of some switches, for a run of `own` prompt."""
    return [edit_of(switch, own, other) for switch in switches]


@torch.no_grad()
def edit_of(switch: AnySwitch, own: KeptRun, other: KeptRun | None) -> Edit:
    """The edit of a switch; it holds the numbers that it puts in."""
    check(switch, own.model, own.length, None if other is None else other.length)
    if isinstance(switch, LookSwitch):
        site = f"blocks.{switch.layer}.attn.hook_pattern"
        return edits.zero().at(site, heads=switch.head, positions=switch.query, sources=switch.key)
    if isinstance(switch, SteerSwitch):
        vector = steering_vector(own.model, switch)
        return edits.add(vector, switch.factor).at(f"blocks.{switch.layer}.hook_resid_pre")
    if isinstance(switch, EdgeSwitch):
        return _edge_edit(switch, own, other)
    if isinstance(switch, HeadSwitch):
        site, where = f"blocks.{switch.layer}.attn.hook_z", {"heads": switch.head, "positions": switch.position}
    elif isinstance(switch, MlpSwitch):
        site, where = f"blocks.{switch.layer}.hook_mlp_out", {"positions": switch.position}
    else:
        assert isinstance(switch, PositionSwitch)
        site, where = f"blocks.{switch.layer}.hook_resid_pre", {"positions": switch.position}
    if switch.how == "zero":
        return edits.zero().at(site, **where)
    if switch.how == "scale":
        return edits.scale(switch.factor).at(site, **where)
    values = _instead(switch, own.site(site), None if other is None else other.site(site))
    return edits.Put(values, switch.how).at(site, **where)


def _instead(switch: Switch, own: Tensor, other: Tensor | None) -> Tensor:
    """What takes the place of an activation, `[1, pos (or 1), …]`."""
    if switch.how == "zero":
        return torch.zeros_like(own)
    if switch.how == "scale":
        return own * switch.factor
    if switch.how == "mean":
        return own.mean(1, keepdim=True)
    assert other is not None
    return other if switch.how == "patch" else other[:, random_positions(other.shape[1], own.shape[1])]


def random_positions(count: int, length: int) -> Tensor:
    """Positions of the other prompt, at random but always the same, one for each of `length`."""
    return torch.randint(count, (length,), generator=torch.Generator().manual_seed(SEED))


def _edge_edit(switch: EdgeSwitch, own: KeptRun, other: KeptRun | None) -> Edit:
    """What a reader reads instead, as a difference that is added to its input."""
    model = own.model
    writer, reader = edge(model, switch)
    there = writes(own, writer)
    values = _instead(switch, there, None if other is None else writes(other, writer))
    change = values - there
    if reader.layer is None:
        return edits.add(change).at(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    if reader.kind == "mlp":
        return edits.add(change).at(f"blocks.{reader.layer}.hook_mlp_in")
    head = int(reader.index or 0)
    head = head // components.group_size(model.cfg) if reader.reads in ("k", "v") else head  # heads that share them, together
    return edits.add(change[:, :, None]).at(f"blocks.{reader.layer}.hook_{reader.reads}_input", heads=head)


def writes(kept: KeptRun, writer: Component) -> Tensor:
    """What a component adds to the stream, `[1, pos, d_model]`."""
    return written(kept.model, kept, [writer], (1, kept.length))[0]


def steering_vector(model: Transformer, switch: SteerSwitch) -> Tensor:
    """The difference of two texts at their last tokens, `[d_model]`."""
    if not switch.plus or not switch.minus:
        raise PromptError("a steering vector is the difference of two texts; give both")
    plus, minus = (activations(model, [text], [switch.layer])[0, 0] for text in (switch.plus, switch.minus))
    return plus - minus
