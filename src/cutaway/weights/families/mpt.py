"""MPT: ALiBi, norms without a bias, no biases at all."""

from __future__ import annotations

from typing import Any

from cutaway.weights.families.parts import embeddings, mlp, norm, output, packed
from cutaway.weights.families.reshape import stacked
from cutaway.weights.families.table import Family, Fields, into, read

FIELDS = {
    "vocab_size": into("d_vocab", 50368),
    "max_seq_len": into("n_ctx", 2048),
    "d_model": into("d_model", 2048),
    "n_layers": into("n_layers", 24),
    "n_heads": into("n_heads", 16),
    "layer_norm_epsilon": into("eps", 1e-5),
    "attn_config": read(),
    "tie_word_embeddings": into("tie_word_embeddings", True),
}

ATTENTION = ("clip_qkv", "softmax_scale", "attn_pdrop")
"""What `transformers` reads of `attn_config`: its MPT has ALiBi and no norms of queries and keys, whatever that says."""


def rest(hf: Fields) -> dict[str, Any]:
    inner = hf["attn_config"] or {}
    d_head = hf["d_model"] // hf["n_heads"]
    ours: dict[str, Any] = {"d_head": d_head, "d_mlp": 4 * hf["d_model"]}
    if inner.get("softmax_scale") is not None:
        ours["attn_scale"] = 1 / inner["softmax_scale"]
    if inner.get("clip_qkv"):
        ours["clip_qkv"] = float(inner["clip_qkv"])
    return ours


MPT = Family(
    name="MPT",
    model_type="mpt",
    architectures=("MptForCausalLM", "MptModel", "MPTForCausalLM"),
    fields=FIELDS,
    always={"normalization_type": "LN", "positional_embedding_type": "alibi", "act_fn": "gelu"},
    rest=rest,
    prefixes=("transformer.", ""),
    tensors={
        **embeddings("wte.weight"),
        **norm("blocks.{l}.ln1", "blocks.{l}.norm_1"),
        **packed("blocks.{l}.attn.Wqkv", stacked),
        **output("blocks.{l}.attn.out_proj"),
        **norm("blocks.{l}.ln2", "blocks.{l}.norm_2"),
        **mlp("blocks.{l}.ffn", "up_proj", "down_proj"),
        **norm("ln_final", "norm_f"),
    },
    examples=("mosaicml/mpt-7b",),
)
