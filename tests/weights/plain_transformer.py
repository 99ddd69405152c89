"""A second route to the logits: the forward pass written plainly from a state dict, for the laws of processing.

Slow, without hooks, and independent of the network. A norm whose weights are absent has w = 1 and b = 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.weights.canonical import shapes


def random_weights(cfg: HookedTransformerConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Weights in which nothing is centred, no bias is zero and no norm is one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(cfg).items():
        width = shape[-2] if len(shape) > 1 else 4
        values = torch.randn(shape, generator=generator, dtype=torch.float64) / width**0.5
        weights[name] = (values + (1 if name.endswith(".w") else 0.3)).to(dtype)
    return weights


class Plain:
    """The forward pass of one state dict."""

    def __init__(self, weights: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> None:
        self.weights, self.cfg = weights, cfg

    def norm(self, x: Tensor, name: str, kind: str) -> Tensor:
        if kind == "LN":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + self.cfg.eps).sqrt()
        x = x * self.weights.get(f"{name}.w", torch.ones(1, dtype=x.dtype))
        return x + self.weights.get(f"{name}.b", torch.zeros(1, dtype=x.dtype))

    def kind(self, final: bool = False) -> str | None:
        kind = self.cfg.normalization_type
        if kind is None:
            return None
        return "RMS" if final and self.cfg.final_rms else kind.removesuffix("Pre")

    def maybe(self, x: Tensor, name: str, apply: bool, final: bool = False) -> Tensor:
        kind = self.kind(final)
        return self.norm(x, name, kind) if apply and kind else x

    def logits(self, tokens: Tensor) -> Tensor:
        cfg, weights = self.cfg, self.weights
        x = weights["embed.W_E"][tokens]
        if cfg.post_embedding_ln:
            x = self.norm(x, "embed.ln", "LN")
        if cfg.positional_embedding_type == "standard":
            x = x + weights["pos_embed.W_pos"][: tokens.shape[1]]
        post = cfg.use_normalization_before_and_after or cfg.post_norm_only
        for layer in range(cfg.n_layers):
            block = f"blocks.{layer}"
            before = x
            out = self.attention(self.maybe(x, f"{block}.ln1", not cfg.post_norm_only), layer)
            x = x + self.maybe(out, f"{block}.ln1_post", post)
            if cfg.attn_only:
                continue
            read = self.maybe(before if cfg.parallel_attn_mlp else x, f"{block}.ln2", not cfg.post_norm_only)
            x = x + self.maybe(self.mixture(read, layer), f"{block}.ln2_post", post)
        logits = self.maybe(x, "ln_final", True, final=True) @ weights["unembed.W_U"] + weights["unembed.b_U"]
        cap = cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def attention(self, x: Tensor, layer: int) -> Tensor:
        cfg, attn = self.cfg, f"blocks.{layer}.attn"
        length = x.shape[1]
        with_pos = x + self.weights["pos_embed.W_pos"][:length] if cfg.positional_embedding_type == "shortformer" else x
        q, k, v = (self.project(y, attn, letter) for y, letter in ((with_pos, "Q"), (with_pos, "K"), (x, "V")))
        if cfg.use_qk_norm:
            q, k = self.qk_norm(q, f"{attn}.q_norm"), self.qk_norm(k, f"{attn}.k_norm")
        if cfg.positional_embedding_type == "rotary":
            q, k = rotated(q), rotated(k)
        k, v = (y.repeat_interleave(cfg.n_heads // cfg.kv_heads, dim=2) for y in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / cfg.attn_scale
        place = torch.arange(length)
        back = place[:, None] - place[None, :]
        if cfg.positional_embedding_type == "alibi":
            slopes = 2.0 ** (-8 * torch.arange(1, cfg.n_heads + 1, dtype=x.dtype) / cfg.n_heads)  # heads: a power of two
            scores = scores - back * slopes[:, None, None]
        if cfg.attn_scores_soft_cap > 0:
            scores = cfg.attn_scores_soft_cap * torch.tanh(scores / cfg.attn_scores_soft_cap)
        pattern = scores.masked_fill(back < 0, float("-inf")).softmax(-1)
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        return torch.einsum("bqhd,hdm->bqm", z, self.weights[f"{attn}.W_O"]) + self.weights[f"{attn}.b_O"]

    def project(self, x: Tensor, attn: str, letter: str) -> Tensor:
        shared = "_" if self.cfg.n_key_value_heads is not None and letter in "KV" else ""
        W, b = (self.weights[f"{attn}.{shared}{kind}_{letter}"] for kind in "Wb")
        out = torch.einsum("bpm,hmd->bphd", x, W) + b
        return out if self.cfg.clip_qkv is None else out.clamp(-self.cfg.clip_qkv, self.cfg.clip_qkv)

    def qk_norm(self, x: Tensor, name: str) -> Tensor:
        if self.cfg.qk_norm_over == "full":
            return self.norm(x.flatten(2), name, self.cfg.qk_norm_type).view(x.shape)
        return self.norm(x, name, self.cfg.qk_norm_type)

    def mixture(self, x: Tensor, layer: int) -> Tensor:
        mlp = f"blocks.{layer}.mlp"
        if not self.cfg.is_moe(layer):
            return self.mlp(x, mlp)
        probabilities = (x @ self.weights[f"{mlp}.W_gate"]).softmax(-1)
        best, chosen = probabilities.topk(self.cfg.experts_per_token, dim=-1)
        best = best / best.sum(-1, keepdim=True)
        outs = torch.stack([self.mlp(x, f"{mlp}.experts.{expert}") for expert in range(self.cfg.num_experts)], dim=-2)
        picked = outs.gather(-2, chosen[..., None].expand(*chosen.shape, x.shape[-1]))
        return (picked * best[..., None]).sum(-2)

    def mlp(self, x: Tensor, mlp: str) -> Tensor:
        pre = x @ self.weights[f"{mlp}.W_in"]
        if self.cfg.gated_mlp:
            post = self.activation(x @ self.weights[f"{mlp}.W_gate"]) * pre + self.weights[f"{mlp}.b_in"]
        else:
            post = self.activation(pre + self.weights[f"{mlp}.b_in"])
        if self.cfg.has_mlp_norm:
            post = self.norm(post, f"{mlp}.ln", "LN")
        return post @ self.weights[f"{mlp}.W_out"] + self.weights[f"{mlp}.b_out"]

    def activation(self, x: Tensor) -> Tensor:
        name = self.cfg.act_fn.removesuffix("_ln")
        return {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu, "solu": lambda x: x * x.softmax(-1)}[name](x)


def rotated(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None, None] * 10000.0 ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)
