"""What each component of a run writes to the residual stream, and what that does along a direction.

Both are exact: what `components.writers` lists for a reader sums to the stream that the reader reads. Where blocks
normalise what they write, the parts of an output pass that norm with the scale of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.model.components import Component, norm_after
from cutaway.model.foreign import part_with
from cutaway.model.frozen_norms import FrozenNorm, frozen_norm, norms_of
from cutaway.model.products import linear, linear_by_head

Sites = Mapping[str, Tensor]


def written(
    model: Any, run: Sites, components: Sequence[Component], shape: Sequence[int] = ()
) -> Float[Tensor, "component *axes d_model"]:
    """What each component adds to the stream.

    Args:
        run: full site name → activation, for the sites of `components.sites`; with any leading axes (batch, pos).
        shape: of those leading axes; needed only where all components are biases.
    """
    parts: list[Tensor] = []
    for kind, layer, group in _grouped(components):
        parts += _written(model, run, kind, layer, group).unbind(0)
    size = torch.broadcast_shapes((*shape, model.cfg.d_model), *(part.shape for part in parts))
    return torch.stack([part.expand(size).to(parts[0].device) for part in parts]) if parts else torch.zeros(0, *size)


def along(
    model: Any, run: Sites, components: Sequence[Component], directions: Float[Tensor, "*axes d_model"]
) -> Float[Tensor, "component *axes"]:
    """The product of what each component adds with a direction at each place; nothing larger than `z` is built."""
    parts: list[Tensor] = []
    for kind, layer, group in _grouped(components):
        if kind not in ("head", "neuron") or _result(run, kind, layer) is not None:
            found = _written(model, run, kind, layer, group)
            parts += [(one * directions.to(one.device)).sum(-1) for one in found]
            continue
        back = _norm_after(model, run, group[0]).transposed(directions.to(model.blocks[layer].attn.W_O.device))
        index = [int(one.index or 0) for one in group]
        if kind == "head":
            W_O = part_with(model, layer, "attn", "W_O").W_O[index].to(back.dtype)
            z = run[f"blocks.{layer}.attn.hook_z"][..., index, :]
            parts += (linear(back, W_O.flatten(0, 1).T).view(z.shape) * z).sum(-1).unbind(-1)
        else:
            W_out = part_with(model, layer, "mlp", "W_out").W_out[index].to(back.dtype)
            parts += (linear(back, W_out.T) * run[f"blocks.{layer}.mlp.hook_post"][..., index]).unbind(-1)
    return torch.stack([part.expand(directions.shape[:-1]).to(directions.device) for part in parts])


def _grouped(components: Sequence[Component]) -> Iterator[tuple[str, int, list[Component]]]:
    """Neighbours of one kind and layer together."""
    for (kind, layer), group in groupby(components, key=lambda one: (one.kind, one.layer)):
        yield kind, -1 if layer is None else layer, list(group)


def _result(run: Sites, kind: str, layer: int) -> Tensor | None:
    """What heads of a layer wrote, where the run kept it: a hook may have changed it."""
    name = f"blocks.{layer}.attn.hook_result"
    return run[name] if kind == "head" and name in run else None


def _norm_after(model: Any, run: Sites, component: Component) -> FrozenNorm:
    name = norm_after(model.cfg, component)
    return frozen_norm(model, name, None if name is None else run[norms_of(model.cfg)[name]])


def _written(model: Any, run: Sites, kind: str, layer: int, group: Sequence[Component]) -> Float[Tensor, "some *axes d_model"]:
    """What components of one kind and layer add."""
    block = f"blocks.{layer}." if layer >= 0 else ""
    index = [int(one.index or 0) for one in group]
    if kind in ("embed", "attn", "mlp"):
        return torch.stack([run[f"{block}hook_embed" if kind == "embed" else f"{block}hook_{kind}_out"]] * len(group))
    if kind == "pos_embed":
        x = run["hook_pos_embed"]
        return torch.stack([x if model.cfg.positional_embedding_type == "standard" else torch.zeros_like(x)] * len(group))
    norm = _norm_after(model, run, group[0])
    if kind == "biases":
        layers = [Component("bias", l) for l in range(model.cfg.n_layers)]
        every = written(model, run, layers).sum(0) if layers else model.unembed.W_U.new_zeros(model.cfg.d_model)
        return torch.stack([every] * len(group))
    if kind in ("bias", "mlp bias"):
        part, name = ("attn", "b_O") if kind == "bias" else ("mlp", "b_out")
        bias = getattr(part_with(model, layer, part, name), name)
        out = norm(bias)
        return torch.stack([out if norm.bias is None else out + norm.bias] * len(group))
    if kind == "head":
        kept = _result(run, kind, layer)
        if kept is not None:
            return norm(kept[..., index, :].movedim(-2, 0))
        z = run[f"{block}attn.hook_z"][..., index, :]
        return norm(linear_by_head(z, part_with(model, layer, "attn", "W_O").W_O[index].to(z.dtype)).movedim(-2, 0))
    assert kind == "neuron"
    acts = run[f"{block}mlp.hook_post"][..., index]
    return norm(torch.einsum("...n,nm->n...m", acts, part_with(model, layer, "mlp", "W_out").W_out[index].to(acts.dtype)))
