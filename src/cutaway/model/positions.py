"""Positions: where tokens stand, and what attention makes of it.

`Stream` travels beside the residual through the blocks and says where its rows stand: which position comes
first, what is padding, which keys and values were kept. Rotary angles and ALiBi slopes are computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ContextTooLong
from cutaway.model.key_values import KeyValueCache


@dataclass(frozen=True)
class Stream:
    """Where the rows of a residual stand. Blocks read it and never change it.

    Args:
        start: the position of the first column; everything before it is in `kept`.
        padding: `[batch, key]`, true where a position (kept ones first) is a token and not padding; None: all are.
        kept: keys and values of earlier positions, one entry per layer.
        shortformer: position embeddings that queries and keys add to their normalised inputs.
        at: where the columns stand, where they are not neighbours: `[pos]` in the same order in every row, or `[row, pos]` as
            positions that count tokens only.
        lengths: with `at`, how many tokens the shortest and the longest text have.
        read: where queries, keys and values are kept as attention reads them, by layer.
    """

    start: int = 0
    padding: Bool[Tensor, "batch key"] | None = None
    kept: KeyValueCache | None = None
    shortformer: Float[Tensor, "batch pos d_model"] | None = None
    at: Int[Tensor, "pos"] | Int[Tensor, "row pos"] | None = None
    lengths: tuple[int, int] | None = None
    read: MutableMapping[int, tuple[Tensor, Tensor, Tensor]] | None = field(default=None, compare=False, repr=False)
    _masks: dict[tuple[object, ...], Tensor | None] = field(default_factory=dict, compare=False, repr=False)
    _angles: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def positions(self, length: int) -> Int[Tensor, "batch pos"] | None:
        """The position of each token in its own row, where padding shifts it; None: `start`, `start + 1`, …"""
        if self.at is not None and (self.at.ndim == 2 or self.padding is None):
            return self.at if self.at.ndim == 2 else self.at[None]
        if self.padding is None:
            return None
        return offset_positions(self.padding)[:, slice(self.start, self.start + length) if self.at is None else self.at]

    def attend(self, attention: Any, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        """What each head of `attention` has seen."""
        if self.read is not None:
            self.read[attention.layer_id] = q, k, v
        out: Tensor = attention.attend(q, k, v, self, **given)
        return out

    def end(self, length: int) -> int:
        """The position after the last of `length` columns."""
        return self.start + length if self.lengths is None else self.lengths[1]

    def angles(self, rotary: Rotary, x: Float[Tensor, "batch pos head d_head"]) -> tuple[Tensor, Tensor]:
        """Cosines and sines with which `rotary` turns heads at these positions (see `Rotary.factors`); computed once a run."""
        length = x.shape[1]
        key = (rotary, length, x.dtype, x.device)
        if key not in self._angles:
            positions, end = self.positions(length), self.end(length)
            rows = slice(self.start, end) if positions is None else positions.to(x.device)
            self._angles[key] = rotary.factors(rows, end, x, long=rotary.is_long(*self.texts(length), self.start))
        return self._angles[key]

    def texts(self, length: int) -> tuple[int, int]:
        """How many tokens the shortest and the longest text have, up to the last of `length` columns."""
        if self.lengths is not None:
            return self.lengths
        if self.padding is None:
            return self.end(length), self.end(length)
        tokens = self.padding.sum(-1)
        return int(tokens.min()), int(tokens.max())

    def back(self, dest: int, src: int, device: torch.device) -> Int[Tensor, "dest src"]:
        """How far back each key is from each query; without `at` the last query stands at the last key."""
        dests = torch.arange(src - dest, src, device=device) if self.at is None else self.at.to(device)
        return dests[:, None] - torch.arange(src, device=device)

    def distances(self, dest: int, src: int, device: torch.device) -> Int[Tensor, "*rows dest src"]:
        """How many tokens back each key is: as `back`, except that padding kept before later tokens counts for nothing."""
        if self.kept is None or self.padding is None:
            return self.back(dest, src, device)
        places = offset_positions(self.padding[:, :src].to(device))
        return (places[:, src - dest :, None] - places[:, None])[:, None]

    def visible(
        self, dest: int, src: int, *, causal: bool, window: int | None, device: torch.device
    ) -> Bool[Tensor, "rows 1 dest src"] | None:
        """Which keys each query may look at; None: all. Rows are the batch, or one where all are alike."""
        key = (dest, src, causal, window, device)
        if key not in self._masks:
            self._masks[key] = self._visible(dest, src, causal=causal, window=window, device=device)
        return self._masks[key]

    def _visible(self, dest: int, src: int, *, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
        seen = None
        if self.at is not None or (causal and dest > 1) or (window is not None and (window < src or not causal)):
            back = self.back(dest, src, device)[None, None]
            seen = back >= 0 if causal else torch.ones_like(back, dtype=torch.bool)
            if window is not None:
                seen = seen & (self.distances(dest, src, device) < window)
        if self.padding is not None:
            tokens = self.padding[:, None, None, :src].to(device)
            seen = tokens if seen is None else seen & tokens
        return None if seen is None else seen.expand(-1, -1, dest, -1)


def offset_positions(padding: Bool[Tensor, "batch key"]) -> Int[Tensor, "batch key"]:
    """Positions that count tokens only: the first token of a row is at 0, however much padding precedes it."""
    return (padding.long().cumsum(-1) - 1).clamp(min=0)


class PosEmbed(nn.Module):
    """Learned embeddings of positions; those of padding are zero."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, object]):
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        self.W_pos = nn.Parameter(torch.empty(self.cfg.n_ctx, self.cfg.d_model, dtype=self.cfg.torch_dtype))

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        past_kv_pos_offset: int = 0,
        attention_mask: Bool[Tensor, "batch key"] | Int[Tensor, "batch key"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The embedding of each token's position, as a view that batch entries share where it can be."""
        end = past_kv_pos_offset + tokens.shape[1]
        if attention_mask is None:
            return self.W_pos[past_kv_pos_offset:end].expand(len(tokens), -1, -1)
        mask = attention_mask.bool().to(self.W_pos.device)
        embedded = self.W_pos[offset_positions(mask)[:, past_kv_pos_offset:end]]
        return embedded * mask[:, past_kv_pos_offset:end, None].to(embedded.dtype)


# Rotary embeddings (https://arxiv.org/abs/2104.09864).


class Rotary:
    """Angles of rotary embeddings, computed when first needed and shared by all layers with the same base."""

    def __init__(self, cfg: HookedTransformerConfig, base: float, *, scaled: bool = True):
        assert cfg.rotary_dim is not None
        self.dim, self.adjacent = cfg.rotary_dim, cfg.rotary_adjacent_pairs
        self.cfg, self.base, self.scaled = cfg, base, scaled
        self._tables: dict[tuple[torch.device, bool], tuple[Tensor, Tensor]] = {}
        self.given: tuple[Tensor, Tensor] | None = None  # cosines and sines that somebody put in place of the computed ones

    def tables(
        self, length: int, device: torch.device, *, long: bool = False
    ) -> tuple[Float[Tensor, "pos half"], Float[Tensor, "pos half"]]:
        """Cosines and sines of the angles of positions below `length`, in float32; `long` as in `is_long`."""
        if self.given is not None:
            cos, sin = (one[:length].to(device) for one in self.given)
            return cos, sin
        known = self._tables.get((device, long))
        if known is None or len(known[0]) < length:
            with torch.inference_mode(False), torch.no_grad():
                frequencies, factor = rotary_frequencies(self.cfg, self.base, scaled=self.scaled, long=long, device=device)
                room = min(self.cfg.n_ctx, max(length, 2 * len(known[0]) if known else 64))
                angles = torch.arange(max(room, length), device=device, dtype=torch.float32)[:, None] * frequencies
                known = self._tables[device, long] = angles.cos() * factor, angles.sin() * factor
        return known[0][:length], known[1][:length]

    def is_long(self, shortest: int, longest: int, kept: int = 0) -> bool:
        """Whether LongRoPE rotates texts of these lengths by its factors for long ones; `kept` tokens were rotated before.

        Raises:
            ContextTooLong: some are short and some are long, or became long after their first keys were rotated.
        """
        most = self.cfg.longrope_original_max_position_embeddings
        if self.cfg.longrope_long_factor is None or longest <= most:
            return False
        if shortest <= most:
            raise ContextTooLong(
                f"texts of {shortest} and {longest} tokens in one batch, and this model rotates by other angles beyond {most} "
                "tokens (longrope); run the short texts and the long ones apart"
            )
        if 0 < kept <= most:
            raise ContextTooLong(
                f"the text grows beyond {most} tokens, where this model rotates by other angles (longrope), and its kept keys "
                "were rotated by those of short texts; run it without kept keys (use_past_kv_cache=False)"
            )
        return True

    def rotate(self, x: Float[Tensor, "batch pos head d_head"], stream: Stream) -> Float[Tensor, "batch pos head d_head"]:
        """`x` with the first `rotary_dim` of its coordinates turned by each token's position."""
        cos, sin = stream.angles(self, x)
        if self.adjacent:
            first, second = slice(0, self.dim, 2), slice(1, self.dim, 2)
        else:
            first, second = slice(0, self.dim // 2), slice(self.dim // 2, self.dim)
        out = x * cos
        out[..., first].addcmul_(x[..., second], sin, value=-1)
        out[..., second].addcmul_(x[..., first], sin)
        return out

    def factors(
        self, rows: slice | Int[Tensor, "row pos"], end: int, x: Float[Tensor, "batch pos head d_head"], *, long: bool = False
    ) -> tuple[Float[Tensor, "*rows 1 d_head"], Float[Tensor, "*rows 1 half"]]:
        """Cosines and sines of these positions (which are below `end`), for heads like `x`.

        Each cosine stands at both coordinates of its pair, and coordinates that are not turned have a cosine of 1.
        """
        cos, sin = (table[rows].unsqueeze(-2).to(x.dtype) for table in self.tables(end, x.device, long=long))
        both = cos.repeat_interleave(2, -1) if self.adjacent else torch.cat([cos, cos], -1)
        return F.pad(both, (0, x.shape[-1] - self.dim), value=1.0), sin


def rotary_frequencies(
    cfg: HookedTransformerConfig, base: float, *, scaled: bool = True, long: bool = False, device: torch.device | None = None
) -> tuple[Float[Tensor, "half"], float]:
    """The angle per position of each pair of coordinates, and the factor on cosines and sines; `long` as in `Rotary.is_long`."""
    dim = cfg.rotary_dim
    assert dim is not None
    frequencies = 1.0 / base ** (torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    if scaled and cfg.use_NTK_by_parts_rope:
        return _by_parts(cfg, frequencies), 1.0
    if scaled and cfg.use_yarn_rope:
        return _yarn(cfg, frequencies, base), cfg.yarn_attention_factor
    factors = cfg.longrope_long_factor if long else cfg.longrope_short_factor
    if scaled and factors is not None:  # (https://arxiv.org/abs/2402.13753)
        powers = base ** (torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
        return 1.0 / (torch.tensor(factors, device=device) * powers), cfg.longrope_attention_factor
    return frequencies / (cfg.rotary_linear_factor if scaled else 1.0), 1.0


def _by_parts(cfg: HookedTransformerConfig, frequencies: Tensor) -> Tensor:
    """Llama 3.1's scaling: long waves are slowed by a factor, short ones kept, those between are blended."""
    factor, low, high = cfg.NTK_by_parts_factor, cfg.NTK_by_parts_low_freq_factor, cfg.NTK_by_parts_high_freq_factor
    turns = cfg.NTK_original_ctx_len * frequencies / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (blend + (1 - blend) / factor)


def _yarn(cfg: HookedTransformerConfig, frequencies: Tensor, base: float) -> Tensor:
    """YaRN (https://arxiv.org/abs/2309.00071, section 3.2): a ramp over dimensions from kept to slowed."""
    dim = 2 * len(frequencies)

    def dimension(turns: float) -> float:
        return dim * math.log(cfg.yarn_original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension(cfg.yarn_beta_fast)), 0)
    high = min(math.ceil(dimension(cfg.yarn_beta_slow)), dim - 1)
    ramp = ((torch.arange(len(frequencies), device=frequencies.device) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return frequencies * (1 - ramp) + frequencies / cfg.yarn_factor * ramp


def rotaries(cfg: HookedTransformerConfig) -> Callable[[int], Rotary | None]:
    """Layer → its `Rotary`, one shared object per base."""
    if cfg.positional_embedding_type != "rotary":
        return lambda layer: None
    everywhere = Rotary(cfg, cfg.rotary_base)
    local = everywhere if cfg.rotary_base_local is None else Rotary(cfg, cfg.rotary_base_local, scaled=False)
    return lambda layer: None if not cfg.rotates(layer) else local if cfg.window(layer) is not None else everywhere


# ALiBi (https://arxiv.org/abs/2108.12409).


def alibi_slopes(n_heads: int, device: torch.device | None = None) -> Float[Tensor, "head"]:
    """The slope of each head: powers of 2^(-8/n); for n that is no power of two, every second one of 2n fills up."""
    power = 2 ** math.floor(math.log2(n_heads))
    first = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-4 * (2 * i + 1) / power) for i in range(n_heads - power)]
    return torch.tensor([*first, *between], device=device)


def alibi_bias(n_heads: int, dest: int, src: int, device: torch.device) -> Float[Tensor, "head dest src"]:
    """What ALiBi adds to the scores, where the last query stands at the last key."""
    return alibi_at(n_heads, Stream().back(dest, src, device))


def alibi_at(n_heads: int, back: Int[Tensor, "*rows dest src"]) -> Float[Tensor, "*some head dest src"]:
    """The same, for queries anywhere: minus slope times how far back the key is."""
    return -alibi_slopes(n_heads, back.device)[:, None, None] * back.clamp(min=0)
