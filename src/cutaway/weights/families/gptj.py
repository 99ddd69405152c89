"""GPT-J: attention and MLP side by side on one norm, rotation of neighbouring pairs, a bias on the logits."""

from __future__ import annotations

from typing import Any

from cutaway.weights.families.parts import attention, embeddings, mlp, norm
from cutaway.weights.families.table import Family, Fields, activation, found, ignored, into, read

FIELDS = {
    "vocab_size": into("d_vocab", 50400),
    "n_positions": into("n_ctx", 2048),
    "n_embd": into("d_model", 4096),
    "n_layer": into("n_layers", 28),
    "n_head": into("n_heads", 16),
    "rotary_dim": into("rotary_dim", 64),
    "n_inner": read(),
    "activation_function": into("act_fn", "gelu_new", activation),
    "layer_norm_epsilon": into("eps", 1e-5),
    "tie_word_embeddings": into("tie_word_embeddings", False),
} | ignored("resid_pdrop embd_pdrop attn_pdrop")


def rest(hf: Fields) -> dict[str, Any]:
    if hf["rotary_dim"] is None:
        raise hf.refuse("rotary_dim", "it must be a number")
    return {"d_head": hf["n_embd"] // hf["n_head"], "d_mlp": hf["n_inner"] or 4 * hf["n_embd"]}


GPTJ = Family(
    name="GPT-J",
    model_type="gptj",
    architectures=("GPTJForCausalLM", "GPTJModel"),
    fields=FIELDS,
    always={
        "normalization_type": "LN",
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": True,
        "parallel_attn_mlp": True,
    },
    rest=rest,
    prefixes=("transformer.", ""),
    unused=(r"h\.\d+\.attn\.(masked_)?bias", r"h\.\d+\.attn\.embed_positions"),
    tensors={
        **embeddings("wte.weight"),
        **norm("blocks.{l}.ln1", "h.{l}.ln_1", bias=True),
        **attention("h.{l}.attn", names=("q_proj", "k_proj", "v_proj", "out_proj")),
        **norm("blocks.{l}.ln2", "h.{l}.ln_1", bias=True),
        **mlp("h.{l}.mlp", "fc_in", "fc_out", bias=True),
        **norm("ln_final", "ln_f", bias=True),
        "unembed.b_U": found("lm_head.bias"),
    },
    examples=("EleutherAI/gpt-j-6B",),
)
