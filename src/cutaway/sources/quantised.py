"""Quantised checkpoints of `transformers`: what to do about each kind, since only whole numbers of weights are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cutaway.errors import UnsupportedArchitecture

WITH_TRANSFORMERS = {
    "bitsandbytes": "and call model.dequantize()",
    "fp8": "with quantization_config=FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "with quantization_config=Mxfp4Config(dequantize=True)",
    "compressed-tensors": "with quantization_config=CompressedTensorsConfig(dequantize=True)",
    "gguf": "with quantization_config=GgufConfig(dequantize=True)",
}
"""How `transformers` gives back whole weights, by kind of quantisation."""

TRACES = ("qweight", "qzeros", "absmax", "quant_state", "SCB", "weight_scale", "weight_scale_inv", "weight_packed", "_blocks")
"""The last words of tensors that only quantised checkpoints have."""


def refuse(config: Mapping[str, Any], name: str, tensors: Iterable[str] | None = None) -> None:
    """Stop at a quantised checkpoint, and say how to undo it.

    Args:
        tensors: the names of its tensors, where they are known: a model that was dequantised may still carry the setting.

    Raises:
        UnsupportedArchitecture: it is quantised.
    """
    inner = config.get("text_config")
    settings = config.get("quantization_config") or (inner.get("quantization_config") if isinstance(inner, Mapping) else None)
    if not settings or (tensors is not None and not any(tensor.endswith(TRACES) for tensor in tensors)):
        return
    method = settings.get("quant_method") if isinstance(settings, Mapping) else getattr(settings, "quant_method", None)
    method = str(getattr(method, "value", method) or "bitsandbytes")
    if method in WITH_TRANSFORMERS:
        how = f"load it with transformers {WITH_TRANSFORMERS[method]}, save_pretrained it, and give that folder"
    else:
        how = "give the model that it was quantised from, or a GGUF file of it"
    raise UnsupportedArchitecture(f"{name} is quantised ({method}), and whole weights are needed: {how}")
