"""Live models of `transformers`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cutaway.errors import CheckpointError, UnsupportedArchitecture
from cutaway.sources import objects


def test_a_model_as_it_is_now(model: Any) -> None:
    found = objects.read(model, tokenizer="mine", name="called")
    assert found.config["architectures"] == ["GPT2LMHeadModel"] and found.tokenizer == "mine" and found.name == "called"
    weight = model.transformer.h[0].mlp.c_fc.weight
    assert found.tensors["transformer.h.0.mlp.c_fc.weight"].data_ptr() == weight.data_ptr()  # looked at, not copied
    assert not found.tensors["transformer.h.0.mlp.c_fc.weight"].requires_grad


def test_what_is_no_model_of_transformers() -> None:
    with pytest.raises(UnsupportedArchitecture, match="must be a model of transformers, not Linear"):
        objects.read(torch.nn.Linear(2, 2))


def test_a_model_without_values() -> None:
    import transformers

    with torch.device("meta"):
        empty = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=7))
    with pytest.raises(CheckpointError, match="has no values"):
        objects.read(empty)
