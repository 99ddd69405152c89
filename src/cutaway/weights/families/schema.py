"""What a config of `transformers` must hold to be read at all: the type and the range of every field that a family's table uses.

Whether values fit each other is checked where they meet, in `HookedTransformerConfig` and against the tensors.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from cutaway import reading
from cutaway.errors import NotReadable, UnsupportedArchitecture

Layers = Annotated[int, Meta(ge=0, le=10_000)]
Size = Annotated[int, Meta(ge=1, le=2**31)]
Some = Annotated[int, Meta(ge=0, le=2**31)]  # a size of which 0 means none
Number = Annotated[float, Meta(ge=-1e18, le=1e18)]
Positive = Annotated[float, Meta(gt=1e-18, le=1e18)]
Share = Annotated[float, Meta(ge=0, le=1)]
Kinds = Annotated[list[str], Meta(max_length=10_000)]
Factors = Annotated[list[Positive], Meta(max_length=10_000)]
Switches = Annotated[list[bool | int], Meta(max_length=10_000)]


class Rope(Struct):
    """Settings of rotary positions; which of them a kind of scaling has is checked in `rope`."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: Share | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Size | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    mscale: Number | None = None
    mscale_all_dim: Number | None = None
    long_factor: Factors | None = None
    short_factor: Factors | None = None
    truncate: bool | None = None


class MPTAttention(Struct):
    """`attn_config` of MPT."""

    softmax_scale: Positive | None = None
    clip_qkv: Positive | None = None


class Config(Struct):
    """Fields of all families, by the names that `transformers` gives them. Fields that are not here change nothing."""

    model_type: str = ""
    architectures: Kinds | None = None
    # sizes
    vocab_size: Size = 1
    hidden_size: Size = 1
    n_embd: Size = 1
    n_embed: Size | None = None
    d_model: Size = 1
    word_embed_proj_dim: Size | None = None
    num_hidden_layers: Layers | None = 1
    n_layer: Layers = 1
    n_layers: Layers = 1
    num_layers: Layers = 1
    num_attention_heads: Size | None = 1
    n_head: Size = 1
    n_heads: Size = 1
    num_heads: Size = 1
    num_key_value_heads: Size | None = None
    num_kv_heads: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Size | None = None
    moe_intermediate_size: Size | None = None
    ffn_hidden_size: Size | None = None
    ffn_dim: Size = 1
    n_inner: Size | None = None
    num_experts: Size | None = None
    num_local_experts: Size | None = None
    num_experts_per_tok: Size = 1
    decoder_sparse_step: Size = 1
    mlp_only_layers: Annotated[list[int], Meta(max_length=10_000)] | None = None
    # positions
    max_position_embeddings: Size = 1
    n_positions: Size = 1
    n_ctx: Size | None = None
    seq_length: Size = 1
    max_seq_len: Size = 1
    rotary_dim: Size | None = None
    rotary_pct: Share = 1.0
    rope_pct: Share | None = None
    rotary_emb_base: Positive = 1.0
    rope_theta: Positive | None = None
    rope_local_base_freq: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: Share | None = None
    original_max_position_embeddings: Size | None = None
    no_rope_layers: Switches | None = None
    no_rope_layer_interval: Size = 1
    # attention
    use_sliding_window: bool | None = None
    sliding_window: Some | None = None
    window_size: Size = 1
    sliding_window_pattern: Size | None = None
    _sliding_window_pattern: Size | None = None
    max_window_layers: Some = 0
    layer_types: Kinds | None = None
    attention_types: Annotated[list[tuple[Annotated[list[str], Meta(max_length=100)], Layers]], Meta(max_length=100)] = []
    attention_layers: Kinds | None = None
    attn_config: MPTAttention | None = None
    query_pre_attn_scalar: Positive = 1.0
    attention_multiplier: Positive = 1.0
    attn_logit_softcapping: Positive | None = None
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    multi_query: bool = True
    new_decoder_architecture: bool = False
    num_ln_in_parallel_attn: Some | None = None
    clip_qkv: Positive | None = None
    use_qk_norm: bool = False
    qk_layernorm: bool = False
    # the rest
    layer_norm_epsilon: Annotated[float, Meta(ge=0, le=1)] = 1e-5
    layer_norm_eps: Annotated[float, Meta(ge=0, le=1)] = 1e-5
    rms_norm_eps: Annotated[float, Meta(ge=0, le=1)] | None = 1e-5
    norm_epsilon: Annotated[float, Meta(ge=0, le=1)] = 1e-5
    hidden_act: str | None = None
    hidden_activation: str | None = None
    activation: str = ""
    activation_function: str = ""
    final_logit_softcapping: Positive | None = None
    embedding_multiplier: Number = 1.0
    residual_multiplier: Number = 1.0
    logits_scaling: Positive = 1.0
    logit_scale: Number | None = None
    use_parallel_residual: bool = False
    parallel_attn: bool = False
    attention_bias: bool = False
    use_qkv_bias: bool = False
    use_bias: bool = False
    enable_bias: bool = False
    bias: bool = False
    mlp_bias: bool = False
    norm_topk_prob: bool = False
    tie_word_embeddings: bool = False


def check(config: Mapping[str, Any], fields: Container[str]) -> None:
    """Stop where one of `fields`, those that the family has, is of a type or a size that no model has.

    Raises:
        UnsupportedArchitecture: names the field, says what was expected.
    """
    _as({name: value for name, value in config.items() if name in fields}, Config, "the config of this model")


def check_rope(settings: Mapping[str, Any], where: str) -> None:
    """The same for the settings of rotary positions."""
    _as(dict(settings), Rope, f"{where} in the config of this model")


def _as(values: dict[str, Any], kind: Any, what: str) -> None:
    try:
        reading.convert(values, kind, what)
    except NotReadable as error:
        raise UnsupportedArchitecture(str(error)) from error
