"""Configs as they were published (field names and values are facts) are understood, whatever year they are from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway import loading
from cutaway.hooked_transformer import HookedTransformer
from cutaway.weights.families import configuration, convert
from tests.weights.families.published import CONFIGS, GROUPS, LONG, WIDTHS, shrunk
from tests.weights.families.tiny import from_file, tensors_of, tokens_for

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0",
}  # fmt: skip

PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": (
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new", "n_ctx": 1024,
         "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257, "layer_norm_epsilon": 1e-05,
         "summary_type": "cls_index", "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
         "resid_pdrop": 0.1, "output_past": True},
        {"d_model": 768, "n_heads": 12, "n_ctx": 1024, "d_mlp": 3072, "n_params": 84934656},
    ),
    "gpt-neo-125M": (
        {"model_type": "gpt_neo", "architectures": ["GPTNeoForCausalLM"], "attention_types": [[["global", "local"], 6]],
         "attention_layers": ["global", "local"] * 6, "hidden_size": 768, "intermediate_size": None, "num_heads": 12,
         "num_layers": 12, "window_size": 256, "max_position_embeddings": 2048, "gradient_checkpointing": False},
        {"use_attn_scale": False, "window_size": 256, "d_mlp": 3072},
    ),
    "gpt-j-6B": (
        {"model_type": "gptj", "architectures": ["GPTJForCausalLM"], "n_inner": None, "rotary": True, "rotary_dim": 64,
         "scale_attn_weights": True, "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer"},
        {"rotary_dim": 64, "d_head": 256, "rotary_adjacent_pairs": True},
    ),
    "pythia-70m": (
        {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 512, "num_attention_heads": 8,
         "num_hidden_layers": 6, "intermediate_size": 2048, "rotary_emb_base": 10000, "rotary_pct": 0.25, "vocab_size": 50304,
         "use_parallel_residual": True, "hidden_act": "gelu", "tie_word_embeddings": False},
        {"rotary_dim": 16, "rotary_base": 10000.0, "parallel_attn_mlp": True, "act_fn": "gelu"},
    ),
    "gpt-neox-20b": (
        {"model_type": "gpt_neox", "attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "hidden_act": "gelu_fast",
         "rotary_emb_base": 10000, "rotary_pct": 0.25},
        {"rotary_dim": 24, "d_head": 96, "act_fn": "gelu_fast"},
    ),
    "bloom-560m": (
        {"model_type": "bloom", "architectures": ["BloomForCausalLM"], "n_embed": 1024, "n_layer": 24, "num_attention_heads": 16,
         "n_head": 16, "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "masked_softmax_fusion": True,
         "offset_alibi": 100, "skip_bias_add": True, "skip_bias_add_qkv": False, "seq_length": 2048, "unk_token_id": 0},
        {"d_model": 1024, "d_head": 64, "n_ctx": 2048, "default_prepend_bos": False},
    ),
    "falcon-7b": (
        {"model_type": "falcon", "architectures": ["FalconForCausalLM"], "alibi": False, "bias": False, "multi_query": True,
         "apply_residual_connection_post_layernorm": False, "auto_map": {"AutoConfig": "x"}, "parallel_attn": True},
        {"n_key_value_heads": 1, "d_head": 64, "parallel_attn_mlp": True},
    ),
    "mpt-7b": (
        {"model_type": "mpt", "architectures": ["MPTForCausalLM"], "d_model": 4096, "n_heads": 32, "n_layers": 32, "verbose": 0,
         "expansion_ratio": 4, "init_config": {"name": "kaiming_normal_"}, "no_bias": True, "tokenizer_name": "gpt-neox",
         "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "clip_qkv": None,
                         "attn_type": "multihead_attention", "attn_uses_sequence_id": False, "prefix_lm": False, "qk_ln": False,
                         "softmax_scale": None}},
        {"positional_embedding_type": "alibi", "clip_qkv": None, "d_mlp": 16384},
    ),
    "Llama-2-7b": (
        LLAMA | {"hidden_size": 4096, "max_position_embeddings": 4096, "num_key_value_heads": 32, "rope_scaling": None},
        {"n_key_value_heads": None, "rotary_base": 10000.0, "n_ctx": 4096},
    ),
    "Llama-3.1-8B": (
        LLAMA
        | {"intermediate_size": 14336, "num_key_value_heads": 8, "rope_theta": 500000.0, "max_position_embeddings": 131072,
           "eos_token_id": [128001, 128008], "attention_bias": False, "mlp_bias": False, "vocab_size": 128256,
           "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 8192, "rope_type": "llama3"}},
        {"use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 8192, "n_key_value_heads": 8, "rotary_base": 500000.0},
    ),
    "Mistral-7B": (
        {"model_type": "mistral", "sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 32768},
        {"window_size": 4096, "attn_types": ["local"] * 32},
    ),
    "Qwen2.5-0.5B": (
        {"model_type": "qwen2", "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24,
         "max_window_layers": 24, "sliding_window": 32768, "use_sliding_window": False, "use_mrope": False, "rope_theta": 1e6,
         "tie_word_embeddings": True},
        {"d_head": 64, "use_local_attn": False, "default_prepend_bos": False},
    ),
    "Qwen3-30B-A3B": (
        {"model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
         "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "head_dim": 128, "num_hidden_layers": 48,
         "max_window_layers": 48, "use_sliding_window": False, "sliding_window": None},
        {"num_experts": 128, "d_mlp": 768, "moe_layers": None, "norm_topk_prob": True},
    ),
    "gemma-2-2b": (
        {"model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256, "sliding_window": 4096,
         "cache_implementation": "hybrid", "rope_theta": 10000.0, "head_dim": 256},
        {"attn_scale": 16.0, "attn_types": ["local", "global"] * 13, "output_logits_soft_cap": 30.0},
    ),
    "gemma-3-1b": (
        {"model_type": "gemma3_text", "hidden_size": 1152, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
         "rope_local_base_freq": 10000, "rope_theta": 1000000, "rope_scaling": None, "sliding_window": 512,
         "sliding_window_pattern": 6, "num_hidden_layers": 26, "attn_logit_softcapping": None, "cache_implementation": "hybrid"},
        {"rotary_base": 1e6, "rotary_base_local": 1e4, "attn_types": (["local"] * 5 + ["global"]) * 4 + ["local"] * 2},
    ),
    "gemma-3-4b": (
        {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {"hidden_size": 1152},
         "mm_tokens_per_image": 256,
         "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                         "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}},
        {"d_model": 2560, "n_heads": 8, "n_key_value_heads": 4, "rotary_linear_factor": 8.0, "window_size": 1024},
    ),
    "phi-2": (
        {"model_type": "phi", "hidden_size": 2560, "num_attention_heads": 32, "partial_rotary_factor": 0.4, "qk_layernorm": False,
         "num_key_value_heads": 32, "rope_scaling": None, "hidden_act": "gelu_new"},
        {"rotary_dim": 32, "d_head": 80, "use_qk_norm": False},
    ),
    "Phi-3-mini-4k": (
        {"model_type": "phi3", "attention_bias": False, "original_max_position_embeddings": 4096, "rope_scaling": None,
         "sliding_window": 2047, "embd_pdrop": 0.0},
        {"window_size": 2047, "rotary_dim": 96},
    ),
    "stablelm-2-1_6b": (
        {"model_type": "stablelm", "hidden_size": 2048, "partial_rotary_factor": 0.25, "use_qkv_bias": True,
         "use_parallel_residual": False},
        {"rotary_dim": 16, "gated_mlp": True},
    ),
    "command-r": (
        {"model_type": "cohere", "logit_scale": 0.0625, "model_max_length": 131072, "use_qk_norm": False, "rope_theta": 8e6},
        {"rotary_base": 8e6, "rotary_adjacent_pairs": True, "parallel_attn_mlp": True},
    ),
    "starcoder2-3b": (
        {"model_type": "starcoder2", "mlp_type": "default", "norm_type": "layer_norm", "norm_epsilon": 1e-05, "use_bias": True,
         "rope_theta": 999999.4420358813, "sliding_window": 4096},
        {"normalization_type": "LN", "n_key_value_heads": 2, "rotary_base": 999999.4420358813},
    ),
    "SmolLM3-3B": (
        {"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0] * 9, "max_window_layers": 28, "mlp_bias": False,
         "layer_types": ["full_attention"] * 36, "rope_theta": 5000000.0, "pretraining_tp": 2, "use_sliding_window": False},
        {"rotary_layers": [True, True, True, False] * 9, "use_local_attn": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_understood(name: str) -> None:
    config, facts = PUBLISHED[name]
    cfg = configuration(config).to_dict()
    assert {key: cfg[key] for key in facts} == facts


def test_every_published_config_is_understood_at_full_size() -> None:
    assert len(CONFIGS) > 150
    for config in CONFIGS.values():
        assert configuration(config).d_model == next(config[name] for name in WIDTHS if name in config)


@torch.no_grad()
@pytest.mark.parametrize("group", GROUPS)
def test_small_models_of_published_configs_agree_with_transformers(group: str, tmp_path: Path) -> None:
    """Texts are longer than windows and than the length that a model was trained on first. Of models that differ in size
    only, one."""
    different = {json.dumps(shrunk(config), sort_keys=True): name for name, config in GROUPS[group].items()}
    for small, name in ((json.loads(text), name) for text, name in different.items()):
        model = from_file(small, tmp_path)
        tokens = tokens_for(model, length=LONG // 2 - 8, batch=2)
        want = model(tokens).logits
        cfg, weights = convert(small, tensors_of(model))
        cfg.device = "cpu"
        logits = loading.build(HookedTransformer, cfg, weights)(tokens)
        assert (logits - want).abs().max() < 2e-5 * want.abs().max(), name
        processed = HookedTransformer.from_pretrained(name, hf_model=model, device="cpu")
        if not small.get("reorder_and_upcast_attn"):  # which is float32 only
            want = model.double()(tokens).logits  # without the rounding of float32, which differs by processor
        assert (processed(tokens).log_softmax(-1) - want.log_softmax(-1)).abs().max() < 5e-5, name
