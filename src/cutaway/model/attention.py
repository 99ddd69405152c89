"""Attention: queries, keys, values, pattern, result; each a site, each computed only if needed.

Nobody writing into scores or pattern means the fused kernel. Per-head results are built for listeners
only; the stream runs through them where somebody may write.

`W_Q`, `W_K`, `W_V` have the dialect's shape `[head, d_model, d_head]` and lie in memory as
`[d_model, head, d_head]`, so that projecting is one matrix product without copying the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.axes import Heads, Keys, Pattern
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ShapeError
from cutaway.model.dialect_attention import DialectAttention, masked_by_hand
from cutaway.model.hook_points import HookPoint, listening, written
from cutaway.model.key_values import KeyValues
from cutaway.model.listeners import HERE
from cutaway.model.norm import EachHeadNorm, LayerNorm, RMSNorm
from cutaway.model.positions import Rotary, Stream, alibi_at, rotaries
from cutaway.model.products import empty_weights, linear, linear_by_head

Input = Float[Tensor, "batch pos d_model"] | Float[Tensor, "batch pos head d_model"]
KeyInput = Float[Tensor, "batch key d_model"] | Float[Tensor, "batch key kv d_model"]

PACKED = 2**16  # up to this many weights, one joint product for queries, keys and values pays for joining them
FEW = 2**12  # up to this many numbers by head, a run is so short that computing heads apart costs fractions of a millisecond


class Attention(DialectAttention, nn.Module):
    """One layer of attention heads.

    Called with the (normalised) inputs of queries, keys and values, each `[batch, pos, d_model]` or, split by
    head, `[batch, pos, head, d_model]`; returns what the layer adds to the residual stream.
    """

    grouped = False

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        attn_type: str = "global",
        layer_id: int | None = None,
        rotary_of: Callable[[int], Rotary | None] | None = None,
    ):
        super().__init__()
        self.cfg = cfg = HookedTransformerConfig.unwrap(cfg)
        self.attn_type, self.layer_id = attn_type, layer_id
        heads, kv, d_model, d_head, dtype = cfg.n_heads, self._kv_heads, cfg.d_model, cfg.d_head, cfg.torch_dtype
        name = "_" if self.grouped else ""
        self.W_Q = _d_model_first(heads, d_model, d_head, dtype)
        self.W_O = nn.Parameter(empty_weights(heads * d_head, d_model, dtype).unflatten(0, (heads, d_head)))
        self.b_Q = nn.Parameter(torch.zeros(heads, d_head, dtype=dtype))
        self.b_O = nn.Parameter(torch.zeros(d_model, dtype=dtype))
        for which in "KV":
            self.register_parameter(f"{name}W_{which}", _d_model_first(kv, d_model, d_head, dtype))
        for which in "KV":
            self.register_parameter(f"{name}b_{which}", nn.Parameter(torch.zeros(kv, d_head, dtype=dtype)))
        if cfg.use_qk_norm:
            self.q_norm, self.k_norm = _head_norm(cfg, heads), _head_norm(cfg, kv)
        else:
            self.register_module("q_norm", None)
            self.register_module("k_norm", None)
        self.attn_scale = cfg.attn_scale if cfg.use_attn_scale else 1.0
        if cfg.scale_attn_by_inverse_layer_idx:
            assert layer_id is not None
            self.attn_scale *= layer_id + 1
        self.window = cfg.window_size if attn_type == "local" else None
        self.rotary = (rotary_of or rotaries(cfg))(layer_id or 0)
        self.hook_k, self.hook_q, self.hook_v = HookPoint(), HookPoint(), HookPoint()  # in the dialect's order, as models print
        self.hook_z, self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint(), HookPoint()
        self.hook_result = HookPoint()
        if self.rotary is not None:
            self.hook_rot_k, self.hook_rot_q = HookPoint(), HookPoint()

    @property
    def _kv_heads(self) -> int:
        return self.cfg.n_heads

    def forward(
        self,
        query_input: Input,
        key_input: KeyInput,
        value_input: KeyInput,
        past_kv_cache_entry: KeyValues | None = None,
        additive_attention_mask: Float[Tensor, "batch #head #pos kv_pos"] | None = None,
        attention_mask: Tensor | None = None,
        stream: Stream | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """What this layer adds to the residual stream, `[batch, pos, d_model]`."""
        stream = HERE.stream if stream is None else stream
        if stream is None:
            start = 0 if past_kv_cache_entry is None else past_kv_cache_entry.length
            stream = Stream(start, None if attention_mask is None else attention_mask.bool())
        if self.has_own_steps():
            return self.by_steps((query_input, key_input, value_input), stream, past_kv_cache_entry, additive_attention_mask)
        q, k, v = self.queries_keys_values(query_input, key_input, value_input, stream)
        z = stream.attend(self, q, k, v, kept=past_kv_cache_entry, additive_attention_mask=additive_attention_mask)
        return self.output(self.hook_z(z))

    def attend(
        self,
        q: Heads,
        k: Keys,
        v: Keys,
        stream: Stream,
        kept: KeyValues | None = None,
        additive_attention_mask: Float[Tensor, "batch #head #pos kv_pos"] | None = None,
        touch: Callable[[str, Tensor], Tensor] | None = None,
    ) -> Heads:
        """What each head has seen, from queries and keys as attention reads them; of all heads, or of those given.

        Args:
            touch: given (name of the site, scores or pattern), gives what takes their place.
        """
        if kept is not None:
            k, v = kept.append(k, v)
        visible = self._visible(q, k, stream)
        if touch is None and self._fusible(additive_attention_mask):
            if listening(self.hook_attn_scores) or listening(self.hook_pattern):  # a cache changes no bit of z
                with torch.no_grad():
                    self._pattern(q, k, visible, None, stream)
            plain = stream.padding is None and self._own_mask is None and self._all_in_window(k)
            return self._fused(q, k, v, visible, causal_only=plain)
        return self.mixed(self._pattern(q, k, visible, additive_attention_mask, stream, touch), v)

    def mixed(self, pattern: Pattern, v: Keys) -> Heads:
        """What each head has seen, from its pattern and the values."""
        return _times_shared(pattern, v.transpose(1, 2)).transpose(1, 2)

    def pattern(self, q: Heads, k: Keys, stream: Stream) -> Pattern:
        """Attention probabilities, from queries and keys as attention reads them."""
        return self._pattern(q, k, self._visible(q, k, stream), None, stream)

    def _visible(self, q: Tensor, k: Tensor, stream: Stream) -> Tensor | None:
        causal = self.cfg.attention_dir == "causal"
        seen = stream.visible(q.shape[1], k.shape[1], causal=causal, window=self.window, device=q.device)
        return masked_by_hand(self, seen, q.shape[1], k.shape[1], stream)

    # Queries, keys and values.

    def queries_keys_values(
        self, query_input: Input, key_input: KeyInput, value_input: KeyInput, stream: Stream
    ) -> tuple[Heads, Keys, Keys]:
        """Queries, keys and values after their sites, queries and keys normalised and rotated where they should be."""
        q, k, v = self.project(query_input, key_input, value_input)
        if self.cfg.use_qk_norm:
            q, k = self.normed(q, self.q_norm), self.normed(k, self.k_norm)
        if self.rotary is not None:
            q = self.hook_rot_q(self.rotary.rotate(q, stream))
            k = self.hook_rot_k(self.rotary.rotate(k, stream))
        return q, k, v

    def project(self, query_input: Input, key_input: KeyInput, value_input: KeyInput) -> tuple[Heads, Keys, Keys]:
        """Queries, keys and values after their sites."""
        q, k, v = self._project(query_input, key_input, value_input)
        if self.cfg.clip_qkv is not None:
            q, k, v = (x.clamp(-self.cfg.clip_qkv, self.cfg.clip_qkv) for x in (q, k, v))
        return self.hook_q(q), self.hook_k(k), self.hook_v(v)

    def as_read(self, x: Heads | Keys, which: str, stream: Stream) -> Heads | Keys:
        """Queries ("q") or keys ("k") normalised and rotated as attention reads them; no site is passed."""
        if self.cfg.use_qk_norm:
            x = self.normed(x, self.q_norm if which == "q" else self.k_norm)
        return x if self.rotary is None else self.rotary.rotate(x, stream)

    def _weights(self) -> tuple[tuple[Any, Any], ...]:
        """Weights and biases of queries, keys, values, as they are stored."""
        return (self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V)

    def _project(self, query_input: Input, key_input: KeyInput, value_input: KeyInput) -> tuple[Tensor, ...]:
        weights = self._weights()
        apart = self._apart(self.cfg.use_split_qkv_input or self.cfg.use_attn_in, *query_input.shape[:2])
        same = query_input is key_input and key_input is value_input and query_input.ndim == 3
        if same and not apart and sum(W.numel() for W, _ in weights) <= PACKED:
            flat = torch.cat([_flat(W) for W, _ in weights], dim=1)
            bias = torch.cat([b.flatten() for _, b in weights])
            sizes = [W.shape[0] * W.shape[2] for W, _ in weights]
            joint = linear(query_input, flat, bias).split(sizes, dim=-1)
            return tuple(part.unflatten(-1, (-1, self.cfg.d_head)) for part in joint)
        inputs = (query_input, key_input, value_input)
        return tuple(project(x, W, b, apart=apart) for x, (W, b) in zip(inputs, weights, strict=True))

    def _apart(self, flag: bool, batch: int, pos: int) -> bool:
        """Whether a flag of the dialect has heads computed apart, for the bits of a run in which hooks write; in small runs."""
        return flag and batch * pos * self.cfg.n_heads * self.cfg.d_model <= FEW

    def normed(self, x: Heads, norm: nn.Module) -> Heads:
        """Queries or keys after their norm."""
        out: Tensor = norm(x.flatten(-2)).view_as(x) if self.cfg.qk_norm_over == "full" else norm(x)
        return out

    def _for_all_heads(self, x: Float[Tensor, "batch key kv d_head"], heads: int) -> Float[Tensor, "batch key head d_head"]:
        times = heads // x.shape[2]
        return x if times == 1 else x.repeat_interleave(times, dim=2)

    # From queries and keys to what each head has seen.

    def _fusible(self, additive_attention_mask: Tensor | None) -> bool:
        """Whether nobody changes scores or pattern, and the fused kernel can compute this attention."""
        cfg = self.cfg
        return not (
            written(self.hook_attn_scores)
            or written(self.hook_pattern)
            or cfg.attn_scores_soft_cap > 0
            or cfg.positional_embedding_type == "alibi"
            or additive_attention_mask is not None
        )

    def _all_in_window(self, k: Keys) -> bool:
        return self.window is None or self.window >= k.shape[1]

    def _fused(self, q: Heads, k: Keys, v: Keys, visible: Tensor | None, *, causal_only: bool) -> Heads:
        causal = causal_only and self.cfg.attention_dir == "causal" and q.shape[1] == k.shape[1] and q.shape[1] > 1
        grouped = q.shape[2] != k.shape[2] and q.device.type == "cpu"  # that kernel reads shared keys where they lie
        if not grouped:
            k, v = self._for_all_heads(k, q.shape[2]), self._for_all_heads(v, q.shape[2])
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask, scale = None if causal else visible, 1 / self.attn_scale
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped).transpose(1, 2)

    def _pattern(
        self, q: Heads, k: Keys, visible: Tensor | None, additive_attention_mask: Tensor | None, stream: Stream,
        touch: Callable[[str, Tensor], Tensor] | None = None,
    ) -> Pattern:  # fmt: skip
        """Attention probabilities, by way of the scores, after their sites. Scores have float32 precision at least."""
        dtype = q.dtype
        if dtype in (torch.float16, torch.bfloat16):
            q, k = q.float(), k.float()
        scores = _times_shared((q / self.attn_scale).transpose(1, 2), k.permute(0, 2, 3, 1))
        if self.cfg.attn_scores_soft_cap > 0:
            scores = self.cfg.attn_scores_soft_cap * torch.tanh(scores / self.cfg.attn_scores_soft_cap)
        if self.cfg.positional_embedding_type == "alibi":
            back = stream.distances(scores.shape[-2], scores.shape[-1], scores.device)
            scores = scores + alibi_at(self.cfg.n_heads, back).to(scores.dtype)
        if visible is not None:
            scores = scores.masked_fill_(~visible, self._ignore)  # the product is fresh, and nobody has seen it
        if additive_attention_mask is not None:
            scores = scores + additive_attention_mask
        scores = self.hook_attn_scores(scores)
        scores = scores if touch is None else touch("attn.hook_attn_scores", scores)
        pattern = scores.softmax(-1)
        if stream.padding is not None or self._own_mask is not None:
            pattern = pattern.masked_fill(pattern.isnan(), 0)  # the queries of padding see nothing
        pattern = self.hook_pattern(pattern)
        return (pattern if touch is None else touch("attn.hook_pattern", pattern)).to(dtype)

    # From what each head has seen to the residual stream.

    def output(self, z: Heads) -> Float[Tensor, "batch pos d_model"]:
        """What the heads write, summed, plus the output bias."""
        apart = self._apart(self.cfg.use_attn_result, *z.shape[:2])
        if apart or listening(self.hook_result):
            result = self.hook_result(self.results(z))
            if apart or written(self.hook_result):
                return result.sum(-2) + self.b_O
        return linear(z.flatten(-2), self.W_O.flatten(0, 1), self.b_O)

    def results(self, z: Heads) -> Float[Tensor, "batch pos head d_model"]:
        """What each head writes into the residual stream, without the output bias."""
        return linear_by_head(z, self.W_O)


class GroupedQueryAttention(Attention):
    """Attention whose heads share keys and values in groups (https://arxiv.org/abs/2305.13245).

    The parameters are `_W_K`, `_W_V`, `_b_K`, `_b_V`, one per group; `W_K` and its like repeat them for each head.
    """

    grouped = True
    _W_K: nn.Parameter
    _W_V: nn.Parameter
    _b_K: nn.Parameter
    _b_V: nn.Parameter

    @property
    def _kv_heads(self) -> int:
        return self.cfg.kv_heads

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """Key weights of each head."""
        return self._per_head(self._W_K)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """Value weights of each head."""
        return self._per_head(self._W_V)

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        """Key biases of each head."""
        return self._per_head(self._b_K)

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        """Value biases of each head."""
        return self._per_head(self._b_V)

    def _per_head(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.cfg.n_heads // self.cfg.kv_heads, dim=0)

    def _weights(self) -> tuple[tuple[Any, Any], ...]:
        if self.cfg.ungroup_grouped_query_attention:
            return super()._weights()
        return (self.W_Q, self.b_Q), (self._W_K, self._b_K), (self._W_V, self._b_V)


def project(x: Input, W: Float[Tensor, "head d_model d_head"], b: Float[Tensor, "head d_head"], *, apart: bool = False) -> Heads:
    """`x @ W + b` for each head, from an input that has one entry per head or that they share (multiplied `apart` if need be)."""
    if x.ndim == 3 and not apart:
        return linear(x, _flat(W), b.flatten()).unflatten(-1, b.shape)
    if x.ndim == 3:
        x = x.unsqueeze(-2).expand(*x.shape[:-1], len(W), x.shape[-1])
    if x.shape[2] != len(W):
        raise ShapeError(f"an input split by head needs {len(W)} of them here, not {x.shape[2]}: {tuple(x.shape)}")
    return linear_by_head(x, W) + b


def _head_norm(cfg: HookedTransformerConfig, heads: int) -> nn.Module:
    """The norm of queries or keys that a configuration asks for."""
    if cfg.qk_norm_over == "each":
        return EachHeadNorm(cfg, heads)
    kind = RMSNorm if cfg.qk_norm_type == "RMS" else LayerNorm
    return kind(cfg, cfg.d_head * (heads if cfg.qk_norm_over == "full" else 1))


def _times_shared(x: Float[Tensor, "batch head dest n"], y: Float[Tensor, "batch kv n m"]) -> Float[Tensor, "batch head dest m"]:
    """`x @ y` of each head, where groups of heads may share a `y`: the rows of a group are multiplied together."""
    heads, shared, dest = x.shape[1], y.shape[1], x.shape[2]
    if heads == shared:
        return x @ y
    return (x.unflatten(1, (shared, -1)).flatten(2, 3) @ y).unflatten(2, (-1, dest)).flatten(1, 2)


def _flat(W: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "d_model flat"]:
    """The weights of all heads side by side; a view, where d_model comes first in memory."""
    return W.transpose(0, 1).flatten(1)


def _d_model_first(heads: int, d_model: int, d_head: int, dtype: torch.dtype) -> nn.Parameter:
    """An empty parameter `[head, d_model, d_head]` that lies in memory so that `_flat` of it is a view."""
    return nn.Parameter(empty_weights(d_model, heads * d_head, dtype).unflatten(1, (heads, d_head)).transpose(0, 1))
