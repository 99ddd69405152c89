"""Activation caches: what a run passed, by site, and the residual stream taken apart.

A cache reads like a dictionary that understands short names: `cache["pattern", 0]`, `cache["q3"]`,
`cache["scale", 0, "ln1"]`, `cache["resid_post", -1]`.

The stacks below put terms of the residual stream on a first axis, `[component, batch, pos, d_model]`, and
are exact: the components of a layer's input sum to that input. Three facts follow from this.

* A norm is linear once its scale is frozen. "Applying" one to a component means to centre it (LayerNorm),
  divide by the kept scale of the *whole* stream, and multiply by the norm's weight where it was not folded.
  The norm's bias belongs to no component.
* Where blocks normalise what they write (`ln1_post`, `ln2_post`), heads, neurons and biases pass that norm too.
* In parallel blocks the MLP reads what attention reads, so `mlp_input` adds nothing; and position embeddings
  of the shortformer kind are no part of the stream.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import ShapeError, UnknownName, UnknownSite, nearest
from cutaway.model.components import LOGITS, Component, heads, norm_before, sites, writers
from cutaway.model.foreign import part_with
from cutaway.model.frozen_norms import frozen_norm, norm_module, norms_of
from cutaway.model.placement import stacked
from cutaway.model.products import linear_by_head
from cutaway.model.sites import RESID, axes, get_act_name, resolve, site_names
from cutaway.model.slices import Slice
from cutaway.numbers_given import whole
from cutaway.runs.activation_store import ActivationStore, Part, missing
from cutaway.runs.decompose import written

logger = logging.getLogger(__name__)

Stack = Float[Tensor, "... d_model"]  # component, batch, pos, d_model; batch and pos as far as they were kept
LabelledStack = tuple[Stack, list[str]]


class ActivationCache(ActivationStore):
    """Activations of one run, by site.

    Args:
        cache_dict: full site name → tensor.
        model: the network that ran; its configuration and weights are read, nothing is run.
        has_batch_dim: whether the tensors begin with a batch axis.

    Wherever a method takes `pos_slice`, `batch_slice` or `neuron_slice`, a number drops the axis, and a tuple,
    list, slice or `Slice` keeps it. Wherever it takes `layer`, the question is what enters that layer: 0 is the
    embedding, and `n_layers`, None and -1 are the end, before the unembedding.

    Raises (all methods):
        MissingActivation: the run did not keep a site that is needed; says which, and how to keep it.
        UnknownSite: such a network has no such site.
    """

    _stacked_heads = False  # whether results of heads were stacked, so that they may be read by layer

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key) or not (self._stacked_heads and isinstance(key, str | tuple)):
            return super().__contains__(key)
        try:
            return resolve(key, site_names(self.model.cfg), self.model.cfg.n_layers).endswith("hook_result")
        except UnknownSite:
            return False

    # The residual stream as it grows.

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Part = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stack | LabelledStack:
        """The stream before each layer up to `layer`: what a logit lens reads.

        `incl_mid` adds the stream between attention and MLP, `mlp_input` only that of the last layer. With
        `apply_ln`, each stream goes through the final norm, with a scale of its own (as a logit lens wants);
        where `layer` is not the end, through that layer's norm with its kept scale. Labels: `0_pre`, `0_mid`,
        …, `final_post`.
        """
        last, end = self._layer(layer, mlp_input), self.model.cfg.n_layers
        sites: dict[str, str] = {}
        for l in range(last + 1):
            if l == end:
                sites["final_post"] = get_act_name("resid_post", end - 1) if end else self._stream(0)
                continue
            sites[f"{l}_pre"] = get_act_name("resid_pre", l)
            if (incl_mid and l < last) or (mlp_input and l == last and self.model.cfg.has_resid_mid):
                sites[f"{l}_mid"] = get_act_name("resid_mid", l)
        self._need("accumulated_resid", sites.values())
        part = self._positions(pos_slice)
        stack = stacked(part.apply(self[name], dim=-2) for name in sites.values())
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, last, pos_slice=part, mlp_input=mlp_input, recompute_ln=last == end)
        return (stack, list(sites)) if return_labels else stack

    # The residual stream by what was written into it.

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: Part = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stack | LabelledStack:
        """What embeddings, attention layers and MLPs wrote, up to the input of `layer`; they sum to that input.

        `mode` leaves out one kind of layer: `all`, `attn`, `mlp`. Labels: `embed`, `pos_embed`,
        `{l}_attn_out`, `{l}_mlp_out`.
        """
        if mode not in ("all", "mlp", "attn"):
            raise UnknownName(f"decompose_resid has no mode {mode!r}{nearest(mode, ['all', 'mlp', 'attn'])}; all, mlp or attn")
        last, part = self._layer(layer, mlp_input), self._positions(pos_slice)
        left_out = {"all": (), "mlp": ("attn",), "attn": ("mlp",)}[mode] + (() if incl_embeds else ("embed", "pos_embed"))
        parts = [one for one in writers(self.model.cfg, self._reader(last, mlp_input), by_head=False) if one.kind not in left_out]
        otherwise = "; or leave embeddings out with incl_embeds=False" if incl_embeds else ""
        stack, labels = self._stack("decompose_resid", parts, part, otherwise)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, last, pos_slice=part, mlp_input=mlp_input)
        return (stack, labels) if return_labels else stack

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Part = None,
        return_labels: bool = False,
    ) -> Stack | LabelledStack:
        """The input of `layer` by heads, neurons (or whole MLPs), embeddings and the sum of all biases.

        With neurons this takes n_layers · d_mlp components, so choose few positions. Labels: `L0H0`, …, `L0N0`, …
        (or `0_mlp_out`, …), `embed`, `pos_embed`, `bias`.
        """
        caller = "get_full_resid_decomposition"
        last, part, cfg = self._layer(layer, mlp_input), self._positions(pos_slice), self.model.cfg
        expanded = range(last) if expand_neurons and not cfg.attn_only else ()
        self._check_dense(caller, expanded)
        every = writers(cfg, self._reader(last, mlp_input), neurons=expanded)
        kinds = (("head",), ("neuron", "mlp"), ("embed", "pos_embed"))
        stack, labels = self._stack(caller, [one for some in kinds for one in every if one.kind in some], part)
        biases = self._stack(caller, [one for one in every if one.constant], part, like=stack.shape[1:-1])[0]
        full, labels = torch.cat([stack, biases.sum(0, keepdim=True)]), [*labels, "bias"]
        if apply_ln:
            full = self.apply_ln_to_stack(full, last, pos_slice=part, mlp_input=mlp_input)
        return (full, labels) if return_labels else full

    # Heads.

    def compute_head_results(self) -> None:
        """Put what each head writes, `[batch, pos, head, d_model]`, into the cache, from `hook_z` and `W_O`.

        The stacks do not need it; it is for `cache["result", layer]`, and as large as it sounds.
        """
        self._keep_results("compute_head_results", range(self.model.cfg.n_layers))

    def _keep_results(self, caller: str, layers: Iterable[int]) -> None:
        absent = [l for l in layers if get_act_name("result", l) not in self.cache_dict]
        self._need(caller, [get_act_name("z", l) for l in absent])
        self._check_weights(caller)
        for l in absent:
            self.cache_dict[get_act_name("result", l)] = linear_by_head(self["z", l], part_with(self.model, l, "attn", "W_O").W_O)

    def _made_when_read(self, name: str) -> bool:
        if not (self._stacked_heads and name.endswith("hook_result")):
            return False
        self._keep_results("hook_result", [int(name.split(".")[1])])
        return True

    def _whole(self) -> dict[str, Tensor]:
        if self._stacked_heads and self._weights in (None, self.model.weights_state()):
            every = range(self.model.cfg.n_layers)
            self._keep_results("hook_result", [l for l in every if get_act_name("z", l) in self.cache_dict])
        return self.cache_dict

    def apply_slice_to_batch_dim(self, batch_slice: Part) -> ActivationCache:
        """A new cache of some examples; a number drops the batch axis."""
        made = super().apply_slice_to_batch_dim(batch_slice)
        made._stacked_heads = self._stacked_heads
        return made

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Part = None,
        apply_ln: bool = False,
    ) -> Stack | LabelledStack:
        """What each head of the layers before `layer` adds to the stream, from `hook_result` or else `hook_z`.

        From then on `cache["result", l]` gives the results of a whole layer, which are computed when they are read, and going
        through the cache finds those of all layers.

        `incl_remainder` appends what is left of the stream. Labels: `L0H0`, …, `remainder`.
        """
        last, part = self._layer(layer), self._positions(pos_slice)
        if getattr(self.model, "says", False) and get_act_name("result", 0) not in self.cache_dict and not self._stacked_heads:
            print("Tried to stack head results when they weren't cached. Computing head results now")
        if part.mode == "identity":  # they are made here in any case
            self._keep_results("stack_head_results", range(last))
        stack, labels = self._stack("stack_head_results", heads(self.model.cfg, range(last)), part)
        self._stacked_heads = True  # the dialect leaves results of all layers behind, and notebooks read them
        return self._finish("stack_head_results", stack, labels, last, part, incl_remainder, apply_ln, return_labels)

    # Neurons.

    def get_neuron_results(
        self, layer: int, neuron_slice: Part = None, pos_slice: Part = None
    ) -> Float[Tensor, "*batch_pos_neuron d_model"]:
        """What each neuron of one layer adds to the stream, `[batch, pos, neuron, d_model]`; a negative layer counts back."""
        layer = whole(layer, "a layer")
        layer += self.model.cfg.n_layers if layer < 0 else 0
        neurons, caller = Slice(neuron_slice), "get_neuron_results"
        self._check_dense(caller, [layer])
        numbers = (neurons.indices(self.model.cfg.d_mlp) % self.model.cfg.d_mlp).tolist()
        stack, _ = self._stack(caller, [Component("neuron", layer, number) for number in numbers], self._positions(pos_slice))
        return stack[0] if neurons.mode == "int" else stack.movedim(0, -2)

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Part = None,
        neuron_slice: Part = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
    ) -> Stack | LabelledStack:
        """What each neuron of the layers before `layer` adds to the stream.

        `incl_remainder` appends what is left of the stream. Labels: `L0N0`, …, `remainder`.
        """
        last, part = self._layer(layer), self._positions(pos_slice)
        stack, labels = self._neurons("stack_neuron_results", last, part, Slice(neuron_slice))
        return self._finish("stack_neuron_results", stack, labels, last, part, incl_remainder, apply_ln, return_labels)

    # Any site, layer by layer.

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Float[Tensor, "layer ..."]:
        """The same site of each layer before `layer`, on a first axis."""
        names = [get_act_name(activation_name, l, sublayer_type) for l in range(self._layer(layer))]
        self._need("stack_activation", names)
        if not names:
            raise ShapeError("stack_activation needs at least one layer, and layer=0 asks for those before the first")
        return stacked(self[name] for name in names)

    # Norms with a frozen scale, and logits.

    def apply_ln_to_stack(
        self,
        residual_stack: Stack,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Part = None,
        batch_slice: Part = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Stack:
        """What each component contributes to the normalised input of `layer`: the norm, with its kept scale.

        The components' results sum to that input, less the norm's bias. A norm whose weight was not folded
        multiplies by it. `recompute_ln` gives each component a scale of its own (and the norm's bias), as if
        it were the whole stream.

        Args:
            residual_stack: components, `[component, batch, pos, d_model]`; batch and position as in the cache.
            mlp_input: whether the MLP's norm is meant, not that of attention.
            pos_slice: the positions that the stack was already limited to.
            batch_slice: examples to choose, here, from stack and cache; from the cache alone where
                `has_batch_dim` says that the stack has no batch axis (any more).
        """
        self._check_weights("apply_ln_to_stack")
        last, batch = self._layer(layer, mlp_input), Slice(batch_slice)
        if has_batch_dim and batch.mode != "identity":
            residual_stack = batch.apply(residual_stack, dim=1)
        norm = self._norm_before(last, mlp_input)
        if norm is None:
            return residual_stack
        if recompute_ln:
            module = norm_module(self.model, norm)
            normed: Tensor = module(residual_stack.to(next(module.parameters(), residual_stack).device))
            return normed
        scale = self._scale("apply_ln_to_stack", norms_of(self.model.cfg)[norm], self._positions(pos_slice), batch)
        check_scale(residual_stack, scale, has_batch_dim)
        return frozen_norm(self.model, norm, scale)(residual_stack)

    def logit_attrs(
        self,
        residual_stack: Stack,
        tokens: Any,
        incorrect_tokens: Any = None,
        pos_slice: Part = None,
        batch_slice: Part = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "..."]:
        """What each component adds to the logit of `tokens` (less that of `incorrect_tokens`), the final norm's scale frozen.

        The attributions of all components sum to the logit, less what the biases of the final norm and of the
        unembedding give. (`apply_ln` must not have been used on the stack.)

        Args:
            residual_stack: components, `[component, batch, pos, d_model]`.
            tokens: one token (text, number) for all, or one per example `[batch]`, or per position `[batch, pos]`.
            incorrect_tokens: the same kind of thing, to compare with.
            pos_slice, batch_slice, has_batch_dim: as in `apply_ln_to_stack`.

        Raises:
            ShapeError: tokens do not fit each other or the stack.
        """
        self._check_weights("logit_attrs")
        ids, batch, part = self._token_ids(tokens), Slice(batch_slice), self._positions(pos_slice)
        direction = self.model.tokens_to_residual_directions(ids)
        if incorrect_tokens is not None:
            other = self._token_ids(incorrect_tokens)
            if other.shape != ids.shape:
                raise ShapeError(
                    f"tokens and incorrect_tokens need the same shape, and are {tuple(ids.shape)} and {tuple(other.shape)}"
                )
            direction = direction - self.model.tokens_to_residual_directions(other)
        if has_batch_dim and batch.mode != "identity":
            residual_stack = batch.apply(residual_stack, dim=1)
        by_example = has_batch_dim and batch.mode != "int" and part.mode != "int" and residual_stack.ndim == 4
        if direction.ndim == 2 and by_example and len(direction) == residual_stack.shape[1]:
            direction = direction.unsqueeze(1)  # one per example, for all its positions
        check_direction(residual_stack, direction, ids)
        norm = self._norm_before(self.model.cfg.n_layers, mlp_input=False)
        if norm is None:
            return dot(residual_stack, direction)
        scale = self._scale("logit_attrs", norms_of(self.model.cfg)[norm], part, batch)
        check_scale(residual_stack, scale, has_batch_dim)
        return dot(residual_stack, frozen_norm(self.model, norm).transposed(direction)) / scale.squeeze(-1)

    def _token_ids(self, tokens: Any) -> Tensor:
        """Text, numbers, lists or arrays of them as a tensor."""
        if isinstance(tokens, str):
            tokens = self.model.to_single_token(tokens)
        elif isinstance(tokens, list | tuple) and tokens and all(isinstance(token, str) for token in tokens):
            tokens = [self.model.to_single_token(token) for token in tokens]
        return torch.as_tensor(tokens)

    # Parts of the above.

    def _layer(self, layer: int | None, mlp_input: bool = False) -> int:
        """The layer whose input is meant, 0 to n_layers."""
        cfg = self.model.cfg
        last = cfg.n_layers if layer is None or layer == -1 else whole(layer, "a layer")
        if not 0 <= last <= cfg.n_layers:
            raise ShapeError(f"layer={layer} must be 0 to {cfg.n_layers}; {cfg.n_layers}, -1 and None mean the end")
        if mlp_input and (cfg.attn_only or last == cfg.n_layers):
            where = (
                "this network has none" if cfg.attn_only else f"after the last layer comes none; give layer, at most {last - 1}"
            )
            raise ShapeError(f"mlp_input=True asks for the input of an MLP, and {where}")
        return last

    def _reader(self, layer: int, mlp_input: bool) -> Component:
        """What reads the stream that is meant: the final norm, or attention or the MLP of a layer."""
        if layer == self.model.cfg.n_layers:
            return LOGITS
        return Component("mlp", layer) if mlp_input else Component("reads", layer, 0, "q")

    def _stack(
        self, caller: str, components: Sequence[Component], part: Slice, otherwise: str = "", like: Sequence[int] = ()
    ) -> LabelledStack:
        """What components write, component first, with the dialect's labels."""
        if any(one.kind not in ("embed", "pos_embed", "attn", "mlp") for one in components):
            self._check_weights(caller)
        run = _ChosenPositions(self, part)
        absent = [name for name in sites(self.model.cfg, components) if name not in run]
        self._need(caller, [name for name in absent if name.replace("hook_z", "hook_result") not in run], otherwise)
        labels = [one.dialect for one in components]
        return (written(self.model, run, components, like) if components else self._empty(part)), labels

    def _stream(self, layer: int) -> str:
        """A site of the stream that enters `layer`, one that is kept if there is one."""
        sites = [get_act_name("resid_post", layer - 1)] if layer else []
        sites += [get_act_name("resid_pre", layer)] if layer < self.model.cfg.n_layers else []
        return next((name for name in sites if name in self.cache_dict), sites[0])

    def _empty(self, part: Slice) -> Stack:
        """No components, with the right axes after the first."""
        cfg = self.model.cfg
        like = next((name for name in site_names(cfg) if name in self.cache_dict and axes(name, cfg) == RESID), None)
        if like is None:
            raise missing(self.model.cfg, "a stack of no components", ["hook_embed"])
        tensor = part.apply(self.cache_dict[like], dim=-2)
        return tensor.new_zeros(0, *tensor.shape)

    def _finish(
        self, caller: str, stack: Stack, labels: list[str], last: int, part: Slice,
        incl_remainder: bool, apply_ln: bool, return_labels: bool,
    ) -> Stack | LabelledStack:  # fmt: skip
        """Append the rest of the stream, apply the norm, add labels: what was asked of these."""
        if incl_remainder:
            self._need(caller, [self._stream(last)], "; or incl_remainder=False")
            rest = part.apply(self[self._stream(last)], dim=-2) - stack.sum(dim=0)
            stack, labels = torch.cat([stack, rest[None]]), [*labels, "remainder"]
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, last, pos_slice=part)
        return (stack, labels) if return_labels else stack

    def _neurons(self, caller: str, last: int, part: Slice, neurons: Slice) -> LabelledStack:
        """What neurons of the layers before `last` write, component first."""
        if self.model.cfg.attn_only:
            raise ShapeError(f"{caller} asks for neurons, and a network of attention only has none")
        self._check_dense(caller, range(last))
        numbers = (neurons.indices(self.model.cfg.d_mlp) % self.model.cfg.d_mlp).tolist()
        return self._stack(caller, [Component("neuron", l, number) for l in range(last) for number in numbers], part)

    def _check_dense(self, caller: str, layers: Iterable[int]) -> None:
        for layer in layers:
            if self.model.cfg.is_moe(layer):
                raise ShapeError(
                    f"{caller} asks for the neurons of layer {layer}, a mixture of experts, whose neurons are not kept; "
                    "take whole MLPs (decompose_resid, or expand_neurons=False)"
                )

    def _norm_before(self, layer: int, mlp_input: bool) -> str | None:
        """The norm at the input of `layer`; None: there is none."""
        return norm_before(self.model.cfg, self._reader(layer, mlp_input))

    def _scale(self, caller: str, site: str, part: Slice, batch: Slice) -> Float[Tensor, "*batch_pos 1"]:
        """A kept scale for some examples and positions."""
        self._need(caller, [site])
        scale = self.cache_dict[site]
        if {"head", "kv"} & set(axes(site, self.model.cfg)) or scale.ndim > 2 + self.has_batch_dim:  # split inputs
            if not torch.equal(scale, scale[..., :1, :].expand_as(scale)):
                raise ShapeError(f"{site!r} differs between heads, so no one scale fits the stream that they read")
            scale = scale[..., 0, :]
        scale = part.apply(scale, dim=-2)
        return batch.apply(scale) if self.has_batch_dim else scale


class _ChosenPositions(Mapping[str, Tensor]):
    """A cache's activations at some positions, whatever axes follow the position."""

    def __init__(self, cache: ActivationCache, part: Slice) -> None:
        self.cache, self.part = cache, part

    def __getitem__(self, name: str) -> Tensor:
        if name.endswith("hook_scale"):
            return self.cache._scale("a norm", name, self.part, Slice())
        tensor = self.cache.cache_dict[name]
        return self.part.apply(tensor, dim=-3 if {"head", "kv"} & set(axes(name, self.cache.model.cfg)) else -2)

    def __contains__(self, name: object) -> bool:
        return name in self.cache.cache_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache.cache_dict)

    def __len__(self) -> int:
        return len(self.cache.cache_dict)


def dot(stack: Tensor, direction: Tensor) -> Tensor:
    """Each component's product with the direction of its example and position."""
    dtype = torch.promote_types(stack.dtype, direction.dtype)
    return torch.einsum("...d,...d->...", stack.to(dtype), direction.to(dtype))


def check_scale(stack: Tensor, scale: Tensor, has_batch_dim: bool) -> None:
    """Refuse a scale that would multiply the stack's axes, or meet its components instead of its examples."""
    fits = scale.ndim <= stack.ndim and all(
        mine in (1, theirs) for mine, theirs in zip(reversed(scale.shape[:-1]), reversed(stack.shape[:-1]), strict=False)
    )
    if not has_batch_dim and scale.ndim == stack.ndim > 2 and scale.shape[0] > 1:
        fits = False
    if not fits:
        raise ShapeError(
            f"a stack of shape {tuple(stack.shape)} does not fit the kept scale of shape {tuple(scale.shape)}; "
            "say which positions and examples the stack holds (pos_slice, batch_slice, has_batch_dim)"
        )


def check_direction(stack: Tensor, direction: Tensor, ids: Tensor) -> None:
    """Refuse directions (of the tokens `ids`) that would multiply the stack's axes."""
    try:
        fits = torch.broadcast_shapes(stack.shape, direction.shape) == stack.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(
            f"tokens of shape {tuple(ids.shape)} do not fit a stack of shape {tuple(stack.shape)}; give one token, "
            "one for each example that the stack holds, or one for each of its positions as well"
        )
