"""A short `repr` for what holds tensors: their shapes, not their numbers, which on a GPU would be fetched one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

FEW = 4  # entries that are shown one by one


class ShortRepr:
    """A dataclass (with `repr=False`) that is written as a call with the fields that differ from their defaults."""

    def __repr__(self) -> str:
        named = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]  # type: ignore[arg-type]
        parts = [f"{name}={short_repr(value)}" for name, value, default in named if not _same(value, default)]
        return f"{type(self).__name__}({', '.join(parts)})"


def short_repr(value: Any) -> str:
    """A value in a few words: numbers and names as they are, tensors and long lists by their size."""
    if isinstance(value, Tensor):
        return repr(value.item()) if not value.ndim else f"<{'×'.join(map(str, value.shape))} numbers>"
    if isinstance(value, Mapping):
        if len(value) > FEW:
            return f"<{len(value)} entries>"
        return f"{{{', '.join(f'{key!r}: {short_repr(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple) and len(value) <= FEW:
        return f"[{', '.join(map(short_repr, value))}]"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"<{len(value)} {type(value).__name__}>"
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    return repr(value)


def _same(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, bool | int | float | str | tuple) and bool(value == default))
