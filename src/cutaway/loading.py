"""From a checkpoint to a network: weights are rewritten and moved in one at a time, never held twice.

A network is first laid out without memory (on the meta device); then each parameter takes its tensor, in the
right precision, on the right device, in the memory order that the network computes with.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cutaway.config import DTYPES, HookedTransformerConfig
from cutaway.errors import ConfigError
from cutaway.model.transformer import Transformer
from cutaway.weights import canonical

Network = TypeVar("Network", bound=Transformer)


def build(
    kind: type[Network],
    cfg: HookedTransformerConfig,
    weights: MutableMapping[str, Tensor],
    *,
    tokenizer: Any = None,
    default_padding_side: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Network:
    """A network of class `kind` with these weights; `weights` is emptied as they move in.

    Raises:
        WeightsMismatch: the weights do not fit the configuration.
    """
    cfg = copy.copy(cfg)
    cfg.device = device or cfg.device
    cfg.dtype = as_dtype(dtype) if dtype is not None else cfg.dtype
    canonical.check(weights, cfg)
    with torch.device("meta"):
        model = kind(cfg, tokenizer, move_to_device=False, default_padding_side=default_padding_side)
    for name in [name for name, _ in model.named_parameters()]:
        _place(model, name, weights.pop(name), device=torch.device(str(cfg.device)), dtype=cfg.torch_dtype)
    return model.eval() if not model.training else model


def _place(model: nn.Module, name: str, tensor: Tensor, *, device: torch.device, dtype: torch.dtype) -> None:
    """Put one tensor where a parameter without memory stands, in that parameter's memory order."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    empty: nn.Parameter = getattr(module, last)
    real = torch.empty_strided(empty.shape, empty.stride(), dtype=dtype, device=device)
    with torch.no_grad():
        real.copy_(tensor)
    setattr(module, last, nn.Parameter(real, requires_grad=dtype.is_floating_point))


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A precision from its name.

    Raises:
        ConfigError: there is none of this name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    name = dtype.removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is not known; there are {', '.join(DTYPES)}")
    return DTYPES[name]


def fill(model: Transformer, weights: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Copy weights into a network that has memory already; the norms of a folded state dict become w = 1, b = 0.

    Raises:
        WeightsMismatch: with `strict`, when they do not fit exactly.
    """
    weights = canonical.without_buffers(weights, model.cfg)
    if strict:
        canonical.check(weights, model.cfg)
    nn.Module.load_state_dict(model, weights, strict=strict)
