"""Live models: a model object of `transformers`, with or without a tokenizer. The network is never touched."""

from __future__ import annotations

from typing import Any

from cutaway.errors import CheckpointError, UnsupportedArchitecture
from cutaway.sources.checkpoint import LazyTensors
from cutaway.sources.foreign import ForeignCheckpoint


def read(model: Any, *, tokenizer: Any = None, name: str | None = None) -> ForeignCheckpoint:
    """The model as it is now; its parameters are looked at, not copied, until somebody asks for them.

    Raises:
        UnsupportedArchitecture: the object is no model of `transformers`.
        CheckpointError: its parameters have no values (they are on the meta device).
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(model, "state_dict") or not hasattr(config, "to_dict"):
        raise UnsupportedArchitecture(f"hf_model must be a model of transformers, not {type(model).__name__}")
    tensors = model.state_dict()
    empty = next((key for key, tensor in tensors.items() if tensor.is_meta), None)
    if empty is not None:
        raise CheckpointError(f"{empty!r} of the given model has no values (it is on the meta device); load it first")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    settings = config.to_dict()
    settings["architectures"] = [type(model).__name__]
    lazy = LazyTensors(shapes, lambda key: tensors[key].detach())
    called = name or settings.get("_name_or_path") or "custom"
    return ForeignCheckpoint(settings, lazy, tokenizer, str(called), {"object": type(model).__name__}, resolved=True)
