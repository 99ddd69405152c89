"""Gemma 1, 2 and 3 (text): scaled embeddings and norms of `1 + w`, both folded into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.weights.families.llama import fields, rest
from cutaway.weights.families.parts import attention, embeddings, heads, mlp, norm, windows
from cutaway.weights.families.reshape import plus_one, scaled
from cutaway.weights.families.rope import parameters, rotary
from cutaway.weights.families.schema import check_rope
from cutaway.weights.families.table import IGNORED, Family, Fields, Tensors, activation, ignored, into, only, read

ALWAYS = {"normalization_type": "RMS", "final_rms": True, "gated_mlp": True}

GEMMA_FIELDS = fields(
    vocab_size=into("d_vocab", 256000),
    max_position_embeddings=into("n_ctx", 8192),
    hidden_size=into("d_model", 3072),
    num_hidden_layers=into("n_layers", 28),
    num_attention_heads=read(16),
    num_key_value_heads=read(16),
    head_dim=read(256),
    intermediate_size=into("d_mlp", 24576),
    hidden_act=into("act_fn", "gelu_pytorch_tanh", activation),
    attention_bias=read(False),
    use_bidirectional_attention=only(None, False),
    tie_word_embeddings=into("tie_word_embeddings", True),
)


def body(*, sandwich: bool) -> Tensors:
    """`sandwich`: norms before and after attention and MLP, else before them only."""
    before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
    table = {
        **embeddings("embed_tokens.weight", before=(scaled(lambda hf: hf["hidden_size"] ** 0.5),)),
        **norm("blocks.{l}.ln1", "layers.{l}.input_layernorm", plus_one),
        **attention("layers.{l}.self_attn", bias="attention_bias"),
        **norm("blocks.{l}.ln2", f"layers.{{l}}.{before_mlp}", plus_one),
        **mlp("layers.{l}.mlp", "up_proj", "down_proj", "gate_proj"),
        **norm("ln_final", "norm", plus_one),
    }
    if sandwich:
        table |= norm("blocks.{l}.ln1_post", "layers.{l}.post_attention_layernorm", plus_one)
        table |= norm("blocks.{l}.ln2_post", "layers.{l}.post_feedforward_layernorm", plus_one)
    return table


GEMMA = Family(
    name="Gemma",
    model_type="gemma",
    architectures=("GemmaForCausalLM", "GemmaModel"),
    fields=GEMMA_FIELDS,
    always=ALWAYS,
    rest=rest,
    unused=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    tensors=body(sandwich=False),
    examples=("google/gemma-2b", "google/gemma-7b"),
)

GEMMA2_FIELDS = {name: field for name, field in GEMMA_FIELDS.items() if name != "hidden_act"} | {
    "hidden_activation": into("act_fn", "gelu_pytorch_tanh", activation),
    "hidden_size": into("d_model", 2304),
    "num_hidden_layers": into("n_layers", 26),
    "num_attention_heads": read(8),
    "num_key_value_heads": read(4),
    "intermediate_size": into("d_mlp", 9216),
    "query_pre_attn_scalar": into("attn_scale", 256, lambda scalar: scalar**0.5),
    "sliding_window": read(4096),
    "layer_types": read(),
    "final_logit_softcapping": into("output_logits_soft_cap", 30.0, lambda cap: -1.0 if cap is None else cap),
    "attn_logit_softcapping": into("attn_scores_soft_cap", 50.0, lambda cap: -1.0 if cap is None else cap),
}


def every(hf: Fields, period: int) -> list[str]:
    """The attention of each layer: where the config does not say, each layer of number `period` is global."""
    kinds = ("sliding_attention", "full_attention")
    return hf["layer_types"] or [kinds[(layer + 1) % period == 0] for layer in range(hf["num_hidden_layers"])]


GEMMA2 = Family(
    name="Gemma 2",
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM", "Gemma2Model"),
    fields=GEMMA2_FIELDS,
    always={**ALWAYS, "use_normalization_before_and_after": True},
    rest=lambda hf: rest(hf) | windows(hf, every(hf, 2)),
    tensors=body(sandwich=True),
    examples=("google/gemma-2-2b", "google/gemma-2-9b-it"),
)


def gemma3_rest(hf: Fields) -> dict[str, Any]:
    period = hf["sliding_window_pattern"] or hf["_sliding_window_pattern"] or 6
    settings, name = parameters(hf)
    shape = heads(hf)
    local = hf["rope_local_base_freq"] or 10000.0
    if "full_attention" in settings or "sliding_attention" in settings:
        sliding = settings.get("sliding_attention") or {}
        if not isinstance(sliding, Mapping):
            raise hf.refuse(name, "it should hold a table for each type of attention")
        check_rope(sliding, name)
        if sliding.get("rope_type", "default") != "default" or sliding.get("partial_rotary_factor") not in (None, 1):
            raise hf.refuse(name, "in sliding layers only plain rotation of whole heads is understood")
        local = sliding.get("rope_theta") or local
        hf = Fields(hf.family, hf | {name: settings.get("full_attention") or {}})
    return (
        shape
        | rotary(hf, shape["d_head"], theta=1000000.0)
        | windows(hf, every(hf, period))
        | {"rotary_base_local": float(local)}
    )


GEMMA3 = Family(
    name="Gemma 3",
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM", "Gemma3TextModel", "Gemma3ForConditionalGeneration"),
    fields=GEMMA2_FIELDS
    | {
        "vocab_size": into("d_vocab", 262208),
        "max_position_embeddings": into("n_ctx", 131072),
        "final_logit_softcapping": into("output_logits_soft_cap", None, lambda cap: -1.0 if cap is None else cap),
        "attn_logit_softcapping": IGNORED,  # read, and never applied
        "rope_local_base_freq": read(),
        "sliding_window_pattern": read(),
        "_sliding_window_pattern": read(),
        **ignored("image_token_id mm_tokens_per_image text_config vision_config"),  # of the model that sees
    },
    always={**ALWAYS, "use_normalization_before_and_after": True, "use_qk_norm": True},
    rest=gemma3_rest,
    prefixes=("model.", "", "language_model.model.", "model.language_model.", "language_model."),
    unused=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
    tensors=body(sandwich=True)
    | norm("blocks.{l}.attn.q_norm", "layers.{l}.self_attn.q_norm", plus_one)
    | norm("blocks.{l}.attn.k_norm", "layers.{l}.self_attn.k_norm", plus_one),
    examples=("google/gemma-3-270m", "google/gemma-3-1b-pt", "google/gemma-3-4b-pt"),
)
