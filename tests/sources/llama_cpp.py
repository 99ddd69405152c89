"""A model of `transformers` as llama.cpp's converter would write it: what our reader undoes, done here, from its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CALLED = {"qwen3_moe": "qwen3moe", "gemma3_text": "gemma3", "mixtral": "llama"}
"""`model_type` → architecture, where they differ."""


def write(model: Any, file: Path, *, kind: str = "F32", extra: dict[str, Any] | None = None, split: int = 0) -> None:
    """Write `model` to `file`, or to parts of `split` tensors; matrices are stored as `kind`, where their rows allow it."""
    import gguf

    config = model.config
    architecture = CALLED.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(file, architecture, split_max_tensors=split)
    for key, value in (header(config, architecture) | (extra or {})).items():
        add(writer, f"{architecture}.{key}" if not key.startswith(("general.", "tokenizer.")) else key, value)
    names = gguf.get_tensor_name_map(next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), 9)
    for name, tensor in converted(model).items():
        base, _, ending = name.rpartition(".")
        stored = f"{names.get_name(base) or names.get_name(base.removeprefix('transformer.')) or base}.{ending}"
        quantisation = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 and not tensor.shape[-1] % 32 else "F32"]
        data = gguf.quantize(np.ascontiguousarray(tensor.float().numpy()), quantisation)
        writer.add_tensor(stored, data, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: Any, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def header(config: Any, architecture: str) -> dict[str, Any]:
    """The keys that the converter writes, without their prefix."""
    said: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "context_length": getattr(config, "max_position_embeddings", None) or 2048,
        "feed_forward_length": getattr(config, "ffn_hidden_size", None) or getattr(config, "intermediate_size", None),
    }
    if architecture == "gpt2":
        said["feed_forward_length"] = config.n_inner or 4 * config.n_embd
    if architecture == "bloom":
        said["feed_forward_length"] = 4 * config.hidden_size
    kv = getattr(config, "num_kv_heads", None) or getattr(config, "num_key_value_heads", None)
    if architecture == "falcon" and not config.new_decoder_architecture:
        kv = 1 if config.multi_query else config.num_attention_heads
    if kv:
        said["attention.head_count_kv"] = kv
    for ours in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if getattr(config, ours, None) is not None:
            said["attention.layer_norm_rms_epsilon" if "rms" in ours else "attention.layer_norm_epsilon"] = getattr(config, ours)
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if rope.get("rope_theta"):
        said["rope.freq_base"] = rope["rope_theta"]
    if rope.get("rope_type", "default") in ("linear", "yarn"):
        said |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
        if rope["rope_type"] == "yarn":
            said["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    head = getattr(config, "head_dim", None)
    if head and architecture not in ("falcon", "stablelm"):
        said |= {"attention.key_length": head, "attention.value_length": head}
    if architecture in ("phi3", "stablelm"):
        whole = config.hidden_size // config.num_attention_heads
        said["rope.dimension_count"] = int(rope.get("partial_rotary_factor", 1.0) * whole)
    if architecture in ("gemma2", "gemma3", "phi3"):
        said["attention.sliding_window"] = config.sliding_window or 0
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, cap, None):
            said[cap] = getattr(config, cap)
    if architecture == "qwen3moe":
        said["expert_feed_forward_length"] = config.moe_intermediate_size
    if config.model_type in ("qwen3_moe", "mixtral"):
        said |= {"expert_count": config.num_local_experts, "expert_used_count": config.num_experts_per_tok}
    return said


def converted(model: Any) -> dict[str, Tensor]:
    """Tensors by `transformers`' names (or llama.cpp's, where there is none), changed as its converter changes them."""
    config, found = model.config, {}
    heads = config.num_attention_heads
    for name, tensor in model.state_dict().items():
        kind = config.model_type
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        layer = next((part for part in name.split(".") if part.isdigit()), "")
        if kind in ("llama", "mixtral") and ("q_proj" in name or "k_proj" in name):
            tensor = permute(tensor, heads if "q_proj" in name else config.num_key_value_heads)
        if kind.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if kind == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = tensor.T
        if "query_key_value" in name:
            tensor = unpack(tensor, config)
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.chunk(2, 1)
            found |= {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
        elif name.endswith("experts.down_proj"):
            found[f"blk.{layer}.ffn_down_exps.weight"] = tensor
        elif "_layernorm.norms." in name:
            stored = f"blk.{layer}.attn_{'q' if 'q_layernorm' in name else 'k'}_norm.weight"
            found[stored] = torch.cat([found[stored], tensor[None]]) if stored in found else tensor[None]
        else:
            found[name] = tensor
    return {name: tensor.detach() for name, tensor in found.items()}


def permute(weights: Tensor, heads: int) -> Tensor:
    """`LlamaModel.permute` of convert_hf_to_gguf.py."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def unpack(packed: Tensor, config: Any) -> Tensor:
    """Queries of all heads, then keys, then values: `FalconModel` and `BloomModel` of convert_hf_to_gguf.py."""
    heads = config.num_attention_heads
    groups = heads
    if config.model_type == "falcon" and (config.new_decoder_architecture or config.multi_query):
        groups = config.num_kv_heads if config.new_decoder_architecture else 1
    x = packed.reshape(groups, heads // groups + 2, -1, *packed.shape[1:])
    parts = [x[:, :-2], x[:, [-2]], x[:, [-1]]]
    return torch.cat([part.reshape(-1, *packed.shape[1:]) for part in parts])
