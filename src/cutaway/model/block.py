"""One block: attention and MLP read the residual stream and add to it, as its program in `steps` says.

With split inputs, queries, keys and values read streams of their own. They are one tensor, shown to readers
as a view with a head axis, until somebody writes into one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cutaway.axes import Resid
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError
from cutaway.model.attention import Attention, GroupedQueryAttention
from cutaway.model.foreign import intact
from cutaway.model.hook_points import HookPoint, written
from cutaway.model.key_values import KeyValueCache, KeyValues
from cutaway.model.listeners import HERE
from cutaway.model.mlp import MLP, GatedMLP, MoE, mlp_of
from cutaway.model.norm import LayerNorm, RMSNorm, norm_of, through
from cutaway.model.positions import Rotary, Stream
from cutaway.model.steps import BEFORE, NumberedSteps, program

Asked = Float[Tensor, "rows asked d_model"]  # all positions and examples, or those that a stream asks for and hooks leave
ForQueries = Float[Tensor, "batch pos d_model"] | Float[Tensor, "batch pos head d_model"]
ForKeys = Float[Tensor, "batch pos d_model"] | Float[Tensor, "batch pos kv d_model"]

OURS: dict[type[nn.Module], Any] = {kind: kind.forward for kind in (Attention, GroupedQueryAttention, MLP, GatedMLP, MoE)}
"""What the program of a block reaches into, each with the forward pass that it was written with."""


NORMS = (LayerNorm.forward, RMSNorm.forward)


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
        if cfg.has_post_norms:
            self.ln1_post = norm_after(cfg)
        if not cfg.attn_only:
            self.ln2 = norm_of(cfg) if before else nn.Identity()
            if cfg.has_post_norms:
                self.ln2_post = norm_after(cfg)
        kind = Attention if cfg.n_key_value_heads is None else GroupedQueryAttention
        attn_type = "global" if cfg.window(block_index) is None else "local"
        self.attn = kind(cfg, attn_type, block_index, rotary_of)
        if not cfg.attn_only:
            self.mlp = mlp_of(cfg, block_index)
        self.hook_attn_in = HookPoint()  # (in the dialect's order, as models print)
        self.hook_q_input, self.hook_k_input, self.hook_v_input = HookPoint(), HookPoint(), HookPoint()
        if not cfg.attn_only:
            self.hook_mlp_in = HookPoint()
        self.hook_attn_out = HookPoint()
        if not cfg.attn_only:
            self.hook_mlp_out = HookPoint()
        self.hook_resid_pre = HookPoint()
        if cfg.has_resid_mid:
            self.hook_resid_mid = HookPoint()
        self.hook_resid_post = HookPoint()
        self.program = program(cfg, block_index)
        self._run = self.program.between((BEFORE,))

    def forward(
        self,
        resid_pre: Resid,
        shortformer_pos_embed: Float[Tensor, "batch pos d_model"] | None = None,
        past_kv_cache_entry: KeyValues | None = None,
        attention_mask: Int[Tensor, "batch key"] | Bool[Tensor, "batch key"] | None = None,
        stream: Stream | None = None,
    ) -> Asked:
        """The residual stream after this block, `[batch, pos, d_model]`."""
        stream = HERE.stream if stream is None else stream
        if stream is None:
            start = 0 if past_kv_cache_entry is None else past_kv_cache_entry.length
            padding = None if attention_mask is None else attention_mask.bool()
            kept = None if past_kv_cache_entry is None else KeyValueCache.of_layer(self.layer, past_kv_cache_entry)
            stream = Stream(start, padding, kept, shortformer_pos_embed)
        out: Tensor = (self._run if self._as_built() else self._by_modules)(self, stream, resid_pre)
        return out

    @property
    def normalization_type(self) -> str | None:
        """The kind of norm before attention and MLP."""
        return self.cfg.normalization_type

    def apply_mlp(self, normalized_resid: Resid) -> Resid:
        """What the MLP adds to the stream, from its normalised input: the dialect's name for that part of a block."""
        written = self.mlp(normalized_resid)
        out: Tensor = self.hook_mlp_out(self.ln2_post(written) if self.cfg.has_post_norms else written)
        return out

    def compute(self, wanted: str, given: Mapping[str, Tensor], stream: Stream) -> Tensor:
        """A value of this block from others of it, by their names in `steps`; what lies between them runs, hooks included."""
        out: Tensor = self.program.between(tuple(given), (wanted,))(self, stream, *given.values())
        return out

    @property
    def _by_modules(self) -> NumberedSteps:
        """The program with attention and MLP as one step each."""
        return program(self.cfg, self.layer, modules=True).between((BEFORE,))

    def _as_built(self) -> bool:
        """Whether attention and MLP are our own modules as they were written, and nobody listens to them by PyTorch's hooks."""
        return all(
            OURS.get(type(one)) is type(one).forward
            and intact(one)
            and not (one._forward_hooks or one._forward_pre_hooks or one._backward_hooks or one._backward_pre_hooks)
            for one in self._inner()
        )

    def _inner(self) -> tuple[nn.Module, ...]:
        return (self.attn,) if self.cfg.attn_only else (self.attn, self.mlp)

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
        if not (isinstance(self.ln1, LayerNorm | RMSNorm) and intact(self.ln1, *NORMS)):  # somebody else's
            return [self.ln1(first)] * 3 if one else [self.ln1(x) for x in inputs]
        edited = written(self.ln1.hook_scale) or written(self.ln1.hook_normalized)
        if one and first.ndim == 3 and (split_sizes[0] is None or not edited):
            normal = self.ln1(first, heads=split_sizes[2])
            return [normal] * 3
        return [self.ln1(x, heads=n if x.ndim == 3 else None) for x, n in zip(inputs, split_sizes, strict=True)]

    @staticmethod
    def _shifted(x: Tensor, shift: Tensor) -> Tensor:
        return x + (shift if x.ndim == 3 else shift.unsqueeze(2))


AS_WRITTEN = TransformerBlock.forward
