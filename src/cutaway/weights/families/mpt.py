"""MPT: ALiBi, norms without a bias, no biases at all."""

from __future__ import annotations

from typing import Any

from cutaway.weights.families.parts import embeddings, mlp, norm, output, packed
from cutaway.weights.families.reshape import stacked
from cutaway.weights.families.table import BASE, Family, Fields, ignored, into, only, read

FIELDS = {
    "vocab_size": into("d_vocab", 50368),
    "max_seq_len": into("n_ctx", 2048),
    "d_model": into("d_model", 2048),
    "n_layers": into("n_layers", 24),
    "n_heads": into("n_heads", 16),
    "expansion_ratio": only(4),
    "layer_norm_epsilon": into("eps", 1e-5),
    "attn_config": read(),
    "no_bias": only(True),
    "norm_type": only("low_precision_layernorm", "layernorm"),
    "logit_scale": only(None, 0),
    "embedding_fraction": only(1.0),
    "learned_pos_emb": only(True, False),  # never read where there is ALiBi
    "tie_word_embeddings": into("tie_word_embeddings", True),
} | ignored("resid_pdrop emb_pdrop init_device init_config verbose tokenizer_name low_precision_layernorm fc_type ffn_config")

ATTENTION = {
    "attn_type": only("multihead_attention"),
    "alibi": only(True),
    "alibi_bias_max": only(8),
    "qk_ln": only(False),
    "prefix_lm": only(False),
    "clip_qkv": read(),
    "softmax_scale": read(),
} | ignored("attn_pdrop attn_impl attn_uses_sequence_id")


def rest(hf: Fields) -> dict[str, Any]:
    inner = hf["attn_config"] or {}
    for name, value in inner.items():
        entry = ATTENTION.get(name, BASE.get(name))
        if (entry is None and value not in (None, False)) or (entry and entry.accepted and value not in entry.accepted):
            raise hf.refuse("attn_config", f"{name}={value!r} is not understood")
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
