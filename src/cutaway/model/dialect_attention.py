"""Names of the dialect that a layer of attention has besides its forward pass: its mask, its circuits, its steps one by one.

Notebooks and libraries call these; our own forward pass computes the same without them, and runs by them where somebody
replaces one (`attn.apply_causal_mask = …`).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.axes import Heads, Keys, Pattern, Resid
from cutaway.errors import ConfigError, ShapeError
from cutaway.model.factored_matrix import FactoredMatrix
from cutaway.model.foreign import ATTENTION_STEPS, REPLACED
from cutaway.model.positions import Rotary, Stream, alibi_at, alibi_bias, alibi_slopes

if TYPE_CHECKING:
    from cutaway.model.attention import Attention

LARGEST_KEPT = 2**14  # positions up to which state dicts hold masks: one of more is larger than the weights of a layer


@functools.lru_cache(maxsize=4)
def standard_mask(n_ctx: int, window: int | None, causal: bool, device: torch.device) -> Bool[Tensor, "dest src"]:
    """Which positions each position may look at; one tensor for all layers that are alike, which nobody may write into."""
    with torch.inference_mode(False):
        mask = torch.ones(n_ctx, n_ctx, dtype=torch.bool, device=device)
        mask = mask.tril() if causal else mask
        return mask if window is None else mask.triu(1 - window)


class DialectAttention:
    """What the dialect calls on `blocks[i].attn`."""

    in_state_dict: ClassVar[bool] = False
    """Whether state dicts hold `mask` and `IGNORE`, as notebooks written for the dialect expect; set with the aliases."""

    _own_mask: Tensor | None = None
    _shown: tuple[Tensor, int] | None = None  # a mask that somebody was given, and its version then
    _ignore: float = -torch.inf

    @property
    def mask(self: Any) -> Bool[Tensor, "dest src"]:
        """Which positions (second axis) each position (first axis) may look at, `[n_ctx, n_ctx]`; can be set.

        A text is held to the last rows and columns of a mask, as in the dialect, and cannot be longer than it. A mask that is
        set can take positions away and never show later ones, since sweeps and kept keys rest on that.

        Raises:
            ShapeError: (when set) it is not square, or larger than `n_ctx`; (in a run) the text is longer than it.
            ConfigError: (when set) it lets a position see a later one, and attention is causal.
        """
        self.take_written_mask()
        if self._shown is None:
            with torch.inference_mode(False):
                shown = self._standing_mask().clone()
            self._shown = shown, shown._version
        return self._shown[0]

    @mask.setter
    def mask(self: Any, given: Tensor) -> None:
        n_ctx = self.cfg.n_ctx
        if given.ndim != 2 or given.shape[0] != given.shape[1] or len(given) > n_ctx:
            square = f"[{n_ctx}, {n_ctx}], or a smaller square"
            raise ShapeError(f"a mask {tuple(given.shape)} for {n_ctx} positions: it must be {square}")
        given = given.detach().to(self.W_Q.device).bool()
        if self.cfg.attention_dir == "causal" and bool(given.triu(1).any()):
            raise ConfigError(
                "this mask lets positions see later ones, and attention here is causal; for a network that looks both ways, "
                "set attention_dir='bidirectional' in its configuration"
            )
        self._own_mask = self._shown = None
        self._own_mask = None if torch.equal(given, self._standing_mask()) else given.clone()

    def _standing_mask(self: Any) -> Tensor:
        """The mask as it stands, which may be shared with other layers."""
        if self._own_mask is not None:
            own: Tensor = self._own_mask
            return own
        return standard_mask(self.cfg.n_ctx, self.window, self.cfg.attention_dir == "causal", self.W_Q.device)

    def take_written_mask(self: Any) -> None:
        """Set the mask that somebody was given and wrote into."""
        if self._shown is not None and self._shown[0]._version != self._shown[1]:
            self.mask = self._shown[0]

    @property
    def IGNORE(self: Any) -> Float[Tensor, ""]:
        """What masked scores are: -inf, or what an older checkpoint says (-1e5); can be set."""
        return torch.tensor(self._ignore, device=self.W_Q.device)

    @IGNORE.setter
    def IGNORE(self, given: Tensor | float) -> None:
        self._ignore = float(given)

    @property
    def QK(self: Any) -> FactoredMatrix:
        """What queries look for in keys, `W_Q @ W_K.T` of each head, never multiplied out."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self: Any) -> FactoredMatrix:
        """What each head does to what it looks at, `W_V @ W_O`, never multiplied out."""
        return FactoredMatrix(self.W_V, self.W_O)

    def _save_to_state_dict(self: Any, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc] # (of nn.Module)
        if not self.in_state_dict or self.cfg.n_ctx > LARGEST_KEPT:
            return
        self.take_written_mask()
        both_ways = self._own_mask is None and self.cfg.attention_dir != "causal"
        mask = standard_mask(self.cfg.n_ctx, self.window, True, self.W_Q.device) if both_ways else self._standing_mask()
        destination |= {f"{prefix}mask": mask, f"{prefix}IGNORE": self.IGNORE}
        if self.rotary is not None:
            destination |= {f"{prefix}rotary_sin": self.rotary_sin, f"{prefix}rotary_cos": self.rotary_cos}

    def _load_from_state_dict(self: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        mask, ignore, *_ = (state_dict.pop(prefix + name, None) for name in ("mask", "IGNORE", "rotary_sin", "rotary_cos"))
        self.take_buffers(mask, ignore)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc] # (of nn.Module)

    def take_buffers(self: Any, mask: Tensor | None, ignore: Tensor | None) -> None:
        """The mask and `IGNORE` of a state dict, where it has them; a mask of another length is left aside.

        So is the causal mask that the dialect keeps in networks which look both ways: it is never applied there.
        """
        if ignore is not None and ignore.numel() == 1:
            self.IGNORE = ignore
        if mask is not None and tuple(mask.shape) == (self.cfg.n_ctx,) * 2 and not self._kept_by_habit(mask):
            self.mask = mask

    def _kept_by_habit(self: Any, mask: Tensor) -> bool:
        causal = standard_mask(self.cfg.n_ctx, self.window, True, mask.device)
        return self.cfg.attention_dir != "causal" and torch.equal(mask.bool(), causal)

    # Rotary and ALiBi, as tables.

    @property
    def rotary_sin(self) -> Float[Tensor, "pos rotary_dim"]:
        """Sines of the angles of all positions, each at both coordinates of its pair; absent where nothing is rotated.

        Can be set: this layer then rotates by what it was given.

        Raises:
            ShapeError: (when set) it is not `[n_ctx, rotary_dim]`.
        """
        return self._rotary_table(1)

    @rotary_sin.setter
    def rotary_sin(self, given: Tensor) -> None:
        self._rotate_by(1, given)

    @property
    def rotary_cos(self) -> Float[Tensor, "pos rotary_dim"]:
        """Cosines of the angles, as `rotary_sin`."""
        return self._rotary_table(0)

    @rotary_cos.setter
    def rotary_cos(self, given: Tensor) -> None:
        self._rotate_by(0, given)

    def _rotate_by(self: Any, which: int, given: Tensor) -> None:
        standing = self._rotary_table(which)
        if given.shape != standing.shape:
            raise ShapeError(f"a rotary table {tuple(given.shape)} where {tuple(standing.shape)} is needed, [n_ctx, rotary_dim]")
        if torch.equal(given.to(standing), standing):
            return
        tables = list(self.rotary.tables(self.cfg.n_ctx, self.W_Q.device))
        half = given[:, ::2] if self.rotary.adjacent else given[:, : self.rotary.dim // 2]
        tables[which] = half.detach().float().to(self.W_Q.device)
        self.rotary = copy.copy(self.rotary)  # layers share theirs
        self.rotary.given = tables[0], tables[1]

    def _rotary_table(self: Any, which: int) -> Tensor:
        if self.rotary is None:
            raise AttributeError("this attention does not rotate")
        return _for_both(self.rotary.tables(self.cfg.n_ctx, self.W_Q.device)[which].to(self.W_Q.dtype), self.rotary)

    def calculate_sin_cos_rotary(
        self: Any, rotary_dim: int, n_ctx: int, base: float = 10000.0, dtype: torch.dtype = torch.float32
    ) -> tuple[Float[Tensor, "pos rotary_dim"], Float[Tensor, "pos rotary_dim"]]:
        """Sines and cosines as `rotary_sin` and `rotary_cos`, for any number of coordinates and positions and any base."""
        cfg = copy.copy(self.cfg)
        cfg.rotary_dim, cfg.n_ctx = rotary_dim, n_ctx
        rotary = Rotary(cfg, float(base))
        cos, sin = (_for_both(half, rotary) for half in rotary.tables(n_ctx, torch.device("cpu")))
        return sin.to(dtype), cos.to(dtype)

    def rotate_every_two(self: Any, x: Float[Tensor, "... rotary_dim"]) -> Float[Tensor, "... rotary_dim"]:
        """Each pair of coordinates turned by a right angle: (a, b) becomes (-b, a)."""
        if self.cfg.rotary_adjacent_pairs:
            return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1)

    @staticmethod
    def create_alibi_slope(n_ctx: int, device: torch.device | str | None = None) -> Float[Tensor, "dest src"]:
        """Minus how far back each key is; 0 for later ones."""
        places = torch.arange(n_ctx, device=device)
        return (places - places[:, None]).clamp(max=0).float()

    @staticmethod
    def create_alibi_multipliers(n_heads: int, device: torch.device | str | None = None) -> Float[Tensor, "head"]:
        """The slope of each head."""
        return alibi_slopes(n_heads, torch.device(device or "cpu"))

    @staticmethod
    def create_alibi_bias(n_heads: int, n_ctx: int, device: torch.device | str | None = None) -> Float[Tensor, "head dest src"]:
        """What ALiBi adds to scores."""
        return alibi_bias(n_heads, n_ctx, n_ctx, torch.device(device or "cpu"))

    # The steps of the dialect's forward pass.

    def calculate_qkv_matrices(
        self: Any, query_input: Tensor, key_input: Tensor, value_input: Tensor
    ) -> tuple[Heads, Keys, Keys]:
        """Queries, keys and values after their sites, before they are rotated."""
        q, k, v = self.project(query_input, key_input, value_input)
        return (self.normed(q, self.q_norm), self.normed(k, self.k_norm), v) if self.cfg.use_qk_norm else (q, k, v)

    def calculate_attention_scores(self: Any, q: Heads, k: Keys) -> Float[Tensor, "batch head dest src"]:
        """Scores before any mask, capped where the model caps them."""
        k = self._for_all_heads(k, q.shape[2])
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / self.attn_scale
        cap = self.cfg.attn_scores_soft_cap
        return cap * torch.tanh(scores / cap) if cap > 0 else scores

    def apply_causal_mask(
        self: Any,
        attn_scores: Float[Tensor, "batch head dest src"],
        past_kv_pos_offset: int = 0,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch head dest src"]:
        """Scores with `IGNORE` where a query may not look; `attention_mask [batch, src]` is 0 at padding."""
        dest, src = attn_scores.shape[-2:]
        if src != dest + past_kv_pos_offset:
            raise ShapeError(f"{src} keys for {dest} queries after {past_kv_pos_offset} kept positions")
        seen = self._standing_mask()[None, None, -src:, -src:][:, :, past_kv_pos_offset:]
        if attention_mask is not None:
            seen = seen & attention_mask.bool()[:, None, None, :]
        return attn_scores.masked_fill(~seen.to(attn_scores.device), self._ignore)

    def has_own_steps(self) -> bool:
        """Whether a subclass, or somebody on this instance, replaced one of the steps."""
        others = any(getattr(type(self), name) is not getattr(DialectAttention, name) for name in ATTENTION_STEPS)
        return others or not REPLACED.isdisjoint(self.__dict__)

    def by_steps(
        self: Any, inputs: tuple[Tensor, Tensor, Tensor], stream: Stream, kept: Any, additive_attention_mask: Tensor | None
    ) -> Resid:
        """The forward pass by these steps, for those who replace one; ours computes the same without them."""
        (q, k, v), padding = self.calculate_qkv_matrices(*inputs), stream.padding
        if self.rotary is not None:
            q = self.hook_rot_q(self.apply_rotary(q, stream.start, padding))
            k = self.hook_rot_k(self.apply_rotary(k, stream.start, padding))
        if kept is not None:
            k, v = kept.append(k, v)
        scores = self.calculate_attention_scores(q, k)
        if self.cfg.positional_embedding_type == "alibi":
            back = stream.distances(scores.shape[-2], scores.shape[-1], scores.device)
            scores = scores + alibi_at(self.cfg.n_heads, back).to(scores.dtype)
        if self.cfg.attention_dir == "causal":
            scores = self.apply_causal_mask(scores, stream.start, padding)
        elif padding is not None:
            scores = scores.masked_fill(~padding[:, None, None], self._ignore)
        if additive_attention_mask is not None:
            scores = scores + additive_attention_mask
        pattern = self.hook_attn_scores(scores).softmax(-1)
        pattern = self.hook_pattern(pattern.masked_fill(pattern.isnan(), 0))
        out: Tensor = self.output(self.calculate_z_scores(v, pattern))
        return out

    def calculate_z_scores(self: Any, v: Keys, pattern: Pattern) -> Heads:
        """What each head has seen, after its site."""
        z: Heads = self.hook_z(self.mixed(pattern, v))
        return z

    def apply_rotary(self: Any, x: Heads, past_kv_pos_offset: int = 0, attention_mask: Tensor | None = None) -> Heads:
        """Queries or keys rotated by the positions of their tokens."""
        if self.rotary is None:
            raise ConfigError("this attention does not rotate: positional_embedding_type is not 'rotary' in this layer")
        padding = None if attention_mask is None else attention_mask.bool()
        rotated: Heads = self.rotary.rotate(x, Stream(past_kv_pos_offset, padding))
        return rotated


def _for_both(half: Float[Tensor, "pos half"], rotary: Rotary) -> Float[Tensor, "pos rotary_dim"]:
    """A table of pairs of coordinates, with an entry for each coordinate."""
    return half.repeat_interleave(2, dim=-1) if rotary.adjacent else torch.cat([half, half], dim=-1)


def has_masks(blocks: Iterable[Any]) -> bool:
    """Whether somebody set the mask of a layer, which shortcuts know nothing of."""
    layers = [block.attn for block in blocks if isinstance(getattr(block, "attn", None), DialectAttention)]
    for attention in layers:
        attention.take_written_mask()
    return any(attention._own_mask is not None for attention in layers)


def masked_by_hand(attention: Attention, seen: Tensor | None, dest: int, src: int, stream: Stream) -> Tensor | None:
    """Which keys each query may look at, where somebody set the mask: as always, and as that says."""
    attention.take_written_mask()
    own = attention._own_mask
    if own is None:
        return seen
    columns = stream.back(dest, src, own.device)[:, 0]  # of the queries
    first = len(own) - src
    if first < 0:
        raise ShapeError(f"a text of {src} tokens, and attn.mask was set to one of {len(own)} positions")
    allowed = own[first + columns][:, first:][None, None]
    return allowed if seen is None else seen & allowed.to(seen.device)
