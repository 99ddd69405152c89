"""The dialect's own models (attention-only, SoLU, GELU): published state dicts with a short config beside them.

Their keys are canonical already. The oldest SoLU models are the exception: their norms have another name, and
the smaller ones keep their matrices the other way round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, UnsupportedArchitecture, WeightsMismatch
from cutaway.weights.canonical import is_buffer, shapes

OLD = "neel-solu-old"

OF_A_RUN = ("seed", "device", "dtype", "n_devices", "n_params", "init_mode", "init_weights", "initializer_range", "load_in_4bit")
"""Fields of ours that say nothing about the model itself."""


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether a config describes one of the dialect's own models rather than one of `transformers`."""
    return "model_type" not in config and {"d_model", "n_ctx", "d_head", "n_layers"} <= config.keys()


def is_old(config: Mapping[str, Any]) -> bool:
    """Whether the weights are in the layout of the first SoLU models."""
    return config.get("architecture") == OLD


def configuration(
    config: Mapping[str, Any], *, n_ctx: int | None = None, first_n_layers: int | None = None
) -> HookedTransformerConfig:
    """Our configuration of one of the dialect's own models."""
    architecture = config.get("architecture", "neel")
    if architecture not in ("neel", OLD):
        raise UnsupportedArchitecture(f"architecture={architecture!r} is not understood; there are 'neel' and {OLD!r}")
    known = {field.name for field in dataclasses.fields(HookedTransformerConfig)} - set(OF_A_RUN)
    ours = {name: value for name, value in config.items() if name in known}
    ours["original_architecture"] = architecture
    ours["normalization_type"] = config.get("normalization", config.get("normalization_type", "LN"))
    if "shortformer_pos" in config:
        ours["positional_embedding_type"] = "shortformer" if config["shortformer_pos"] else "standard"
    for name, wanted in (("n_ctx", n_ctx), ("n_layers", first_n_layers)):
        if wanted is not None:
            if not 0 <= wanted <= ours[name]:
                raise ConfigError(f"{wanted} is more than the model's {name}={ours[name]}")
            ours[name] = wanted
    return HookedTransformerConfig.from_dict(ours)


def tensors(config: Mapping[str, Any], foreign: Mapping[str, Tensor], cfg: HookedTransformerConfig) -> Mapping[str, Tensor]:
    """Canonical name → tensor, read when it is asked for.

    Raises:
        WeightsMismatch: a tensor is missing, or one is left over.
    """
    return OwnTensors(foreign, cfg, old=is_old(config), layers=int(config["n_layers"]))


class OwnTensors(Mapping[str, Tensor]):
    """Published tensors under canonical names, turned the right way round where they are not."""

    def __init__(self, foreign: Mapping[str, Tensor], cfg: HookedTransformerConfig, *, old: bool, layers: int):
        self.foreign, self.cfg, self.old, self.layers = foreign, cfg, old, layers
        self.shapes = shapes(cfg)
        names = {self._canonical(name): name for name in foreign}
        self._names = {name: names.get(name) for name in self.shapes}
        missing = [name for name, there in self._names.items() if there is None]
        beyond = tuple(f"blocks.{layer}." for layer in range(cfg.n_layers, layers))
        left = [name for name in names if name not in self.shapes and not is_buffer(name, cfg) and not name.startswith(beyond)]
        if missing or left:
            raise WeightsMismatch(f"the state dict does not fit its config: it lacks {missing[:3]}, and has {left[:3]} besides")

    def _canonical(self, name: str) -> str:
        if not self.old:
            return name
        name = name.replace("norm", "ln")
        return "ln_final." + name.removeprefix("ln.") if name.startswith("ln.") else name

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, name: str) -> Tensor:
        shape, there = self.shapes[name], self._names[name]
        assert there is not None
        x = self.foreign[there]
        if self.old and (self.layers <= 8 if name == "pos_embed.W_pos" else self.layers <= 6 and ".W_" in name):
            x = x.transpose(-2, -1)
        if name == "pos_embed.W_pos":
            x = x[: self.cfg.n_ctx]
        if tuple(x.shape) != shape:
            raise WeightsMismatch(f"{there} has shape {list(x.shape)}, and {name} should have {list(shape)}")
        return x
