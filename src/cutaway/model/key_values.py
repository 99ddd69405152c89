"""Kept keys and values: what attention has already seen, so that later positions need not compute it again.

Keys are kept as attention reads them (rotated), in buffers that grow by doubling, so that adding a token
copies one token.
"""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.axes import Keys
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, ShapeError, StaleCache

New = Float[Tensor, "batch new kv d_head"]


class KeyValues:
    """The keys and values of one layer; `append` adds those of new positions and returns all.

    Args:
        past_keys, past_values: those of positions before, `[batch, key, kv, d_head]`; keys rotated, where attention rotates.
        frozen: whether `append` leaves them as they are.

    Raises:
        ShapeError: keys and values are not of one shape.
    """

    def __init__(self, past_keys: Keys, past_values: Keys, frozen: bool = False):
        if past_keys.ndim != 4 or past_keys.shape != past_values.shape:
            shapes = f"{tuple(past_keys.shape)} and {tuple(past_values.shape)}"
            raise ShapeError(f"keys and values of one layer must both be [batch, key, head, d_head], and they are {shapes}")
        self._keys, self._values, self.length = past_keys, past_values, past_keys.shape[1]
        self.frozen = frozen

    @classmethod
    def init_cache_entry(
        cls, cfg: HookedTransformerConfig | dict[str, Any], device: torch.device | str | None = None, batch_size: int = 1
    ) -> KeyValues:
        """Those of no positions, for a batch of this size."""
        return KeyValueCache.init_cache({**HookedTransformerConfig.unwrap(cfg).to_dict(), "n_layers": 1}, device, batch_size)[0]

    @property
    def past_keys(self) -> Keys:
        """All keys so far."""
        return self._keys[:, : self.length]

    @property
    def past_values(self) -> Keys:
        """All values so far."""
        return self._values[:, : self.length]

    def append(self, new_keys: New, new_values: New) -> tuple[Keys, Keys]:
        """All keys and values, those of new positions last; they are kept unless `frozen` or grad is needed."""
        if len(new_keys) != len(self._keys):
            raise ShapeError(f"the kept keys and values are for a batch of {len(self._keys)}, the new ones of {len(new_keys)}")
        if self.frozen or new_keys.requires_grad or new_values.requires_grad:
            keys = torch.cat([self.past_keys, new_keys], dim=1)
            values = torch.cat([self.past_values, new_values], dim=1)
            if not self.frozen:
                self._keys, self._values, self.length = keys, values, keys.shape[1]
            return keys, values
        like = self._keys  # empty at first: a hook may give each head keys of its own, a layer may lie on another device
        if not self.length and (new_keys.shape[2] != like.shape[2] or new_keys.device != like.device):
            self._keys, self._values = new_keys[:, :0], new_values[:, :0]
        end = self.length + new_keys.shape[1]
        if end > self._keys.shape[1]:
            self._keys, self._values = self._grown(self._keys, end), self._grown(self._values, end)
        self._keys[:, self.length : end] = new_keys
        self._values[:, self.length : end] = new_values
        self.length = end
        return self.past_keys, self.past_values

    def shorten(self, length: int) -> None:
        """Forget all but the first positions."""
        self.length = min(self.length, length)

    def _grown(self, buffer: Tensor, room: int) -> Tensor:
        new = buffer.new_empty(buffer.shape[0], max(room, 2 * self.length, 16), *buffer.shape[2:])
        new[:, : self.length] = buffer[:, : self.length]
        return new


class KeyValueCache:
    """The kept keys and values of every layer, and which of those positions are not padding.

    Args:
        entries: one `KeyValues` per layer.
        previous_attention_mask: `[batch, key]`, true where a position is not padding.
        frozen: whether runs leave the cache as it is.

    Raises:
        ShapeError: entries and mask do not have as many positions as each other.
    """

    def __init__(self, entries: list[KeyValues], previous_attention_mask: Int[Tensor, "batch key"], frozen: bool = False):
        self.entries, self.previous_attention_mask = entries, previous_attention_mask
        lengths = {entry.length for entry in entries} | {previous_attention_mask.shape[-1]}
        if len(lengths) > 1:
            raise ShapeError(f"entries and mask of a cache must have equally many positions, and they have {sorted(lengths)}")
        self._freeze(frozen or any(entry.frozen for entry in entries))
        # The model that filled it, and the state of its weights, as counted and as looked at (None: not looked at).
        self._of: tuple[weakref.ref[Any], int, int | None] | None = None

    def length_for(self, model: Any) -> int:
        """How many positions are kept, of a run of this model.

        Raises:
            ConfigError: another model's runs filled the cache.
            StaleCache: the model's weights were rewritten since.
        """
        before = self._of if self.length else None
        generating = model.prompt_columns is not None  # looking at weights in each step would take a tenth of a small model's
        counted, looked = model.weights_state(look=False), None if generating else model.weights_state()
        if before is not None:
            again = "begin a new cache with KeyValueCache.init_cache"
            if before[0]() is not model:
                raise ConfigError(f"these keys and values were kept by another model; {again}")
            if before[1] != counted or (None not in (before[2], looked) and before[2] != looked):
                raise StaleCache(f"the model's weights were rewritten since these keys and values were kept; {again}")
            looked = before[2] if looked is None else looked
        if not self.frozen:
            self._of = weakref.ref(model), counted, looked
        return self.length

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_of": None}  # of what was stored and loaded nothing is known

    def __deepcopy__(self, memo: dict[int, Any]) -> KeyValueCache:
        again = KeyValueCache(copy.deepcopy(self.entries, memo), self.previous_attention_mask.clone(), self.frozen)
        again._of = self._of
        return again

    @classmethod
    def init_cache(
        cls, cfg: HookedTransformerConfig | dict[str, Any], device: torch.device | str | None = None, batch_size: int = 1
    ) -> KeyValueCache:
        """An empty cache for a batch of this size."""
        cfg = HookedTransformerConfig.unwrap(cfg)
        heads = cfg.n_heads if cfg.ungroup_grouped_query_attention else cfg.kv_heads
        device = device or cfg.device

        def nothing() -> Tensor:
            return torch.empty(batch_size, 0, heads, cfg.d_head, device=device, dtype=cfg.torch_dtype)

        entries = [KeyValues(nothing(), nothing()) for _ in range(cfg.n_layers)]
        return cls(entries, torch.ones(batch_size, 0, device=device, dtype=torch.long))

    @classmethod
    def of_layer(cls, layer: int, entry: KeyValues) -> KeyValueCache:
        """The kept keys and values of one layer, for a block that runs alone."""
        return cls([entry] * (layer + 1), torch.ones(len(entry.past_keys), entry.length, dtype=torch.long))

    @property
    def length(self) -> int:
        """How many positions are kept."""
        return self.entries[0].length if self.entries else 0

    def freeze(self) -> None:
        """From now on runs read the cache and leave it as it is."""
        self._freeze(True)

    def unfreeze(self) -> None:
        """From now on runs add to the cache."""
        self._freeze(False)

    def _freeze(self, frozen: bool) -> None:
        self.frozen = frozen
        for entry in self.entries:
            entry.frozen = frozen

    def append_attention_mask(self, attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch key"]:
        """The mask over all positions, those of new ones last; kept unless `frozen`."""
        mask = torch.cat([self.previous_attention_mask, attention_mask.to(self.previous_attention_mask)], dim=-1)
        if not self.frozen:
            self.previous_attention_mask = mask
        return mask

    def shorten(self, length: int) -> None:
        """Forget all but the first positions of every layer."""
        for entry in self.entries:
            entry.shorten(length)
        self.previous_attention_mask = self.previous_attention_mask[:, :length]

    def __getitem__(self, layer: int) -> KeyValues:
        return self.entries[layer]
