"""BLOOM: ALiBi, a norm right after the embedding, queries, keys and values together head by head."""

from __future__ import annotations

from typing import Any

from cutaway.weights.families.parts import embeddings, mlp, norm, output, packed
from cutaway.weights.families.reshape import grouped
from cutaway.weights.families.table import Family, Fields, ignored, into, only

FIELDS = {
    "vocab_size": into("d_vocab", 250880),
    "hidden_size": into("d_model", 64),
    "n_layer": into("n_layers", 2),
    "n_head": into("n_heads", 8),
    "seq_length": into("n_ctx", 2048),
    "layer_norm_epsilon": into("eps", 1e-5),
    "apply_residual_connection_post_layernorm": only(False),
    "tie_word_embeddings": into("tie_word_embeddings", True),
} | ignored("n_embed slow_but_exact")  # n_embed is an old name of hidden_size


def rest(hf: Fields) -> dict[str, Any]:
    return {"d_head": hf["hidden_size"] // hf["n_head"], "d_mlp": 4 * hf["hidden_size"]}


BLOOM = Family(
    name="BLOOM",
    model_type="bloom",
    architectures=("BloomForCausalLM", "BloomModel"),
    fields=FIELDS,
    always={
        "normalization_type": "LN",
        "positional_embedding_type": "alibi",
        "post_embedding_ln": True,
        "act_fn": "gelu_fast",
        "default_prepend_bos": False,
    },
    rest=rest,
    prefixes=("transformer.", ""),
    tensors={
        **embeddings("word_embeddings.weight"),
        **norm("embed.ln", "word_embeddings_layernorm", bias=True),
        **norm("blocks.{l}.ln1", "h.{l}.input_layernorm", bias=True),
        **packed("h.{l}.self_attention.query_key_value", grouped, bias=True),
        **output("h.{l}.self_attention.dense", bias=True),
        **norm("blocks.{l}.ln2", "h.{l}.post_attention_layernorm", bias=True),
        **mlp("h.{l}.mlp", "dense_h_to_4h", "dense_4h_to_h", bias=True),
        **norm("ln_final", "ln_f", bias=True),
    },
    examples=("bigscience/bloom-560m", "bigscience/bloom-7b1"),
)
