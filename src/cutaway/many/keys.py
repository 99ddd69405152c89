"""Keys: a value as JSON that is the same for equal values, with a hash in place of each tensor. Functions have none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import CheckpointError
from cutaway.runs.hashes import digest
from cutaway.tasks.behaviour import Behaviour

PLAIN = (str, int, float, bool, type(None))


def described(value: Any, what: str = "an option") -> Any:
    """`value` as plain data.

    Raises:
        CheckpointError: a function, a model or a cache is in it, which no key can stand for.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Path | torch.dtype | torch.device | slice | range):
        return [type(value).__name__, str(value)]
    if isinstance(value, Tensor):
        return {"tensor": digest([value])}
    if isinstance(value, Mapping):
        return {"map": [[described(key, what), described(one, what)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        return [described(one, what) for one in value]
    if isinstance(value, set | frozenset):
        return {"set": sorted(str(described(one, what)) for one in value)}
    ours = type(value).__module__.startswith("cutaway.")
    if ours and dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {part.name: described(getattr(value, part.name), f"{what}: {part.name}") for part in dataclasses.fields(value)}
        return {type(value).__qualname__: fields}
    if ours and isinstance(value, Behaviour):  # its class says all of it
        return {type(value).__qualname__: value.name}
    raise CheckpointError(
        f"{what} is a {type(value).__name__}, which has no key, so answers could not be told apart; use values, prompts, edits "
        "and metrics of cutaway"
    )
