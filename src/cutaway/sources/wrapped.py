"""Names that wrappers leave: compiled, distributed and adapted models put words before the names of their tensors.

Value heads of TRL (`v_head.…`) compute no logits; they are left out and listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from cutaway.errors import CheckpointError
from cutaway.sources.checkpoint import LazyTensors

ANYWHERE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of a name that Torch's wrappers put in, at whatever depth: `torch.compile`, FSDP, recomputed activations."""

FIRST = ("module.", "base_model.model.", "pretrained_model.", "_forward_module.")
"""What stands before every name: `DataParallel`, PEFT, TRL, Lightning with DeepSpeed."""

TWICE = re.compile(r"model\.(?=(?:model|transformer|gpt_neox|lm_head|embed_out)\.)")
"""A model that is the attribute `model` of something else (Lightning), where every name begins so."""

VALUE_HEAD = re.compile(r"(?:.*\.)?v_head\.")
NESTS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""Where training loops put a state dict in what they save, best first."""


def unnested(loaded: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state dict inside `{"model": …}`, `{"state_dict": …}` and the like; anything else as it is."""
    for _ in range(len(NESTS)):
        inner = next((loaded[name] for name in NESTS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            return loaded
        loaded = inner
    return loaded


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Name → the name that it has without wrappers; value heads are left out.

    Raises:
        CheckpointError: two tensors would have the same name.
    """
    plain = {name: ANYWHERE.sub("", name) for name in names if not VALUE_HEAD.match(name)}
    while plain:
        first = next((word for word in FIRST if all(name.startswith(word) for name in plain.values())), None)
        if first is None and all(TWICE.match(name) for name in plain.values()):
            first = "model."
        if first is None:
            break
        plain = {name: short.removeprefix(first) for name, short in plain.items()}
    if len(set(plain.values())) < len(plain):
        twice = next(short for short in plain.values() if list(plain.values()).count(short) > 1)
        raise CheckpointError(f"two tensors are called {twice!r} once the names of wrappers are taken off; save the model alone")
    return plain


def plain(tensors: LazyTensors) -> tuple[LazyTensors, list[str]]:
    """The same tensors by their names without wrappers, and the names of those that were left out."""
    names = plain_names(tensors)
    where = {short: name for name, short in names.items()}
    shapes = {short: tensors.shapes[name] for short, name in where.items()}
    lazy = LazyTensors(shapes, lambda short: tensors[where[short]], fresh=tensors.fresh)
    return lazy, [name for name in tensors if name not in names]


def plain_state_dict(weights: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """A state dict by its names without wrappers, taken out of what it is nested in; the same object where nothing changes."""
    weights = unnested(weights)
    names = plain_names(weights)
    if len(names) == len(weights) and all(name == short for name, short in names.items()):
        return weights
    return {short: weights[name] for name, short in names.items()}
