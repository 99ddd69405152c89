"""GPT-NeoX, which Pythia models are: queries, keys and values together head by head, a partial rotation."""

from __future__ import annotations

from typing import Any

from cutaway.weights.families.parts import mlp, norm, output, packed, tied, untied
from cutaway.weights.families.reshape import grouped, transposed
from cutaway.weights.families.rope import ROPE, rotary
from cutaway.weights.families.table import Family, Fields, activation, found, into, read

FIELDS = {
    "vocab_size": into("d_vocab", 50432),
    "max_position_embeddings": into("n_ctx", 2048),
    "hidden_size": into("d_model", 6144),
    "num_hidden_layers": into("n_layers", 44),
    "num_attention_heads": into("n_heads", 64),
    "intermediate_size": into("d_mlp", 24576),
    "hidden_act": into("act_fn", "gelu", activation),
    "layer_norm_eps": into("eps", 1e-5),
    "use_parallel_residual": into("parallel_attn_mlp", True),
    "attention_bias": read(True),
    "head_dim": read(),
    "rotary_pct": read(0.25),
    "rotary_emb_base": read(10000.0),
    "tie_word_embeddings": into("tie_word_embeddings", False),
    **ROPE,
}


def rest(hf: Fields) -> dict[str, Any]:
    d_head = hf["hidden_size"] // hf["num_attention_heads"]
    rotating = hf["head_dim"] or d_head  # only the angles follow head_dim
    return {"d_head": d_head, **rotary(hf, rotating, theta=float(hf["rotary_emb_base"]), partial=float(hf["rotary_pct"]))}


NEOX = Family(
    name="GPT-NeoX",
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    fields=FIELDS,
    always={"normalization_type": "LN"},
    rest=rest,
    prefixes=("gpt_neox.", ""),
    unused=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    tensors={
        "embed.W_E": found("embed_in.weight"),
        **norm("blocks.{l}.ln1", "layers.{l}.input_layernorm", bias=True),
        **packed("layers.{l}.attention.query_key_value", grouped, bias="attention_bias"),
        **output("layers.{l}.attention.dense", bias="attention_bias"),
        **norm("blocks.{l}.ln2", "layers.{l}.post_attention_layernorm", bias=True),
        **mlp("layers.{l}.mlp", "dense_h_to_4h", "dense_4h_to_h", bias=True),
        **norm("ln_final", "final_layer_norm", bias=True),
        "unembed.W_U": (
            found("embed_out.weight", transposed, when=untied),
            found("lm_head.weight", transposed, when=untied),
            found("embed_in.weight", transposed, when=tied),
        ),
    },
    examples=("EleutherAI/pythia-70m", "EleutherAI/pythia-12b", "EleutherAI/gpt-neox-20b"),
)
