"""The dialect's factories: the activation function and the MLP that a configuration asks for; xIELU, for modules of others."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.config import HookedTransformerConfig
from cutaway.errors import UnknownName, nearest
from cutaway.model.mlp import ACTIVATIONS, mlp_of

__all__ = ["SUPPORTED_ACTIVATIONS", "XIELU", "ActivationFunction", "ActivationFunctionFactory", "MLPFactory", "xielu"]

ActivationFunction = Callable[..., Tensor]


Number = float | Tensor


def xielu(x: Tensor, alpha_p: Number = 0.8, alpha_n: Number = 0.8, beta: float = 0.5, eps: float = -1e-6) -> Tensor:
    """The integral of trainable ELUs (https://arxiv.org/abs/2411.13010), with the parameters that its training begins with."""
    positive = alpha_p * x * x + beta * x
    return torch.where(x > 0, positive, (torch.expm1(x.clamp(max=eps)) - x) * alpha_n + beta * x)


class XIELU(nn.Module):
    """xIELU whose curvatures are trained, and kept as what `softplus` makes positive; `beta` is a constant."""

    beta: Tensor

    def __init__(self, alpha_p_init: float = 0.8, alpha_n_init: float = 0.8, beta_init: float = 0.5, eps: float = -1e-6):
        super().__init__()
        inverse = [torch.tensor([value]).expm1().log() for value in (alpha_p_init, alpha_n_init - beta_init)]
        self.alpha_p, self.alpha_n = (nn.Parameter(value) for value in inverse)
        self.register_buffer("beta", torch.tensor(beta_init))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """The activation of each number."""
        beta = self.beta.item()
        return xielu(x, F.softplus(self.alpha_p), beta + F.softplus(self.alpha_n), beta, self.eps)


SUPPORTED_ACTIVATIONS = ACTIVATIONS | {"xielu": xielu}


class ActivationFunctionFactory:
    """Activation functions by the configuration."""

    @staticmethod
    def pick_activation_function(cfg: HookedTransformerConfig) -> ActivationFunction:
        """What `cfg.act_fn` names.

        Raises:
            UnknownName: there is none of this name.
        """
        if cfg.act_fn not in ACTIVATIONS:
            raise UnknownName(f"no activation function {cfg.act_fn!r}{nearest(str(cfg.act_fn), ACTIVATIONS)}")
        return ACTIVATIONS[cfg.act_fn]


class MLPFactory:
    """MLPs by the configuration."""

    @staticmethod
    def create_mlp(cfg: HookedTransformerConfig) -> nn.Module:
        """A plain MLP, a gated one, or a mixture of experts."""
        return mlp_of(cfg, 0)
