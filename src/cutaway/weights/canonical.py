"""Canonical weights: the dialect's names, and for any configuration the shape behind each name.

`shapes` is the table of them. `check` holds files against it, and the network has parameters of these names and shapes.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, WeightsMismatch

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

FOLDED = {"LN": "LNPre", "RMS": "RMSPre"}
"""What a kind of norm is called once its weights have been folded into what reads it."""

UNFOLDED = {"LNPre": "LN", "RMSPre": "RMS"}

BUFFERS = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos", "act_fn.beta")
"""Constants that published state dicts carry along; each can be computed, so they are dropped."""


def shapes(cfg: HookedTransformerConfig) -> Shapes:
    """The shape of every weight of a model, by its canonical name, in the order of the forward pass.

    Raises:
        ConfigError: the size of the vocabulary is not set.
    """
    if cfg.d_vocab < 1 or cfg.d_vocab_out < 1:
        raise ConfigError(f"d_vocab={cfg.d_vocab} is not a vocabulary; set d_vocab, or give a tokenizer")
    table: Shapes = {"embed.W_E": (cfg.d_vocab, cfg.d_model)}
    if cfg.post_embedding_ln:
        table |= _norm("embed.ln", "LN", cfg.d_model)
    if has_positions(cfg):
        table["pos_embed.W_pos"] = (cfg.n_ctx, cfg.d_model)
    for layer in range(cfg.n_layers):
        block = f"blocks.{layer}"
        if not cfg.post_norm_only:
            table |= _norm(f"{block}.ln1", cfg.normalization_type, cfg.d_model)
        table |= _attention(f"{block}.attn", cfg)
        table |= _post_norm(f"{block}.ln1_post", cfg)
        if cfg.attn_only:
            continue
        if not cfg.post_norm_only:
            table |= _norm(f"{block}.ln2", cfg.normalization_type, cfg.d_model)
        if cfg.is_moe(layer):
            assert cfg.num_experts is not None
            table[f"{block}.mlp.W_gate"] = (cfg.d_model, cfg.num_experts)
        for mlp in mlps(cfg, layer):
            table |= _mlp(mlp, cfg, cfg.d_mlp_expert if cfg.is_moe(layer) else None)
        table |= _post_norm(f"{block}.ln2_post", cfg)
    table |= _norm("ln_final", final_normalization(cfg), cfg.d_model)
    table["unembed.W_U"] = (cfg.d_model, cfg.d_vocab_out)
    table["unembed.b_U"] = (cfg.d_vocab_out,)
    return table


def has_positions(cfg: HookedTransformerConfig) -> bool:
    """Whether positions are learned vectors, `pos_embed.W_pos`."""
    return cfg.positional_embedding_type in ("standard", "shortformer")


def has_gate_biases(cfg: HookedTransformerConfig) -> bool:
    """Whether both halves of a gated MLP have a bias of their own (experts have none)."""
    return cfg.gated_mlp and cfg.gated_mlp_biases and cfg.num_experts is None


def final_normalization(cfg: HookedTransformerConfig) -> str | None:
    """The kind of `ln_final`: that of the blocks, except where `final_rms` says otherwise."""
    if cfg.final_rms and cfg.normalization_type in ("LN", "LNPre"):
        return cfg.normalization_type.replace("LN", "RMS")
    return cfg.normalization_type


def grouped(cfg: HookedTransformerConfig, name: str) -> str:
    """`W_K` as it is called in this model: `_W_K` where groups of queries share keys and values."""
    shared = cfg.n_key_value_heads is not None and name in ("W_K", "W_V", "b_K", "b_V")
    return f"_{name}" if shared else name


def mlps(cfg: HookedTransformerConfig, layer: int) -> list[str]:
    """The prefix of each MLP of a block: one, or one per expert of a mixture; none where there is only attention."""
    if cfg.attn_only:
        return []
    prefix = f"blocks.{layer}.mlp"
    if not cfg.is_moe(layer):
        return [prefix]
    assert cfg.num_experts is not None
    return [f"{prefix}.experts.{expert}" for expert in range(cfg.num_experts)]


def with_normalization(cfg: HookedTransformerConfig, kind: str | None) -> HookedTransformerConfig:
    """A copy with another `normalization_type`. (`dataclasses.replace` would seed everything anew.)"""
    cfg = copy.copy(cfg)
    cfg.normalization_type = kind
    return cfg


def foldable_norms(cfg: HookedTransformerConfig) -> Shapes:
    """The weights that folding takes out of a model, whether `cfg` describes it before or after folding."""
    kind = UNFOLDED.get(cfg.normalization_type or "", cfg.normalization_type)
    if kind not in FOLDED:
        return {}
    kept = shapes(with_normalization(cfg, FOLDED[kind]))
    return {name: shape for name, shape in shapes(with_normalization(cfg, kind)).items() if name not in kept}


def fill_norms(weights: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    """The same weights, with w = 1 and b = 0 for each norm of the configuration that was folded away."""
    filled = dict(weights)
    like = filled["embed.W_E"]
    wanted = shapes(cfg)
    for name, shape in foldable_norms(cfg).items():
        if name in wanted and name not in filled:
            make = torch.ones if name.endswith(".w") else torch.zeros
            filled[name] = make(shape, dtype=like.dtype, device=like.device)
    return filled


def is_buffer(name: str, cfg: HookedTransformerConfig | None = None) -> bool:
    """Whether a key of a published state dict is no weight: a mask, a table of angles, positions that ALiBi never reads."""
    if name.endswith(BUFFERS):
        return True
    return name == "pos_embed.W_pos" and cfg is not None and cfg.positional_embedding_type == "alibi"


def without_buffers(weights: Mapping[str, Tensor], cfg: HookedTransformerConfig | None = None) -> dict[str, Tensor]:
    """The weights alone (see `is_buffer`)."""
    return {name: weights[name] for name in weights if not is_buffer(name, cfg)}


def check(weights: Mapping[str, Tensor | Sequence[int]], cfg: HookedTransformerConfig) -> None:
    """Do these weights (or their shapes), buffers aside, fit this configuration exactly?

    The tensors of a checkpoint know their shapes and are not read for this.

    Raises:
        WeightsMismatch: they do not; lists what is missing, unexpected and wrongly shaped.
    """
    found = {
        name: tuple(value.shape if isinstance(value, Tensor) else value)
        for name, value in getattr(weights, "shapes", weights).items()
        if not is_buffer(name, cfg)
    }
    wanted = shapes(cfg)
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    wrong = [
        f"{name} {list(found[name])} should be {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if not (missing or unexpected or wrong):
        return
    lists = {"missing": missing, "unexpected": unexpected, "wrongly shaped": wrong}
    problems = "; ".join(f"{len(names)} {kind} ({_shortened(names)})" for kind, names in lists.items() if names)
    raise WeightsMismatch(f"the weights do not fit the configuration: {problems}. {_advice(missing, unexpected, cfg)}")


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """A hash of weights alone: SHA-256 over names, shapes, types and bytes, in the order of the names.

    Buffers do not count, nor do memory layout, device and the order of the keys; any changed weight does.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        if not is_buffer(name):
            tensor = weights[name].detach()
            digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _norm(prefix: str, kind: str | None, width: int) -> Shapes:
    letters = {"LN": "wb", "RMS": "w"}.get(kind or "", "")
    return {f"{prefix}.{letter}": (width,) for letter in letters}


def _post_norm(prefix: str, cfg: HookedTransformerConfig) -> Shapes:
    """Nothing linear reads a post norm, so its weights stay where the other norms have been folded."""
    if not cfg.has_post_norms:
        return {}
    kind = cfg.normalization_type
    return _norm(prefix, UNFOLDED.get(kind or "", kind), cfg.d_model)


def _attention(prefix: str, cfg: HookedTransformerConfig) -> Shapes:
    table: Shapes = {f"{prefix}.W_Q": (cfg.n_heads, cfg.d_model, cfg.d_head)}
    table |= {f"{prefix}.{grouped(cfg, name)}": (cfg.kv_heads, cfg.d_model, cfg.d_head) for name in ("W_K", "W_V")}
    table[f"{prefix}.b_Q"] = (cfg.n_heads, cfg.d_head)
    table |= {f"{prefix}.{grouped(cfg, name)}": (cfg.kv_heads, cfg.d_head) for name in ("b_K", "b_V")}
    if cfg.use_qk_norm:
        shared = cfg.qk_norm_over == "head"
        table |= _norm(f"{prefix}.q_norm", cfg.qk_norm_type, cfg.d_head * (1 if shared else cfg.n_heads))
        table |= _norm(f"{prefix}.k_norm", cfg.qk_norm_type, cfg.d_head * (1 if shared else cfg.kv_heads))
    table[f"{prefix}.W_O"] = (cfg.n_heads, cfg.d_head, cfg.d_model)
    table[f"{prefix}.b_O"] = (cfg.d_model,)
    return table


def _mlp(prefix: str, cfg: HookedTransformerConfig, width: int | None = None) -> Shapes:
    width = width or cfg.d_mlp
    assert width is not None
    table: Shapes = {f"{prefix}.W_in": (cfg.d_model, width), f"{prefix}.b_in": (width,)}
    if cfg.gated_mlp:
        table[f"{prefix}.W_gate"] = (cfg.d_model, width)
    if has_gate_biases(cfg):
        table |= {f"{prefix}.{name}": (width,) for name in ("b_gate", "b_up")}
    if cfg.act_fn == "xielu":
        table |= {f"{prefix}.act_fn.{name}": (1,) for name in ("alpha_p", "alpha_n")}
    if cfg.has_mlp_norm and cfg.normalization_type == "LN":
        table |= _norm(f"{prefix}.ln", "LN", width)
    table[f"{prefix}.W_out"] = (width, cfg.d_model)
    table[f"{prefix}.b_out"] = (cfg.d_model,)
    return table


def _shortened(names: Sequence[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _advice(missing: Sequence[str], unexpected: Sequence[str], cfg: HookedTransformerConfig) -> str:
    """What to try, from what kind of names differ."""
    norms, kind = foldable_norms(cfg).keys(), cfg.normalization_type
    if not unexpected and kind in FOLDED and set(missing) == norms:
        return f"Their norms seem folded away: try normalization_type={FOLDED[kind]!r}"
    if not missing and kind in UNFOLDED and unexpected and set(unexpected) <= norms:
        return f"Their norms are not folded yet: try normalization_type={UNFOLDED[kind]!r}, then fold"
    layers = _layers(unexpected)
    if layers > cfg.n_layers:
        return f"They have {layers} layers: try n_layers={layers}"
    keys = {name.rsplit(".", 1)[-1] for name in unexpected}
    if keys & {"_W_K", "_W_V"} and cfg.n_key_value_heads is None:
        return "Their queries share keys and values in groups: set n_key_value_heads"
    if keys & {"W_K", "W_V"} and cfg.n_key_value_heads is not None:
        return "Their queries share no keys and values: try n_key_value_heads=None"
    if any(".mlp." in name for name in unexpected) and cfg.attn_only:
        return "They have MLPs: try attn_only=False"
    return "Compare with cutaway.weights.canonical.shapes(cfg), which lists all that is expected"


def _layers(names: Iterable[str]) -> int:
    numbers = [int(match[1]) for name in names if (match := re.match(r"blocks\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def fill_missing_keys(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict, with the model's own values where it lacks some; of matrices the log says so."""
    for name, value in model.state_dict().items():
        if name not in state_dict:
            if "W_" in name:
                logger.warning("the state dict lacks %s, a matrix; the model's own is kept", name)
            state_dict[name] = value
    return state_dict
