"""Configs of published models, written from memory as the facts that they are: names and values of fields, at full size.

Each keeps the odd fields of its year and its makers: aliases, leftovers of training, names that no release reads. `shrunk`
makes a small model of one, in which the shape of everything is as in the original: queries for each key, the share of a
head that rotates, which layers have windows.
"""

from __future__ import annotations

import copy
import math
from typing import Any

Config = dict[str, Any]


def sized(base: Config, sizes: dict[str, tuple[Any, ...]], *fields: str, **common: Any) -> dict[str, Config]:
    """Models that differ in a few fields: name → the values of `fields`."""
    return {name: {**base, **common, **dict(zip(fields, values, strict=True))} for name, values in sizes.items()}


def of(model_type: str, architecture: str, **fields: Any) -> Config:
    return {"model_type": model_type, "architectures": [architecture], **fields}


def ids(bos: Any, eos: Any, pad: Any = "none") -> Config:
    return {"bos_token_id": bos, "eos_token_id": eos} | ({} if pad == "none" else {"pad_token_id": pad})


SUMMARY: Config = {
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
}

# fmt: off

# GPT-2 and those that are GPT-2

GPT2 = of("gpt2", "GPT2LMHeadModel", activation_function="gelu_new", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1,
    n_ctx=1024, n_positions=1024, vocab_size=50257, **ids(50256, 50256), **SUMMARY)
LABELS = {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
CHAT = {"task_specific_params": {"conversational": {"max_length": 1000}}}
MORE_OF_GPT2 = {"reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True}
STANFORD = {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": True}
GPT2S = sized(GPT2 | {"n_special": 0, "predict_special_tokens": True, "output_past": True}, {"gpt2-medium": (1024, 24,
    16), "gpt2-large": (1280, 36, 20), "gpt2-xl": (1600, 48, 25)}, "n_embd", "n_layer", "n_head") | sized(GPT2 | CHAT,
    {"DialoGPT-small": (768, 12, 12), "DialoGPT-medium": (1024, 24, 16), "DialoGPT-large": (1280, 36, 20)}, "n_embd",
    "n_layer", "n_head") | {"distilgpt2": GPT2 | LABELS | {"n_embd": 768, "n_layer": 6, "n_head": 12, "use_cache":
    True, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}},
    "codeparrot-small": GPT2 | MORE_OF_GPT2 | STANFORD | {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
    "vocab_size": 32768, **ids(0, 0), "_name_or_path": "lvwerra/codeparrot-small", "torch_dtype": "float32"},
    "codeparrot": GPT2 | {"n_embd": 1600, "n_layer": 48, "n_head": 25, "n_inner": None, "vocab_size": 32768,
    "gradient_checkpointing": False, "scale_attn_weights": True, **ids(0, 0)},
    "stanford-gpt2-small-a": GPT2 | STANFORD | {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
    "_name_or_path": "gpt2", "use_cache": False, "torch_dtype": "float32"},
    "german-gpt2": GPT2 | {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50265, "gradient_checkpointing":
    False, "n_inner": None, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    "Cerebras-GPT-111M": GPT2 | {"activation_function": "gelu", "n_embd": 768, "n_layer": 10, "n_head": 12, "n_inner":
    3072, "n_ctx": 2048, "n_positions": 2048, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    "scale_attn_weights": True, "use_cache": True, "torch_dtype": "float32"},
    "Cerebras-GPT-13B": GPT2 | {"activation_function": "gelu", "n_embd": 5120, "n_layer": 40, "n_head": 40, "n_inner":
    20480, "n_positions": 2048, "scale_attn_weights": True, "use_cache": True},
    "BioMedLM": GPT2 | STANFORD | {"vocab_size": 28896, "n_embd": 2560, "n_layer": 32,
    "n_head": 20, "n_inner": None, "sigopt": None, **ids(28895, 28895)},
    "ProtGPT2": GPT2 | {"n_embd": 1280, "n_layer": 36, "n_head": 20, "n_inner": None, **ids(
    0, 0), "scale_attn_weights": True, "_name_or_path": "output_model"}}

# GPT-Neo, GPT-J, GPT-NeoX

NEO = of("gpt_neo", "GPTNeoForCausalLM", activation_function="gelu_new", attention_dropout=0, embed_dropout=0,
    resid_dropout=0, gradient_checkpointing=False, intermediate_size=None, max_position_embeddings=2048, vocab_size=50257,
    use_cache=True, tokenizer_class="GPT2Tokenizer", **ids(50256, 50256), **SUMMARY)
NEOS = sized(NEO, {"gpt-neo-125M": (768, 12, 12), "gpt-neo-1.3B": (2048, 24, 16), "gpt-neo-2.7B": (2560, 32, 20),
    "TinyStories-1M": (64, 8, 16)}, "hidden_size", "num_layers", "num_heads", window_size=256)
for neo in NEOS.values():
    neo["attention_types"] = [[["global", "local"], neo["num_layers"] // 2]]
    neo["attention_layers"] = ["global", "local"] * (neo["num_layers"] // 2)

GPTJ = of("gptj", "GPTJForCausalLM", activation_function="gelu_new", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    n_embd=4096, gradient_checkpointing=False, n_head=16, n_inner=None, n_layer=28, n_positions=2048, rotary=True,
    rotary_dim=64, scale_attn_weights=True, tie_word_embeddings=False, tokenizer_class="GPT2Tokenizer", use_cache=True,
    vocab_size=50400, transformers_version="4.18.0.dev0", **ids(50256, 50256), **SUMMARY)
GPTJS = {"gpt4all-j": GPTJ | {"_name_or_path": "EleutherAI/gpt-j-6B", "torch_dtype": "float32", "use_cache": False},
    "pygmalion-6b": GPTJ | {"badwordsids": [[3]], "bos_token_id": 50256, "task_specific_params": {"text-generation":
    {"top_k": 2}}}}

NEOX = of("gpt_neox", "GPTNeoXForCausalLM", hidden_act="gelu", initializer_range=0.02, layer_norm_eps=1e-05,
    torch_dtype="float16", max_position_embeddings=2048, rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False,
    use_cache=True, use_parallel_residual=True, vocab_size=50304, transformers_version="4.24.0", **ids(0, 0))
PYTHIA = ((512, 6, 8, 2048), (768, 12, 12, 3072), (1024, 24, 16, 4096), (2048, 16, 8, 8192), (2560, 32, 32, 10240), (
    4096, 32, 32, 16384))
NEOXS = sized(NEOX, dict(zip(("pythia-70m", "pythia-160m", "pythia-410m-deduped", "pythia-1b", "pythia-2.8b-v0",
    "pythia-6.9b"), PYTHIA, strict=True)), "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size") | {"pythia-12b": NEOX | {"hidden_size": 5120, "num_hidden_layers": 36, "num_attention_heads":
    40, "intermediate_size": 20480, "vocab_size": 50688},
    "stablelm-base-alpha-7b": NEOX | {"hidden_size": 6144, "num_hidden_layers": 16, "num_attention_heads": 48,
    "intermediate_size": 24576, "max_position_embeddings": 4096, "vocab_size": 50432},
    "RedPajama-INCITE-Base-3B": NEOX | {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
    "rotary_pct": 1.0, "intermediate_size": 10240, "use_parallel_residual": False, "vocab_size": 50432,
    "_name_or_path": "rp_3b"},
    "polyglot-ko-1.3b": NEOX | {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "rotary":
    True, "intermediate_size": 8192, "rotary_pct": 0.5, "rotary_dim": 64, "vocab_size": 30080, "class":
    "GPTNeoXForCausalLM", "num_steps": "global_step157000"},
    "oasst-sft-4-pythia-12b": NEOX | {"hidden_size": 5120, "num_hidden_layers": 36, "num_attention_heads": 40,
    "vocab_size": 50288, "intermediate_size": 20480, "attention_dropout": 0.0, "classifier_dropout": 0.1,
    "hidden_dropout": 0.0},
    "japanese-gpt-neox-3.6b": NEOX | {"hidden_size": 2816, "num_hidden_layers": 36, "num_attention_heads": 22,
    "rotary_pct": 1.0, "intermediate_size": 11264, "use_parallel_residual": False, "vocab_size": 32000, **ids(2, 3)}}

# BLOOM, OPT, MPT, Falcon

BLOOM = of("bloom", "BloomForCausalLM", apply_residual_connection_post_layernorm=False, attention_dropout=0.0,
    hidden_dropout=0.0, attention_softmax_in_fp32=True, initializer_range=0.02, layer_norm_epsilon=1e-05,
    masked_softmax_fusion=True, bias_dropout_fusion=True, n_inner=None, offset_alibi=100, pretraining_tp=2,
    skip_bias_add=True, skip_bias_add_qkv=False, seq_length=2048, slow_but_exact=False, unk_token_id=0, use_cache=True,
    vocab_size=250880, transformers_version="4.20.0", **ids(1, 2, 3))
BLOOMS = sized(BLOOM, {"bloom-1b1": (1536, 24, 16), "bloom-1b7": (2048, 24, 16), "bloom-3b": (2560, 30, 32),
    "bloom-7b1": (4096, 30, 32)}, "n_embed", "n_layer", "num_attention_heads") | {"bloom": {name: value for name,
    value in BLOOM.items() if name != "seq_length"} | {"hidden_size": 14336, "n_layer": 70, "n_head": 112,
    "pretraining_tp": 4, "torch_dtype": "bfloat16", "use_cache": True, "transformers_version": "4.21.0"},
    "bloomz-560m": BLOOM | {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "pretraining_tp": 1, "use_cache": True},
    "bloomz-7b1-mt": BLOOM | {"hidden_size": 4096, "n_layer": 30, "n_head": 32, "pretraining_tp": 4, "eos_token_id":
    2, "_name_or_path": "bigscience/bloom-7b1"},
    "tigerbot-7b": BLOOM | {"hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250682, "torch_dtype":
    "float16"}}

OPT = of("opt", "OPTForCausalLM", activation_dropout=0.0, activation_function="relu", attention_dropout=0.0,
    do_layer_norm_before=True, dropout=0.1, init_std=0.02, layerdrop=0.0, max_position_embeddings=2048, prefix="</s>",
    torch_dtype="float16", use_cache=True, vocab_size=50272, _remove_final_layer_norm=False, transformers_version="4.21.0.dev0",
    **ids(2, 2, 1))
OPTS = sized(OPT, {"opt-125m": (768, 12, 12, 3072, 768), "opt-1.3b": (2048, 24, 32, 8192, 2048), "opt-6.7b": (4096,
    32, 32, 16384, 4096), "opt-66b": (9216, 64, 72, 36864, 9216)}, "hidden_size", "num_hidden_layers",
    "num_attention_heads", "ffn_dim", "word_embed_proj_dim") | {"opt-iml-1.3b": OPT | {"hidden_size": 2048,
    "num_hidden_layers": 24, "num_attention_heads": 32, "ffn_dim": 8192, "word_embed_proj_dim": 2048, "enable_bias":
    True, "layer_norm_elementwise_affine": True},
    "galactica-1.3b": OPT | {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "ffn_dim": 8192,
    "word_embed_proj_dim": 2048, "enable_bias": False, "layer_norm_elementwise_affine": True, "activation_function":
    "gelu", "vocab_size": 50000, "learned_embeddings": True, "scale_embeddings": False, "model_type": "opt",
    "num_labels": 2, **ids(0, 2, 1)}}

MPT_ATTENTION = {"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "attn_type":
    "multihead_attention", "attn_uses_sequence_id": False, "clip_qkv": None, "prefix_lm": False, "qk_ln": False,
    "softmax_scale": None}
MPT = of("mpt", "MPTForCausalLM", auto_map={"AutoConfig": "configuration_mpt.MPTConfig"}, d_model=4096, n_heads=32,
    n_layers=32, emb_pdrop=0, embedding_fraction=1.0, expansion_ratio=4, init_device="cpu", learned_pos_emb=True,
    logit_scale=None, max_seq_len=2048, no_bias=True, norm_type="low_precision_layernorm", resid_pdrop=0, torch_dtype="bfloat16",
    use_cache=False, init_config={"name": "kaiming_normal_", "fan_mode": "fan_in", "verbose": 0},
    tokenizer_name="EleutherAI/gpt-neox-20b",
    attn_config=MPT_ATTENTION, verbose=0, vocab_size=50432)
MPTS = {"mpt-7b-storywriter": MPT | {"max_seq_len": 65536,
    "attn_config": MPT_ATTENTION | {"clip_qkv": 6.0, "alibi_bias_max": 16}},
    "mpt-30b": MPT | {"d_model": 7168, "n_heads": 64, "n_layers": 48, "max_seq_len": 8192,
    "attn_config": MPT_ATTENTION | {"attn_impl": "torch"}},
    "mpt-7b-chat": MPT | {"name": "mpt",
    "attn_config": MPT_ATTENTION | {"attn_impl": "triton"}},
    "replit-code-v1_5-3b": MPT | {"d_model": 3072, "n_heads": 24, "max_seq_len": 4096, "vocab_size": 32768,
    "attn_config": MPT_ATTENTION | {"attn_impl": "triton"}, "init_device": "meta"}}

FALCON = of("falcon", "FalconForCausalLM", alibi=False, apply_residual_connection_post_layernorm=False,
    attention_dropout=0.0, auto_map={"AutoConfig": "configuration_falcon.FalconConfig"}, bias=False, hidden_dropout=0.0,
    hidden_size=4544, initializer_range=0.02, layer_norm_epsilon=1e-05, multi_query=True, new_decoder_architecture=False,
    num_attention_heads=71, num_hidden_layers=32, parallel_attn=True, torch_dtype="bfloat16", use_cache=True,
    vocab_size=65024, **ids(11, 11))
NEW = {"new_decoder_architecture": True, "num_kv_heads": 8}
FALCONS = {"falcon-7b-instruct": FALCON | {"transformers_version": "4.27.4"},
    "falcon-40b": FALCON | NEW | {"hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 60},
    "falcon-180B": FALCON | NEW | {"hidden_size": 14848, "num_attention_heads": 232, "num_hidden_layers": 80,
    "auto_map": {}},
    "falcon-11B": FALCON | NEW | {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 60,
    "activation": "gelu", "ff_factor": 4, "ffn_hidden_size": 16384, "max_position_embeddings": 8192, "rope_scaling":
    None, "num_ln_in_parallel_attn": 1, "rope_theta": 500042.0, "tie_word_embeddings": False, "attention_head_dim":
    128}}

# Llama and those that are Llama

LLAMA = of("llama", "LlamaForCausalLM", hidden_act="silu", initializer_range=0.02, rms_norm_eps=1e-05, use_cache=True,
    torch_dtype="float16", vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
    num_attention_heads=32, **ids(1, 2))
SMOL = LLAMA | {"torch_dtype": "bfloat16", "vocab_size": 49152, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
    "pretraining_tp": 1, "rope_scaling": None, **ids(0, 0)}
SMOL2 = SMOL | {"is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000, "max_position_embeddings":
    8192, "initializer_range": 0.041666666666666664, "transformers_version": "4.40.1", "transformers.js_config": {
    "kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}, **ids(1, 2, 2)}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3"}
OF_SMOL = "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"
LLAMAS = sized(SMOL, {"SmolLM-135M": (576, 1536, 30, 9, 3), "SmolLM-360M": (960, 2560, 32, 15, 5), "SmolLM-1.7B": (
    2048, 8192, 24, 32, 32)}, *OF_SMOL, rope_theta=10000.0) | sized(SMOL2, {"SmolLM2-135M-Instruct": (576, 1536, 30,
    9, 3), "SmolLM2-360M": (960, 2560, 32, 15, 5), "SmolLM2-1.7B-Instruct": (2048, 8192, 24, 32, 32)}, *OF_SMOL) | {
    "llama-7b": LLAMA | {"max_sequence_length": 2048, "pad_token_id": -1, "rms_norm_eps": 1e-06,
    "transformers_version": "4.27.0"},
    "llama-65b (huggyllama)": LLAMA | {"hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80,
    "pad_token_id": 0, "num_attention_heads": 64, "max_position_embeddings": 2048},
    "alpaca": LLAMA | {"rms_norm_eps": 1e-06, "pad_token_id": 32000, "vocab_size": 32001, "max_sequence_length": 2048,
    "use_cache": False, "_name_or_path": "llama"},
    "vicuna-7b-v1.5": LLAMA | {"_name_or_path": "vicuna-7b-v1.5", "max_position_embeddings": 4096,
    "num_key_value_heads": 32, "pad_token_id": 0, "pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings":
    False},
    "vicuna-7b-v1.5-16k": LLAMA | {"max_position_embeddings": 4096, "max_sequence_length": 16384,
    "num_key_value_heads": 32, "pad_token_id": 0, "pretraining_tp": 1, "rope_scaling": {"factor": 4.0, "type":
    "linear"}, "tie_word_embeddings": False},
    "longchat-7b-32k (condensed rotation)": LLAMA | {"max_position_embeddings": 4096, "max_sequence_length": 32768,
    "rope_scaling": {"factor": 8.0, "type": "linear"}, "rope_condense_ratio": 8},
    "Llama-2-70b": LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 4096, "pretraining_tp": 1,
    "rope_scaling": None, "tie_word_embeddings": False},
    "CodeLlama-7b": LLAMA | {"max_position_embeddings": 16384, "num_key_value_heads": 32, "pretraining_tp": 1,
    "vocab_size": 32016, "rope_scaling": None, "rope_theta": 1000000, "tie_word_embeddings": False},
    "CodeLlama-34b": LLAMA | {"hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 48,
    "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 16384, "rope_theta": 1000000},
    "Meta-Llama-3-8B": LLAMA | {"attention_bias": False, "attention_dropout": 0.0, "intermediate_size": 14336,
    "vocab_size": 128256, "max_position_embeddings": 8192, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rope_scaling": None, "rope_theta": 500000.0, "tie_word_embeddings": False, **ids(128000, 128001)},
    "Llama-3.1-8B-Instruct": LLAMA | {"attention_bias": False, "intermediate_size": 14336, "vocab_size": 128256,
    "mlp_bias": False, "max_position_embeddings": 131072, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rope_scaling": LLAMA3, "rope_theta": 500000.0, "tie_word_embeddings": False, **ids(128000, [128001, 128008,
    128009])},
    "Llama-3.2-3B": LLAMA | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "mlp_bias": False,
    "max_position_embeddings": 131072,
    "rope_scaling": LLAMA3 | {"factor": 32.0}, "rope_theta": 500000.0, "tie_word_embeddings": True},
    "TinyLlama-1.1B-Chat": LLAMA | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_key_value_heads": 4, "max_position_embeddings": 2048, "pretraining_tp": 1, "rope_scaling": None,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "attention_bias": False},
    "Yi-34B-200K": LLAMA | {"hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60,
    "num_attention_heads": 56, "num_key_value_heads": 8, "max_position_embeddings": 200000, "rope_theta": 5000000.0,
    "pad_token_id": 0, "pretraining_tp": 1, "vocab_size": 64000, "torch_dtype": "bfloat16"},
    "deepseek-llm-7b-base": LLAMA | {"num_hidden_layers": 30, "num_key_value_heads": 32, "rms_norm_eps": 1e-06,
    "pretraining_tp": 1, "max_position_embeddings": 4096, "vocab_size": 102400, "rope_scaling": None, "rope_theta":
    10000.0, **ids(100000, 100001)},
    "deepseek-coder-6.7b": LLAMA | {"num_key_value_heads": 32, "rms_norm_eps": 1e-06, "max_position_embeddings":
    16384, "rope_scaling": {"factor": 4.0, "type": "linear"}, "rope_theta": 100000, "vocab_size": 32256},
    "SOLAR-10.7B": LLAMA | {"num_hidden_layers": 48, "num_key_value_heads": 8, "intermediate_size": 14336,
    "pad_token_id": 2, "max_position_embeddings": 4096, "pretraining_tp": 1, "rope_scaling": None, "rope_theta":
    10000.0, "_name_or_path": "upstage/SOLAR-10.7B-v1.0", "tie_word_embeddings": False},
    "open_llama_3b": LLAMA | {"hidden_size": 3200, "intermediate_size": 8640, "num_hidden_layers": 26, "rms_norm_eps":
    1e-06, "max_position_embeddings": 2048, "pad_token_id": 0},
    "granite-3b-code-base": LLAMA | {"hidden_size": 2560, "intermediate_size": 10240, "attention_bias": True,
    "mlp_bias": True, "attention_dropout": 0.1, "max_position_embeddings": 2048, "num_key_value_heads": 32,
    "vocab_size": 49152, "pretraining_tp": 1, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings":
    True, **ids(0, 0, 0)},
    "Yarn-Llama-2-7b-64k": LLAMA | {"max_position_embeddings": 65536, "num_key_value_heads": 32, "pretraining_tp": 1,
    "rope_scaling": {"factor": 16.0, "original_max_position_embeddings": 4096, "type": "yarn", "finetuned": True},
    "auto_map": {"AutoConfig": "configuration_llama.LlamaConfig"}},
    "Llama-2-7b, dynamic scaling set by a user": LLAMA | {"max_position_embeddings": 4096, "rope_scaling": {"factor":
    2.0, "type": "dynamic"}},
    "InternLM-7B, converted to Llama": LLAMA | {"attention_bias": True, "max_position_embeddings": 2048, "vocab_size":
    103168},
    "Llama-Guard-3-1B": LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "head_dim": 64,
    "rope_scaling": LLAMA3 | {"factor": 32.0}, "rope_theta": 500000.0, "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "pad_token_id": 128004},
    "Sheared-LLaMA-1.3B": LLAMA | {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers":
    24, "num_attention_heads": 16, "num_key_value_heads": 16, "pad_token_id": 0, "max_position_embeddings": 4096,
    "pretraining_tp": 1, "rope_scaling": None},
    "Llama as releases of 5 write it": LLAMA | {"dtype": "float16", "head_dim": 128, "num_key_value_heads": 8,
    "pretraining_tp": 1, "max_position_embeddings": 131072,
    "rope_parameters": LLAMA3 | {"rope_theta": 500000.0}, "transformers_version": "5.0.0"}}

SMOLLM3 = {"SmolLM3-3B-Base": of("smollm3", "SmolLM3ForCausalLM", attention_bias=False, attention_dropout=0.0,
    hidden_act="silu", hidden_size=2048, initializer_range=0.02, intermediate_size=11008, layer_types=[
    "full_attention"] * 36, max_position_embeddings=65536, max_window_layers=28, mlp_bias=False,
    no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, num_attention_heads=16, num_hidden_layers=36,
    num_key_value_heads=4, pretraining_tp=2, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=5000000.0,
    sliding_window=None, torch_dtype="bfloat16", transformers_version="4.54.0.dev0", use_cache=False,
    use_sliding_window=False, vocab_size=128256, **ids(128000, 128001, 128004))}

# Mistral and Mixtral

MISTRAL = of("mistral", "MistralForCausalLM", hidden_act="silu", hidden_size=4096, initializer_range=0.02,
    intermediate_size=14336, max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32,
    num_key_value_heads=8, rms_norm_eps=1e-05, rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=False,
    torch_dtype="bfloat16", use_cache=True, vocab_size=32000, **ids(1, 2))
MISTRALS = {"Mistral-7B-Instruct-v0.1": MISTRAL | {"transformers_version": "4.34.0.dev0"},
    "Mistral-7B-Instruct-v0.2": MISTRAL | {"sliding_window": None, "rope_theta": 1000000.0, "attention_dropout": 0.0},
    "Mistral-7B-v0.3": MISTRAL | {"sliding_window": None, "rope_theta": 1000000.0, "vocab_size": 32768,
    "attention_dropout": 0.0, "head_dim": None},
    "OpenHermes-2.5": MISTRAL | {"vocab_size": 32002, "use_cache": False, "eos_token_id": 32000, "_name_or_path":
    "mistralai/Mistral"},
    "Mistral-Small-24B-2501": MISTRAL | {"hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40,
    "head_dim": 128, "rope_theta": 100000000.0, "sliding_window": None, "vocab_size": 131072},
    "Yarn-Mistral-7b-128k": MISTRAL | {"max_position_embeddings": 32768, "max_sequence_length": 131072,
    "sliding_window": 131072, "rope_scaling": {"factor": 16.0, "original_max_position_embeddings": 8192, "type":
    "yarn", "finetuned": True}, "auto_map": {"AutoConfig": "configuration_mistral.MistralConfig"}},
    "biomistral": MISTRAL | {"sliding_window": 4096, "attention_dropout": 0.0, "_name_or_path":
    "BioMistral/BioMistral-7B"},
    "Mixtral-8x7B-v0.1": MISTRAL | of("mixtral", "MixtralForCausalLM", num_experts_per_tok=2, num_local_experts=8,
    output_router_logits=False, sliding_window=None, router_aux_loss_coef=0.02, rope_theta=1000000.0,
    attention_dropout=0.0),
    "Mixtral-8x22B-v0.1": MISTRAL | of("mixtral", "MixtralForCausalLM", num_experts_per_tok=2, num_local_experts=8,
    output_router_logits=False, sliding_window=None, router_aux_loss_coef=0.001, rope_theta=1000000, hidden_size=6144,
    intermediate_size=16384, num_attention_heads=48, num_hidden_layers=56, max_position_embeddings=65536,
    router_jitter_noise=0.0)}

# Qwen

QWEN = of("qwen2", "Qwen2ForCausalLM", attention_dropout=0.0, hidden_act="silu", initializer_range=0.02,
    max_position_embeddings=32768, max_window_layers=21, rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=32768,
    tie_word_embeddings=True, use_cache=True, torch_dtype="bfloat16", use_sliding_window=False, vocab_size=151936, **ids(
    151643, 151643))
QWEN3 = of("qwen3", "Qwen3ForCausalLM", attention_bias=False, attention_dropout=0.0, head_dim=128, hidden_act="silu",
    rms_norm_eps=1e-06, initializer_range=0.02, max_position_embeddings=40960, rope_scaling=None, rope_theta=1000000,
    sliding_window=None, tie_word_embeddings=True, torch_dtype="bfloat16", use_cache=True, use_sliding_window=False,
    vocab_size=151936, **ids(151643, 151645))
OF_QWEN = "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"
QWENS = sized(QWEN, {"Qwen1.5-0.5B": (1024, 2816, 24, 16, 16), "Qwen2-0.5B-Instruct": (896, 4864, 24, 14, 2),
    "Qwen2-1.5B": (1536, 8960, 28, 12, 2)}, *OF_QWEN) | sized(QWEN | {"use_mrope": False, "rope_scaling": None}, {
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2), "Qwen2.5-3B": (2048, 11008, 36, 16, 2), "Qwen2.5-Coder-0.5B": (896, 4864,
    24, 14, 2)}, *OF_QWEN) | sized(QWEN | {"tie_word_embeddings": False, "use_mrope": False, "max_window_layers": 28,
    "vocab_size": 152064}, {"Qwen2.5-7B-Instruct": (3584, 18944, 28, 28, 4), "Qwen2.5-14B": (5120, 13824, 48, 40, 8),
    "Qwen1.5-7B": (4096, 11008, 32, 32, 32), "Qwen2-72B": (8192, 29568, 80, 64, 8), "Qwen2.5-Math-7B": (3584, 18944,
    28, 28, 4)}, *OF_QWEN) | {"Qwen2.5-7B-Instruct with yarn, by its card": QWEN | dict(zip(OF_QWEN, (3584, 18944, 28,
    28, 4), strict=True)) | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type":
    "yarn"}},
    "Qwen2.5-7B-Instruct-1M": QWEN | dict(zip(OF_QWEN, (3584, 18944, 28, 28, 4), strict=True)) | {
    "max_position_embeddings": 1010000, "rope_theta": 10000000.0, "dual_chunk_attention_config": None,
    "tie_word_embeddings": False},
    "DeepSeek-R1-Distill-Qwen-1.5B": QWEN | dict(zip(OF_QWEN, (1536, 8960, 28, 12, 2), strict=True)) | {
    "sliding_window": 4096, "use_mrope": False, "rope_theta": 10000, "max_position_embeddings": 131072,
    "tie_word_embeddings": False}} | sized(QWEN3 | {"max_window_layers": 28}, {"Qwen3-0.6B": (1024, 3072, 28, 16, 8),
    "Qwen3-1.7B": (2048, 6144, 28, 16, 8), "Qwen3-4B": (2560, 9728, 36, 32, 8)}, *OF_QWEN) | {"Qwen3-8B": QWEN3 |
    dict(zip(OF_QWEN, (4096, 12288, 36, 32, 8), strict=True)) | {"tie_word_embeddings": False, "max_window_layers":
    36},
    "Qwen3-32B with yarn": QWEN3 | dict(zip(OF_QWEN, (5120, 25600, 64, 64, 8), strict=True)) | {"rope_scaling": {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, "tie_word_embeddings": False},
    "Qwen3-4B-Instruct-2507": QWEN3 | dict(zip(OF_QWEN, (2560, 9728, 36, 32, 8), strict=True)) | {
    "max_position_embeddings": 262144, "rope_theta": 5000000, "max_window_layers": 36},
    "Qwen3-235B-A22B": QWEN3 | dict(zip(OF_QWEN, (4096, 12288, 94, 64, 4), strict=True)) | of("qwen3_moe",
    "Qwen3MoeForCausalLM", decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=1536, num_experts=128,
    norm_topk_prob=True, num_experts_per_tok=8, output_router_logits=False, router_aux_loss_coef=0.001,
    max_window_layers=94)}

# Gemma

GEMMA = of("gemma", "GemmaForCausalLM", attention_bias=False, attention_dropout=0.0, head_dim=256, initializer_range=0.02,
    max_position_embeddings=8192, rms_norm_eps=1e-06, rope_theta=10000.0, torch_dtype="bfloat16", use_cache=True,
    vocab_size=256000, transformers_version="4.38.0.dev0", **ids(2, 1, 0))
GEMMA2 = GEMMA | of("gemma2", "Gemma2ForCausalLM", attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
    cache_implementation="hybrid", hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
    sliding_window=4096, query_pre_attn_scalar=256)
GEMMA3 = GEMMA | of("gemma3_text", "Gemma3ForCausalLM", attn_logit_softcapping=None, cache_implementation="hybrid",
    final_logit_softcapping=None, hidden_activation="gelu_pytorch_tanh", max_position_embeddings=32768,
    query_pre_attn_scalar=256, rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000, sliding_window=512,
    sliding_window_pattern=6, vocab_size=262144, **ids(2, [1, 106], 0))
OF_GEMMA = OF_QWEN
GEMMAS = {"gemma-2b": GEMMA | dict(zip(OF_GEMMA, (2048, 16384, 18, 8, 1), strict=True)) | {"hidden_act": "gelu"},
    "gemma-7b-it": GEMMA | dict(zip(OF_GEMMA, (3072, 24576, 28, 16, 16), strict=True)) | {"hidden_act": "gelu",
    "rope_scaling": None},
    "gemma-1.1-7b-it": GEMMA | dict(zip(OF_GEMMA, (3072, 24576, 28, 16, 16), strict=True)) | {"hidden_act":
    "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
    "codegemma-2b": GEMMA | dict(zip(OF_GEMMA, (2048, 16384, 18, 8, 1), strict=True)) | {"hidden_act":
    "gelu_pytorch_tanh", "hidden_activation": None},
    "gemma-2-2b": GEMMA2 | dict(zip(OF_GEMMA, (2304, 9216, 26, 8, 4), strict=True)) | {"transformers_version":
    "4.42.4"},
    "gemma-2-9b-it": GEMMA2 | dict(zip(OF_GEMMA, (3584, 14336, 42, 16, 8), strict=True)) | {"sliding_window_size":
    4096},
    "gemma-2-27b": GEMMA2 | dict(zip(OF_GEMMA, (4608, 36864, 46, 32, 16), strict=True)) | {"head_dim": 128,
    "query_pre_attn_scalar": 144, "sliding_window_size": 4096, "_attn_implementation": "eager"},
    "gemma-3-270m": GEMMA3 | dict(zip(OF_GEMMA, (640, 2048, 18, 4, 1), strict=True)) | {"_sliding_window_pattern": 6,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "rope_local_base_freq": 10000.0,
    "rope_theta": 1000000.0, "use_bidirectional_attention": False},
    "gemma-3-1b-pt": GEMMA3 | dict(zip(OF_GEMMA, (1152, 6912, 26, 4, 1), strict=True)),
    "gemma-3-27b-it, its language model": GEMMA3 | dict(zip(OF_GEMMA, (5376, 21504, 62, 32, 16), strict=True)) | {
    "head_dim": 128, "query_pre_attn_scalar": 168, "sliding_window": 1024, "rope_scaling": {"factor": 8.0,
    "rope_type": "linear"}, "use_bidirectional_attention": None}, "gemma-3-12b, as releases of 5 write it": {name:
    value for name, value in GEMMA3.items() if not name.startswith("rope_")} | dict(zip(OF_GEMMA, (3840, 15360, 48,
    16, 8), strict=True)) | {"sliding_window": 1024, "rope_parameters": {"full_attention": {"factor": 8.0,
    "rope_theta": 1000000.0, "rope_type": "linear"}, "sliding_attention": {"rope_theta": 10000.0, "rope_type":
    "default"}}}}

# Phi

PHI = of("phi", "PhiForCausalLM", attention_dropout=0.0, embd_pdrop=0.0, hidden_act="gelu_new", initializer_range=0.02,
    resid_pdrop=0.0, layer_norm_eps=1e-05, max_position_embeddings=2048, num_key_value_heads=None,
    partial_rotary_factor=0.5, qk_layernorm=False, rope_scaling=None, rope_theta=10000.0, tie_word_embeddings=False,
    torch_dtype="float16", use_cache=True, vocab_size=51200, hidden_size=2048, intermediate_size=8192,
    num_attention_heads=32, num_hidden_layers=24, **ids(None, None))
PHI3 = of("phi3", "Phi3ForCausalLM", attention_bias=False, attention_dropout=0.0, embd_pdrop=0.0, hidden_act="silu",
    initializer_range=0.02, auto_map={"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM":
    "modeling_phi3.Phi3ForCausalLM"}, rms_norm_eps=1e-05, resid_pdrop=0.0, rope_theta=10000.0, tie_word_embeddings=False,
    torch_dtype="bfloat16", use_cache=True, vocab_size=32064, hidden_size=3072, intermediate_size=8192,
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, original_max_position_embeddings=4096,
    max_position_embeddings=131072, **ids(1, 32000, 32000))


def longrope(half: int, kind: str = "longrope") -> Config:
    """Tables of factors as long as half a head, of the size and the shape that Phi-3's have."""
    short = [round(1 + 2 * (i / half) ** 2, 4) for i in range(half)]
    return {"long_factor": [round(1 + 63 * (i / half) ** 1.5, 4) for i in range(half)], "short_factor": short, "type": kind}


PHIS = {"phi-1": PHI | {"_name_or_path": "microsoft/phi-1", "bos_token_id": 50256, "eos_token_id": 50256},
    "phi-1_5": PHI,
    "phi-2": PHI | {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_key_value_heads":
    32, "partial_rotary_factor": 0.4, "resid_pdrop": 0.1, **ids(50256, 50256)},
    "Phi-3-mini-4k-instruct": PHI3 | {"max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047},
    "Phi-3-mini-128k-instruct": PHI3 | {"rope_scaling": longrope(48), "sliding_window": 262144},
    "Phi-3-mini-128k, scaling by yarn's old name": PHI3 | {"rope_scaling": longrope(48, "yarn"), "sliding_window":
    262144},
    "Phi-3-medium-4k": PHI3 | {"hidden_size": 5120, "intermediate_size": 17920, "num_attention_heads": 40,
    "num_hidden_layers": 40, "num_key_value_heads": 10, "max_position_embeddings": 4096, "rope_scaling": None,
    "sliding_window": 2047},
    "Phi-3-medium-128k": PHI3 | {"hidden_size": 5120, "intermediate_size": 17920, "num_attention_heads": 40,
    "num_hidden_layers": 40, "num_key_value_heads": 10, "rope_scaling": longrope(64), "sliding_window": 131072},
    "Phi-3.5-mini-instruct": PHI3 | {"rope_scaling": longrope(48), "sliding_window": 262144},
    "Phi-4-mini-instruct": PHI3 | {"num_attention_heads": 24, "num_key_value_heads": 8, "rope_scaling": longrope(48),
    "partial_rotary_factor": 0.75, "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias":
    False, "sliding_window": 262144, "tie_word_embeddings": True, "vocab_size": 200064, **ids(199999, 199999, 199999)},
    "phi-4": PHI3 | {"hidden_size": 5120, "intermediate_size": 17920, "num_attention_heads": 40, "num_hidden_layers":
    40, "num_key_value_heads": 10, "max_position_embeddings": 16384, "original_max_position_embeddings": 16384,
    "rope_scaling": None, "rope_theta": 250000, "sliding_window": None, "vocab_size": 100352, **ids(100257, 100265,
    100349)}}

# StableLM, StarCoder 2, OLMo, Granite, Cohere

STABLE = of("stablelm", "StableLmForCausalLM", hidden_act="silu", hidden_size=2560, initializer_range=0.02,
    intermediate_size=6912, max_position_embeddings=4096, num_attention_heads=32, num_hidden_layers=32,
    num_key_value_heads=32, partial_rotary_factor=0.25, rope_theta=10000, tie_word_embeddings=False, torch_dtype="bfloat16",
    use_cache=True, vocab_size=50304, layer_norm_eps=1e-05, **ids(0, 0))
STABLES = {"stablelm-3b-4e1t": STABLE | {"attention_dropout": 0.0, "hidden_dropout": 0.0, "use_qkv_bias": False},
    "stablelm-3b-4e1t, its first config": {k: v for k, v in STABLE.items() if k not in ("partial_rotary_factor",
    "layer_norm_eps")} | {"architectures": ["StableLMEpochForCausalLM"], "norm_eps": 1e-05, "rope_pct": 0.25,
    "use_qkv_bias": False, "auto_map": {"AutoConfig": "configuration_stablelm_epoch.StableLMEpochConfig"}},
    "stablelm-zephyr-3b": STABLE | {"use_cache": False, "norm_eps": 1e-05, "rope_pct": 0.25},
    "stablelm-2-zephyr-1_6b": STABLE | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
    "vocab_size": 100352, "use_qkv_bias": True, **ids(100257, 100257)},
    "stablelm-2-12b-chat": STABLE | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
    "num_key_value_heads": 8, "qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": False,
    "vocab_size": 100352},
    "stable-code-3b": STABLE | {"max_position_embeddings": 16384, "rope_theta": 1000000, "rotary_scaling_factor": 1.0,
    "use_qkv_bias": False}}
STAR = of("starcoder2", "Starcoder2ForCausalLM", activation_function="gelu", attention_dropout=0.1,
    attention_softmax_in_fp32=True, embedding_dropout=0.1, hidden_act="gelu_pytorch_tanh", initializer_range=0.018042,
    layer_norm_epsilon=1e-05, mlp_type="default", max_position_embeddings=16384, norm_epsilon=1e-05, norm_type="layer_norm",
    residual_dropout=0.1, rope_theta=999999.4420358813, scale_attention_softmax_in_fp32=True, scale_attn_weights=True,
    sliding_window=4096, torch_dtype="bfloat16", use_bias=True, use_cache=True, vocab_size=49152, **ids(0, 0))
STARS = sized(STAR, {"starcoder2-3b": (3072, 12288, 30, 24, 2), "starcoder2-7b": (4608, 18432, 32, 36, 4)}, *OF_QWEN) | {
    "starcoder2-15b": STAR | dict(zip(OF_QWEN, (6144, 24576, 40, 48, 4), strict=True)) | {"rope_theta": 100000,
    "dropout": 0.1, "tie_word_embeddings": False}}
OLMO = of("olmo", "OlmoForCausalLM", attention_bias=False, attention_dropout=0.0, clip_qkv=None, hidden_act="silu",
    hidden_size=2048, initializer_range=0.02, intermediate_size=8192, max_position_embeddings=2048,
    num_attention_heads=16, num_hidden_layers=16, num_key_value_heads=16, pretraining_tp=1, rope_scaling=None,
    rope_theta=10000.0, tie_word_embeddings=True, use_cache=True, vocab_size=50304, **ids(None, 50279, 1))
OLMOS = {"OLMo-1B-hf": OLMO,
    "OLMo-7B-hf": OLMO | {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "tie_word_embeddings": False},
    "OLMo-1.7-7B-hf": OLMO | {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "clip_qkv": 8.0, "max_position_embeddings": 4096,
    "tie_word_embeddings": False},
    "OLMo-2-1124-7B": OLMO | of("olmo2", "Olmo2ForCausalLM", hidden_size=4096, intermediate_size=11008,
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, rms_norm_eps=1e-06, rope_theta=500000,
    tie_word_embeddings=False, max_position_embeddings=4096),
    "OLMo-2-0325-32B": OLMO | of("olmo2", "Olmo2ForCausalLM", hidden_size=5120, intermediate_size=27648,
    num_attention_heads=40, num_hidden_layers=64, num_key_value_heads=8, rms_norm_eps=1e-06, rope_theta=500000,
    tie_word_embeddings=False, max_position_embeddings=4096)}
GRANITE = of("granite", "GraniteForCausalLM", attention_bias=False, attention_dropout=0.1, attention_multiplier=0.015625,
    hidden_act="silu", embedding_multiplier=12.0, hidden_size=2048, initializer_range=0.02, intermediate_size=8192,
    logits_scaling=8.0, mlp_bias=False, max_position_embeddings=4096, num_attention_heads=32, num_hidden_layers=40,
    num_key_value_heads=8, residual_multiplier=0.22, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=10000.0,
    tie_word_embeddings=True, use_cache=True, vocab_size=49155, **ids(0, 0, 0))
OTHERS = {"granite-3.0-2b-instruct": GRANITE,
    "granite-3.2-8b": GRANITE | {"hidden_size": 4096, "intermediate_size": 12800, "attention_multiplier": 0.0078125,
    "logits_scaling": 16.0, "rope_theta": 10000000.0, "max_position_embeddings": 131072},
    "c4ai-command-r-v01": of("cohere", "CohereForCausalLM", attention_bias=False, attention_dropout=0.0, hidden_act="silu",
    hidden_size=8192, initializer_range=0.02, intermediate_size=22528, layer_norm_eps=1e-05, logit_scale=0.0625,
    max_position_embeddings=8192, model_max_length=131072, num_attention_heads=64, num_hidden_layers=40,
    num_key_value_heads=64, pretraining_tp=1, rope_theta=8000000.0, torch_dtype="float16", use_cache=True,
    use_qk_norm=False, vocab_size=256000, **ids(5, 255001, 0)),
    "aya-23-8B": of("cohere", "CohereForCausalLM", attention_bias=False, attention_dropout=0.0, hidden_act="silu",
    hidden_size=4096, initializer_range=0.02, intermediate_size=14336, layer_norm_eps=1e-05, logit_scale=0.0625,
    max_position_embeddings=8192, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, rope_theta=10000,
    rope_scaling=None, use_cache=True, tie_word_embeddings=True, use_qk_norm=False, vocab_size=256000, **ids(5,
    255001, 0))}

GROUPS: dict[str, dict[str, Config]] = {"gpt2": GPT2S,
    "gpt_neo": NEOS,
    "gptj": GPTJS,
    "gpt_neox": NEOXS,
    "bloom": BLOOMS,
    "opt": OPTS,
    "mpt": MPTS,
    "falcon": FALCONS,
    "llama": LLAMAS,
    "smollm3": SMOLLM3,
    "mistral": MISTRALS,
    "qwen": QWENS,
    "gemma": GEMMAS,
    "phi": PHIS,
    "stablelm": STABLES,
    "starcoder2": STARS,
    "olmo": OLMOS,
    "others": OTHERS}
"""What people call a model → its `config.json`, without fields that say nothing (versions, dates) in most."""

CONFIGS = {name: config for group in GROUPS.values() for name, config in group.items()}

# fmt: on

# Small models of the same shape.

WIDTHS = ("hidden_size", "n_embd", "n_embed", "d_model")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "seq_length",
    "max_seq_len",
    "max_sequence_length",
    "model_max_length",
)
MLPS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
EXPERTS = {"num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
LONG = 96  # longer than every text of a test; what a model was trained on first is shorter than some


def shrunk(config: Config) -> Config:
    """The config of a small model of the same kind."""
    small = copy.deepcopy(config)
    heads_name = next(name for name in HEADS if name in config)
    width = next(config[name] for name in WIDTHS if name in config)
    heads, keys = config[heads_name], config.get("num_key_value_heads") or config.get("num_kv_heads") or config[heads_name]
    each = config.get("head_dim") or width // heads
    d_head = step = each // 8 if each >= 48 else each
    while int(d_head * config.get("partial_rotary_factor", 1.0)) % 2:  # (what rotates comes in pairs)
        d_head += step
    group = math.gcd(heads, keys)
    new_heads, new_keys = (3, 3) if heads == keys else (heads // group * min(2, keys), keys // group * min(2, keys))
    if heads == 71:  # (one key for all of them)
        new_heads = 7
    for name in HEADS:
        small |= {name: new_heads} if name in small else {}
    for name in ("num_key_value_heads", "num_kv_heads"):
        small |= {name: new_keys} if small.get(name) is not None else {}
    if small.get("head_dim") is not None:
        small["head_dim"] = d_head
    new_width = 48 if small.get("head_dim") else new_heads * d_head
    small |= {name: new_width for name in WIDTHS if name in small}
    small |= {"word_embed_proj_dim": new_width} if "word_embed_proj_dim" in small else {}
    layers = min(next(config[name] for name in LAYERS if name in config), 4 if config["model_type"] == "gpt_neo" else 2)
    if "no_rope_layers" in small or small.get("sliding_window_pattern"):
        layers = 7
    small |= {name: layers for name in LAYERS if name in small}
    for name in ("layer_types", "no_rope_layers", "attention_layers"):
        small |= {name: small[name][:layers]} if name in small else {}
    if "attention_types" in small:
        small["attention_types"] = [[["global", "local"], layers // 2]]
    small |= {name: LONG for name in LENGTHS if name in small}
    small |= {
        name: 5 for name in ("sliding_window", "window_size", "sliding_window_size") if (small.get(name) or LONG**3) < 10000
    }
    small |= {name: 2 * new_width + 8 for name in MLPS if small.get(name) is not None}
    small |= {name: value for name, value in EXPERTS.items() if name in small}
    small |= {"rotary_dim": small["rotary_dim"] // 8} if "rotary_dim" in small else {}
    small |= {"vocab_size": 97} | {name: _id(small[name]) for name in IDS if name in small}
    return small | _rotation(small, d_head)


def _id(value: Any) -> Any:
    if isinstance(value, list):
        return [_id(one) for one in value]
    return value if value is None else value % 97


def _rotation(small: Config, d_head: int) -> Config:
    """Tables as long as the small heads, and first lengths that some texts exceed."""
    changes: Config = {}
    if "original_max_position_embeddings" in small:
        changes["original_max_position_embeddings"] = LONG // 4
    for name in ("rope_scaling", "rope_parameters"):
        settings = small.get(name)
        if isinstance(settings, dict):
            half = int(d_head * small.get("partial_rotary_factor", 1.0)) // 2
            tables = {table: settings[table][:half] for table in ("long_factor", "short_factor") if table in settings}
            first = {"original_max_position_embeddings": LONG // 4} if "original_max_position_embeddings" in settings else {}
            changes[name] = settings | tables | first
    return changes
