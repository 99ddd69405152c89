"""Initial weights, drawn in the dialect's order, so that a seed gives the weights that it always gave.

Every parameter whose name has `W_` is drawn; biases start at zero and norms at one.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from cutaway.config import HookedTransformerConfig


def initialise(model: nn.Module, cfg: HookedTransformerConfig) -> None:
    """Draw all weights as `cfg.init_mode` says; a `cfg.seed` reseeds Torch first."""
    if cfg.seed is not None:
        torch.manual_seed(cfg.seed)
    draw_all(model, cfg, cfg.init_mode)


def draw_all(model: nn.Module, cfg: HookedTransformerConfig, mode: str) -> None:
    """Draw all weights from a mode's distribution, as Torch's generator stands."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "W_" in name:
                values = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
                parameter.copy_(_draw(values, name, cfg, mode))
            if name == "embed.W_E" and cfg.positional_embedding_type == "alibi":  # the dialect draws positions it never reads
                unread = torch.empty(cfg.n_ctx, cfg.d_model, dtype=parameter.dtype, device=parameter.device)
                _draw(unread, "pos_embed.W_pos", cfg, mode)


class DrawnByName:
    """The dialect's ways of drawing a network's weights by the name of a mode, whatever its configuration says."""

    cfg: HookedTransformerConfig

    def _init_weights_gpt2(self) -> None:
        draw_all(cast(nn.Module, self), self.cfg, "gpt2")

    def _init_weights_xavier(self, dist_type: str = "normal") -> None:
        draw_all(cast(nn.Module, self), self.cfg, f"xavier_{dist_type}")

    def _init_weights_kaiming(self, dist_type: str = "uniform") -> None:
        draw_all(cast(nn.Module, self), self.cfg, f"kaiming_{dist_type}")


def _draw(out: Tensor, name: str, cfg: HookedTransformerConfig, mode: str) -> Tensor:
    """One weight, filled: the mode's distribution, with `initializer_range` as standard deviation or gain."""
    gain = cfg.initializer_range
    if mode == "gpt2":
        return out.normal_(std=gain)
    fan_in, fan_out = fans(out)
    if mode == "muP":  # https://arxiv.org/abs/2203.03466; the dialect takes the unembedding for an input, too
        return out.normal_(std=1.0 if "embed" in name else fan_in**-0.5)
    scale = gain * math.sqrt(2 / (fan_in + fan_out)) if mode.startswith("xavier") else gain * math.sqrt(2 / fan_in)
    if mode.endswith("normal"):
        return out.normal_(std=scale)
    return out.uniform_(-scale * math.sqrt(3), scale * math.sqrt(3))


def fans(weight: Tensor) -> tuple[int, int]:
    """How many numbers a weight reads and writes: weights multiply on the right, heads come first."""
    shape = weight.shape
    if len(shape) < 2:
        return shape[0], shape[0]
    if len(shape) == 2:
        return shape[0], shape[1]
    return (shape[1], shape[0] * shape[2]) if shape[1] > shape[2] else (shape[0] * shape[1], shape[2])
