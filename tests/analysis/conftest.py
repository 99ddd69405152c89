"""The published model of the first-unique-character problem, its weights processed as its readers do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway import ActivationCache, HookedTransformer
from cutaway.tasks.first_unique_dataset import FirstUniqueChar


@dataclass(frozen=True)
class Published:
    model: HookedTransformer
    data: FirstUniqueChar
    logits: torch.Tensor
    cache: ActivationCache


@pytest.fixture(scope="session")
def published(shared: Path) -> Published:
    model = HookedTransformer(FirstUniqueChar.config(seed=None, device="cpu"))
    weights: dict[str, Any] = torch.load(
        shared / "data/checkpoints/first_unique_char_model.pt", weights_only=True, map_location="cpu"
    )
    for rewrite in (model.center_writing_weights, model.center_unembed, model.fold_layer_norm, model.fold_value_biases):
        weights = rewrite(weights)
    model.load_state_dict(weights, strict=False)
    data = FirstUniqueChar(size=1000, seed=42)
    with torch.no_grad():
        logits, cache = model.run_with_cache(data.toks)
    assert isinstance(cache, ActivationCache)
    return Published(model, data, logits, cache)
