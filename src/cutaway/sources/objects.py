"""Live models: a model object of `transformers`, with or without a tokenizer. The network is never touched."""

from __future__ import annotations

from typing import Any

from torch import nn

from cutaway.errors import CheckpointError, UnsupportedArchitecture
from cutaway.sources import wrapped
from cutaway.sources.checkpoint import LazyTensors
from cutaway.sources.foreign import ForeignCheckpoint

QUANTISED = ("qweight", "qzeros", "absmax", "quant_state", "SCB", "weight_scale", "weight_scale_inv", "weight_packed", "_blocks")
"""The last words of tensors that only quantised checkpoints have."""


def read(model: Any, *, tokenizer: Any = None, name: str | None = None) -> ForeignCheckpoint:
    """The model as it is now; its parameters are looked at, not copied, until somebody asks for them.

    Raises:
        UnsupportedArchitecture: the object is no model of `transformers`.
        CheckpointError: its parameters have no values (they are on the meta device).
    """
    left_out = [key for key in model.state_dict() if wrapped.VALUE_HEAD.match(key)] if hasattr(model, "v_head") else []
    model = unwrapped(model)
    config: Any = getattr(model, "config", None)
    if not hasattr(model, "state_dict") or not hasattr(config, "to_dict"):
        raise UnsupportedArchitecture(f"hf_model must be a model of transformers, not {type(model).__name__}")
    tensors = model.state_dict()
    empty = next((key for key, tensor in tensors.items() if tensor.is_meta), None)
    if empty is not None:
        raise CheckpointError(f"{empty!r} of the given model has no values (it is on the meta device); load it first")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    settings = config.to_dict()
    if not any(key.endswith(QUANTISED) for key in tensors):
        settings.pop("quantization_config", None)  # (a model that was dequantised keeps saying that it is not)
    settings["architectures"] = [type(model).__name__]
    lazy, _ = wrapped.plain(LazyTensors(shapes, lambda key: tensors[key].detach()))
    called = name or settings.get("_name_or_path") or "custom"
    provenance = {"object": type(model).__name__, **({"left_out": left_out} if left_out else {})}
    return ForeignCheckpoint(settings, lazy, tokenizer, str(called), provenance, resolved=True)


def unwrapped(model: Any) -> Any:
    """The model inside what `torch.compile`, `DataParallel` or TRL's value heads put around it."""
    for name in ("_orig_mod", "module", "pretrained_model"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and hasattr(inner, "config"):
            return unwrapped(inner)
    return model
