"""Pathways: which parts of the stream make a head's attention scores, measured on data.

A score is a sum over pairs: what one component gives the query times what another gives the key. The norm of a
pair's contribution over the keys that a query sees says how much it matters there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.analysis.scales import into_norm, norm_module, norms_of
from cutaway.analysis.shared import Subject, head_names, kept, network, run_for, scale_of
from cutaway.errors import ConfigError, ShapeError
from cutaway.model.attention import project
from cutaway.model.positions import Stream
from cutaway.model.products import linear_by_head
from cutaway.model.transformer import Transformer
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.results import Labelled, Means, Result
from cutaway.view import Figure, Panel, line_chart, small_multiples


@dataclass(frozen=True, eq=False)
class Pathways(Result):
    """The size of each pair's contribution to the scores of a query, `[pair, head, batch, pos]`.

    `total` is that of the scores themselves, `[head, batch, pos]`: sizes of pairs do not add up to it, since pairs
    may cancel.
    """

    values: Labelled
    total: Labelled

    def by_position(self) -> Means:
        """Mean over examples, `[pair, head, pos]`, with intervals."""
        return self.values.means("batch")

    def share(self) -> Labelled:
        """Each pair's mean size over the sum of all pairs' mean sizes, `[pair, head]`."""
        mean = self.values.mean("batch", "pos")
        return Labelled(mean.data / mean.data.sum(0), mean.axes, mean.labels, "share of the sizes of all pathways")

    def figure(self, head: str | None = None) -> Figure:
        """Over positions, one line for each pair; of all heads, the mean over positions."""
        mean = self.values.mean("batch")
        if head is None:
            whole = mean.mean("pos")
            return small_multiples(
                [Panel("", whole.data, whole.names("head"), whole.names("pair"))], x_name="head", y_name="pathway",
                value_name="norm of scores", title="What attention scores are made of", scale="sequential",
            )  # fmt: skip
        chosen = mean.sel(head=head)
        series = dict(zip(chosen.names("pair"), chosen.data, strict=True))
        return line_chart(series, x_name="position", y_name="norm of scores", title=f"What the scores of {head} are made of")

    def summary(self) -> str:
        """The largest pathways of each head."""
        share = self.share()
        lines = ["pathways into attention scores, by the share of their size"]
        for head in share.names("head"):
            row = share.sel(head=head)
            order = row.data.argsort(descending=True)[:3].tolist()
            lines.append(f"{head}: " + ", ".join(f"{row.names('pair')[i]} {float(row.data[i]):.0%}" for i in order))
        return "\n".join(lines)


def components_into(
    cache: ActivationCache, layer: int, *, by_head: bool = True
) -> tuple[Float[Tensor, "component batch pos d_model"], list[str]]:
    """What each component gives the normalised input of a layer's attention, its scale frozen; and their labels.

    Raises:
        MissingActivation: the cache lacks embeddings, heads, MLPs or the scale.
    """
    model = cache.model
    stack, labels = [], []
    names = {"embed": "hook_embed"}
    if model.cfg.positional_embedding_type == "standard":
        names["pos_embed"] = "hook_pos_embed"
    for label, site in names.items():
        stack.append(kept(cache, site))
        labels.append(label)
    for l in range(layer):
        block = model.blocks[l]
        if by_head and not model.cfg.has_post_norms:
            z = kept(cache, f"blocks.{l}.attn.hook_z")
            stack += linear_by_head(z, block.attn.W_O.detach().to(z.dtype)).unbind(2)
            stack.append(block.attn.b_O.detach().to(z.dtype).expand_as(stack[0]))
            labels += [*head_names(model.cfg, [l]), f"{l}.bias"]
        else:
            stack.append(kept(cache, f"blocks.{l}.hook_attn_out"))
            labels.append(f"{l}.attn")
        if not model.cfg.attn_only:
            stack.append(kept(cache, f"blocks.{l}.hook_mlp_out"))
            labels.append(f"{l}.mlp")
    parts = torch.stack(stack)
    norm = f"{layer}.ln1"
    if norm in norms_of(model.cfg):
        parts = into_norm(model, norm, parts) / scale_of(cache, f"blocks.{layer}.ln1.hook_scale")
    return parts, labels


def components_looked_up(cache: ActivationCache, layer: int) -> tuple[Float[Tensor, "component batch pos d_model"], list[str]]:
    """The same for queries and keys alone: those of a shortformer read its positions beside the stream."""
    parts, labels = components_into(cache, layer)
    if cache.model.cfg.positional_embedding_type == "shortformer":
        return torch.cat([parts, kept(cache, "hook_pos_embed")[None]]), [*labels, "pos_embed"]
    return parts, labels


def sites_into(model: Transformer, layer: int) -> list[str]:
    """The sites that `components_into` and `components_looked_up` read."""
    cfg = model.cfg
    names = ["hook_embed"] + (["hook_pos_embed"] if model.has_positions else [])
    for l in range(layer):
        names.append(f"blocks.{l}.hook_attn_out" if cfg.has_post_norms else f"blocks.{l}.attn.hook_z")
        names += [] if cfg.attn_only else [f"blocks.{l}.hook_mlp_out"]
    return names + ([f"blocks.{layer}.ln1.hook_scale"] if f"{layer}.ln1" in norms_of(cfg) else [])


def pathways(
    subject: Subject,
    tokens: Any = None,
    *,
    layer: int = 0,
    components: Sequence[str] | None = None,
    biases: bool = False,
    causal: bool = True,
) -> Pathways:
    """How much each pair of components contributes to the attention scores of a layer, by head, example and position.

    The scores are those before masking, divided by the attention scale; the norm is over the keys that the query
    sees (all keys with `causal=False`).

    Args:
        components: which to pair (labels such as `embed`, `pos_embed`, `0.1`, `0.mlp`); all where None.
        biases: pair the biases of queries and keys too, as `bias`; then all pairs sum to the scores.
    """
    model = network(subject)
    cfg = model.cfg
    if not 0 <= layer < cfg.n_layers:
        raise ShapeError(f"layer={layer} is not one of the {cfg.n_layers} layers")
    if cfg.use_qk_norm:
        raise ConfigError("this network normalises queries and keys, so its scores are no sum over components")
    cache = run_for(subject, tokens, sites_into(model, layer), "pathways")
    parts, labels = components_looked_up(cache, layer)
    if components is not None:
        chosen = [labels.index(name) if name in labels else -1 for name in components]
        if -1 in chosen:
            raise ShapeError(f"there is no component {components[chosen.index(-1)]!r}; there are {', '.join(labels)}")
        parts, labels = parts[chosen], list(components)
    q, k = (projected(model, layer, parts, which) for which in "qk")
    if biases:
        labels = [*labels, "bias"]
        q, k = (torch.cat([x, constant(model, layer, which).to(x.dtype).expand(1, *x.shape[1:])])
                for x, which in ((q, "q"), (k, "k")))  # fmt: skip
    attn = model.blocks[layer].attn
    if attn.rotary is not None:
        q, k = (torch.stack([attn.rotary.rotate(one, Stream()) for one in x]) for x in (q, k))
    sizes, names, total = [], [], torch.zeros((), device=q.device)
    for a, query in enumerate(q):
        for b, key in enumerate(k):
            scores = torch.einsum("bqhd,bkhd->hbqk", query, key) / attn.attn_scale
            scores = visible_only(scores, attn.window, causal=causal)
            total = total + scores
            sizes.append(scores.norm(dim=-1))
            names.append(f"Q={labels[a]}, K={labels[b]}")
    heads = {"head": head_names(cfg, [layer])}
    values = Labelled(torch.stack(sizes), ("pair", "head", "batch", "pos"), {"pair": names} | heads, "norm of scores")
    return Pathways(values, Labelled(total.norm(dim=-1), ("head", "batch", "pos"), heads, "norm of all scores"))


def projected(
    model: Transformer, layer: int, parts: Float[Tensor, "component batch pos d_model"], which: str
) -> Float[Tensor, "component batch pos head d_head"]:
    """What each component gives the queries ("q"), keys ("k") or values ("v") of each head."""
    W = _weights(model, layer, which).to(parts.dtype)
    return project(parts.flatten(0, 1), W, W.new_zeros(len(W), W.shape[-1])).unflatten(0, parts.shape[:2])


def constant(model: Transformer, layer: int, which: str) -> Float[Tensor, "head d_head"]:
    """What queries, keys or values hold whatever the input: their bias, and what they read of a norm's own."""
    attn = model.blocks[layer].attn
    bias: Tensor = {"q": attn.b_Q, "k": attn.b_K, "v": attn.b_V}[which].detach()
    own = getattr(norm_module(model, f"{layer}.ln1"), "b", None)  # of a norm whose weights were not folded
    return bias if own is None else bias + torch.einsum("m,hmd->hd", own.detach(), _weights(model, layer, which))


def _weights(model: Transformer, layer: int, which: str) -> Float[Tensor, "head d_model d_head"]:
    attn = model.blocks[layer].attn
    weights: Tensor = {"q": attn.W_Q, "k": attn.W_K, "v": attn.W_V}[which]
    return weights.detach()


def visible_only(scores: Float[Tensor, "*any dest src"], window: int | None, *, causal: bool) -> Float[Tensor, "*any dest src"]:
    """The scores, 0 where the key is hidden from the query."""
    seen = Stream().visible(scores.shape[-2], scores.shape[-1], causal=causal, window=window, device=scores.device)
    return scores if seen is None else scores.masked_fill(~seen[0, 0], 0)
