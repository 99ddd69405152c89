"""Routes: what a head's scores and outputs are made of, split by the token that it looks at and by what stood there.

Three exact splits of one layer, for a given run: its keys by component of the stream (`scores_by_key`), what it
writes by component of the values it moved (`outputs_by_component`), and its effect on a logit by source and
component (`logits_by_source`). Scales of norms and attention patterns are those of the run.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.analysis.score_pathways import (
    components_into,
    components_looked_up,
    constant,
    projected,
    sites_into,
    visible_only,
)
from cutaway.analysis.shared import Subject, answers_of, kept, network, real_tokens, run_for, scale_of
from cutaway.errors import ConfigError, ShapeError
from cutaway.model.components import head as head_at
from cutaway.model.components import norm_after, parse_head
from cutaway.model.foreign import part_with
from cutaway.model.frozen_norms import FINAL, frozen_norm, norms_of
from cutaway.model.products import linear, linear_by_head
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import index
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.results import Labelled

Split = Labelled
"""`[component, batch, dest, src]`."""


def sites(model: Transformer, layer: int) -> list[str]:
    """The sites that the functions below read of one layer."""
    attn = f"blocks.{layer}.attn"
    final = ["ln_final.hook_scale"] if norms_of(model.cfg) else []
    return [*sites_into(model, layer), f"{attn}.hook_q", f"{attn}.hook_pattern", *final]


@torch.no_grad()
def scores_by_key(subject: Subject, head: str, tokens: Any = None) -> Split:
    """What each component of the keys adds to a head's scores, with the queries of the run, `[component, batch, dest, src]`.

    What is the same for all keys of a query (biases) changes no pattern and is left out; so is what ALiBi adds. Scores of
    hidden keys are 0.

    Raises:
        UnknownName: no such head.
        ConfigError: keys are rotated or normalised, so that they are no sum over components here.
    """
    model = network(subject)
    layer, one = parse_head(head, model.cfg)
    attn = part_with(model, layer, "attn", "rotary", "W_K", "attn_scale", "window")
    if model.cfg.use_qk_norm or attn.rotary is not None:
        raise ConfigError("keys that are rotated or normalised are not split by component; use pathways or measured patterns")
    cache = run_for(subject, tokens, sites(model, layer), "scores_by_key")
    parts, labels = components_looked_up(cache, layer)
    keys = linear(parts.to(attn.W_K.device), attn.W_K.detach()[one].to(parts.dtype))
    queries = kept(cache, f"blocks.{layer}.attn.hook_q")[:, :, one]
    scores = torch.einsum("bdh,cbsh->cbds", queries, keys) / attn.attn_scale
    real = None if tokens is None else real_tokens(model, tokens)[1]
    scores = visible_only(scores, attn.window, causal=model.cfg.attention_dir == "causal", real=real)
    return Labelled(scores, ("component", "batch", "dest", "src"), {"component": labels}, "part of the attention score")


@torch.no_grad()
def outputs_by_component(
    subject: Subject, layer: int, tokens: Any = None
) -> tuple[Float[Tensor, "component head batch pos d_model"], list[str]]:
    """What each head of a layer writes, split by the components of what it moved; and their labels.

    The last component is `constant`: what values hold whatever the input. With the output bias, all sum to what attention
    writes, before any norm that follows.
    """
    model = network(subject)
    layer = index(layer, model.cfg.n_layers, "layer")
    cache = run_for(subject, tokens, sites(model, layer), "outputs_by_component")
    values, labels = _values(cache, layer)
    pattern = kept(cache, f"blocks.{layer}.attn.hook_pattern")
    mixed = torch.einsum("bhds,cbshe->cbdhe", pattern, values)
    W_O = part_with(model, layer, "attn", "W_O").W_O.detach().to(mixed.dtype)
    return linear_by_head(mixed, W_O).movedim(3, 1), labels


@torch.no_grad()
def logits_by_source(
    subject: Subject,
    head: str,
    targets: Int[Tensor, "batch pos"] | Float[Tensor, "batch pos token"] | None = None,
    tokens: Any = None,
) -> Split:
    """What a head adds to the logit of each position's target, by source and component, `[component, batch, dest, src]`.

    Summed over sources and components it is the head's direct attribution.

    Args:
        targets: a token for each position (0 is added where it is below 0); or a weight for each token, so that a
            difference of logits, or of means of logits, can be asked for; None: the answers of `Prompts`.

    Raises:
        UnknownName: no such head.
        ConfigError: a norm follows the head before it reaches the stream.
    """
    model = network(subject)
    layer, one = parse_head(head, model.cfg)
    targets, _ = answers_of(tokens, targets)
    if targets is None:
        raise ShapeError("logits_by_source needs targets, one token for each position; only Prompts with answers bring them")
    if norm_after(model.cfg, head_at(layer, one)) is not None:
        raise ConfigError("a norm follows this head before the stream; its sources are not split here")
    cache = run_for(subject, tokens, sites(model, layer), "logits_by_source")
    values, labels = _values(cache, layer)
    W_U = model.unembed.W_U.detach().to(values.dtype)
    if tuple(targets.shape[:2]) != tuple(values.shape[1:3]) or targets.shape[2:] not in ((), W_U.shape[1:]):
        wanted = tuple(values.shape[1:3])
        raise ShapeError(f"targets must be {wanted} (batch, pos) or {(*wanted, W_U.shape[1])}, not {tuple(targets.shape)}")
    targets = targets.to(values.device)
    scale = scale_of(cache, "ln_final.hook_scale") if norms_of(model.cfg) else None
    if targets.ndim == 3:
        directions = linear(targets.to(values.dtype), W_U.T)
    else:
        directions = W_U.T[targets.clamp(min=0)] * (targets >= 0)[..., None]
    back = frozen_norm(model, FINAL, scale).transposed(directions)
    read = linear(back, part_with(model, layer, "attn", "W_O").W_O.detach().to(values.dtype)[one].T)
    pattern = kept(cache, f"blocks.{layer}.attn.hook_pattern")[:, one]
    data = torch.einsum("bdh,cbsh->cbds", read, values[:, :, :, one]) * pattern
    return Labelled(data, ("component", "batch", "dest", "src"), {"component": labels}, "effect on the logit", "logits")


def over_pairs(split: Split, mask: Bool[Tensor, "batch dest src"]) -> Labelled:
    """The mean of each component over the pairs of a mask, `[component]`; NaN where there are none."""
    chosen = mask.to(split.data.device).to(split.data.dtype)
    mean = torch.einsum("cbds,bds->c", split.data, chosen) / chosen.sum()
    return Labelled(mean, ("component",), {"component": split.names("component")}, f"mean {split.what}", split.unit)


def summed(split: Split, mask: Bool[Tensor, "batch dest src"]) -> Labelled:
    """The sum over the sources that a mask picks, `[component, batch, dest]`."""
    data = (split.data * mask.to(split.data.device)).sum(-1)
    return Labelled(data, ("component", "batch", "pos"), {"component": split.names("component")}, split.what, split.unit)


def _values(cache: ActivationCache, layer: int) -> tuple[Float[Tensor, "component batch src head d_head"], list[str]]:
    """Values of all heads by component, and what they hold whatever the input."""
    model: Transformer = cache.model
    parts, labels = components_into(cache, layer)
    values = projected(model, layer, parts, "v")
    bias = constant(model, layer, "v").to(values.dtype)
    return torch.cat([values, bias.expand(1, *values.shape[1:])]), [*labels, "constant"]
