"""Weights of all layers in one tensor, as analyses and notebooks want them: `W_Q [layer, head, d_model, d_head]`, …

Each is stacked anew when it is asked for, so changing a stack changes no weight.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError
from cutaway.model.foreign import part_with


class StackedWeights:
    """What a network offers as one tensor over its layers."""

    cfg: HookedTransformerConfig
    embed: Any
    pos_embed: Any
    unembed: Any
    blocks: Any

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embeddings."""
        return self.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        """Position embeddings."""
        return self.pos_embed.W_pos

    @property
    def W_E_pos(self) -> Float[Tensor, "rows d_model"]:
        """Token and position embeddings, one below the other."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab_out"]:
        """The unembedding."""
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, "d_vocab_out"]:
        """The bias of the logits."""
        return self.unembed.b_U

    def _of(self, part: str, name: str) -> Tensor:
        try:
            weights = [getattr(part_with(self, layer, part, name), name) for layer in range(len(self.blocks))]
        except ConfigError as error:
            why = f"not every layer of this model has {part}.{name}, so there is no stack of them"
            raise ConfigError(f"{why}: {str(error).partition(', and its weights')[0]}") from None
        return torch.stack([weight.to(weights[0].device) for weight in weights])

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights."""
        return self._of("attn", "W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights; of each head, also where heads share them."""
        return self._of("attn", "W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights; of each head, also where heads share them."""
        return self._of("attn", "W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights of the heads."""
        return self._of("attn", "W_O")

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query biases."""
        return self._of("attn", "b_Q")

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """Key biases."""
        return self._of("attn", "b_K")

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """Value biases."""
        return self._of("attn", "b_V")

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of attention."""
        return self._of("attn", "b_O")

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """Input weights of the MLPs."""
        return self._of("mlp", "W_in")

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"] | None:
        """Gate weights of the MLPs; None where they have no gates."""
        return self._of("mlp", "W_gate") if self.cfg.gated_mlp else None

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """Output weights of the MLPs."""
        return self._of("mlp", "W_out")

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """Input biases of the MLPs."""
        return self._of("mlp", "b_in")

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of the MLPs."""
        return self._of("mlp", "b_out")

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Float[Tensor, "d_model"]:
        """The sum of what output biases have written before layer `layer` (`n_layers`: in all).

        Args:
            mlp_input: count also the attention bias of layer `layer` itself.
            include_mlp_biases: count the biases of MLPs too.
        """
        if not 0 <= layer <= self.cfg.n_layers - mlp_input:
            raise ValueError(
                f"layer={layer} is outside the {self.cfg.n_layers} layers; give 0 to {self.cfg.n_layers - mlp_input}"
            )
        total = torch.zeros_like(part_with(self, 0, "attn", "b_O").b_O if self.cfg.n_layers else self.unembed.W_U[:, 0])
        for index, block in enumerate(self.blocks):
            if index < layer or (mlp_input and index == layer):
                total = total + part_with(self, index, "attn", "b_O").b_O.to(total.device)
            if index < layer and include_mlp_biases and not self.cfg.attn_only and hasattr(block.mlp, "b_out"):
                total = total + block.mlp.b_out.to(total.device)
        return total
