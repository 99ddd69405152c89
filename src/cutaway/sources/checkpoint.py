"""A checkpoint: what every source hands over, wherever the model came from.

Tensors are read when they are asked for, one at a time, so a checkpoint costs nothing until it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import nearest
from cutaway.tokens import Tokenizer


class LazyTensors(Mapping[str, Tensor]):
    """Names and shapes at hand, tensors read one by one, anew each time they are asked for.

    Args:
        shapes: the shape of each tensor, by name.
        read: gives the tensor of a name.
        fresh: each tensor that is read is nobody else's, so who asked for it may keep it as it is.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor], *, fresh: bool = False) -> None:
        self.shapes = dict(shapes)
        self.fresh = fresh
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(f"no tensor called {name!r}{nearest(name, self.shapes)}")
        return self._read(name)

    def __contains__(self, name: object) -> bool:  # the inherited one would read the tensor
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __repr__(self) -> str:
        return f"LazyTensors({len(self)} tensors)"


@dataclass(frozen=True)
class Checkpoint:
    """A model that is not loaded yet."""

    config: HookedTransformerConfig
    tensors: Mapping[str, Tensor]
    """Name → tensor. Whether they fit the configuration is checked where they are loaded."""
    tokenizer: Tokenizer | None = None
    processed: bool = False
    """Whether norms are folded and weights centred already, so that loading should leave them as they are."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where the weights came from: the file, the command and seed that made them, whatever its maker wrote down."""
