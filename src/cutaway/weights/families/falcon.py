"""Falcon: three generations under one name, which differ in norms and in how queries, keys and values are packed.

Models with `alibi` are refused: their slopes are rounded to bfloat16, and no table says that.
"""

from __future__ import annotations

from typing import Any

from cutaway.weights.families.parts import embeddings, mlp, norm, output, packed
from cutaway.weights.families.reshape import grouped
from cutaway.weights.families.rope import ROPE, rotary
from cutaway.weights.families.table import Family, Fields, Tensors, activation, found, ignored, into, only, read

FIELDS = {
    "vocab_size": into("d_vocab", 65024),
    "max_position_embeddings": into("n_ctx", 2048),
    "hidden_size": into("d_model", 4544),
    "num_hidden_layers": into("n_layers", 32),
    "num_attention_heads": into("n_heads", 71),
    "num_kv_heads": read(),
    "ffn_hidden_size": read(),
    "activation": into("act_fn", "gelu", activation),
    "layer_norm_epsilon": into("eps", 1e-5),
    "num_ln_in_parallel_attn": only(None, 1, 2),
    "new_decoder_architecture": read(False),
    "multi_query": read(True),
    "parallel_attn": read(True),
    "bias": read(False),
    "alibi": only(False),
    "tie_word_embeddings": into("tie_word_embeddings", True),
    **ROPE,
} | ignored("head_dim n_embed")  # which transformers refuses, and an old name of hidden_size


def rest(hf: Fields) -> dict[str, Any]:
    d_head = hf["hidden_size"] // hf["num_attention_heads"]
    refuse_contradictions(hf)
    if hf["new_decoder_architecture"]:
        kv = hf["num_kv_heads"] or hf["num_attention_heads"]
    else:
        kv = 1 if hf["multi_query"] else hf["num_attention_heads"]
    return {
        "d_head": d_head,
        "n_key_value_heads": kv,
        "d_mlp": hf["ffn_hidden_size"] or 4 * hf["hidden_size"],
        "parallel_attn_mlp": bool(hf["new_decoder_architecture"] or hf["parallel_attn"]),
        **rotary(hf, d_head),
    }


def refuse_contradictions(hf: Fields) -> None:
    """Stop on what the code of `transformers` cannot run."""
    new, heads = hf["new_decoder_architecture"], hf["num_attention_heads"]
    if new and not hf["parallel_attn"]:
        raise hf.refuse("parallel_attn", "with new_decoder_architecture it must be true; transformers refuses it too")
    if not new and hf["parallel_attn"] and hf["num_ln_in_parallel_attn"] == 2:
        raise hf.refuse("num_ln_in_parallel_attn", "two need new_decoder_architecture; transformers refuses it too")
    if not new and not hf["multi_query"] and hf["num_kv_heads"] not in (None, heads):
        raise hf.refuse("num_kv_heads", f"without multi_query each of {heads} heads has keys; transformers refuses it too")


def two_norms(hf: Fields) -> bool:
    """Whether attention and MLP, side by side, have a norm each."""
    return bool(hf["new_decoder_architecture"] and hf["num_ln_in_parallel_attn"] in (None, 2))


def in_turn(hf: Fields) -> bool:
    """Whether the MLP comes after attention."""
    return not (hf["new_decoder_architecture"] or hf["parallel_attn"])


def norms() -> Tensors:
    table: Tensors = {}
    for letter, kind in (("w", "weight"), ("b", "bias")):
        first = found("h.{l}.input_layernorm." + kind, when=lambda hf: not two_norms(hf))
        shared = found("h.{l}.input_layernorm." + kind, when=lambda hf: not two_norms(hf) and not in_turn(hf))
        table[f"blocks.{{l}}.ln1.{letter}"] = (found("h.{l}.ln_attn." + kind, when=two_norms), first)
        after = found("h.{l}.post_attention_layernorm." + kind, when=in_turn)
        table[f"blocks.{{l}}.ln2.{letter}"] = (found("h.{l}.ln_mlp." + kind, when=two_norms), after, shared)
    return table


FALCON = Family(
    name="Falcon",
    model_type="falcon",
    architectures=("FalconForCausalLM", "FalconModel"),
    fields=FIELDS,
    always={"normalization_type": "LN"},
    rest=rest,
    prefixes=("transformer.", ""),
    tensors={
        **embeddings("word_embeddings.weight"),
        **norms(),
        **packed("h.{l}.self_attention.query_key_value", grouped, bias="bias"),
        **output("h.{l}.self_attention.dense", bias="bias"),
        **mlp("h.{l}.mlp", "dense_h_to_4h", "dense_4h_to_h", bias="bias"),
        **norm("ln_final", "ln_f", bias=True),
    },
    examples=("tiiuae/falcon-7b", "tiiuae/falcon-40b"),
)
