"""Cutaway opens transformers up: load a model, run it, read any activation, change any activation.

The public names are imported when first used, so that `import cutaway` costs what `import torch` costs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "HookedTransformer": "cutaway.hooked_transformer",
    "HookedTransformerConfig": "cutaway.config",
    "ActivationCache": "cutaway.runs.activation_cache",
    "FactoredMatrix": "cutaway.runs.factored_matrix",
    "HookPoint": "cutaway.model.hook_points",
    "HookedRootModule": "cutaway.model.hook_points",
    "CharTokenizer": "cutaway.tokens",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'cutaway' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
