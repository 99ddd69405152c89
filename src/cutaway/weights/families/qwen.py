"""Qwen 2 (biases on queries, keys and values), Qwen 3 (norms on queries and keys) and its mixture of experts."""

from __future__ import annotations

from typing import Any

from cutaway.weights.families.llama import ALWAYS, BODY, fields, rest
from cutaway.weights.families.mixture import experts
from cutaway.weights.families.parts import attention, everywhere, norm, windows
from cutaway.weights.families.table import Family, Fields, ignored, into, read

QWEN = {**ALWAYS, "default_prepend_bos": False}

COMMON = fields(
    vocab_size=into("d_vocab", 151936),
    max_position_embeddings=into("n_ctx", 32768),
    intermediate_size=into("d_mlp", 22016),
    num_key_value_heads=read(32),
    use_sliding_window=read(False),
    sliding_window=read(4096),
    max_window_layers=read(28),
    layer_types=read(),
)


def qwen_rest(hf: Fields) -> dict[str, Any]:
    types = hf["layer_types"]
    if types is None and hf["use_sliding_window"] and hf["sliding_window"] is not None:
        first = hf["max_window_layers"]
        types = ["full_attention" if layer < first else "sliding_attention" for layer in range(hf["num_hidden_layers"])]
    return rest(hf) | windows(hf, types)


QWEN2 = Family(
    name="Qwen 2",
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    fields=COMMON,
    always=QWEN,
    rest=qwen_rest,
    tensors=BODY | attention("layers.{l}.self_attn", bias=True, out_bias=False),
    examples=("Qwen/Qwen2.5-0.5B", "Qwen/Qwen1.5-0.5B"),
)

QK_NORMS = norm("blocks.{l}.attn.q_norm", "layers.{l}.self_attn.q_norm") | norm(
    "blocks.{l}.attn.k_norm", "layers.{l}.self_attn.k_norm"
)

QWEN3 = Family(
    name="Qwen 3",
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    fields=COMMON | {"head_dim": read(128), "attention_bias": read(False)},
    always={**QWEN, "use_qk_norm": True},
    rest=qwen_rest,
    tensors=BODY | attention("layers.{l}.self_attn", bias="attention_bias") | QK_NORMS,
    examples=("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B-Base"),
)


def moe_rest(hf: Fields) -> dict[str, Any]:
    layers, step, dense = hf["num_hidden_layers"], hf["decoder_sparse_step"], hf["mlp_only_layers"] or []
    mixtures = [layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]
    window = everywhere(hf) if hf["use_sliding_window"] else {}
    return (
        rest(hf)
        | window
        | {
            "num_experts": hf["num_local_experts"] if hf["num_experts"] is None else hf["num_experts"],
            "moe_layers": None if all(mixtures) else mixtures,
            "d_mlp": hf["moe_intermediate_size"] if all(mixtures) else hf["intermediate_size"],
            "d_mlp_expert": None if all(mixtures) else hf["moe_intermediate_size"],
        }
    )


QWEN3_MOE = Family(
    name="Qwen 3 MoE",
    model_type="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM", "Qwen3MoeModel"),
    fields=fields(
        vocab_size=into("d_vocab", 151936),
        max_position_embeddings=into("n_ctx", 32768),
        hidden_size=into("d_model", 2048),
        num_hidden_layers=into("n_layers", 24),
        num_key_value_heads=read(4),
        intermediate_size=read(6144),
        attention_bias=read(False),
        use_sliding_window=read(False),
        sliding_window=read(4096),
        decoder_sparse_step=read(1),
        moe_intermediate_size=read(768),
        mlp_only_layers=read(),
        num_experts=read(),
        num_local_experts=read(128),
        num_experts_per_tok=into("experts_per_token", 8),
        norm_topk_prob=into("norm_topk_prob", False),
        **ignored("output_router_logits router_aux_loss_coef"),
    ),
    always={**QWEN, "use_qk_norm": True},
    rest=moe_rest,
    tensors=BODY
    | attention("layers.{l}.self_attn", bias="attention_bias")
    | QK_NORMS
    | experts("layers.{l}.mlp", ("up_proj", "down_proj", "gate_proj"), dense=True),
    examples=("Qwen/Qwen3-30B-A3B",),
)
