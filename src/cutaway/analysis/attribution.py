"""Attribution: how much each component of the residual stream adds to a logit, directly.

The direction that a logit reads is pushed back through the final norm (its scale frozen at the measured value) and
through each `W_O`, and meets `z` there: `[batch, pos, head, d_model]` is never built. The components sum to the logit
before any soft cap; what is left over is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.analysis.shared import (
    KeptSites,
    Subject,
    Where,
    Words,
    answers_of,
    chosen_positions,
    kept,
    network,
    real_tokens,
    run_for,
    scale_of,
    target_ids,
    token_name,
    vocabulary,
    words_of,
)
from cutaway.errors import ShapeError
from cutaway.model.components import BIASES, Component, gathered, parse_writers, writers
from cutaway.model.components import sites as sites_of
from cutaway.model.frozen_norms import FINAL, frozen_norm, norms_of
from cutaway.model.products import linear
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import indices
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.decompose import along, written
from cutaway.runs.differences import difference_figure
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Means, Result, grouped
from cutaway.view import Figure
from cutaway.view import attribution as draw

Directions = Float[Tensor, "batch pos d_model"]


@dataclass(frozen=True, eq=False)
class Attribution(Result):
    """What each component adds to the logit of each position's target, `[component, batch, pos]`.

    Components are `embed`, `pos_embed`, heads (`0.1`), `0.mlp` (or neurons, `0.mlp.17`, and `0.mlp.bias`), and `bias`: the
    output biases of attention, the final norm's and the unembedding's. `logit` is what they should add up to, and `of`
    says in words whose it is, `words` are the tokens of each example. Positions without a target (`counted` is false) hold NaN.
    """

    values: Labelled
    logit: Labelled
    targets: Tensor
    counted: Tensor
    of: str = "the target"
    words: Words = ()

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

    def figure(self, example: int | None = None, tokens: Sequence[str] | None = None) -> Figure:
        """One example: components × positions; of several, or of one position: a map of layers × heads of the means."""
        count = int(self.counted.sum())
        if example is None and (len(self.counted) > 1 or count == 1):
            where = f", mean over {count} positions" if count > 1 else ""
            return difference_figure(self.values.mean("batch", "pos"), f"Direct logit attribution{where}")
        example = 0 if example is None else example
        tokens = self.words[example] if tokens is None and self.words else tokens
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
        return "\n".join([*lines, f"{whole}: {self.logit.mean().item():+.3f}; largest left over by their sum: {left:.2g}"])


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


def sites(model: Transformer, *, neurons: bool | Sequence[int] = False, components: Sequence[str] | None = None) -> list[str]:
    """The sites that `attribute` reads: `model.run_with_cache(tokens, names_filter=sites(model))`."""
    cfg = model.cfg
    resid = f"blocks.{cfg.n_layers - 1}.hook_resid_post" if cfg.n_layers else "hook_embed"
    final = ["ln_final.hook_scale"] if norms_of(cfg) else []
    return list(dict.fromkeys([*sites_of(cfg, _chosen(model, neurons, components)), resid, *final]))


@with_provenance
@torch.no_grad()
def attribute(
    subject: Subject,
    tokens: Any = None,
    *,
    targets: Any = None,
    minus: Any = None,
    positions: Where | None = None,
    neurons: bool | Sequence[int] = False,
    components: Sequence[str] | None = None,
    vocab: Sequence[str] | None = None,
) -> Attribution:
    """Direct logit attribution to a target at every position, or at some.

    Args:
        subject: a network, to be run on `tokens`, or a cache (see `sites`).
        tokens: text, texts, token ids or `Prompts`; with a cache only needed for the default targets.
        targets: where None the answers of `Prompts` (and their wrong answers as `minus`), else the next token (the last
            position has none); or one token (text or number), one per example `[batch]`, or one per position `[batch, pos]`,
            negative for none.
        minus: the same kind of thing: attribute the difference of the two logits.
        positions: only these: a number, a role ("end", "S2"), or several.
        neurons: split MLPs into neurons: of all layers, or of those listed.
        components: only these (`embed`, `0.3`, `0.attn`, `0.mlp`, `0.mlp.17`, `bias`); None: those that sum to the logit.
        vocab: what tokens are called, for targets given as text where there is no tokenizer.

    Raises:
        MissingActivation: the cache lacks a site; says which call keeps them.
        TokenError: a target that is no single token, or outside the vocabulary.
        ShapeError: targets do not fit the positions.
        UnknownName: a component that the network does not have, or that writes nothing.
    """
    model = network(subject)
    chosen = _chosen(model, neurons, components)
    cache = run_for(subject, tokens, sites(model, neurons=neurons, components=components), "attribute")
    resid = _final_resid(cache)
    shape = resid.shape[:2]
    given, real = (None, None) if tokens is None else real_tokens(model, tokens)
    own = targets is None
    targets, minus = answers_of(tokens, targets, minus)
    here = chosen_positions(positions, tokens, real, shape)
    ids = target_ids(model, targets, given, shape, vocab, resid.device, caller="attribute", real=real)
    counted = ids >= 0 if here is None else (ids >= 0) & here.to(ids.device)
    directions = _rows(model.unembed.W_U, ids.clamp(min=0), resid.dtype)
    bias = model.unembed.b_U.detach().to(resid.dtype)[ids.clamp(min=0)]
    what = "effect on the logit"
    if minus is not None:
        others = target_ids(model, minus, given, shape, vocab, resid.device, caller="attribute", real=real)
        counted = counted & (others >= 0)
        directions = directions - _rows(model.unembed.W_U, others.clamp(min=0), resid.dtype)
        bias = bias - model.unembed.b_U.detach().to(resid.dtype)[others.clamp(min=0)]
        what = "effect on the logit difference"
    norm = frozen_norm(model, FINAL, scale_of(cache, "ln_final.hook_scale") if norms_of(model.cfg) else None)
    if norm.bias is not None:
        bias = bias + directions @ norm.bias.to(resid.dtype)
    back = norm.transposed(directions)
    logit = _dot(resid, back) + bias
    data = along(model, KeptSites(cache), chosen, back)
    for number, one in enumerate(chosen):
        if one == BIASES:
            data[number] += bias
    data = data.masked_fill(~counted, torch.nan)
    logit = logit.masked_fill(~counted, torch.nan)
    values = Labelled(data, ("component", "batch", "pos"), {"component": list(map(str, chosen))}, what, "logits")
    target_name = "the right answer" if own and targets is not None else _called(model, targets, vocab)
    if minus is not None:
        target_name += " minus " + ("the wrong answer" if own and targets is not None else _called(model, minus, vocab))
    whole = Labelled(logit, ("batch", "pos"), {}, "logit", "logits")
    words = () if given is None else words_of(model, given, real, vocab)
    return Attribution(values, whole, ids.masked_fill(~counted, -1), counted, target_name, words)


@with_provenance
@torch.no_grad()
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
        UnknownName: a component that the network does not have, or that writes nothing.
    """
    model = network(subject)
    cfg = model.cfg
    parts = _chosen(model, False, components)
    cache = run_for(subject, tokens, sites(model, components=components), "attribute_all_tokens")
    resid = _final_resid(cache)
    batch, length = resid.shape[:2]
    examples = indices(examples, batch, "example")
    chosen = list(range(length)) if positions is None else indices(positions, length, "position")
    size = len(parts) * len(examples) * len(chosen) * cfg.d_vocab_out
    if size > 10**8:
        raise ShapeError(f"that would be {size:,} numbers; choose fewer examples, positions or components")

    def at(x: Tensor) -> Tensor:
        return x[list(examples)][:, chosen]

    W_U = model.unembed.W_U.to(resid.dtype)
    norm = frozen_norm(model, FINAL, at(scale_of(cache, "ln_final.hook_scale")) if norms_of(cfg) else None)
    constant = model.unembed.b_U.to(resid.dtype)
    constant = constant if norm.bias is None else constant + norm.bias.to(resid.dtype) @ W_U
    added = written(model, KeptSites(cache, at), parts, (len(examples), len(chosen)))
    data = linear(norm(added.to(W_U.device)), W_U)
    for number, one in enumerate(parts):
        if one == BIASES:
            data[number] += constant
    total = linear(norm(at(resid)), W_U) + constant
    names = vocabulary(model, vocab, cfg.d_vocab_out)
    where = {"batch": list(map(str, examples)), "pos": list(map(str, chosen)), "token": names}
    labels = {"component": list(map(str, parts))} | where
    values = Labelled(data, ("component", "batch", "pos", "token"), labels, "effect on logits", "logits")
    return TokenAttribution(values, Labelled(total, ("batch", "pos", "token"), where, "logits", "logits"))


# Parts of the above.


@torch.no_grad()
def added_to(
    cache: ActivationCache, places: tuple[Int[Tensor, "answer"], Int[Tensor, "answer"]], weights: Float[Tensor, "answer d_vocab"]
) -> tuple[list[str], Float[Tensor, "component answer"]]:
    """What each component adds to a weighted sum of logits at some places (a lead), biases left out; and what they are called.

    Args:
        places: example and position of each.
    """
    model, resid, (rows, at) = cache.model, _final_resid(cache), places
    directions = resid.new_zeros(resid.shape)
    directions[rows, at] = weights.to(resid) @ model.W_U.T.to(resid)
    scale = cache["ln_final.hook_scale"] if norms_of(model.cfg) else None
    parts = [one for one in gathered(writers(model.cfg)) if one != BIASES]
    added = along(model, KeptSites(cache), parts, frozen_norm(model, FINAL, scale).transposed(directions))
    return list(map(str, parts)), added[:, rows, at]


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


def _chosen(model: Transformer, neurons: bool | Sequence[int], components: Sequence[str] | None) -> list[Component]:
    if components is not None:
        return parse_writers(components, model.cfg)
    return gathered(writers(model.cfg, neurons=_neuron_layers(model, neurons)))


def _neuron_layers(model: Transformer, neurons: bool | Sequence[int]) -> list[int]:
    cfg = model.cfg
    if neurons is False:
        return []
    if cfg.attn_only:
        raise ShapeError("this network is attention only and has no neurons; leave neurons=False")
    layers = list(range(cfg.n_layers)) if neurons is True else indices(neurons, cfg.n_layers, "layer")
    for layer in layers:
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
