"""Which device each layer is on: spread evenly over GPUs, or as a `device_map` of `transformers` says.

A layer is never split. Embeddings are with the first layer and the unembedding with the last, unless the map says more.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, PackageNeeded
from cutaway.model.transformer import Transformer

PLANS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Maps that `accelerate` works out from the memory that is there."""

PARTS = {
    "embed": r"(.*\.)?(wte|wpe|embed|pos_embed|embed_tokens|embed_positions|embed_in|word_embeddings(_layernorm)?|rotary_emb)",
    "ln_final": r"(.*\.)?(norm|norm_f|ln_f|ln_final|final_layernorm|final_layer_norm)",
    "unembed": r"(.*\.)?(lm_head|embed_out|unembed)",
}
"""Parts of the network besides layers, by the names that families have for them."""

WHOLE = r"|language_model|blocks|(model|transformer|gpt_neox|model\.decoder)(\.(layers|h))?"


def of(device_map: Any, cfg: HookedTransformerConfig, *, memory: Mapping[Any, Any] | None = None) -> dict[str, torch.device]:
    """The device of each part of a network (`embed`, `blocks.3`, `ln_final`, `unembed`); `cfg` notes how many there are.

    Args:
        device_map: a device, a dict of module names (ours or those of `transformers`) to devices, or one of `PLANS`.
        memory: how much each device may take, as `accelerate` has it; by default what is free.

    Raises:
        ConfigError: a name or a device is not known, or a layer has no place.
        PackageNeeded: a plan is asked for, and `accelerate` is not installed.
    """
    if isinstance(device_map, str) and device_map in PLANS:
        device_map = _planned(device_map, cfg, memory)
    where = _parts(device_map, cfg) if isinstance(device_map, Mapping) else dict.fromkeys(parts(cfg), _device(device_map))
    if memory is None:
        for device in set(where.values()):
            _check(device)
    cfg.device, cfg.n_devices = str(where["embed"]), len(set(where.values()))
    return where


def parts(cfg: HookedTransformerConfig) -> list[str]:
    """The parts that are placed, in the order of the forward pass."""
    return ["embed", *(f"blocks.{layer}" for layer in range(cfg.n_layers)), "ln_final", "unembed"]


def device_of(name: str, cfg: HookedTransformerConfig, where: Mapping[str, torch.device]) -> torch.device:
    """Where a parameter lives: as `where` says, else layers are spread evenly over `cfg.n_devices`."""
    first = torch.device(str(cfg.device))
    parts = name.split(".")
    if where:
        part = ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]
        return where.get(part, where["embed"])
    if cfg.n_devices == 1:
        return first
    if parts[0] == "blocks":
        number = int(parts[1]) * cfg.n_devices // cfg.n_layers
    else:
        number = cfg.n_devices - 1 if parts[0] in ("ln_final", "unembed") else 0
    return torch.device(first.type, (first.index or 0) + number)


def stacked(parts: Iterable[Tensor]) -> Tensor:
    """Tensors of several layers on a new first axis, on the device of the first: the layers may lie on several."""
    found = list(parts)
    return torch.stack([part.to(found[0].device) for part in found])


def _parts(device_map: Mapping[Any, Any], cfg: HookedTransformerConfig) -> dict[str, torch.device]:
    where: dict[str, torch.device] = {}
    rest: torch.device | None = None
    for name, device in device_map.items():
        name = str(name).removeprefix("model.language_model.")
        layer = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.|$)", name)
        part = next((part for part, pattern in PARTS.items() if re.fullmatch(pattern, name)), None)
        if layer is not None:
            where.setdefault(f"blocks.{int(layer[1])}", _device(device))
        elif part is not None:
            where.setdefault(part, _device(device))
        elif re.fullmatch(WHOLE, name):
            rest = _device(device)
        else:
            raise ConfigError(f"device_map names {name!r}; it may name '', layers ('model.layers.3'), embeddings, norm and head")
    wanted = parts(cfg)
    lacking = [part for part in wanted if part not in where and part.startswith("blocks.")]
    if rest is None and lacking:
        raise ConfigError(f"device_map has no place for {lacking[0]}; name it, or '' for all that is left")
    first, last = where.get("blocks.0", rest), where.get(f"blocks.{cfg.n_layers - 1}", rest)
    near = {"embed": rest or first, "ln_final": rest or last, "unembed": rest or last}
    return {part: where.get(part) or near.get(part, rest) or _device("cpu") for part in wanted}


def _device(given: Any) -> torch.device:
    if str(given) in ("disk", "meta"):
        raise ConfigError(f"device_map puts layers on {given!r}, and weights are held in memory here; use cpu or a GPU")
    try:
        return torch.device("cuda", given) if isinstance(given, int) else torch.device(str(given))
    except RuntimeError as error:
        known = ", ".join(("cpu", "cuda:1", *PLANS))
        raise ConfigError(f"device_map says {given!r}, which is no device; there are {known}") from error


def _check(device: torch.device) -> None:
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device_map says {device}, and there are {torch.cuda.device_count()} GPUs here")


def _planned(plan: str, cfg: HookedTransformerConfig, memory: Mapping[Any, Any] | None) -> dict[str, Any]:
    """What `accelerate` works out for this network, laid out without memory; without a GPU all is on the CPU."""
    if memory is None and not torch.cuda.is_available():
        return {"": "cpu"}
    try:
        from accelerate import infer_auto_device_map
        from accelerate.utils import get_balanced_memory
    except ModuleNotFoundError as error:
        raise PackageNeeded(f"device_map={plan!r} needs the package accelerate: pip install accelerate") from error
    like = copy.copy(cfg)
    like.n_devices = 1
    with torch.device("meta"):
        network = Transformer(like, None, move_to_device=False)
    whole = [type(network.blocks[0]).__name__] if cfg.n_layers else []
    options = {"no_split_module_classes": whole, "dtype": cfg.torch_dtype}
    most = dict(memory) if memory is not None else None
    if plan != "sequential":
        most = get_balanced_memory(network, most, low_zero=plan == "balanced_low_0", **options)
    found = infer_auto_device_map(network, max_memory=most, **options)
    return {name: device for name, device in found.items() if name in ("", *PARTS) or name.startswith("blocks")}
