"""What architectures of GGUF files are called in `transformers`: config fields, tensors, and steps that undo the conversion.

A test holds the names and values against those of `transformers`' own reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Metadata = Mapping[str, Any]
"""What a header says of the architecture, without its prefix (`llama.block_count` → `block_count`)."""

Config = dict[str, Any]
Restore = Callable[[Tensor, Config], Tensor]


@dataclass(frozen=True)
class Architecture:
    """One architecture of GGUF files.

    Attributes:
        model_type: its name in `transformers`.
        fields: key of the header (without prefix) → field of the config.
        names: tensor → its name in `transformers`, without `.weight` or `.bias`; `{l}` is the layer, and `{i}` numbers
            the parts where one tensor holds several (experts, heads).
        steps: what is done to tensors, by tensor with its ending.
        always: fields of the config that the header does not say.
        rest: fields of the config that follow from several keys, or from which tensors there are.
        reads: keys that change what the model computes and that `rest` reads.
    """

    model_type: str
    fields: Mapping[str, str]
    names: Mapping[str, str]
    steps: Mapping[str, Restore] = field(default_factory=dict)
    always: Config = field(default_factory=dict)
    rest: Callable[[Metadata, Config, set[str]], Config] = lambda metadata, config, tensors: {}
    reads: tuple[str, ...] = ()


# Steps.


def rotated_pairs(heads: str) -> Restore:
    """Undo llama.cpp's order of query and key rows: it rotates neighbours, `transformers` rotates halves."""

    def undo(x: Tensor, config: Config) -> Tensor:
        count = config.get(heads) or config["num_attention_heads"]
        return x.reshape(count, -1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)

    return undo


def minus_one(x: Tensor, config: Config) -> Tensor:
    """Norms of Gemma multiply by `1 + w`; files hold `1 + w`."""
    return x - 1


def transposed(x: Tensor, config: Config) -> Tensor:
    """GPT-2 keeps its linear layers `[in, out]`."""
    return x.T


def interleaved(x: Tensor, config: Config) -> Tensor:
    """Queries, keys and values one after another → head by head (BLOOM) or group by group (Falcon)."""
    heads = config.get("n_head") or config["num_attention_heads"]
    groups = config.get("num_kv_heads") or (1 if "num_kv_heads" in config else heads)
    rows = len(x) // (heads + 2 * groups)
    parts = x.split([heads * rows, groups * rows, groups * rows])
    return torch.cat([part.reshape(groups, -1, *x.shape[1:]) for part in parts], 1).reshape(x.shape)


# Fields.

FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
SOFT_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
WINDOW = ("attention.sliding_window",)


def layer_norm(name: str) -> dict[str, str]:
    """The fields of a model with layer norms, whose epsilon is called `name`."""
    return {key: ours for key, ours in FIELDS.items() if "rms" not in key} | {"attention.layer_norm_epsilon": name}


def window(metadata: Metadata, config: Config, tensors: set[str]) -> Config:
    """A sliding window; files without one say 0."""
    return {"sliding_window": metadata.get("attention.sliding_window") or None}


def partial(metadata: Metadata, config: Config, tensors: set[str]) -> Config:
    """How much of each head rotates."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {"partial_rotary_factor": metadata.get("rope.dimension_count", head) / head}


def gemma(layers_of_27b: int, theta: float) -> Callable[[Metadata, Config, set[str]], Config]:
    """Window, local rotation, and the scale of attention, which only the models of 27B take from the width."""

    def rest(metadata: Metadata, config: Config, tensors: set[str]) -> Config:
        large = config["num_hidden_layers"] == layers_of_27b and config["hidden_size"] > 4000
        scalar = config["hidden_size"] // config["num_attention_heads"] if large else 256
        found = window(metadata, config, tensors) | {"query_pre_attn_scalar": scalar}
        if "rope.freq_base_swa" in metadata:
            found["rope_local_base_freq"] = metadata["rope.freq_base_swa"]
        return found | ({} if "rope_theta" in config else {"rope_theta": theta})

    return rest


def falcon(metadata: Metadata, config: Config, tensors: set[str]) -> Config:
    """The second generation has two norms in a block; the first shares one key and value."""
    new = "blk.0.attn_norm_2.weight" in tensors
    heads = config.pop("num_key_value_heads", 1)
    return {"new_decoder_architecture": new, "num_kv_heads": heads, "multi_query": heads == 1 or new}


def biased(metadata: Metadata, config: Config, tensors: set[str]) -> Config:
    """Whether attention has biases."""
    return {"attention_bias": "blk.0.attn_q.bias" in tensors}


def llama(metadata: Metadata, config: Config, tensors: set[str]) -> Config:
    return biased(metadata, config, tensors) | {"mlp_bias": "blk.0.ffn_gate.bias" in tensors}


def stablelm(metadata: Metadata, config: Config, tensors: set[str]) -> Config:
    return partial(metadata, config, tensors) | {
        "use_qkv_bias": "blk.0.attn_q.bias" in tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
    }


# Names.

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "blk.{l}.attn_norm": "model.layers.{l}.input_layernorm",
    "blk.{l}.attn_q": "model.layers.{l}.self_attn.q_proj",
    "blk.{l}.attn_k": "model.layers.{l}.self_attn.k_proj",
    "blk.{l}.attn_v": "model.layers.{l}.self_attn.v_proj",
    "blk.{l}.attn_output": "model.layers.{l}.self_attn.o_proj",
    "blk.{l}.ffn_norm": "model.layers.{l}.post_attention_layernorm",
}
MLP = {
    "blk.{l}.ffn_gate": "model.layers.{l}.mlp.gate_proj",
    "blk.{l}.ffn_up": "model.layers.{l}.mlp.up_proj",
    "blk.{l}.ffn_down": "model.layers.{l}.mlp.down_proj",
}
DENSE = OUTER | ATTENTION | MLP
QK_NORMS = {
    "blk.{l}.attn_q_norm": "model.layers.{l}.self_attn.q_norm",
    "blk.{l}.attn_k_norm": "model.layers.{l}.self_attn.k_norm",
}
GEMMA = DENSE | {
    "blk.{l}.post_attention_norm": "model.layers.{l}.post_attention_layernorm",
    "blk.{l}.ffn_norm": "model.layers.{l}.pre_feedforward_layernorm",
    "blk.{l}.post_ffw_norm": "model.layers.{l}.post_feedforward_layernorm",
}
GEMMA_NORMS: dict[str, Restore] = dict.fromkeys(
    (
        "output_norm.weight",
        *(
            f"blk.{{l}}.{name}.weight"
            for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm")
        ),
    ),
    minus_one,
)
GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "blk.{l}.attn_norm": "transformer.h.{l}.ln_1",
    "blk.{l}.attn_qkv": "transformer.h.{l}.attn.c_attn",
    "blk.{l}.attn_output": "transformer.h.{l}.attn.c_proj",
    "blk.{l}.ffn_norm": "transformer.h.{l}.ln_2",
    "blk.{l}.ffn_up": "transformer.h.{l}.mlp.c_fc",
    "blk.{l}.ffn_down": "transformer.h.{l}.mlp.c_proj",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
PACKED = {
    "token_embd": "transformer.word_embeddings",
    "blk.{l}.attn_norm": "transformer.h.{l}.input_layernorm",
    "blk.{l}.attn_qkv": "transformer.h.{l}.self_attention.query_key_value",
    "blk.{l}.attn_output": "transformer.h.{l}.self_attention.dense",
    "blk.{l}.ffn_up": "transformer.h.{l}.mlp.dense_h_to_4h",
    "blk.{l}.ffn_down": "transformer.h.{l}.mlp.dense_4h_to_h",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
PACKED_STEPS: dict[str, Restore] = {"blk.{l}.attn_qkv.weight": interleaved, "blk.{l}.attn_qkv.bias": interleaved}

ROTATED: dict[str, Restore] = {
    f"blk.{{l}}.attn_{one}.{ending}": rotated_pairs(heads)
    for one, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads"))
    for ending in ("weight", "bias")
}
QWEN3 = OUTER | ATTENTION | QK_NORMS

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "llama",
        FIELDS,
        DENSE,
        ROTATED,
        rest=llama,
    ),
    "mixtral": Architecture(
        "mixtral",
        FIELDS | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        OUTER
        | ATTENTION
        | {"blk.{l}.ffn_gate_inp": "model.layers.{l}.block_sparse_moe.gate"}
        | {
            f"blk.{{l}}.ffn_{ours}_exps": f"model.layers.{{l}}.block_sparse_moe.experts.{{i}}.{theirs}"
            for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
        },
        ROTATED,
    ),
    "qwen2": Architecture("qwen2", FIELDS, DENSE),
    "qwen3": Architecture("qwen3", FIELDS, QWEN3 | MLP, rest=biased),
    "qwen3moe": Architecture(
        "qwen3_moe",
        FIELDS
        | {
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        QWEN3
        | {"blk.{l}.ffn_gate_inp": "model.layers.{l}.mlp.gate"}
        | {f"blk.{{l}}.ffn_{one}_exps": f"model.layers.{{l}}.mlp.experts.{{i}}.{one}_proj" for one in ("gate", "up", "down")},
        always={"norm_topk_prob": True},
        rest=biased,
    ),
    "gemma2": Architecture("gemma2", FIELDS | SOFT_CAPS, GEMMA, GEMMA_NORMS, rest=gemma(46, 10000.0), reads=WINDOW),
    "gemma3": Architecture(
        "gemma3_text", FIELDS | SOFT_CAPS, GEMMA | QK_NORMS, GEMMA_NORMS, rest=gemma(62, 1000000.0), reads=WINDOW
    ),
    "phi3": Architecture(
        "phi3",
        FIELDS,
        OUTER
        | {name: where for name, where in ATTENTION.items() if name[-2:] not in ("_q", "_k", "_v")}
        | {
            "blk.{l}.attn_qkv": "model.layers.{l}.self_attn.qkv_proj",
            "blk.{l}.ffn_up": "model.layers.{l}.mlp.gate_up_proj",
            "blk.{l}.ffn_down": "model.layers.{l}.mlp.down_proj",
        },
        rest=lambda *given: window(*given) | partial(*given),
        reads=WINDOW,
    ),
    "stablelm": Architecture(
        "stablelm",
        layer_norm("layer_norm_eps"),
        DENSE
        | {
            "blk.{l}.attn_q_norm": "model.layers.{l}.self_attn.q_layernorm.norms.{i}",
            "blk.{l}.attn_k_norm": "model.layers.{l}.self_attn.k_layernorm.norms.{i}",
        },
        rest=stablelm,
    ),
    "starcoder2": Architecture(
        "starcoder2",
        layer_norm("norm_epsilon"),
        OUTER | ATTENTION | {"blk.{l}.ffn_up": "model.layers.{l}.mlp.c_fc", "blk.{l}.ffn_down": "model.layers.{l}.mlp.c_proj"},
        rest=lambda *given: window(*given) | {"use_bias": biased(*given)["attention_bias"]},
        reads=WINDOW,
    ),
    "gpt2": Architecture(
        "gpt2",
        {
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        GPT2,
        {f"blk.{{l}}.{name}.weight": transposed for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")},
    ),
    "bloom": Architecture(
        "bloom",
        {
            "context_length": "seq_length",
            "embedding_length": "hidden_size",
            "block_count": "n_layer",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        PACKED
        | {
            "token_embd_norm": "transformer.word_embeddings_layernorm",
            "blk.{l}.ffn_norm": "transformer.h.{l}.post_attention_layernorm",
        },
        PACKED_STEPS,
    ),
    "falcon": Architecture(
        "falcon",
        layer_norm("layer_norm_epsilon") | {"feed_forward_length": "ffn_hidden_size"},
        PACKED,
        PACKED_STEPS,
        rest=falcon,
    ),
}
"""`general.architecture` → what we know of it; a `llama` with experts is a `mixtral`."""

TWO_NORMS = {"blk.{l}.attn_norm": "transformer.h.{l}.ln_mlp", "blk.{l}.attn_norm_2": "transformer.h.{l}.ln_attn"}
"""The names of Falcon's norms where a block has two."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0, 8.0),
    "attention.scale": (0.0,),
    "attention.shared_kv_layers": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_shared_count": (0,),
    "final_logit_softcapping": (0.0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "swin_norm": (False,),
}
"""Keys that change what a model computes, and the values that do not; another value stops where no table reads the key."""
