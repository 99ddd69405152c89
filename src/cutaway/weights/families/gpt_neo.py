"""GPT-Neo: learned positions, unscaled attention, every other layer local."""

from __future__ import annotations

from typing import Any

from cutaway.weights.families.parts import attention, embeddings, mlp, norm
from cutaway.weights.families.reshape import positions_from
from cutaway.weights.families.table import Family, Fields, activation, found, ignored, into, read

FIELDS = {
    "vocab_size": into("d_vocab", 50257),
    "max_position_embeddings": into("n_ctx", 2048),
    "hidden_size": into("d_model", 2048),
    "num_layers": into("n_layers", 24),
    "num_heads": into("n_heads", 16),
    "intermediate_size": read(),
    "attention_layers": read(),
    "window_size": read(256),
    "activation_function": into("act_fn", "gelu_new", activation),
    "layer_norm_epsilon": into("eps", 1e-5),
    "tie_word_embeddings": into("tie_word_embeddings", True),
} | ignored(
    "resid_dropout embed_dropout attention_types"  # the configuration class writes attention_types out as attention_layers
)


def rest(hf: Fields) -> dict[str, Any]:
    kinds = list(hf["attention_layers"])
    local = {"use_local_attn": True, "attn_types": kinds, "window_size": hf["window_size"]}
    return {
        "d_head": hf["hidden_size"] // hf["num_heads"],
        "d_mlp": hf["intermediate_size"] or 4 * hf["hidden_size"],
        **(local if "local" in kinds else {}),
    }


GPT_NEO = Family(
    name="GPT-Neo",
    model_type="gpt_neo",
    architectures=("GPTNeoForCausalLM", "GPTNeoModel"),
    fields=FIELDS,
    always={"normalization_type": "LN", "positional_embedding_type": "standard", "use_attn_scale": False},
    rest=rest,
    prefixes=("transformer.", ""),
    unused=(r"h\.\d+\.attn\.attention\.(masked_)?bias",),
    tensors={
        **embeddings("wte.weight"),
        "pos_embed.W_pos": found("wpe.weight", positions_from(0)),
        **norm("blocks.{l}.ln1", "h.{l}.ln_1", bias=True),
        **attention("h.{l}.attn.attention", names=("q_proj", "k_proj", "v_proj", "out_proj"), out_bias=True),
        **norm("blocks.{l}.ln2", "h.{l}.ln_2", bias=True),
        **mlp("h.{l}.mlp", "c_fc", "c_proj", bias=True),
        **norm("ln_final", "ln_f", bias=True),
    },
    examples=("EleutherAI/gpt-neo-125M", "EleutherAI/gpt-neo-1.3B", "roneneldan/TinyStories-33M"),
)
