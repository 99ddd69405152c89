"""The dialect's factories: the activation function and the MLP that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from cutaway.config import HookedTransformerConfig
from cutaway.errors import UnknownName, nearest
from cutaway.model.mlp import ACTIVATIONS, XIELU, mlp_of, xielu

__all__ = ["SUPPORTED_ACTIVATIONS", "XIELU", "ActivationFunction", "ActivationFunctionFactory", "MLPFactory", "xielu"]

ActivationFunction = Callable[..., Tensor]


SUPPORTED_ACTIVATIONS = ACTIVATIONS


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
