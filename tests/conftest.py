"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)  # the same examples everywhere
settings.load_profile("steady")

# Tests compute on the processor, and one file on a GPU, which it pretends unless it is asked to use a real one: make test-gpu.
if not os.environ.get("CUTAWAY_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Choices of kernels that tests make are kept for the session, and the user's own stay as they are.
_cache = tempfile.TemporaryDirectory(prefix="cutaway-tests-")
os.environ["CUTAWAY_CACHE"] = _cache.name


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published checkpoints, tokenizers and texts beside the repository; skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the folder of shared data is not beside the repository")
    return folder
