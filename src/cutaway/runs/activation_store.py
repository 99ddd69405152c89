"""A store of activations: what a run passed, by site. A dictionary that understands short names.

`cache["pattern", 0]`, `cache["q3"]`, `cache["scale", 0, "ln1"]`, `cache["resid_post", -1]`; full names too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import Any, TypeVar

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, MissingActivation, ShapeError, StaleCache, UnknownSite
from cutaway.model.origins import Kept, check_column, made_from
from cutaway.model.sites import enabled, resolve, site_names
from cutaway.model.slices import Slice, SliceInput

logger = logging.getLogger(__name__)

Part = SliceInput | Slice
Store = TypeVar("Store", bound="ActivationStore")


class ActivationStore:
    """Activations of one run, by site. See `ActivationCache`, which takes the residual stream apart."""

    def __init__(self, cache_dict: dict[str, Tensor], model: Any, has_batch_dim: bool = True) -> None:
        self.cache_dict = cache_dict
        self.model = model
        self.has_batch_dim = has_batch_dim
        self.has_embed = "hook_embed" in cache_dict
        self.has_pos_embed = "hook_pos_embed" in cache_dict
        passed = cache_dict.passed if isinstance(cache_dict, Kept) else None
        if passed is not None and passed.model() is not model:
            raise ConfigError("these activations were kept by another model; dict(them) is a plain dictionary, if that is meant")
        self._weights: int | None = passed.weights if passed is not None else getattr(model, "weights_state", lambda: None)()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_weights": None}  # of a copy nothing is known

    def _check_weights(self, caller: str) -> None:
        """Stop where what was kept would be multiplied with other weights than those of its run."""
        if self._weights is None:
            return
        self.model.check_built()
        if self._weights != self.model.weights_state():
            raise StaleCache(
                f"{caller} multiplies kept activations with the model's weights, which were rewritten since the run; "
                "run again, or do it before the weights change"
            )

    def _positions(self, pos_slice: Part) -> Slice:
        """Chosen positions; a single one is a token of every row.

        Raises:
            ShapeError: it is padding in some row.
        """
        passed = self.cache_dict.passed if isinstance(self.cache_dict, Kept) else None
        check_column(pos_slice, None if passed is None else passed.real)
        return Slice(pos_slice)

    # A dictionary with short names.

    def __repr__(self) -> str:
        names = list(self.cache_dict)
        if len(names) <= 6 or getattr(self.model, "says", False):
            return f"{type(self).__name__} with keys {names}"
        size = sum(one.numel() * one.element_size() for one in self.cache_dict.values()) / 1e6
        shown = ", ".join(map(repr, names[:3]))
        return f"{type(self).__name__} with keys [{shown}, …, {names[-1]!r}]: {len(names)} sites, {size:.1f} MB"

    def _repr_html_(self) -> str:
        """The kinds of sites, with their shapes."""
        from html import escape

        kinds: dict[str, list[str]] = {}
        for name, tensor in self.cache_dict.items():
            kind = re.sub(r"^blocks\.\d+\.", "blocks.L.", name)
            kinds.setdefault(kind, []).append(str(list(tensor.shape)))
        rows = "".join(
            f"<tr><td>{escape(kind)}</td><td>{len(found)}</td><td>{escape(found[0])}</td></tr>" for kind, found in kinds.items()
        )
        return f"<p>{escape(repr(self))}</p><table><tr><th>site</th><th>layers</th><th>shape</th></tr>{rows}</table>"

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        if isinstance(key, str) and key in self.cache_dict:
            return self.cache_dict[key]
        try:
            return self.cache_dict[resolve(key, self.cache_dict, self.model.cfg.n_layers)]
        except UnknownSite:
            absent = resolve(key, site_names(self.model.cfg), self.model.cfg.n_layers)  # or unknown to the network as well
        if self._made_when_read(absent):
            return self.cache_dict[absent]
        raise missing(self.model.cfg, f"cache[{key!r}]", [absent])

    def _made_when_read(self, name: str) -> bool:
        """Whether an absent activation is in the store now, computed from others; a plain store computes none."""
        return False

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str | tuple):
            return False
        try:
            resolve(key, self.cache_dict, self.model.cfg.n_layers)
        except UnknownSite:
            return False
        return True

    def _whole(self) -> dict[str, Tensor]:
        """What somebody finds who goes through all of it."""
        return self.cache_dict

    def __len__(self) -> int:
        return len(self._whole())

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def keys(self) -> KeysView[str]:
        """Full names of the kept sites, in the order in which the run passed them."""
        return self._whole().keys()

    def values(self) -> ValuesView[Tensor]:
        """The kept activations."""
        return self._whole().values()

    def items(self) -> ItemsView[str, Tensor]:
        """Pairs of full name and activation."""
        return self._whole().items()

    # The whole store.

    def to(self: Store, device: str | torch.device, move_model: bool = False) -> Store:
        """Move the activations (and the model, if asked) to a device; the same cache."""
        self.cache_dict = made_from(self.cache_dict, lambda tensor: tensor.to(device))
        if move_model:
            self.model.to(device)
        return self

    def remove_batch_dim(self: Store) -> Store:
        """Drop the batch axis, which must have one entry; the same cache."""
        if not self.has_batch_dim:
            logger.warning("this cache has no batch axis to remove")
            return self
        for name, tensor in self.cache_dict.items():
            if tensor.shape[0] != 1:
                raise ShapeError(
                    f"the batch axis of {name!r} has {tensor.shape[0]} entries, so it cannot be removed; "
                    "apply_slice_to_batch_dim(i) takes one example"
                )
        self.cache_dict = made_from(self.cache_dict, lambda tensor: tensor[0])
        self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self: Store, batch_slice: Part) -> Store:
        """A new cache of some examples; a number drops the batch axis."""
        if not self.has_batch_dim:
            raise ShapeError("this cache has no batch axis, so there are no examples to choose")
        part = Slice(batch_slice)
        chosen = made_from(self.cache_dict, part.apply, lambda x: x[torch.from_numpy(part.indices(len(x))).to(x.device)])
        return type(self)(chosen, self.model, has_batch_dim=part.mode != "int")

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Switch gradients on or off for all of PyTorch, as the dialect has it; prefer `torch.no_grad()`."""
        logger.warning("gradients are now %s, globally", "on" if mode else "off")
        torch.set_grad_enabled(mode)

    def _need(self, caller: str, names: Iterable[str], otherwise: str = "") -> None:
        """Raise for all absent sites at once."""
        if absent := [name for name in names if name not in self.cache_dict]:
            for name in absent:
                resolve(name, site_names(self.model.cfg))
            raise missing(self.model.cfg, caller, absent, otherwise)


def missing(cfg: HookedTransformerConfig, caller: str, names: list[str], otherwise: str = "") -> MissingActivation:
    """The error that says what is absent and which call keeps it."""
    shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if len(names) <= 3:
        wanted = repr(names)
    else:
        lasts = dict.fromkeys(".".join(name.split(".")[2:]) if name.startswith("blocks.") else name for name in names)
        wanted = f"[name for name in model.sites if name.endswith({tuple(lasts)!r})]"
    unfiltered = "without names_filter, or " if all(enabled(cfg, name) for name in names) else ""
    return MissingActivation(
        f"{caller} needs {shown}, which this run did not keep; run again {unfiltered}with "
        f"{'it' if len(names) == 1 else 'them'} in it: model.run_with_cache(tokens, names_filter={wanted}){otherwise}"
    )
