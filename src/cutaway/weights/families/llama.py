"""Llama 1, 2 and 3, and those that are Llama with little else: Mistral, SmolLM3, Granite, OLMo and OLMo 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.weights.families.parts import attention, embeddings, everywhere, heads, mlp, norm, windows
from cutaway.weights.families.reshape import scaled
from cutaway.weights.families.rope import ROPE, rotary
from cutaway.weights.families.table import Family, Field, Fields, activation, into, read


def fields(norms: Mapping[str, Field] | None = None, /, **own: Field) -> dict[str, Field]:
    """The fields of Llama, with those that a family has besides or has another default for; `norms` instead of RMS norms'."""
    common = {
        "vocab_size": into("d_vocab", 32000),
        "max_position_embeddings": into("n_ctx", 2048),
        "hidden_size": into("d_model", 4096),
        "num_hidden_layers": into("n_layers", 32),
        "num_attention_heads": read(32),
        "num_key_value_heads": read(),
        "head_dim": read(),
        "intermediate_size": into("d_mlp", 11008),
        "hidden_act": into("act_fn", "silu", activation),
        **({"rms_norm_eps": into("eps", 1e-6)} if norms is None else norms),
        "tie_word_embeddings": into("tie_word_embeddings", False),
        **ROPE,
    }
    return common | own


def rest(hf: Fields, *, theta: float = 10000.0, partial: float | None = None) -> dict[str, Any]:
    """Heads and rotary positions."""
    shape = heads(hf)
    return shape | rotary(hf, shape["d_head"], theta=theta, partial=partial)


ALWAYS = {"normalization_type": "RMS", "final_rms": True, "gated_mlp": True}
UNUSED = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

BODY = {
    **embeddings("embed_tokens.weight"),
    **norm("blocks.{l}.ln1", "layers.{l}.input_layernorm"),
    **attention("layers.{l}.self_attn"),
    **norm("blocks.{l}.ln2", "layers.{l}.post_attention_layernorm"),
    **mlp("layers.{l}.mlp", "up_proj", "down_proj", "gate_proj"),
    **norm("ln_final", "norm"),
}

BIASED_MLP = mlp("layers.{l}.mlp", "up_proj", "down_proj", "gate_proj", bias="mlp_bias")

LLAMA = Family(
    name="Llama",
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel", "LLaMAForCausalLM"),
    fields=fields(attention_bias=read(False), mlp_bias=into("gated_mlp_biases", False)),
    always=ALWAYS,
    rest=rest,
    unused=UNUSED,
    tensors=BODY | attention("layers.{l}.self_attn", bias="attention_bias") | BIASED_MLP,
    examples=("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.2-1B", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
)

MISTRAL_FIELDS = fields(
    max_position_embeddings=into("n_ctx", 131072),
    intermediate_size=into("d_mlp", 14336),
    num_key_value_heads=read(8),
    sliding_window=read(4096),
)

MISTRAL = Family(
    name="Mistral",
    model_type="mistral",
    architectures=("MistralForCausalLM", "MistralModel"),
    fields=MISTRAL_FIELDS,
    always=ALWAYS,
    rest=lambda hf: rest(hf) | everywhere(hf),
    unused=UNUSED,
    tensors=BODY,
    examples=("mistralai/Mistral-7B-v0.1",),
)

MINISTRAL = Family(  # which `transformers` makes of a Mistral whose config has layer_types
    name="Ministral",
    model_type="ministral",
    architectures=("MinistralForCausalLM", "MinistralModel", "MistralForCausalLM"),
    fields=MISTRAL_FIELDS | {"layer_types": read()},
    always=ALWAYS,
    rest=lambda hf: rest(hf) | windows(hf, hf["layer_types"]),
    unused=UNUSED,
    tensors=BODY,
    examples=("mistralai/Ministral-8B-Instruct-2410",),
)


def smollm3_rest(hf: Fields) -> dict[str, Any]:
    layers = hf["num_hidden_layers"]
    rotates = hf["no_rope_layers"] or [(layer + 1) % hf["no_rope_layer_interval"] != 0 for layer in range(layers)]
    types = hf["layer_types"]
    if types is None and hf["use_sliding_window"] and hf["sliding_window"] is not None:
        types = ["full_attention" if rotary else "sliding_attention" for rotary in rotates]
    return rest(hf, theta=2000000.0) | windows(hf, types) | {"rotary_layers": [bool(one) for one in rotates[:layers]]}


SMOLLM3 = Family(
    name="SmolLM3",
    model_type="smollm3",
    architectures=("SmolLM3ForCausalLM", "SmolLM3Model"),
    fields=fields(
        vocab_size=into("d_vocab", 128256),
        max_position_embeddings=into("n_ctx", 32768),
        hidden_size=into("d_model", 2048),
        num_hidden_layers=into("n_layers", 36),
        num_attention_heads=read(16),
        num_key_value_heads=read(4),
        tie_word_embeddings=into("tie_word_embeddings", True),
        attention_bias=read(False),
        mlp_bias=into("gated_mlp_biases", False),
        no_rope_layers=read(),
        no_rope_layer_interval=read(4),
        use_sliding_window=read(False),
        sliding_window=read(),
        layer_types=read(),
    ),
    always=ALWAYS,
    rest=smollm3_rest,
    tensors=LLAMA.tensors,
    examples=("HuggingFaceTB/SmolLM3-3B",),
)

RESIDUAL = scaled(lambda hf: float(hf["residual_multiplier"]))

GRANITE = Family(
    name="Granite",
    model_type="granite",
    architectures=("GraniteForCausalLM", "GraniteModel"),
    fields=fields(
        attention_bias=read(False),
        mlp_bias=into("gated_mlp_biases", False),
        embedding_multiplier=read(1.0),
        residual_multiplier=read(1.0),
        attention_multiplier=into("attn_scale", 1.0, lambda multiplier: 1 / multiplier),
        logits_scaling=read(1.0),
    ),
    always=ALWAYS,
    rest=rest,
    tensors=BODY
    | embeddings(
        "embed_tokens.weight",
        before=(scaled(lambda hf: float(hf["embedding_multiplier"])),),
        after=(scaled(lambda hf: 1 / hf["logits_scaling"]),),
    )
    | attention("layers.{l}.self_attn", bias="attention_bias", out=(RESIDUAL,))
    | mlp("layers.{l}.mlp", "up_proj", "down_proj", "gate_proj", bias="mlp_bias", out=(RESIDUAL,)),
    examples=("ibm-granite/granite-3.1-2b-base",),
)

OLMO = Family(
    name="OLMo",
    model_type="olmo",
    architectures=("OlmoForCausalLM", "OlmoModel"),
    fields=fields(
        {},
        vocab_size=into("d_vocab", 50304),
        attention_bias=read(False),
        clip_qkv=into("clip_qkv", None),
    ),
    always={"normalization_type": "LNPre", "eps": 1e-5, "gated_mlp": True},  # norms without weights, from the start
    rest=rest,
    tensors={name: where for name, where in BODY.items() if ".ln" not in name and "ln_final" not in name}
    | attention("layers.{l}.self_attn", bias="attention_bias"),
    examples=("allenai/OLMo-1B-hf", "allenai/OLMo-7B-hf"),
)

OLMO2 = Family(
    name="OLMo 2",
    model_type="olmo2",
    architectures=("Olmo2ForCausalLM", "Olmo2Model"),
    fields=fields(vocab_size=into("d_vocab", 50304), attention_bias=read(False), rms_norm_eps=into("eps", 1e-5)),
    always={**ALWAYS, "post_norm_only": True, "use_qk_norm": True, "qk_norm_over": "full"},
    rest=rest,
    tensors={name: where for name, where in BODY.items() if not name.startswith(("blocks.{l}.ln1", "blocks.{l}.ln2"))}
    | attention("layers.{l}.self_attn", bias="attention_bias")
    | norm("blocks.{l}.attn.q_norm", "layers.{l}.self_attn.q_norm")
    | norm("blocks.{l}.attn.k_norm", "layers.{l}.self_attn.k_norm")
    | norm("blocks.{l}.ln1_post", "layers.{l}.post_attention_layernorm")
    | norm("blocks.{l}.ln2_post", "layers.{l}.post_feedforward_layernorm"),
    examples=("allenai/OLMo-2-0425-1B",),
)
