"""One block: attention and MLP read the residual stream and add to it.

With split inputs, queries, keys and values read streams of their own. They are one tensor, shown to readers
as a view with a head axis, until somebody writes into one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError
from cutaway.model.attention import Attention, GroupedQueryAttention
from cutaway.model.hook_points import HookPoint
from cutaway.model.key_values import KeyValues
from cutaway.model.mlp import mlp_of
from cutaway.model.norm import LayerNorm, RMSNorm, norm_of, through
from cutaway.model.positions import Rotary, Stream

Resid = Float[Tensor, "batch pos d_model"]
Asked = Float[Tensor, "batch asked d_model"]  # all positions, or those that a stream asks for
ForQueries = Float[Tensor, "batch pos d_model"] | Float[Tensor, "batch pos head d_model"]
ForKeys = Float[Tensor, "batch pos d_model"] | Float[Tensor, "batch pos kv d_model"]


class TransformerBlock(nn.Module):
    """Residual in, residual out. See `Stream` for what travels beside it."""

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        block_index: int,
        rotary_of: Callable[[int], Rotary | None] | None = None,
    ):
        super().__init__()
        self.cfg = cfg = HookedTransformerConfig.unwrap(cfg)
        self.layer = block_index
        before = not cfg.post_norm_only
        norm_after = RMSNorm if str(cfg.normalization_type).startswith("RMS") else LayerNorm
        self.ln1 = norm_of(cfg) if before else nn.Identity()
        self.ln1_post = norm_after(cfg) if cfg.has_post_norms else nn.Identity()
        if not cfg.attn_only:
            self.ln2 = norm_of(cfg) if before else nn.Identity()
            self.ln2_post = norm_after(cfg) if cfg.has_post_norms else nn.Identity()
        kind = Attention if cfg.n_key_value_heads is None else GroupedQueryAttention
        attn_type = "global" if cfg.window(block_index) is None else "local"
        self.attn = kind(cfg, attn_type, block_index, rotary_of)
        if not cfg.attn_only:
            self.mlp = mlp_of(cfg, block_index)
            self.hook_mlp_in, self.hook_mlp_out = HookPoint(), HookPoint()
            if not cfg.parallel_attn_mlp:
                self.hook_resid_mid = HookPoint()
        self.hook_attn_in, self.hook_attn_out = HookPoint(), HookPoint()
        self.hook_q_input, self.hook_k_input, self.hook_v_input = HookPoint(), HookPoint(), HookPoint()
        self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()

    def forward(
        self,
        resid_pre: Resid,
        shortformer_pos_embed: Float[Tensor, "batch pos d_model"] | None = None,
        past_kv_cache_entry: KeyValues | None = None,
        attention_mask: Int[Tensor, "batch key"] | None = None,
        stream: Stream | None = None,
    ) -> Asked:
        """The residual stream after this block, `[batch, pos, d_model]`."""
        if stream is None:
            start = 0 if past_kv_cache_entry is None else past_kv_cache_entry.length
            padding = None if attention_mask is None else attention_mask.bool()
            stream = Stream(start, padding, shortformer=shortformer_pos_embed)
        elif stream.kept is not None:
            past_kv_cache_entry = stream.kept[self.layer]
        resid_pre = self.hook_resid_pre(resid_pre)
        attn_out = self.hook_attn_out(self.attention(resid_pre, stream, past_kv_cache_entry))
        return self.after_attention(stream.asked(resid_pre), attn_out)

    def after_attention(self, resid_pre: Resid, attn_out: Resid) -> Resid:
        """The residual stream after this block, from that before it and what attention adds."""
        if self.cfg.attn_only:
            return self.hook_resid_post(resid_pre + attn_out)
        if self.cfg.parallel_attn_mlp:
            return self.hook_resid_post(resid_pre + attn_out + self.apply_mlp(resid_pre))
        return self.after_mid(self.hook_resid_mid(resid_pre + attn_out))

    def after_mid(self, resid_mid: Resid) -> Resid:
        """The residual stream after this block, from that between attention and MLP."""
        return self.hook_resid_post(resid_mid + self.apply_mlp(resid_mid))

    def attention(self, resid_pre: Resid, stream: Stream, kept: KeyValues | None) -> Asked:
        """What attention adds, before its site."""
        query_input, key_input, value_input = self.attention_inputs(resid_pre, stream)
        query_input = stream.asked(query_input)
        out: Tensor = self.ln1_post(self.attn(query_input, key_input, value_input, past_kv_cache_entry=kept, stream=stream))
        return out

    def apply_mlp(self, resid: Resid) -> Resid:
        """What the MLP adds, from the stream that it reads, after its site."""
        return self.hook_mlp_out(self.ln2_post(self.mlp(self.ln2(self.hook_mlp_in(resid)))))

    def attention_inputs(self, resid_pre: Resid, stream: Stream) -> tuple[ForQueries, ForKeys, ForKeys]:
        """The normalised inputs of queries, keys and values: one tensor three times, unless somebody split them."""
        cfg = self.cfg
        kv = cfg.n_heads if cfg.ungroup_grouped_query_attention else cfg.kv_heads
        attn_in = through(self.hook_attn_in, resid_pre, cfg.n_heads)
        if attn_in.ndim == 4 and kv != cfg.n_heads:
            raise ConfigError(
                "hook_attn_in has one input per head, and grouped keys and values have fewer; edit hook_q_input, "
                "hook_k_input or hook_v_input, or call set_ungroup_grouped_query_attention(True)"
            )
        inputs = [
            point(attn_in) if attn_in.ndim == 4 else through(point, attn_in, heads)
            for point, heads in ((self.hook_q_input, cfg.n_heads), (self.hook_k_input, kv), (self.hook_v_input, kv))
        ]
        split_sizes = [cfg.n_heads, kv, kv] if cfg.use_split_qkv_input else [cfg.n_heads] * 3 if cfg.use_attn_in else [None] * 3
        query, key, value = self._normalised(inputs, split_sizes)
        if stream.shortformer is None:
            return query, key, value
        if query is key and query.ndim == 3:
            query = key = query + stream.shortformer
            return query, key, value
        return self._shifted(query, stream.shortformer), self._shifted(key, stream.shortformer), value

    def _normalised(self, inputs: list[Tensor], split_sizes: list[int] | list[None]) -> list[Tensor]:
        """Each input through `ln1`; once, where the inputs are one tensor and nobody writes into its sites by head."""
        first = inputs[0]
        one = all(x is first for x in inputs)
        if isinstance(self.ln1, nn.Identity):
            return inputs
        assert isinstance(self.ln1, LayerNorm | RMSNorm)
        written = self.ln1.hook_scale.written or self.ln1.hook_normalized.written
        if one and first.ndim == 3 and (split_sizes[0] is None or not written):
            normal = self.ln1(first, heads=split_sizes[2])
            return [normal] * 3
        return [self.ln1(x, heads=n if x.ndim == 3 else None) for x, n in zip(inputs, split_sizes, strict=True)]

    @staticmethod
    def _shifted(x: Tensor, shift: Tensor) -> Tensor:
        return x + (shift if x.ndim == 3 else shift.unsqueeze(2))
