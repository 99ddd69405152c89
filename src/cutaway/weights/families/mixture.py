"""Mixtral, and the table of any mixture of experts."""

from __future__ import annotations

from cutaway.weights.families.llama import ALWAYS, BODY, UNUSED, fields, rest
from cutaway.weights.families.parts import everywhere
from cutaway.weights.families.reshape import half, of_expert, transposed
from cutaway.weights.families.table import Family, Tensors, found, ignored, into, read


def experts(layer: str, names: tuple[str, str, str], *, dense: bool = False, old: str | None = None) -> Tensors:
    """A router and its experts: in tensors of their own (`names` of up, down and gate), or in one for all of a layer.

    Args:
        dense: whether layers without a mixture exist, which have an MLP of the same names.
        old: where files keep router and experts, if elsewhere than live models do.
    """
    table: Tensors = {}
    router = [found(f"{where}.gate.weight", transposed) for where in (layer, old) if where]
    if dense:
        router.append(found(f"{layer}.gate_proj.weight", transposed))
    table["blocks.{l}.mlp.W_gate"] = tuple(router)
    joined = {"W_in": ("gate_up_proj", (half(1),)), "W_out": ("down_proj", ()), "W_gate": ("gate_up_proj", (half(0),))}
    for (ours, (together, steps)), name in zip(joined.items(), names, strict=True):
        own = [found(f"{where}.experts.{{e}}.{name}.weight", transposed) for where in (layer, old) if where]
        joint = found(f"{layer}.experts.{together}", of_expert, *steps, transposed)
        table[f"blocks.{{l}}.mlp.experts.{{e}}.{ours}"] = (*own, joint)
    return table


MIXTRAL = Family(
    name="Mixtral",
    model_type="mixtral",
    architectures=("MixtralForCausalLM", "MixtralModel"),
    fields=fields(
        max_position_embeddings=into("n_ctx", 131072),
        intermediate_size=into("d_mlp", 14336),
        num_key_value_heads=read(8),
        rms_norm_eps=into("eps", 1e-5),
        sliding_window=read(),
        num_local_experts=into("num_experts", 8),
        num_experts_per_tok=into("experts_per_token", 2),
        **ignored("output_router_logits router_aux_loss_coef router_jitter_noise"),  # the noise is for training
    ),
    always=ALWAYS,
    rest=lambda hf: rest(hf, theta=1000000.0) | everywhere(hf),
    unused=UNUSED,
    tensors={name: where for name, where in BODY.items() if ".mlp." not in name}
    | experts("layers.{l}.mlp", ("w3", "w2", "w1"), old="layers.{l}.block_sparse_moe"),
    examples=("mistralai/Mixtral-8x7B-v0.1",),
)
