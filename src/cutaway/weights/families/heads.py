"""The unembedding of a checkpoint: tied to the embedding, beside it, or missing.

`transformers` ties the two only where they are equal: a head of its own that is stored beside a tied embedding is kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cutaway.weights.families.table import Family


class HeadIsItsOwn(UserWarning):
    """A config says that the unembedding is the embedding, and the file holds two different ones."""


class HeadIsMissing(UserWarning):
    """A checkpoint holds a model without its unembedding, so its logits mean nothing."""


def settle(
    family: Family, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """The config as the tensors have it, and the tensors with an unembedding."""
    embedding, head = _there(family, tensors, "embed.W_E"), _there(family, tensors, "unembed.W_U")
    field = family.fields.get("tie_word_embeddings")
    tied = bool(config.get("tie_word_embeddings", field.default if field is not None else False))
    if tied and head is not None and embedding is not None and not _equal(tensors[head], tensors[embedding]):
        warnings.warn(
            f"the config ties the unembedding to the embedding, and {head!r} beside it differs: it is used, as transformers does",
            HeadIsItsOwn,
            stacklevel=2,
        )
        return {**config, "tie_word_embeddings": False}, tensors
    if not tied and head is None and embedding is not None:
        warnings.warn(
            "the checkpoint has no unembedding, so every logit is zero (activations up to the final norm are right); load the "
            "model with its head, or set W_U",
            HeadIsMissing,
            stacklevel=2,
        )
        return config, WithoutHead(tensors, family, embedding)
    return config, tensors


class WithoutHead(Mapping[str, Tensor]):
    """Tensors, and an unembedding of zeros under its name (and its bias, where the family has one)."""

    def __init__(self, tensors: Mapping[str, Tensor], family: Family, embedding: str):
        self.tensors = tensors
        shapes = getattr(tensors, "shapes", None) or {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        rows = shapes[embedding][:1]
        self.zeros = {_names(family, "unembed.W_U")[0]: shapes[embedding], **dict.fromkeys(_names(family, "unembed.b_U"), rows)}
        self.shapes = {**shapes, **self.zeros}

    def __getitem__(self, name: str) -> Tensor:
        return torch.zeros(self.zeros[name]) if name in self.zeros else self.tensors[name]

    def __iter__(self) -> Any:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _names(family: Family, canonical: str) -> list[str]:
    """The names of a tensor in a family's table, those of other tensors left out."""
    entries = family.tensors.get(canonical, ())
    options = entries if isinstance(entries, tuple) else (entries,)
    names = [one.name for one in options]
    if canonical == "embed.W_E":
        return names
    return [name for name in names if name not in _names(family, "embed.W_E")]


def _there(family: Family, tensors: Mapping[str, Tensor], canonical: str) -> str | None:
    """The name that a checkpoint has for a tensor."""
    options = (prefix + name for name in _names(family, canonical) for prefix in family.prefixes)
    return next((name for name in options if name in tensors), None)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or (one.shape == other.shape and torch.equal(one, other))
