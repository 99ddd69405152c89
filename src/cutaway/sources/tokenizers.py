"""Tokenizers as `transformers` reads them; one that cannot be read is a warning, since tokens work without it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


class TokenizerMissing(UserWarning):
    """A model's tokenizer could not be read; the model takes tokens instead of text."""


def read(place: Path, load: Callable[[], Any]) -> Any:
    """The tokenizer that `load` gives, or None with a warning that says where it should have been."""
    try:
        return load()
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        message = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        warnings.warn(f"the tokenizer in {place} cannot be read ({message}); tokens still work", TokenizerMissing, stacklevel=2)
        return None
