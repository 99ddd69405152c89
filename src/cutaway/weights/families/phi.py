"""Phi (attention and MLP side by side on one norm) and Phi-3 (Llama with its linear layers packed)."""

from __future__ import annotations

from cutaway.weights.families.llama import ALWAYS, BODY, fields, rest
from cutaway.weights.families.parts import attention, embeddings, everywhere, mlp, norm, output, packed
from cutaway.weights.families.reshape import half, stacked, transposed
from cutaway.weights.families.table import Family, activation, found, ignored, into, read

PHI = Family(
    name="Phi",
    model_type="phi",
    architectures=("PhiForCausalLM", "PhiModel"),
    fields=fields(
        {"layer_norm_eps": into("eps", 1e-5)},
        vocab_size=into("d_vocab", 51200),
        hidden_size=into("d_model", 2048),
        num_hidden_layers=into("n_layers", 24),
        intermediate_size=into("d_mlp", 8192),
        hidden_act=into("act_fn", "gelu_new", activation),
        qk_layernorm=into("use_qk_norm", False),
        **ignored("resid_pdrop embd_pdrop"),
    ),
    always={"normalization_type": "LN", "parallel_attn_mlp": True, "qk_norm_type": "LN"},
    rest=lambda hf: rest(hf, partial=0.5),
    tensors={
        **embeddings("embed_tokens.weight"),
        **norm("blocks.{l}.ln1", "layers.{l}.input_layernorm", bias=True),
        **attention("layers.{l}.self_attn", names=("q_proj", "k_proj", "v_proj", "dense"), bias=True),
        **norm("blocks.{l}.attn.q_norm", "layers.{l}.self_attn.q_layernorm", bias=True),
        **norm("blocks.{l}.attn.k_norm", "layers.{l}.self_attn.k_layernorm", bias=True),
        **norm("blocks.{l}.ln2", "layers.{l}.input_layernorm", bias=True),
        **mlp("layers.{l}.mlp", "fc1", "fc2", bias=True),
        **norm("ln_final", "final_layernorm", bias=True),
        "unembed.b_U": found("lm_head.bias"),
    },
    examples=("microsoft/phi-1", "microsoft/phi-2"),
)

GATE_UP = "layers.{l}.mlp.gate_up_proj.weight"

PHI3 = Family(
    name="Phi-3",
    model_type="phi3",
    architectures=("Phi3ForCausalLM", "Phi3Model"),
    fields=fields(
        vocab_size=into("d_vocab", 32064),
        max_position_embeddings=into("n_ctx", 4096),
        hidden_size=into("d_model", 3072),
        intermediate_size=into("d_mlp", 8192),
        rms_norm_eps=into("eps", 1e-5),
        sliding_window=read(),
        **ignored("resid_pdrop embd_pdrop"),
    ),
    always=ALWAYS,
    rest=lambda hf: rest(hf, partial=1.0) | everywhere(hf),
    tensors={name: where for name, where in BODY.items() if ".attn." not in name and ".mlp." not in name}
    | packed("layers.{l}.self_attn.qkv_proj", stacked)
    | output("layers.{l}.self_attn.o_proj")
    | {
        "blocks.{l}.mlp.W_in": found(GATE_UP, half(1), transposed),
        "blocks.{l}.mlp.W_gate": found(GATE_UP, half(0), transposed),
        "blocks.{l}.mlp.W_out": found("layers.{l}.mlp.down_proj.weight", transposed),
    },
    examples=("microsoft/Phi-3-mini-4k-instruct", "microsoft/phi-4"),
)
