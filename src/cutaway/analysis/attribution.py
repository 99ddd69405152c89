"""Attribution: how much each component of the residual stream adds to a logit, directly.

The direction that a logit reads is pushed back through the final norm (its scale frozen at the measured value) and
through each `W_O`, and meets `z` there: `[batch, pos, head, d_model]` is never built. The components sum to the logit
before any soft cap; what is left over is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.analysis.scales import FINAL, back_through, into_norm, norm_module, norms_of
from cutaway.analysis.shared import (
    Subject,
    head_names,
    kept,
    network,
    real_tokens,
    run_for,
    scale_of,
    target_ids,
    token_name,
    vocabulary,
)
from cutaway.errors import ShapeError
from cutaway.model.products import linear, linear_by_head
from cutaway.model.transformer import Transformer
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.results import Labelled, Means, Result, grouped
from cutaway.view import Figure
from cutaway.view import attribution as draw

Directions = Float[Tensor, "batch pos d_model"]


@dataclass(frozen=True, eq=False)
class Attribution(Result):
    """What each component adds to the logit of each position's target, `[component, batch, pos]`.

    Components are `embed`, `pos_embed`, heads (`0.1`), `0.mlp` (or neurons, `0.mlp.17`, and the rest in `bias`), and
    `bias`: output biases, the final norm's and the unembedding's. `logit` is what they should add up to, and `of` says
    in words whose it is. Positions without a target (`counted` is false) hold NaN.
    """

    values: Labelled
    logit: Labelled
    targets: Tensor
    counted: Tensor
    of: str = "the target"

    @property
    def remainder(self) -> Labelled:
        """The logit less the sum of the components, `[batch, pos]`: rounding, or an edit that the components do not show."""
        left = self.logit.data - self.values.data.sum(0)
        return Labelled(left, ("batch", "pos"), {}, "left over", "logits")

    def select(self, components: Sequence[str]) -> Labelled:
        """Some components' values."""
        return self.values.sel(component=list(components))

    def by_position(self, where: Bool[Tensor, "batch pos"] | None = None) -> Means:
        """Mean over examples at each position, `[component, pos]`, with intervals."""
        data = self.values.data if where is None else self.values.data.masked_fill(~where.to(self.counted.device), torch.nan)
        return Labelled(data, self.values.axes, self.values.labels, self.values.what, self.values.unit).means("batch")

    def by_class(
        self,
        classes: Int[Tensor, "batch pos"],
        names: Sequence[str],
        *,
        where: Bool[Tensor, "batch pos"] | None = None,
        axis: str = "class",
    ) -> Means:
        """Mean over the positions of each class, `[component, class]`; a class below 0 counts nowhere."""
        counted = self.counted if where is None else self.counted & where.to(self.counted.device)
        filled = Labelled(
            self.values.data.nan_to_num(0), self.values.axes, self.values.labels, self.values.what, self.values.unit
        )
        return grouped(filled, classes, names, where=counted, axis=axis)

    def by_target(self, names: Sequence[str], *, where: Bool[Tensor, "batch pos"] | None = None) -> Means:
        """Mean over the positions that have the same target, `[component, target]`."""
        return self.by_class(self.targets, names, where=where, axis="target")

    def over(self, where: Bool[Tensor, "batch pos"] | None = None) -> Means:
        """Mean over all positions (that `where` says), `[component]`, with intervals."""
        one = self.by_class(torch.zeros_like(self.targets), ["all"], where=where, axis="positions")
        return one.sel(positions="all")

    def figure(self, example: int = 0, tokens: Sequence[str] | None = None) -> Figure:
        """One example: components × positions."""
        counted = self.counted[example]
        shown = self.values.data[:, example, counted]
        labels = None if tokens is None else [token for token, yes in zip(tokens, counted.tolist(), strict=True) if yes]
        total = self.logit.data[example, counted]
        return draw(shown, self.values.names("component"), labels, total=total, title="Direct logit attribution")

    def summary(self) -> str:
        """The components that add and take most on average, and how much is left over."""
        mean = self.values.mean("batch", "pos")
        names, order = mean.names("component"), mean.data.abs().argsort(descending=True)[:8].tolist()
        count = int(self.counted.sum())
        if not count:
            return "no position has a target"
        left = float(self.remainder.data[self.counted].abs().max())
        whole = "logit difference" if self.values.what.endswith("difference") else "logit"
        lines = [f"effect on the {whole} of {self.of} ({self.values.unit}), mean over {count} position{'s' * (count != 1)}"]
        lines += [f"{names[i]}: {float(mean.data[i]):+.3f}" for i in order]
        return "\n".join([*lines, f"{whole}: {self.logit.mean().item():+.3f}; largest left over by the sum of all: {left:.2g}"])


@dataclass(frozen=True, eq=False)
class TokenAttribution(Result):
    """What each component adds to the logits of all tokens, `[component, batch, pos, token]`, and the logits themselves."""

    values: Labelled
    logits: Labelled

    @property
    def remainder(self) -> Labelled:
        """The logits less the sum of the components."""
        return Labelled(self.logits.data - self.values.data.sum(0), self.logits.axes, self.logits.labels, "left over", "logits")

    def figure(self, example: int = 0, tokens: Sequence[str] | None = None, correct: Sequence[int] | None = None) -> Figure:
        """One example: positions × tokens for a chosen component."""
        names = self.values.names("token")
        return draw(
            self.values.data[:, example], self.values.names("component"), tokens or list(self.values.names("pos")), names,
            total=self.logits.data[example], correct=correct, title="Direct logit attribution, all tokens",
        )  # fmt: skip

    def summary(self) -> str:
        """The components that move logits most."""
        size = self.values.data.abs().mean((1, 2, 3))
        names, order = self.values.names("component"), size.argsort(descending=True)[:6].tolist()
        return "mean size of what components add to all logits: " + ", ".join(f"{names[i]} {float(size[i]):.3g}" for i in order)


def sites(model: Transformer, *, neurons: bool | Sequence[int] = False) -> list[str]:
    """The sites that `attribute` reads: `model.run_with_cache(tokens, names_filter=sites(model))`."""
    cfg = model.cfg
    names = ["hook_embed"] + (["hook_pos_embed"] if cfg.positional_embedding_type == "standard" else [])
    asked = _neuron_layers(model, neurons)
    for l in range(cfg.n_layers):
        names.append(f"blocks.{l}.attn.hook_z")
        names += [f"blocks.{l}.ln1_post.hook_scale"] if f"{l}.ln1_post" in norms_of(cfg) else []
        if not cfg.attn_only:
            names += [f"blocks.{l}.mlp.hook_post"] if l in asked else [f"blocks.{l}.hook_mlp_out"]
            names += [f"blocks.{l}.ln2_post.hook_scale"] if l in asked and f"{l}.ln2_post" in norms_of(cfg) else []
    names += [f"blocks.{cfg.n_layers - 1}.hook_resid_post"] if cfg.n_layers else []
    return names + (["ln_final.hook_scale"] if norms_of(cfg) else [])


def attribute(
    subject: Subject,
    tokens: Any = None,
    *,
    targets: Any = None,
    minus: Any = None,
    neurons: bool | Sequence[int] = False,
    vocab: Sequence[str] | None = None,
) -> Attribution:
    """Direct logit attribution to a target at every position.

    Args:
        subject: a network, to be run on `tokens`, or a cache (see `sites`).
        tokens: the input; with a cache only needed for the default targets.
        targets: the next token where None (the last position has none); or one token (text or number), one per
            example `[batch]`, or one per position `[batch, pos]`, negative for none.
        minus: the same kind of thing: attribute the difference of the two logits.
        neurons: split MLPs into neurons: of all layers, or of those listed.
        vocab: what tokens are called, for targets given as text where there is no tokenizer.

    Raises:
        MissingActivation: the cache lacks a site; says which call keeps them.
        TokenError: a target that is no single token, or outside the vocabulary.
        ShapeError: targets do not fit the positions.
    """
    model = network(subject)
    cache = run_for(subject, tokens, sites(model, neurons=neurons), "attribute")
    resid = _final_resid(cache)
    shape = resid.shape[:2]
    given, real = (None, None) if tokens is None else real_tokens(model, tokens)
    ids = target_ids(model, targets, given, shape, vocab, resid.device, asker="attribute", real=real)
    counted = ids >= 0
    directions = _rows(model.unembed.W_U, ids.clamp(min=0), resid.dtype)
    bias = model.unembed.b_U.detach().to(resid.dtype)[ids.clamp(min=0)]
    what = "effect on the logit"
    if minus is not None:
        others = target_ids(model, minus, given, shape, vocab, resid.device, asker="attribute", real=real)
        counted = counted & (others >= 0)
        directions = directions - _rows(model.unembed.W_U, others.clamp(min=0), resid.dtype)
        bias = bias - model.unembed.b_U.detach().to(resid.dtype)[others.clamp(min=0)]
        what = "effect on the logit difference"
    own = getattr(norm_module(model, FINAL), "b", None)
    if own is not None:
        bias = bias + directions @ own.detach().to(resid.dtype)
    scale = scale_of(cache, "ln_final.hook_scale") if norms_of(model.cfg) else None
    back = back_through(model, FINAL, directions, scale)
    logit = _dot(resid, back) + bias
    parts, labels = [], []
    for names, found in _components(cache, back, neurons):
        if names == ["bias"]:
            bias = bias + found[0]
        else:
            parts.append(found)
            labels += names
    data = torch.cat([*parts, bias[None]]).masked_fill(~counted, torch.nan)
    logit = logit.masked_fill(~counted, torch.nan)
    values = Labelled(data, ("component", "batch", "pos"), {"component": [*labels, "bias"]}, what, "logits")
    said = _called(model, targets, vocab)
    said = said if minus is None else f"{said} minus {_called(model, minus, vocab)}"
    whole = Labelled(logit, ("batch", "pos"), {}, "logit", "logits")
    return Attribution(values, whole, ids.masked_fill(~counted, -1), counted, said)


def attribute_all_tokens(
    subject: Subject,
    tokens: Any = None,
    *,
    examples: Sequence[int] = (0,),
    positions: Sequence[int] | None = None,
    components: Sequence[str] | None = None,
    vocab: Sequence[str] | None = None,
) -> TokenAttribution:
    """Attribution to the logits of every token, for chosen examples and positions.

    Args:
        components: which; all where None.

    Raises:
        ShapeError: an example or position that is not there, or more than 100 million numbers asked for.
    """
    model = network(subject)
    cfg = model.cfg
    cache = run_for(subject, tokens, sites(model), "attribute_all_tokens")
    resid = _final_resid(cache)
    batch, length = resid.shape[:2]
    chosen = list(range(length)) if positions is None else [int(position) for position in positions]
    for name, asked, count in (("example", examples, batch), ("position", chosen, length)):
        if wrong := [one for one in asked if not -count <= one < count]:
            raise ShapeError(f"there is no {name} {wrong[0]}; the run has {count}")
    size = (cfg.n_layers * (cfg.n_heads + 1) + 3) * len(examples) * len(chosen) * cfg.d_vocab_out
    if size > 10**8 and components is None:
        raise ShapeError(f"that would be {size:,} numbers; choose fewer examples, positions or components")

    def at(x: Tensor) -> Tensor:
        return x[list(examples)][:, chosen]

    stack, labels = _written(cache, at)
    if components is not None:
        if wrong_names := [name for name in components if name not in labels]:
            raise ShapeError(f"there is no component {wrong_names[0]!r}; there are {', '.join(labels)}")
        stack, labels = stack[[labels.index(name) for name in components]], list(components)
    W_U, norm = model.unembed.W_U.detach().to(resid.dtype), norm_module(model, FINAL)
    scale = at(scale_of(cache, "ln_final.hook_scale")) if norms_of(cfg) else None
    logits = model.unembed.b_U.detach().to(resid.dtype)
    own = getattr(norm, "b", None)
    if own is not None:
        logits = logits + own.detach().to(resid.dtype) @ W_U

    def read(x: Tensor) -> Tensor:
        x = into_norm(model, FINAL, x)
        return linear(x if scale is None else x / scale, W_U)

    data = read(stack)
    if "bias" in labels:
        data[labels.index("bias")] += logits
    total = read(at(resid)) + logits
    names = vocabulary(model, vocab, cfg.d_vocab_out)
    where = {"batch": list(map(str, examples)), "pos": list(map(str, chosen)), "token": names}
    values = Labelled(data, ("component", "batch", "pos", "token"), {"component": labels} | where, "effect on logits", "logits")
    return TokenAttribution(values, Labelled(total, ("batch", "pos", "token"), where, "logits", "logits"))


# Parts of the above.


def _called(model: Transformer, targets: Any, vocab: Sequence[str] | None) -> str:
    """Targets in words."""
    if targets is None:
        return "the next token"
    if isinstance(targets, str):
        return repr(targets)
    one = torch.as_tensor(targets) if not isinstance(targets, list | tuple) or not isinstance(targets[0], str) else None
    if one is not None and one.ndim == 0:
        return repr(token_name(model, int(one), vocab))
    return "each position's target"


def _components(cache: ActivationCache, back: Directions, neurons: bool | Sequence[int]) -> Iterator[tuple[list[str], Tensor]]:
    """Labels and values `[component, batch, pos]`, a few components at a time; `bias` may come several times."""
    model: Transformer = cache.model
    cfg, asked = model.cfg, _neuron_layers(model, neurons)
    yield ["embed"], _dot(kept(cache, "hook_embed"), back)[None]
    if cfg.positional_embedding_type == "standard":
        yield ["pos_embed"], _dot(kept(cache, "hook_pos_embed"), back)[None]
    for l, block in enumerate(model.blocks):
        after = f"{l}.ln1_post"
        read = back
        if after in norms_of(cfg):
            read = back_through(model, after, back, scale_of(cache, f"blocks.{l}.ln1_post.hook_scale"))
            own = getattr(block.ln1_post, "b", None)
            if own is not None:
                yield ["bias"], (back @ own.detach().to(back.dtype))[None]
        z, W_O = kept(cache, f"blocks.{l}.attn.hook_z"), block.attn.W_O.detach().to(back.dtype)
        meets = linear(read, W_O.flatten(0, 1).T).view(z.shape)
        yield head_names(cfg, [l]), (meets * z).sum(-1).movedim(-1, 0)
        yield ["bias"], (read @ block.attn.b_O.detach().to(back.dtype))[None]
        if cfg.attn_only:
            continue
        if l not in asked:
            yield [f"{l}.mlp"], _dot(kept(cache, f"blocks.{l}.hook_mlp_out"), back)[None]
            continue
        read = back
        if f"{l}.ln2_post" in norms_of(cfg):
            read = back_through(model, f"{l}.ln2_post", back, scale_of(cache, f"blocks.{l}.ln2_post.hook_scale"))
            own = getattr(block.ln2_post, "b", None)
            if own is not None:
                yield ["bias"], (back @ own.detach().to(back.dtype))[None]
        post = kept(cache, f"blocks.{l}.mlp.hook_post")
        found = linear(read, block.mlp.W_out.detach().to(back.dtype).T) * post
        yield [f"{l}.mlp.{neuron}" for neuron in range(post.shape[-1])], found.movedim(-1, 0)
        yield ["bias"], (read @ block.mlp.b_out.detach().to(back.dtype))[None]


def _written(cache: ActivationCache, at: Any) -> tuple[Float[Tensor, "component batch pos d_model"], list[str]]:
    """What each component writes at chosen examples and positions; one component `bias` for all biases."""
    model: Transformer = cache.model
    cfg = model.cfg
    stack, labels = [at(kept(cache, "hook_embed"))], ["embed"]
    if cfg.positional_embedding_type == "standard":
        stack.append(at(kept(cache, "hook_pos_embed")))
        labels.append("pos_embed")
    bias = torch.zeros_like(stack[0])
    for l, block in enumerate(model.blocks):
        z = at(kept(cache, f"blocks.{l}.attn.hook_z"))
        heads = linear_by_head(z, block.attn.W_O.detach().to(z.dtype)).movedim(2, 0)
        own: Tensor = block.attn.b_O.detach().to(z.dtype)
        if f"{l}.ln1_post" in norms_of(cfg):
            scale = at(scale_of(cache, f"blocks.{l}.ln1_post.hook_scale"))
            heads, own = (into_norm(model, f"{l}.ln1_post", x) / scale for x in (heads, own.expand_as(bias)))
            extra = getattr(block.ln1_post, "b", None)
            own = own if extra is None else own + extra.detach()
        stack += list(heads)
        labels += head_names(cfg, [l])
        bias = bias + own
        if not cfg.attn_only:
            stack.append(at(kept(cache, f"blocks.{l}.hook_mlp_out")))
            labels.append(f"{l}.mlp")
    return torch.stack([*stack, bias]), [*labels, "bias"]


def _neuron_layers(model: Transformer, neurons: bool | Sequence[int]) -> list[int]:
    cfg = model.cfg
    if neurons is False:
        return []
    if cfg.attn_only:
        raise ShapeError("this network is attention only and has no neurons; leave neurons=False")
    layers = list(range(cfg.n_layers)) if neurons is True else [int(layer) for layer in neurons]
    for layer in layers:
        if not 0 <= layer < cfg.n_layers:
            raise ShapeError(f"neurons of layer {layer}: the network has {cfg.n_layers} layers")
        if cfg.is_moe(layer):
            raise ShapeError(f"layer {layer} is a mixture of experts, whose neurons are not kept; take its whole MLP")
    return layers


def _final_resid(cache: ActivationCache) -> Float[Tensor, "batch pos d_model"]:
    layers = cache.model.cfg.n_layers
    return kept(cache, f"blocks.{layers - 1}.hook_resid_post" if layers else "hook_embed")


def _dot(x: Tensor, directions: Directions) -> Float[Tensor, "batch pos"]:
    return (x * directions).sum(-1)


def _rows(W_U: Float[Tensor, "d_model d_vocab"], ids: Int[Tensor, "batch pos"], dtype: torch.dtype) -> Directions:
    """The unembedding direction of each token."""
    return W_U.detach().T[ids].to(dtype)
