"""A checkpoint that is not in our form yet: a config as its makers wrote it, and tensors under their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A model of somebody else's that is not loaded yet; `cutaway.weights.families` says what it means."""

    config: Mapping[str, Any]
    """What its `config.json` holds."""
    tensors: Mapping[str, Tensor]
    """Name → tensor, read when it is asked for."""
    tokenizer: Any = None
    name: str = "custom"
    """What it is called: an id, or the name of its folder."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it came from: the folder, the repository, the revision."""
    resolved: bool = False
    """Whether `config` is a live model's, as its configuration class has filled it in, rather than a file's."""
