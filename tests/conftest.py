"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
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


# Every message of every error that any test raises is a sentence: what is asked in it is taken out first.
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|`[^`]*`")
BROKEN = re.compile(r"\w[?!.,:;]+\s*;\s|\w[?!]\s*[,.:]|\w[,;:]\s*[.,;]\s|;\s*$|\w [,;]\s")


@pytest.fixture(autouse=True, scope="session")
def _messages_are_sentences() -> Iterator[None]:
    from cutaway.errors import CutawayError

    def checked(self: CutawayError, *args: object, **named: object) -> None:
        super(CutawayError, self).__init__(*args, **named)
        said = QUOTED.sub("x", str(args[0])) if args else ""
        assert not (found := BROKEN.search(said)), f"the message breaks at {found[0]!r}: {args[0]}"

    CutawayError.__init__ = checked  # type: ignore[method-assign]
    yield
    del CutawayError.__init__
