"""Pathways: which parts of the stream make a head's attention scores, measured on data.

A score is a sum over pairs: what one component gives the query times what another gives the key. The norm of a
pair's contribution over the keys that a query sees says how much it matters there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.analysis.shared import KeptSites, Subject, head_names, kept, network, real_tokens, run_for
from cutaway.errors import ConfigError, UnknownName
from cutaway.model.attention import project
from cutaway.model.components import POS_EMBED, Component, norm_before, parse_writers, reaches, sites, writers
from cutaway.model.foreign import part_with
from cutaway.model.frozen_norms import frozen_norm, norms_of
from cutaway.model.positions import Stream
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import index
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.decompose import written
from cutaway.runs.provenance import with_provenance
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
    cache: ActivationCache, layer: int, components: Sequence[Component] | None = None
) -> tuple[Float[Tensor, "component batch pos d_model"], list[str]]:
    """What each component gives the normalised input of a layer's attention, its scale held; and their labels.

    Without `components`, those that sum to that input, less the norm's bias.

    Raises:
        MissingActivation: the cache lacks embeddings, heads, MLPs or a scale.
    """
    model, reader = cache.model, _reader(layer)
    chosen = writers(model.cfg, reader) if components is None else list(components)
    run = KeptSites(cache)
    norm = norm_before(model.cfg, reader)
    frozen = frozen_norm(model, norm, None if norm is None else run[norms_of(model.cfg)[norm]])
    shape = kept(cache, "hook_embed").shape[:2] if "hook_embed" in run else ()
    return frozen(written(model, run, chosen, shape)), list(map(str, chosen))


def components_looked_up(
    cache: ActivationCache, layer: int, components: Sequence[Component] | None = None
) -> tuple[Float[Tensor, "component batch pos d_model"], list[str]]:
    """Like `components_into`, for queries and keys: with position embeddings where the model (shortformer) adds them there."""
    parts, labels = components_into(cache, layer, components)
    if cache.model.cfg.positional_embedding_type == "shortformer":
        positions = kept(cache, "hook_pos_embed")
        if components is None:
            return torch.cat([parts, positions[None]]), [*labels, str(POS_EMBED)]
        if POS_EMBED in components:
            parts[list(components).index(POS_EMBED)] = positions
    return parts, labels


def _reader(layer: int) -> Component:
    """What stands for queries, keys and values of a layer: they read one stream."""
    return Component("reads", layer, 0, "q")


def sites_into(model: Transformer, layer: int, components: Sequence[Component] | None = None) -> list[str]:
    """The sites that `components_into` and `components_looked_up` read."""
    cfg = model.cfg
    names = ["hook_embed", *sites(cfg, writers(cfg, _reader(layer)) if components is None else components)]
    names += ["hook_pos_embed"] if model.has_positions else []
    norm = norm_before(cfg, _reader(layer))
    return list(dict.fromkeys(names + ([] if norm is None else [norms_of(cfg)[norm]])))


@with_provenance
@torch.no_grad()
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
    sees (all keys with `causal=False`), padding left out; queries that are padding have NaN. A cache does not know its padding:
    give its tokens too.

    Args:
        components: which to pair (labels such as `embed`, `pos_embed`, `0.1`, `0.bias`, `0.mlp`); all where None.
        biases: pair what queries and keys hold whatever the input too, as `constant`; then all pairs sum to the scores.
    """
    model = network(subject)
    cfg = model.cfg
    layer = index(layer, cfg.n_layers, "layer")
    if cfg.use_qk_norm:
        raise ConfigError("this network normalises queries and keys, so its scores are no sum over components")
    chosen = None if components is None else _before(model, layer, components)
    cache = run_for(subject, tokens, sites_into(model, layer, chosen), "pathways")
    real = None if tokens is None else real_tokens(model, tokens)[1]
    parts, labels = components_looked_up(cache, layer, chosen)
    q, k = (projected(model, layer, parts, which) for which in "qk")
    if biases:
        labels = [*labels, "constant"]
        q, k = (torch.cat([x, constant(model, layer, which).to(x.dtype).expand(1, *x.shape[1:])])
                for x, which in ((q, "q"), (k, "k")))  # fmt: skip
    attn = part_with(model, layer, "attn", "rotary", "attn_scale")
    if attn.rotary is not None:
        q, k = (torch.stack([attn.rotary.rotate(one, Stream()) for one in x]) for x in (q, k))
    sizes, names, total = [], [], torch.zeros((), device=q.device)
    for a, query in enumerate(q):
        for b, key in enumerate(k):
            scores = torch.einsum("bqhd,bkhd->hbqk", query, key) / attn.attn_scale
            scores = visible_only(scores, attn.window, causal=causal, real=real)
            total = total + scores
            sizes.append(_size(scores, real))
            names.append(f"Q={labels[a]}, K={labels[b]}")
    heads = {"head": head_names(cfg, [layer])}
    values = Labelled(torch.stack(sizes), ("pair", "head", "batch", "pos"), {"pair": names} | heads, "norm of scores")
    return Pathways(values, Labelled(_size(total, real), ("head", "batch", "pos"), heads, "norm of all scores"))


def _size(scores: Float[Tensor, "head batch dest src"], real: Bool[Tensor, "batch dest"] | None) -> Tensor:
    """The norm over keys; NaN where the query is padding."""
    size = scores.norm(dim=-1)
    return size if real is None else size.masked_fill(~real.to(size.device), torch.nan)


def _before(model: Transformer, layer: int, components: Sequence[str]) -> list[Component]:
    """Components by their labels; those that a layer's attention reads."""
    chosen = parse_writers(components, model.cfg)
    for one in chosen:
        if not reaches(model.cfg, one, _reader(layer)):
            raise UnknownName(f"{str(one)!r} writes after attention of layer {layer} has read the stream")
    return chosen


def projected(
    model: Transformer, layer: int, parts: Float[Tensor, "component batch pos d_model"], which: str
) -> Float[Tensor, "component batch pos head d_head"]:
    """What each component gives the queries ("q"), keys ("k") or values ("v") of each head."""
    W = _weights(model, layer, which).to(parts.dtype)
    return project(parts.flatten(0, 1).to(W.device), W, W.new_zeros(len(W), W.shape[-1])).unflatten(0, parts.shape[:2])


def constant(model: Transformer, layer: int, which: str) -> Float[Tensor, "head d_head"]:
    """What queries, keys or values hold whatever the input: their bias, and what they read of a norm's own."""
    name = f"b_{which.upper()}"
    bias: Tensor = getattr(part_with(model, layer, "attn", name), name).detach()
    own = frozen_norm(model, norm_before(model.cfg, _reader(layer))).bias
    return bias if own is None else bias + torch.einsum("m,hmd->hd", own.detach(), _weights(model, layer, which))


def _weights(model: Transformer, layer: int, which: str) -> Float[Tensor, "head d_model d_head"]:
    name = f"W_{which.upper()}"
    weights: Tensor = getattr(part_with(model, layer, "attn", name), name)
    return weights.detach()


def visible_only(
    scores: Float[Tensor, "*any batch dest src"],
    window: int | None,
    *,
    causal: bool,
    real: Bool[Tensor, "batch src"] | None = None,
) -> Float[Tensor, "*any batch dest src"]:
    """The scores, 0 where the key is hidden from the query or is padding."""
    seen = Stream().visible(scores.shape[-2], scores.shape[-1], causal=causal, window=window, device=scores.device)
    scores = scores if seen is None else scores.masked_fill(~seen[0, 0], 0)
    return scores if real is None else scores.masked_fill(~real.to(scores.device)[:, None], 0)
