"""Tiny random models of every family: odd sizes, and weights large enough that a wrong detail shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

ROPE = {"rope_theta": 1000.0, "rope_type": "default"}
PARTIAL = {"rope_theta": 1000.0, "rope_type": "default", "partial_rotary_factor": 0.7}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {
    "vocab_size": 53, "hidden_size": 36, "intermediate_size": 52, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 40, "rope_parameters": ROPE, **IDS,
}  # fmt: skip
GPT2 = {"vocab_size": 53, "n_positions": 40, "n_embd": 36, "n_layer": 3, "n_head": 6, **IDS}
FALCON = {
    "vocab_size": 53, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 6, "max_position_embeddings": 40,
    "ffn_hidden_size": 50, "rope_parameters": ROPE, **IDS,
}  # fmt: skip
FALCON_NEW = FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True}
OPT = {
    "vocab_size": 53, "hidden_size": 36, "num_hidden_layers": 3, "ffn_dim": 50, "max_position_embeddings": 40,
    "num_attention_heads": 6, "word_embed_proj_dim": 36, **IDS,
}  # fmt: skip
NEOX = {name: value for name, value in COMMON.items() if name != "num_key_value_heads"} | {"rope_parameters": PARTIAL}
BLOOM = {"vocab_size": 53, "hidden_size": 36, "n_layer": 3, "n_head": 6, **IDS}
MPT = {"vocab_size": 53, "d_model": 36, "n_layers": 3, "n_heads": 6, "max_seq_len": 40, **IDS}
MOE = COMMON | {"num_local_experts": 5, "num_experts_per_tok": 2}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 30}
YARN = {"factor": 4.0, "original_max_position_embeddings": 90}
LOCAL_GLOBAL = ["sliding_attention", "full_attention", "sliding_attention"]


def scaled(kind: str, **settings: Any) -> dict[str, Any]:
    return COMMON | {"rope_parameters": {"rope_theta": 1000.0, "rope_type": kind, **settings}}


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2 | {"n_inner": 50}),
    "gpt2, odd options": (
        "GPT2Config", "GPT2LMHeadModel",
        GPT2 | {"scale_attn_weights": False, "tie_word_embeddings": False, "activation_function": "relu"},
    ),
    "gpt2, scaled by layer": ("GPT2Config", "GPT2LMHeadModel", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neo": (
        "GPTNeoConfig", "GPTNeoForCausalLM",
        {"vocab_size": 53, "max_position_embeddings": 40, "hidden_size": 36, "num_layers": 4, "num_heads": 6, "window_size": 5,
         "attention_types": [[["global", "local"], 2]], "intermediate_size": 50, **IDS},
    ),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", GPT2 | {"n_head": 3, "rotary_dim": 6}),
    "neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", NEOX | {"num_attention_heads": 3}),
    "neox, in turn": (
        "GPTNeoXConfig", "GPTNeoXForCausalLM",
        NEOX | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "opt": ("OPTConfig", "OPTForCausalLM", OPT),
    "opt, no biases": ("OPTConfig", "OPTForCausalLM", OPT | {"enable_bias": False, "tie_word_embeddings": False}),
    "bloom": ("BloomConfig", "BloomForCausalLM", BLOOM),
    "falcon 7b": ("FalconConfig", "FalconForCausalLM", FALCON),
    "falcon 40b": ("FalconConfig", "FalconForCausalLM", FALCON_NEW | {"bias": True}),
    "falcon 11b": (
        "FalconConfig", "FalconForCausalLM",
        FALCON_NEW | {"num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
    ),
    "falcon, in turn": (
        "FalconConfig", "FalconForCausalLM",
        FALCON | {"multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "mpt": ("MptConfig", "MptForCausalLM", MPT | {"attn_config": {"clip_qkv": 1.1, "softmax_scale": 0.3}}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", COMMON),
    "llama, biases": (
        "LlamaConfig", "LlamaForCausalLM",
        COMMON | {"attention_bias": True, "mlp_bias": True, "head_dim": 10, "tie_word_embeddings": True},
    ),
    "llama 3": (
        "LlamaConfig", "LlamaForCausalLM",
        scaled("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0, original_max_position_embeddings=16),
    ),
    "llama, linear": ("LlamaConfig", "LlamaForCausalLM", scaled("linear", factor=3.0)),
    "llama, dynamic": ("LlamaConfig", "LlamaForCausalLM", scaled("dynamic", factor=3.0)),
    "llama, yarn": ("LlamaConfig", "LlamaForCausalLM", scaled("yarn", **YARN) | {"head_dim": 16}),
    "llama, yarn with options": (
        "LlamaConfig", "LlamaForCausalLM",
        scaled("yarn", **YARN, beta_fast=12.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=0.4) | {"head_dim": 16},
    ),
    "llama, longrope": (
        "LlamaConfig", "LlamaForCausalLM",
        scaled("longrope", short_factor=[1.0, 1.1, 1.4], long_factor=[1.0, 2.5, 9.0], original_max_position_embeddings=16),
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", COMMON | {"sliding_window": 6, "head_dim": 8}),
    "ministral": (
        "MinistralConfig", "MinistralForCausalLM",
        COMMON | {"sliding_window": 6, "layer_types": LOCAL_GLOBAL, "head_dim": 8},
    ),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", MOE | {"sliding_window": 7}),
    "qwen2": (
        "Qwen2Config", "Qwen2ForCausalLM",
        COMMON | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", COMMON | {"head_dim": 10, "attention_bias": True}),
    "apertus": ("ApertusConfig", "ApertusForCausalLM", scaled("llama3", **LLAMA3) | {"attention_bias": True}),
    "apertus, silu": ("ApertusConfig", "ApertusForCausalLM", scaled("llama3", **LLAMA3) | {"hidden_act": "silu"}),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", MOE | {"moe_intermediate_size": 12, "head_dim": 10}),
    "qwen3_moe, some dense": (
        "Qwen3MoeConfig", "Qwen3MoeForCausalLM",
        MOE | {"moe_intermediate_size": 12, "norm_topk_prob": True, "mlp_only_layers": [1], "num_hidden_layers": 4,
               "use_sliding_window": True, "sliding_window": 7},
    ),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", COMMON | {"head_dim": 10}),
    "gemma2": (
        "Gemma2Config", "Gemma2ForCausalLM",
        COMMON | {"head_dim": 10, "sliding_window": 6, "query_pre_attn_scalar": 12, "final_logit_softcapping": 4.0,
                  "attn_logit_softcapping": 2.0},
    ),
    "gemma3": (
        "Gemma3TextConfig", "Gemma3ForCausalLM",
        COMMON | {"head_dim": 10, "sliding_window": 6, "query_pre_attn_scalar": 12, "layer_types": LOCAL_GLOBAL,
                  "rope_parameters": {"sliding_attention": ROPE,
                                      "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0}}},
    ),
    "phi": ("PhiConfig", "PhiForCausalLM", COMMON | {"rope_parameters": PARTIAL}),
    "phi, normed": ("PhiConfig", "PhiForCausalLM", COMMON | {"rope_parameters": PARTIAL, "qk_layernorm": True}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", COMMON | {"sliding_window": 7}),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", COMMON | {"rope_parameters": PARTIAL, "use_qkv_bias": True}),
    "stablelm, side by side": (
        "StableLmConfig", "StableLmForCausalLM",
        COMMON | {"rope_parameters": PARTIAL, "use_parallel_residual": True, "qk_layernorm": True},
    ),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", COMMON | {"clip_qkv": 1.0}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", COMMON),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", COMMON | {"num_hidden_layers": 5}),
    "smollm3, local": (
        "SmolLM3Config", "SmolLM3ForCausalLM",
        COMMON | {"num_hidden_layers": 5, "use_sliding_window": True, "sliding_window": 6, "tie_word_embeddings": False},
    ),
    "granite": (
        "GraniteConfig", "GraniteForCausalLM",
        COMMON | {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.3},
    ),
    "cohere": ("CohereConfig", "CohereForCausalLM", COMMON | {"logit_scale": 0.3}),
    "cohere, normed": ("CohereConfig", "CohereForCausalLM", COMMON | {"use_qk_norm": True, "attention_bias": True}),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", COMMON | {"sliding_window": 6}),
    "starcoder2, no biases": (
        "Starcoder2Config", "Starcoder2ForCausalLM",
        COMMON | {"use_bias": False, "tie_word_embeddings": False},
    ),
}  # fmt: skip


def tiny(case: str, seed: int = 0) -> Any:
    """A random model in float32: matrices and biases N(0, 0.25²), norm weights around one (Gemma's around zero)."""
    config_name, model_name, settings = CASES[case]
    config = getattr(transformers, config_name)(**settings)
    config._experts_implementation = "eager"
    for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if hasattr(config, name):
            setattr(config, name, 0.03)  # large enough to show
    model = getattr(transformers, model_name)._from_config(config, attn_implementation="eager").eval().float()
    return drawn(model, seed)


def from_file(config: dict[str, Any], folder: Path) -> Any:
    """A random model of what a `config.json` says, as `transformers` reads such a file."""
    (folder / "config.json").write_text(json.dumps(config))
    read = transformers.AutoConfig.from_pretrained(str(folder))
    options = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    return drawn(transformers.AutoModelForCausalLM.from_config(read, **options).eval())


def drawn(model: Any, seed: int = 0) -> Any:
    """The model with random weights, large enough that a wrong detail shows, and no larger in wider models."""
    draw = torch.Generator().manual_seed(seed)
    width = model.get_input_embeddings().weight.shape[1]
    spread = min(0.25, 1.5 / width**0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name or "ln_" in name
            centre = 1.0 if is_norm and name.endswith("weight") and "gemma" not in model.config.model_type else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread + centre)
    return model


def tensors_of(model: Any) -> dict[str, torch.Tensor]:
    """As files have them: a tied unembedding is not written down."""
    tied = model.config.tie_word_embeddings
    return {name: tensor for name, tensor in model.state_dict().items() if not (tied and name in HEADS)}


HEADS = ("lm_head.weight", "embed_out.weight")


def tokens_for(model: Any, length: int = 21, batch: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(3, model.config.vocab_size, (batch, length), generator=draw)
