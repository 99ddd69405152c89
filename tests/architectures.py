"""Small networks of every kind that the configuration can describe, for laws that hold for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from cutaway.config import HookedTransformerConfig
from cutaway.hooked_transformer import HookedTransformer

BASE: dict[str, Any] = {"n_layers": 2, "d_model": 24, "n_ctx": 20, "d_head": 6, "n_heads": 4, "d_vocab": 13, "device": "cpu"}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "attention only": {"attn_only": True},
    "no norm, shortformer": {"attn_only": True, "normalization_type": None, "positional_embedding_type": "shortformer"},
    "gpt2": {"act_fn": "gelu_new", "d_mlp": 30},
    "folded": {"act_fn": "gelu", "normalization_type": "LNPre"},
    "llama": {
        "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "positional_embedding_type": "rotary",
        "n_key_value_heads": 2,
    },
    "gemma": {
        "act_fn": "gelu_new", "gated_mlp": True, "normalization_type": "RMSPre", "positional_embedding_type": "rotary",
        "use_normalization_before_and_after": True, "attn_scores_soft_cap": 3.0, "output_logits_soft_cap": 2.0,
        "use_local_attn": True, "window_size": 4, "attn_types": ["local", "global"], "rotary_base_local": 100.0,
        "use_qk_norm": True, "n_key_value_heads": 1,
    },
    "gpt-j": {
        "act_fn": "gelu_fast", "parallel_attn_mlp": True, "positional_embedding_type": "rotary", "rotary_dim": 4,
        "rotary_adjacent_pairs": True,
    },
    "bloom": {"act_fn": "gelu", "positional_embedding_type": "alibi", "post_embedding_ln": True},
    "solu": {"act_fn": "solu_ln", "d_mlp": 20, "scale_attn_by_inverse_layer_idx": True},
    "olmo-2": {
        "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "positional_embedding_type": "rotary",
        "post_norm_only": True, "use_qk_norm": True, "qk_norm_over": "full", "clip_qkv": 2.0, "gated_mlp_biases": True,
    },
    "mixture": {
        "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "positional_embedding_type": "rotary",
        "num_experts": 4, "experts_per_token": 2, "d_mlp": 16, "rotary_layers": [True, False],
    },
    "final rms": {"act_fn": "relu", "final_rms": True, "use_attn_scale": False},
    "split inputs": {"act_fn": "relu", "use_split_qkv_input": True, "use_hook_mlp_in": True, "use_attn_result": True},
    "attention inputs": {"act_fn": "relu", "use_attn_in": True, "use_hook_tokens": True},
}  # fmt: skip
CAUSAL = list(ARCHITECTURES)
ALL = {**ARCHITECTURES, "bidirectional": {"act_fn": "gelu", "attention_dir": "bidirectional"}}


def network(name: str, *, spread: float = 0.3, seed: int = 0, **changes: Any) -> HookedTransformer:
    """A network of this kind whose weights (biases and norms too) are drawn with this spread, so that nothing is trivial."""
    cfg = HookedTransformerConfig(**{**BASE, **ALL[name], **changes})
    model = HookedTransformer(cfg)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw).to(parameter.dtype) * spread
            parameter.copy_(noise + parameter_name.endswith((".w",)))
    return model.eval()


def some_tokens(batch: int = 3, length: int = 9, seed: int = 1) -> torch.Tensor:
    """Tokens of the small vocabulary."""
    return torch.randint(0, BASE["d_vocab"], (batch, length), generator=torch.Generator().manual_seed(seed))


def flop_counter() -> FlopCounterMode:
    """Torch's counter of operations, told of the fused attention of processors, which it does not know."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def operations(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    return FlopCounterMode(display=False, custom_mapping={fused: operations})
