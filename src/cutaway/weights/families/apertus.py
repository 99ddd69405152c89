"""Apertus: Llama with normalised queries and keys, and MLPs that are not gated but have a trained activation, xIELU."""

from __future__ import annotations

from cutaway.weights.families.llama import ALWAYS, UNUSED, fields, rest
from cutaway.weights.families.parts import attention, embeddings, mlp, norm
from cutaway.weights.families.qwen import QK_NORMS
from cutaway.weights.families.table import Family, Fields, Tensors, activation, found, into, read


def trained(hf: Fields) -> bool:
    """Whether the activation is the one with weights."""
    return str(hf["hidden_act"]) == "xielu"


CURVATURES: Tensors = {
    f"blocks.{{l}}.mlp.act_fn.{name}": found(f"layers.{{l}}.mlp.act_fn.{name}", when=trained) for name in ("alpha_p", "alpha_n")
}

APERTUS = Family(
    name="Apertus",
    model_type="apertus",
    architectures=("ApertusForCausalLM", "ApertusModel"),
    fields=fields(
        vocab_size=into("d_vocab", 131072),
        max_position_embeddings=into("n_ctx", 65536),
        intermediate_size=into("d_mlp", 14336),
        hidden_act=into("act_fn", "xielu", activation),
        rms_norm_eps=into("eps", 1e-5),
        attention_bias=read(False),
    ),
    always=ALWAYS | {"gated_mlp": False, "use_qk_norm": True},
    rest=lambda hf: rest(hf, theta=12000000.0),
    unused=(*UNUSED, r"layers\.\d+\.mlp\.act_fn\.(beta|eps)"),  # constants of its class
    tensors=embeddings("embed_tokens.weight")
    | norm("blocks.{l}.ln1", "layers.{l}.attention_layernorm")
    | attention("layers.{l}.self_attn", bias="attention_bias")
    | QK_NORMS
    | norm("blocks.{l}.ln2", "layers.{l}.feedforward_layernorm")
    | mlp("layers.{l}.mlp", "up_proj", "down_proj")
    | CURVATURES
    | norm("ln_final", "norm"),
    examples=("swiss-ai/Apertus-8B-2509",),
)
