"""Pieces that many tables share: they are tables themselves, merged with `|`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cutaway.weights.families.reshape import bias_heads, column_heads, row_heads, transposed
from cutaway.weights.families.table import Condition, Fields, Rewrite, Tensors, found


def tied(hf: Fields) -> bool:
    """Whether the unembedding is the embedding."""
    return bool(hf["tie_word_embeddings"])


def untied(hf: Fields) -> bool:
    """Whether the unembedding is a tensor of its own."""
    return not tied(hf)


def embeddings(name: str, *, before: tuple[Rewrite, ...] = (), after: tuple[Rewrite, ...] = ()) -> Tensors:
    """Embedding and unembedding, which may be one tensor; `before` and `after` fold constants into either."""
    return {
        "embed.W_E": found(name, *before),
        "unembed.W_U": (found("lm_head.weight", *after, transposed, when=untied), found(name, *after, transposed, when=tied)),
    }


def norm(canonical: str, name: str, *steps: Rewrite, bias: bool = False) -> Tensors:
    """A norm's weight, and its bias where the family has one."""
    table: Tensors = {f"{canonical}.w": found(f"{name}.weight", *steps)}
    return table | {f"{canonical}.b": found(f"{name}.bias")} if bias else table


def attention(
    layer: str,
    *,
    names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
    bias: str | Condition | bool = False,
    out_bias: str | Condition | bool | None = None,
    out: tuple[Rewrite, ...] = (),
) -> Tensors:
    """Attention with four linear layers of its own; `out` folds constants into the last."""
    table: Tensors = {}
    for letter, name in zip("QKV", names[:3], strict=True):
        table[f"blocks.{{l}}.attn.W_{letter}"] = found(f"{layer}.{name}.weight", row_heads)
        table |= _bias(f"blocks.{{l}}.attn.b_{letter}", f"{layer}.{name}.bias", bias, bias_heads)
    table["blocks.{l}.attn.W_O"] = found(f"{layer}.{names[3]}.weight", *out, column_heads)
    return table | _bias("blocks.{l}.attn.b_O", f"{layer}.{names[3]}.bias", bias if out_bias is None else out_bias, *out)


def mlp(
    layer: str, up: str, down: str, gate: str | None = None, *,
    bias: str | Condition | bool = False, out: tuple[Rewrite, ...] = (),
) -> Tensors:  # fmt: skip
    """An MLP of linear layers, gated where `gate` names one."""
    table: Tensors = {"blocks.{l}.mlp.W_in": found(f"{layer}.{up}.weight", transposed)}
    table |= _bias(f"blocks.{{l}}.mlp.{'b_in' if gate is None else 'b_up'}", f"{layer}.{up}.bias", bias)
    if gate is not None:
        table["blocks.{l}.mlp.W_gate"] = found(f"{layer}.{gate}.weight", transposed)
        table |= _bias("blocks.{l}.mlp.b_gate", f"{layer}.{gate}.bias", bias)
    table["blocks.{l}.mlp.W_out"] = found(f"{layer}.{down}.weight", *out, transposed)
    return table | _bias("blocks.{l}.mlp.b_out", f"{layer}.{down}.bias", bias, *out)


def packed(name: str, part: Callable[[str], Rewrite], *before: Rewrite, bias: str | Condition | bool = False) -> Tensors:
    """Queries, keys and values that share one linear layer `name`; `part` takes "q", "k" or "v" out of it."""
    table: Tensors = {}
    for which in "qkv":
        table[f"blocks.{{l}}.attn.W_{which.upper()}"] = found(f"{name}.weight", *before, part(which), row_heads)
        table |= _bias(f"blocks.{{l}}.attn.b_{which.upper()}", f"{name}.bias", bias, part(which), bias_heads)
    return table


def output(name: str, *before: Rewrite, bias: str | Condition | bool = False) -> Tensors:
    """Attention's output projection."""
    weight: Tensors = {"blocks.{l}.attn.W_O": found(f"{name}.weight", *before, column_heads)}
    return weight | _bias("blocks.{l}.attn.b_O", f"{name}.bias", bias)


def _bias(canonical: str, name: str, there: str | Condition | bool, *steps: Rewrite) -> Tensors:
    if there is False:
        return {}
    return {canonical: found(name, *steps, when=None if there is True else there)}


def heads(hf: Fields) -> dict[str, Any]:
    """The size and number of heads, from the names that most families have."""
    return {
        "d_head": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        "n_heads": hf["num_attention_heads"],
        "n_key_value_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
    }


def windows(hf: Fields, types: list[str] | None) -> dict[str, Any]:
    """Our fields of local attention, from `transformers`' name for the attention of each layer."""
    if types is None or "sliding_attention" not in types:
        return {}
    if hf["sliding_window"] is None:
        raise hf.refuse("sliding_window", "layer_types has sliding_attention, which needs a window; transformers refuses it too")
    unknown = set(types) - {"sliding_attention", "full_attention"}
    if unknown:
        raise hf.refuse("layer_types", f"{', '.join(sorted(unknown))} is not understood")
    return {
        "use_local_attn": True,
        "window_size": hf["sliding_window"],
        "attn_types": ["local" if kind == "sliding_attention" else "global" for kind in types],
    }


def everywhere(hf: Fields) -> dict[str, Any]:
    """A window that all layers have, where there is one."""
    types = None if hf["sliding_window"] is None else ["sliding_attention"] * hf["num_hidden_layers"]
    return windows(hf, types)
