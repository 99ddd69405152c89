"""OPT: learned positions that begin two rows into their table."""

from __future__ import annotations

from typing import Any

from cutaway.weights.families.parts import attention, embeddings, mlp, norm
from cutaway.weights.families.reshape import positions_from
from cutaway.weights.families.table import Family, Fields, activation, found, ignored, into, only, read

FIELDS = {
    "vocab_size": into("d_vocab", 50272),
    "max_position_embeddings": into("n_ctx", 2048),
    "hidden_size": into("d_model", 768),
    "num_hidden_layers": into("n_layers", 12),
    "num_attention_heads": into("n_heads", 12),
    "ffn_dim": into("d_mlp", 3072),
    "activation_function": into("act_fn", "relu", activation),
    "enable_bias": read(True),
    "do_layer_norm_before": only(True),
    "_remove_final_layer_norm": only(False),
    "layer_norm_elementwise_affine": only(True),
    "word_embed_proj_dim": read(),
    "tie_word_embeddings": into("tie_word_embeddings", True),
} | ignored("dropout layerdrop")


def rest(hf: Fields) -> dict[str, Any]:
    if hf["word_embed_proj_dim"] not in (None, hf["hidden_size"]):
        raise hf.refuse("word_embed_proj_dim", "embeddings of another width than the residual stream are not understood")
    return {"d_head": hf["hidden_size"] // hf["num_attention_heads"]}


OPT = Family(
    name="OPT",
    model_type="opt",
    architectures=("OPTForCausalLM", "OPTModel"),
    fields=FIELDS,
    always={"normalization_type": "LN", "positional_embedding_type": "standard", "eps": 1e-5},
    rest=rest,
    prefixes=("model.decoder.", "decoder.", ""),
    tensors={
        **embeddings("embed_tokens.weight"),
        "pos_embed.W_pos": found("embed_positions.weight", positions_from(2)),
        **norm("blocks.{l}.ln1", "layers.{l}.self_attn_layer_norm", bias=True),
        **attention("layers.{l}.self_attn", names=("q_proj", "k_proj", "v_proj", "out_proj"), bias="enable_bias"),
        **norm("blocks.{l}.ln2", "layers.{l}.final_layer_norm", bias=True),
        **mlp("layers.{l}", "fc1", "fc2", bias="enable_bias"),
        **norm("ln_final", "final_layer_norm", bias=True),
    },
    examples=("facebook/opt-125m", "facebook/opt-6.7b"),
)
