"""Exact rewrites: weights go in, other weights that compute the same thing come out.

Every rewrite is a function of a state dict and its configuration. It leaves its input alone and shares the
tensors that it does not touch. What would change the model's predictions is not done: a rewrite that does not
hold for an architecture is skipped, and a `SkippedRewrite` warning says why.

Each tensor is rewritten in the next wider precision (half in float32, float32 in float64) and rounded once at
the end, so that sums over thousands of weights cost no accuracy. Only a piece of a tensor is wide at a time, and
`process` takes one part of the model after another, so that it needs little room beyond the weights.

The rewrites are those of Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError
from cutaway.weights import canonical
from cutaway.weights.canonical import grouped

StateDict = dict[str, Tensor]

PIECE = 2**16  # numbers that are wide at a time: they stay in the processor's cache


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
    stayed = _fold_layer_norm(weights, cfg, fold_biases, center_weights)
    _say_what_stayed(stayed, weights, cfg, fold_biases)
    return weights


def center_writing_weights(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig, *, always: bool = False) -> StateDict:
    """Take the mean over d_model out of everything that writes to the residual stream.

    Exact where all that reads the stream subtracts the mean first; skipped elsewhere unless `always`. A shortformer's positions
    are not written to the stream, so they stay. The embedding in front of a norm of its own is centred too
    (that norm subtracts its mean), though what the norm then writes is not.

    Raises:
        WeightsMismatch: the weights do not fit the configuration.
    """
    weights = _begin(state_dict, cfg)
    if always or _holds("center_writing_weights", cfg):
        _center_writing_weights(weights, cfg)
    return weights


def center_unembed(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig, *, always: bool = False) -> StateDict:
    """Take the mean over the vocabulary out of the unembedding: logits change, log-probabilities do not.

    Skipped where the logits have a soft cap, which a shift would bend, unless `always`.

    Raises:
        WeightsMismatch: the weights do not fit the configuration.
    """
    weights = _begin(state_dict, cfg)
    if always or _holds("center_unembed", cfg):
        _center_unembed(weights, cfg)
    return weights


def fold_value_biases(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> StateDict:
    """Move value biases into the output bias: attention patterns sum to one, so they add a constant.

    Skipped where queries, keys and values are clipped.

    Raises:
        WeightsMismatch: the weights do not fit the configuration.
    """
    weights = _begin(state_dict, cfg)
    if _holds("fold_value_biases", cfg):
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
    if _holds("refactor_factored_attn_matrices", cfg):
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

    Tensors that are read when they are asked for (of a checkpoint) are read once, part by part.

    Where every norm was folded, LN becomes LNPre and RMS becomes RMSPre. Where some norm had to stay, the type
    stays too, and the folded ones are there with w = 1, b = 0. Either way the weights fit the configuration.

    Raises:
        ConfigError: a refactoring is asked for that does not hold for this architecture.
        WeightsMismatch: the weights do not fit the configuration.
    """
    _check(state_dict, cfg)
    requested = {
        "center_writing_weights": center_writing_weights,
        "center_unembed": center_unembed,
        "fold_value_biases": fold_value_biases,
        "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
    }
    rewrites = []
    for name, rewrite in _REWRITES.items():
        if requested[name] and _holds(name, cfg):
            rewrites.append(rewrite)
    done: StateDict = {}
    stayed: list[str] = []
    for names in _parts(name for name in state_dict if not canonical.is_buffer(name, cfg)):
        part = {name: state_dict[name] for name in names}
        if fold_ln:
            stayed += _fold_layer_norm(part, cfg)
        for rewrite in rewrites:
            rewrite(part, cfg)
        done |= part
    if fold_ln:
        _say_what_stayed(stayed, done, cfg)
    kind = cfg.normalization_type or ""
    if any(name in done for name in canonical.foldable_norms(cfg)):
        cfg = canonical.with_normalization(cfg, canonical.UNFOLDED.get(kind, kind))
    elif fold_ln and kind in canonical.FOLDED:
        cfg = canonical.with_normalization(cfg, canonical.FOLDED[kind])
    return canonical.fill_norms(done, cfg), cfg


# The same, on a dict of their own, which may hold one part of the model alone. They change the dict and never a
# tensor in it.


@torch.no_grad()
def _fold_layer_norm(
    weights: StateDict, cfg: HookedTransformerConfig, fold_biases: bool = True, center_weights: bool = True
) -> list[str]:
    """Fold the norms that can be folded; returns those that stay."""
    stayed = []
    for norm in _foldable_norms(cfg):
        if not weights.keys() >= norm.readers.keys():
            continue
        w, b = weights.get(f"{norm.name}.w"), weights.get(f"{norm.name}.b")
        if b is not None and b.any() and not (fold_biases and all(norm.readers.values())):
            stayed.append(norm.name)
            continue
        for matrix, bias in norm.readers.items():
            if b is not None and bias is not None:
                added = [_wide(b) @ _wide(piece) for piece in _pieces(weights[matrix], -1)]
                _put(weights, bias, _wide(weights[bias]) + torch.cat(added, -1))

            def folded(piece: Tensor, w: Tensor | None = w, centred: bool = norm.centred and center_weights) -> Tensor:
                piece = piece if w is None else piece * _wide(w)[:, None]
                return piece - piece.mean(-2, keepdim=True) if centred else piece

            _rewrite(weights, matrix, folded, along=-1)
        weights.pop(f"{norm.name}.w", None)
        weights.pop(f"{norm.name}.b", None)
    return stayed


def _say_what_stayed(stayed: list[str], weights: StateDict, cfg: HookedTransformerConfig, fold_biases: bool = True) -> None:
    order = [norm.name for norm in _foldable_norms(cfg)]
    stayed = sorted(stayed, key=order.index)
    if stayed:
        what = f"{stayed[0]} and {len(stayed) - 1} more norms" if len(stayed) > 1 else stayed[0]
        why = "no bias can take up theirs in all that reads them" if fold_biases else "they have biases, and fold_biases=False"
        _skipped(f"{what} stay as they are: {why}")
    if cfg.positional_embedding_type == "shortformer" and any(".ln1." in name for name in weights):
        _skipped("ln1 stays as it is: a shortformer adds positions behind it, where its weights do not apply")


def _holds(rewrite: str, cfg: HookedTransformerConfig) -> bool:
    """Whether a rewrite leaves the predictions of this architecture alone; warns where it would not.

    Raises:
        ConfigError: a refactoring that does not hold.
    """
    why = None
    if rewrite == "center_writing_weights":
        if cfg.normalization_type not in ("LN", "LNPre"):
            why = f"normalization_type={cfg.normalization_type!r} does not subtract the mean"
        elif cfg.final_rms:
            why = "with final_rms, the last norm does not subtract the mean"
        elif cfg.post_norm_only:
            why = "with post_norm_only, attention and MLP read the stream without a norm"
    elif rewrite == "center_unembed" and cfg.output_logits_soft_cap > 0:
        why = f"output_logits_soft_cap={cfg.output_logits_soft_cap:g} would turn the shift into a change"
    elif rewrite == "fold_value_biases" and cfg.clip_qkv is not None:
        why = f"with clip_qkv={cfg.clip_qkv:g}, values are clipped after their bias"
    elif rewrite == "refactor_factored_attn_matrices":
        between = {
            "queries and keys are rotated by position": cfg.positional_embedding_type == "rotary",
            "queries and keys are normalised": cfg.use_qk_norm,
            "queries, keys and values are clipped": cfg.clip_qkv is not None,
            "groups of queries share keys and values": cfg.kv_heads != cfg.n_heads,
        }
        for reason, holds in between.items():
            if holds:
                raise ConfigError(f"refactor_factored_attn_matrices would change this model: {reason}; leave it out")
    if why is not None:
        _skipped(f"{rewrite}: {why}")
    return why is None


@torch.no_grad()
def _center_writing_weights(weights: StateDict, cfg: HookedTransformerConfig) -> None:
    for name in _writers(cfg):
        if name in weights:
            _rewrite(weights, name, _centred, along=0)


@torch.no_grad()
def _center_unembed(weights: StateDict, cfg: HookedTransformerConfig) -> None:
    for name in ("unembed.W_U", "unembed.b_U"):
        if name in weights:
            _rewrite(weights, name, _centred, along=0)


@torch.no_grad()
def _fold_value_biases(weights: StateDict, cfg: HookedTransformerConfig) -> None:
    for attn in _attentions(weights, cfg):
        _fold_value_bias(weights, cfg, attn)


@torch.no_grad()
def _refactor_factored_attn_matrices(weights: StateDict, cfg: HookedTransformerConfig) -> None:
    for attn in _attentions(weights, cfg):
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
    """A new dict of the same tensors, if they fit; foreign keys are passed on."""
    _check(state_dict, cfg)
    return dict(state_dict)


def _check(state_dict: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> None:
    """Do the weights fit? Their norms may be there or folded, and foreign keys do not matter; nothing is read."""
    there = getattr(state_dict, "shapes", None) or {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    norms = canonical.foldable_norms(cfg)
    kind = cfg.normalization_type
    unfolded = canonical.with_normalization(cfg, canonical.UNFOLDED.get(kind or "", kind))
    found: dict[str, tuple[int, ...]] = {}
    for name in canonical.shapes(unfolded):
        if name in there:
            found[name] = there[name]
        elif name in norms:
            found[name] = norms[name]
    canonical.check(found, unfolded)


def _parts(names: Iterable[str]) -> list[list[str]]:
    """The names that rewrites bring together: of the end of the stream, of its beginning, of each layer."""
    parts: dict[str, list[str]] = {"unembed": [], "embed": []}  # usually the largest: they come when there is most room
    for name in names:
        place = name.split(".")
        part = ".".join(place[:2]) if place[0] == "blocks" else "unembed" if place[0] in ("ln_final", "unembed") else "embed"
        parts.setdefault(part, []).append(name)
    return list(parts.values())


def _attentions(weights: StateDict, cfg: HookedTransformerConfig) -> list[str]:
    """The attention layers that the dict holds, by the prefix of their names."""
    attentions = (f"blocks.{layer}.attn" for layer in range(cfg.n_layers))
    return [attn for attn in attentions if f"{attn}.W_O" in weights]


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
        if canonical.has_gate_biases(cfg):
            readers |= {f"{mlp}.W_in": f"{mlp}.b_up", f"{mlp}.W_gate": f"{mlp}.b_gate"}
        elif cfg.gated_mlp:  # b_in is added to the product of both, so it can take up neither one's bias
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
    """U, S, Vh of A @ B without building the product; padded with zeros to d_head where its rank must be lower.

    The signs that a decomposition leaves open are those of the dialect's steps in float32.
    """
    U, S, Vh = _svd_by_factors(A, B)
    signs = torch.where((U * _svd_by_factors(A.float(), B.float())[0]).sum(-2) < 0, -1.0, 1.0).to(U)
    U, Vh, lacking = U * signs[..., None, :], Vh * signs[..., :, None], A.shape[-1] - S.shape[-1]
    pad = torch.nn.functional.pad
    return pad(U, (0, lacking)), pad(S, (0, lacking)), pad(Vh, (0, 0, 0, lacking))


def _svd_by_factors(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (U_a, S_a, V_a), (U_b, S_b, V_b) = (torch.linalg.svd(one, full_matrices=False) for one in (A, B))
    U, S, Vh = torch.linalg.svd(S_a[..., :, None] * V_a @ U_b * S_b[..., None, :], full_matrices=False)
    return U_a @ U, S, Vh @ V_b


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in the precision that it is rewritten in; may be the tensor itself, so never work in place on it."""
    narrow = tensor.dtype in (torch.float16, torch.bfloat16) or tensor.device.type == "mps"  # MPS has no float64
    return tensor.to(torch.float32 if narrow else torch.float64)


def _put(weights: StateDict, name: str, wide: Tensor) -> None:
    weights[name] = wide.to(weights[name].dtype).contiguous()


def _rewrite(weights: StateDict, name: str, function: Callable[[Tensor], Tensor], *, along: int) -> None:
    """Put `function` of a tensor in its place; it is wide a piece at a time, as pieces along this axis do not mix.

    A vector counts as one piece.
    """
    old = weights[name]
    new = torch.empty_like(old, memory_format=torch.contiguous_format)
    for before, after in zip(_pieces(old, along), _pieces(new, along), strict=True):
        after.copy_(function(_wide(before)))
    weights[name] = new


def _pieces(tensor: Tensor, along: int) -> tuple[Tensor, ...]:
    if tensor.ndim < 2:
        return (tensor,)
    size = tensor.shape[along]
    return tensor.split(max(1, PIECE * size // max(1, tensor.numel())), along)


def _centred(wide: Tensor) -> Tensor:
    return wide - wide.mean(-1, keepdim=True)


def _skipped(why: str) -> None:
    """Warn at the line that asked for the rewrite (behind us, the worker and the public function)."""
    warnings.warn(why, SkippedRewrite, stacklevel=4)
