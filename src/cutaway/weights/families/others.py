"""StableLM, Cohere (Command-R) and StarCoder 2: layer norms with rotary positions."""

from __future__ import annotations

from cutaway.weights.families.llama import fields, rest
from cutaway.weights.families.parts import attention, embeddings, everywhere, mlp, norm
from cutaway.weights.families.reshape import flat, scaled
from cutaway.weights.families.table import Family, Fields, activation, found, ignored, into, read

# StableLM


def in_turn(hf: Fields) -> bool:
    """Whether the MLP comes after attention, with a norm of its own."""
    return not hf["use_parallel_residual"]


STABLELM = Family(
    name="StableLM",
    model_type="stablelm",
    architectures=("StableLmForCausalLM", "StableLmModel", "StableLMEpochForCausalLM"),
    fields=fields(
        {"layer_norm_eps": into("eps", 1e-5)},
        vocab_size=into("d_vocab", 50304),
        max_position_embeddings=into("n_ctx", 4096),
        hidden_size=into("d_model", 2560),
        intermediate_size=into("d_mlp", 6912),
        use_qkv_bias=read(False),
        qk_layernorm=into("use_qk_norm", False),
        use_parallel_residual=into("parallel_attn_mlp", False),
    ),
    always={"normalization_type": "LN", "gated_mlp": True, "qk_norm_type": "LN", "qk_norm_over": "each"},
    rest=lambda hf: rest(hf, partial=0.25),
    tensors={
        **embeddings("embed_tokens.weight"),
        **norm("blocks.{l}.ln1", "layers.{l}.input_layernorm", bias=True),
        **attention("layers.{l}.self_attn", bias="use_qkv_bias", out_bias=False),
        "blocks.{l}.attn.q_norm.w": found("layers.{l}.self_attn.q_layernorm.norms.{h}.weight", flat),
        "blocks.{l}.attn.k_norm.w": found("layers.{l}.self_attn.k_layernorm.norms.{h}.weight", flat),
        **{
            f"blocks.{{l}}.ln2.{ours}": (
                found(f"layers.{{l}}.post_attention_layernorm.{theirs}", when=in_turn),
                found(f"layers.{{l}}.input_layernorm.{theirs}", when="use_parallel_residual"),
            )
            for ours, theirs in (("w", "weight"), ("b", "bias"))
        },
        **mlp("layers.{l}.mlp", "up_proj", "down_proj", "gate_proj"),
        **norm("ln_final", "norm", bias=True),
    },
    examples=("stabilityai/stablelm-2-1_6b", "stabilityai/stablelm-3b-4e1t"),
)

# Cohere

COHERE = Family(
    name="Cohere",
    model_type="cohere",
    architectures=("CohereForCausalLM", "CohereModel"),
    fields=fields(
        {"layer_norm_eps": into("eps", 1e-5)},
        vocab_size=into("d_vocab", 256000),
        max_position_embeddings=into("n_ctx", 8192),
        hidden_size=into("d_model", 8192),
        num_hidden_layers=into("n_layers", 40),
        num_attention_heads=read(64),
        intermediate_size=into("d_mlp", 22528),
        tie_word_embeddings=into("tie_word_embeddings", True),
        attention_bias=read(False),
        use_qk_norm=into("use_qk_norm", False),
        logit_scale=read(0.0625),
    ),
    always={
        "normalization_type": "LN",
        "gated_mlp": True,
        "parallel_attn_mlp": True,
        "rotary_adjacent_pairs": True,
        "qk_norm_type": "LN",
        "qk_norm_over": "each",
    },
    rest=lambda hf: rest(hf, theta=500000.0),
    tensors={
        **embeddings("embed_tokens.weight", after=(scaled(lambda hf: float(hf["logit_scale"])),)),
        **norm("blocks.{l}.ln1", "layers.{l}.input_layernorm"),
        **attention("layers.{l}.self_attn", bias="attention_bias"),
        "blocks.{l}.attn.q_norm.w": found("layers.{l}.self_attn.q_norm.weight", flat),
        "blocks.{l}.attn.k_norm.w": found("layers.{l}.self_attn.k_norm.weight", flat),
        **norm("blocks.{l}.ln2", "layers.{l}.input_layernorm"),
        **mlp("layers.{l}.mlp", "up_proj", "down_proj", "gate_proj"),
        **norm("ln_final", "norm"),
    },
    examples=("CohereLabs/c4ai-command-r-v01",),
)

# StarCoder 2


STARCODER2 = Family(
    name="StarCoder 2",
    model_type="starcoder2",
    architectures=("Starcoder2ForCausalLM", "Starcoder2Model"),
    fields=fields(
        {"norm_epsilon": into("eps", 1e-5)},
        vocab_size=into("d_vocab", 49152),
        max_position_embeddings=into("n_ctx", 4096),
        hidden_size=into("d_model", 3072),
        num_hidden_layers=into("n_layers", 30),
        num_attention_heads=read(24),
        num_key_value_heads=read(2),
        intermediate_size=into("d_mlp", 12288),
        hidden_act=into("act_fn", "gelu_pytorch_tanh", activation),
        use_bias=read(True),
        sliding_window=read(),
        tie_word_embeddings=into("tie_word_embeddings", True),
        **ignored("residual_dropout embedding_dropout"),
    ),
    always={"normalization_type": "LN"},
    rest=lambda hf: rest(hf) | everywhere(hf),
    tensors={
        **embeddings("embed_tokens.weight"),
        **norm("blocks.{l}.ln1", "layers.{l}.input_layernorm", bias=True),
        **attention("layers.{l}.self_attn", bias="use_bias"),
        **norm("blocks.{l}.ln2", "layers.{l}.post_attention_layernorm", bias=True),
        **mlp("layers.{l}.mlp", "c_fc", "c_proj", bias="use_bias"),
        **norm("ln_final", "norm", bias=True),
    },
    examples=("bigcode/starcoder2-3b",),
)
