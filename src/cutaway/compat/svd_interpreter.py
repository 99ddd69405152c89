"""What weights write, direction by direction: singular vectors of a head or an MLP, read by the unembedding."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import ShapeError, UnknownName, nearest
from cutaway.model.factored_matrix import FactoredMatrix
from cutaway.model.foreign import part_with

VECTOR_TYPES = ("OV", "w_in", "w_out")
OUTPUT_EMBEDDING = "unembed.W_U"


class SVDInterpreter:
    """Singular vectors of a model's weights, in terms of its vocabulary.

    Source: Beren Millidge and Sid Black, "The singular value decompositions of transformer weight matrices are highly
    interpretable" (2022).
    """

    def __init__(self, model: Any):
        self.model, self.cfg = model, model.cfg

    def get_singular_vectors(
        self, vector_type: str, layer_index: int, num_vectors: int = 10, head_index: int | None = None
    ) -> Float[Tensor, "d_vocab 1 vector"]:
        """The logits that each of the largest singular vectors gives, largest first. A vector's sign means nothing.

        Args:
            vector_type: `OV` (of one head: give `head_index`), `w_in` or `w_out` (of the MLP).

        Raises:
            UnknownName: no such type.
            ShapeError: no such layer, head or vector.
        """
        if vector_type not in VECTOR_TYPES:
            raise UnknownName(
                f"no vector_type {vector_type!r}{nearest(vector_type, VECTOR_TYPES)}; there are {', '.join(VECTOR_TYPES)}"
            )
        self._within("Layer", layer_index, self.cfg.n_layers)
        if vector_type == "OV":
            if head_index is None:
                raise ShapeError("vector_type='OV' is of one head; give head_index")
            self._within("Head", head_index, self.cfg.n_heads)
            attn = part_with(self.model, layer_index, "attn", "W_V", "W_O")
            directions = FactoredMatrix(attn.W_V[head_index], attn.W_O[head_index]).Vh.T
        else:
            directions = torch.linalg.svd(self._neurons(layer_index, vector_type).float(), full_matrices=False).Vh
        if not 0 < num_vectors <= len(directions):
            raise ShapeError(f"num_vectors={num_vectors}: there are {len(directions)} singular vectors")
        return (directions[:num_vectors].float() @ self.model.W_U.float()).T.unsqueeze(1)

    def _neurons(self, layer: int, vector_type: str) -> Float[Tensor, "d_mlp d_model"]:
        """What each neuron reads (with the norm's weight, where it was not folded) or writes."""
        if self.cfg.attn_only:
            raise ShapeError(f"vector_type={vector_type!r} is of an MLP, and this network has none")
        mlp = part_with(self.model, layer, "mlp", "W_in", "W_out")
        weight = mlp.W_out if vector_type == "w_out" else mlp.W_in.T
        scale = getattr(self.model.blocks[layer].ln2, "w", None) if vector_type == "w_in" else None
        return weight if scale is None else weight * scale

    @staticmethod
    def _within(name: str, index: int, count: int) -> None:
        if not 0 <= index < count:
            raise ShapeError(f"{name} index must be between 0 and {count - 1} but got {index}")
