"""State dicts of 2022: turned they compute the same, and square matrices go by what the others are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import WeightsMismatch
from cutaway.hooked_transformer import HookedTransformer
from cutaway.weights.old_layout import modern

TOKENS = torch.tensor([[3, 1, 4, 1]])
SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 3, "d_vocab": 11, "act_fn": "relu", "normalization_type": None, "seed": 0}
ODD = SIZES | {"d_model": 12, "d_head": 4, "n_ctx": 5, "d_mlp": 20}
SQUARE = SIZES | {"d_model": 11, "d_head": 4, "n_ctx": 11, "d_mlp": 11}
"""Only the matrices of attention say which layout it is."""


def of_grokking(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`W_E [d_model, d_vocab]`, `W_Q [head, d_head, d_model]`, `W_O [d_model, head·d_head]`, no biases of attention."""
    old = {}
    for name, tensor in weights.items():
        last = name.rsplit(".", 1)[-1]
        if last == "W_O":
            tensor = tensor.flatten(0, 1).T
        elif last in ("W_E", "W_Q", "W_K", "W_V", "W_in", "W_out"):
            tensor = tensor.transpose(-2, -1)
        if last not in ("b_Q", "b_K", "b_V", "b_O", "b_U"):
            old[name] = tensor
    return old


def of_the_first_library(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every matrix transposed."""
    return {name: tensor.transpose(-2, -1) if ".W_" in name else tensor for name, tensor in weights.items()}


def network(sizes: dict[str, Any], biases: bool) -> HookedTransformer:
    model = HookedTransformer(HookedTransformerConfig(**sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".b_" in name and (biases or ".mlp." in name):
                parameter.normal_()
    return model


@torch.no_grad()
@pytest.mark.parametrize("sizes", [ODD, SQUARE], ids=["odd sizes", "square"])
@pytest.mark.parametrize("layout", [of_grokking, of_the_first_library])
def test_both_layouts_load(layout: Any, sizes: dict[str, Any]) -> None:
    model = network(sizes, biases=layout is of_the_first_library)
    other = HookedTransformer(HookedTransformerConfig(**sizes | {"seed": 1}))
    other.load_state_dict(layout(model.state_dict()))
    assert torch.equal(other(TOKENS), model(TOKENS))
    other.load_and_process_state_dict(layout(model.state_dict()), center_writing_weights=False)
    assert torch.allclose(other(TOKENS).log_softmax(-1), model(TOKENS).log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("sizes", [ODD, SQUARE], ids=["odd sizes", "square"])
def test_todays_layout_is_left_alone(sizes: dict[str, Any]) -> None:
    model = network(sizes, biases=True)
    weights = model.state_dict()
    assert modern(weights, model.cfg) is weights


def test_a_mixture_of_layouts_stops() -> None:
    model = network(ODD, biases=True)
    weights = of_the_first_library(model.state_dict())
    weights["blocks.1.attn.W_Q"] = model.state_dict()["blocks.1.attn.W_Q"]
    with pytest.raises(WeightsMismatch, match=r"blocks\.1\.attn\.W_Q has today's shape, and other weights that of 2022"):
        model.load_state_dict(weights)


def test_wrong_sizes_are_said_as_ever() -> None:
    model = network(ODD, biases=True)
    with pytest.raises(WeightsMismatch, match="wrongly shaped"):
        model.load_state_dict(dict(model.state_dict()) | {"embed.W_E": torch.zeros(7, 9)})
