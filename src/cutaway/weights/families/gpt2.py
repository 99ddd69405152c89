"""GPT-2: learned positions; linear layers that are kept `[in, out]`, queries, keys and values in one."""

from __future__ import annotations

from typing import Any

from cutaway.weights.families.parts import embeddings, norm, output, packed
from cutaway.weights.families.reshape import positions_from, stacked, transposed
from cutaway.weights.families.table import Family, Fields, activation, found, ignored, into, only, read

FIELDS = {
    "vocab_size": into("d_vocab", 50257),
    "n_positions": into("n_ctx", 1024),
    "n_embd": into("d_model", 768),
    "n_layer": into("n_layers", 12),
    "n_head": into("n_heads", 12),
    "n_inner": read(),
    "activation_function": into("act_fn", "gelu_new", activation),
    "layer_norm_epsilon": into("eps", 1e-5),
    "scale_attn_weights": into("use_attn_scale", True),
    "scale_attn_by_inverse_layer_idx": into("scale_attn_by_inverse_layer_idx", False),
    "tie_word_embeddings": into("tie_word_embeddings", True),
    "add_cross_attention": only(False),
} | ignored(
    """resid_pdrop embd_pdrop attn_pdrop reorder_and_upcast_attn summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout summary_last_dropout"""
)


def rest(hf: Fields) -> dict[str, Any]:
    return {"d_head": hf["n_embd"] // hf["n_head"], "d_mlp": hf["n_inner"] or 4 * hf["n_embd"]}


GPT2 = Family(
    name="GPT-2",
    model_type="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    fields=FIELDS,
    always={"normalization_type": "LN", "positional_embedding_type": "standard"},
    rest=rest,
    prefixes=("transformer.", ""),
    unused=(r"h\.\d+\.attn\.(masked_)?bias",),
    tensors={
        **embeddings("wte.weight"),
        "pos_embed.W_pos": found("wpe.weight", positions_from(0)),
        **norm("blocks.{l}.ln1", "h.{l}.ln_1", bias=True),
        **packed("h.{l}.attn.c_attn", stacked, transposed, bias=True),
        **output("h.{l}.attn.c_proj", transposed, bias=True),
        **norm("blocks.{l}.ln2", "h.{l}.ln_2", bias=True),
        "blocks.{l}.mlp.W_in": found("h.{l}.mlp.c_fc.weight"),
        "blocks.{l}.mlp.b_in": found("h.{l}.mlp.c_fc.bias"),
        "blocks.{l}.mlp.W_out": found("h.{l}.mlp.c_proj.weight"),
        "blocks.{l}.mlp.b_out": found("h.{l}.mlp.c_proj.bias"),
        **norm("ln_final", "ln_f", bias=True),
    },
    examples=("gpt2", "gpt2-xl", "distilgpt2"),
)
