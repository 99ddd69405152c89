"""Exact rewrites: weights go in, other weights that compute the same thing come out.

Every rewrite is a function of a state dict and its configuration. It leaves its input alone and shares the
tensors that it does not touch. What would change the model's predictions is not done: a rewrite that does not
hold for an architecture is skipped, and a `SkippedRewrite` warning says why.

Each tensor is rewritten in the next wider precision (half in float32, float32 in float64) and rounded once at
the end, so that sums over thousands of weights cost no accuracy, and only one tensor at a time is wide.

The rewrites are those of Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError
from cutaway.weights import canonical
from cutaway.weights.canonical import grouped

StateDict = dict[str, Tensor]


class SkippedRewrite(UserWarning):
    """A rewrite was asked for that would have changed what the model computes, so it was left out."""


@dataclass(frozen=True)
class FoldableNorm:
    """A norm whose weights can move into the matrices that read its output."""

    name: str
    centred: bool
    """Whether its output (before its weights) has mean zero, as a LayerNorm's does."""
    readers: dict[str, str | None]
    """Each matrix that reads it, and the bias (if there is one) that goes with that matrix."""


def fold_layer_norm(
    state_dict: Mapping[str, Tensor],
    cfg: HookedTransformerConfig,
    *,
    fold_biases: bool = True,
    center_weights: bool = True,
) -> StateDict:
    """Move the weights of each norm into what reads it, and drop the norm's keys.

    What reads a LayerNorm is also centred, since its input has mean zero; what reads an RMSNorm is not. A norm
    that is absent counts as w = 1, b = 0. These stay: norms of queries and keys, norms after attention and MLP
    (nothing linear reads them alone), the norm after the embedding, `ln1` of a shortformer (positions join
    behind it), and a norm with a bias where a matrix without one reads it (gated MLPs, routers).

    Args:
        fold_biases: fold b too; without it a norm whose b is not zero stays as it is.
        center_weights: centre what reads a LayerNorm.

    Raises:
        WeightsMismatch: the weights do not fit the configuration.
    """
    weights = _begin(state_dict, cfg)
    _fold_layer_norm(weights, cfg, fold_biases, center_weights)
    return weights


def center_writing_weights(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """Take the mean over d_model out of everything that writes to the residual stream.

    Exact where all that reads the stream subtracts the mean first; skipped elsewhere. A shortformer's positions
    are not written to the stream, so they stay. The embedding in front of a norm of its own is centred too
    (that norm subtracts its mean), though what the norm then writes is not.

    Raises:
        WeightsMismatch: the weights do not fit the configuration.
    """
    weights = _begin(state_dict, cfg)
    _center_writing_weights(weights, cfg)
    return weights


def center_unembed(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """Take the mean over the vocabulary out of the unembedding: logits change, log-probabilities do not.

    Skipped where the logits have a soft cap, which a shift would bend.

    Raises:
        WeightsMismatch: the weights do not fit the configuration.
    """
    weights = _begin(state_dict, cfg)
    _center_unembed(weights, cfg)
    return weights


def fold_value_biases(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """Move value biases into the output bias: attention patterns sum to one, so they add a constant.

    Skipped where queries, keys and values are clipped.

    Raises:
        WeightsMismatch: the weights do not fit the configuration.
    """
    weights = _begin(state_dict, cfg)
    _fold_value_biases(weights, cfg)
    return weights


def refactor_factored_attn_matrices(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """Choose other factors of each head's W_Q W_Kᵀ (with biases) and W_V W_O, whose products are the same.

    Columns of W_Q and of W_K become orthogonal, and each pair of columns equally long; W_O becomes a rotation,
    and W_V carries the singular values, largest first. Value biases move into the output bias.

    Raises:
        ConfigError: something stands between the factors (rotation, norms, clipping), or heads share one of them.
        WeightsMismatch: the weights do not fit the configuration.
    """
    weights = _begin(state_dict, cfg)
    _refactor_factored_attn_matrices(weights, cfg)
    return weights


def process(
    state_dict: Mapping[str, Tensor],
    cfg: HookedTransformerConfig,
    *,
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
    refactor_factored_attn_matrices: bool = False,
) -> tuple[StateDict, HookedTransformerConfig]:
    """The rewrites that are asked for, and the configuration of what comes out; neither input is changed.

    Where every norm was folded, LN becomes LNPre and RMS becomes RMSPre. Where some norm had to stay, the type
    stays too, and the folded ones are there with w = 1, b = 0. Either way the weights fit the configuration.

    Raises:
        ConfigError: a refactoring is asked for that does not hold for this architecture.
        WeightsMismatch: the weights do not fit the configuration.
    """
    weights = canonical.without_buffers(_begin(state_dict, cfg), cfg)
    if fold_ln:
        _fold_layer_norm(weights, cfg)
    asked = {
        "center_writing_weights": center_writing_weights,
        "center_unembed": center_unembed,
        "fold_value_biases": fold_value_biases,
        "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
    }
    for name, rewrite in _REWRITES.items():
        if asked[name]:
            rewrite(weights, cfg)
    kind = cfg.normalization_type or ""
    if any(name in weights for name in canonical.foldable_norms(cfg)):
        cfg = canonical.with_normalization(cfg, canonical.UNFOLDED.get(kind, kind))
    elif fold_ln and kind in canonical.FOLDED:
        cfg = canonical.with_normalization(cfg, canonical.FOLDED[kind])
    return canonical.fill_norms(weights, cfg), cfg


# The same, on a dict of their own. They change the dict and never a tensor in it.


@torch.no_grad()
def _fold_layer_norm(
    weights: StateDict, cfg: HookedTransformerConfig, fold_biases: bool = True, center_weights: bool = True
) -> None:
    left = []
    for norm in _foldable_norms(cfg):
        w, b = weights.get(f"{norm.name}.w"), weights.get(f"{norm.name}.b")
        if b is not None and b.any() and not (fold_biases and all(norm.readers.values())):
            left.append(norm.name)
            continue
        for matrix, bias in norm.readers.items():
            wide = _wide(weights[matrix])
            if b is not None and bias is not None:
                _put(weights, bias, _wide(weights[bias]) + _wide(b) @ wide)
            if w is not None:
                wide = wide * _wide(w)[:, None]
            if norm.centred and center_weights:
                wide = wide - wide.mean(-2, keepdim=True)
            _put(weights, matrix, wide)
        weights.pop(f"{norm.name}.w", None)
        weights.pop(f"{norm.name}.b", None)
    if left:
        what = f"{left[0]} and {len(left) - 1} more norms" if len(left) > 1 else left[0]
        why = "no bias can take up theirs in all that reads them" if fold_biases else "they have biases, and fold_biases=False"
        _skipped(f"{what} stay as they are: {why}")
    if cfg.positional_embedding_type == "shortformer" and any(".ln1." in name for name in weights):
        _skipped("ln1 stays as it is: a shortformer adds positions behind it, where its weights do not apply")


@torch.no_grad()
def _center_writing_weights(weights: StateDict, cfg: HookedTransformerConfig) -> None:
    if cfg.normalization_type not in ("LN", "LNPre"):
        _skipped(f"center_writing_weights: normalization_type={cfg.normalization_type!r} does not subtract the mean")
    elif cfg.final_rms:
        _skipped("center_writing_weights: with final_rms, the last norm does not subtract the mean")
    elif cfg.post_norm_only:
        _skipped("center_writing_weights: with post_norm_only, attention and MLP read the stream without a norm")
    else:
        for name in _writers(cfg):
            wide = _wide(weights[name])
            _put(weights, name, wide - wide.mean(-1, keepdim=True))


@torch.no_grad()
def _center_unembed(weights: StateDict, cfg: HookedTransformerConfig) -> None:
    if cfg.output_logits_soft_cap > 0:
        _skipped(f"center_unembed: output_logits_soft_cap={cfg.output_logits_soft_cap:g} would turn the shift into a change")
        return
    for name in ("unembed.W_U", "unembed.b_U"):
        wide = _wide(weights[name])
        _put(weights, name, wide - wide.mean(-1, keepdim=True))


@torch.no_grad()
def _fold_value_biases(weights: StateDict, cfg: HookedTransformerConfig) -> None:
    if cfg.clip_qkv is not None:
        _skipped(f"fold_value_biases: with clip_qkv={cfg.clip_qkv:g}, values are clipped after their bias")
        return
    for layer in range(cfg.n_layers):
        _fold_value_bias(weights, cfg, f"blocks.{layer}.attn")


@torch.no_grad()
def _refactor_factored_attn_matrices(weights: StateDict, cfg: HookedTransformerConfig) -> None:
    between = {
        "queries and keys are rotated by position": cfg.positional_embedding_type == "rotary",
        "queries and keys are normalised": cfg.use_qk_norm,
        "queries, keys and values are clipped": cfg.clip_qkv is not None,
        "groups of queries share keys and values": cfg.kv_heads != cfg.n_heads,
    }
    for reason, holds in between.items():
        if holds:
            raise ConfigError(f"refactor_factored_attn_matrices would change this model: {reason}; leave it out")
    for layer in range(cfg.n_layers):
        attn = f"blocks.{layer}.attn"
        W_K, b_K, W_V = (f"{attn}.{grouped(cfg, name)}" for name in ("W_K", "b_K", "W_V"))
        queries, keys = (
            torch.cat([_wide(weights[W]), _wide(weights[b])[:, None]], dim=1)
            for W, b in ((f"{attn}.W_Q", f"{attn}.b_Q"), (W_K, b_K))
        )
        U, S, Vh = _svd_of_product(queries, keys.mT)
        queries, keys = U * S.sqrt()[:, None], Vh.mT * S.sqrt()[:, None]
        for W, b, factor in ((f"{attn}.W_Q", f"{attn}.b_Q", queries), (W_K, b_K, keys)):
            _put(weights, W, factor[:, :-1])
            _put(weights, b, factor[:, -1])
        _fold_value_bias(weights, cfg, attn)
        U, S, Vh = _svd_of_product(_wide(weights[W_V]), _wide(weights[f"{attn}.W_O"]))
        _put(weights, W_V, U * S[:, None])
        _put(weights, f"{attn}.W_O", Vh)


_REWRITES: dict[str, Callable[[StateDict, HookedTransformerConfig], None]] = {
    "center_writing_weights": _center_writing_weights,
    "center_unembed": _center_unembed,
    "fold_value_biases": _fold_value_biases,
    "refactor_factored_attn_matrices": _refactor_factored_attn_matrices,
}


def _begin(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """A new dict of the same tensors, if they fit; norms may be there or folded, and foreign keys are passed on."""
    weights = dict(state_dict)
    norms = canonical.foldable_norms(cfg)
    kind = cfg.normalization_type
    unfolded = canonical.with_normalization(cfg, canonical.UNFOLDED.get(kind or "", kind))
    found: dict[str, tuple[int, ...]] = {}
    for name in canonical.shapes(unfolded):
        if name in weights:
            found[name] = tuple(weights[name].shape)
        elif name in norms:
            found[name] = norms[name]
    canonical.check(found, unfolded)
    return weights


def _foldable_norms(cfg: HookedTransformerConfig) -> Iterator[FoldableNorm]:
    """Each norm that only matrices read, with those matrices; the norm's width is their last axis but one."""
    if cfg.normalization_type is None:
        return
    centred = cfg.normalization_type in ("LN", "LNPre")
    for layer in range(cfg.n_layers):
        block = f"blocks.{layer}"
        mlps = canonical.mlps(cfg, layer)
        if not cfg.post_norm_only:
            if cfg.positional_embedding_type != "shortformer":
                pairs = {f"W_{letter}": f"b_{letter}" for letter in "QKV"}
                names = ((f"{block}.attn.{grouped(cfg, W)}", f"{block}.attn.{grouped(cfg, b)}") for W, b in pairs.items())
                yield FoldableNorm(f"{block}.ln1", centred, dict(names))
            if mlps:
                yield FoldableNorm(f"{block}.ln2", centred, _readers_of_ln2(cfg, layer))
        if cfg.has_mlp_norm:
            for mlp in mlps:
                yield FoldableNorm(f"{mlp}.ln", True, {f"{mlp}.W_out": f"{mlp}.b_out"})
    yield FoldableNorm("ln_final", centred and not cfg.final_rms, {"unembed.W_U": "unembed.b_U"})


def _readers_of_ln2(cfg: HookedTransformerConfig, layer: int) -> dict[str, str | None]:
    readers: dict[str, str | None] = {}
    if cfg.is_moe(layer):
        readers[f"blocks.{layer}.mlp.W_gate"] = None
    for mlp in canonical.mlps(cfg, layer):
        if cfg.gated_mlp:  # b_in is added to the product of both, so it can take up neither one's bias
            readers |= {f"{mlp}.W_in": None, f"{mlp}.W_gate": None}
        else:
            readers[f"{mlp}.W_in"] = f"{mlp}.b_in"
    return readers


def _writers(cfg: HookedTransformerConfig) -> Iterator[str]:
    """What writes to the residual stream; all of it has d_model as its last axis."""
    yield "embed.W_E"
    if cfg.positional_embedding_type == "standard":
        yield "pos_embed.W_pos"
    for layer in range(cfg.n_layers):
        yield f"blocks.{layer}.attn.W_O"
        yield f"blocks.{layer}.attn.b_O"
        for mlp in canonical.mlps(cfg, layer):
            yield f"{mlp}.W_out"
            yield f"{mlp}.b_out"


def _fold_value_bias(weights: StateDict, cfg: HookedTransformerConfig, attn: str) -> None:
    b_V = f"{attn}.{grouped(cfg, 'b_V')}"
    per_head = _wide(weights[b_V]).repeat_interleave(cfg.n_heads // cfg.kv_heads, dim=0)
    added = torch.einsum("hd,hdm->m", per_head, _wide(weights[f"{attn}.W_O"]))
    _put(weights, f"{attn}.b_O", _wide(weights[f"{attn}.b_O"]) + added)
    weights[b_V] = torch.zeros_like(weights[b_V])


def _svd_of_product(
    A: Float[Tensor, "head m d_head"], B: Float[Tensor, "head d_head n"]
) -> tuple[Float[Tensor, "head m d_head"], Float[Tensor, "head d_head"], Float[Tensor, "head d_head n"]]:
    """U, S, Vh of A @ B without building the product; padded with zeros to d_head where its rank must be lower."""
    left, R = torch.linalg.qr(A)
    right, L = torch.linalg.qr(B.mT)
    U, S, Vh = torch.linalg.svd(R @ L.mT, full_matrices=False)
    U, Vh, lacking = left @ U, Vh @ right.mT, A.shape[-1] - S.shape[-1]
    pad = torch.nn.functional.pad
    return pad(U, (0, lacking)), pad(S, (0, lacking)), pad(Vh, (0, 0, 0, lacking))


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in the precision that it is rewritten in; may be the tensor itself, so never work in place on it."""
    narrow = tensor.dtype in (torch.float16, torch.bfloat16) or tensor.device.type == "mps"  # MPS has no float64
    return tensor.to(torch.float32 if narrow else torch.float64)


def _put(weights: StateDict, name: str, wide: Tensor) -> None:
    weights[name] = wide.to(weights[name].dtype).contiguous()


def _skipped(why: str) -> None:
    """Warn at the line that asked for the rewrite (behind us, the worker, `torch.no_grad` and the public function)."""
    warnings.warn(why, SkippedRewrite, stacklevel=5)
