"""Quantised checkpoints: only weights in full precision are read, and each kind of quantisation has a way to have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.errors import UnsupportedArchitecture

DEQUANTISE = {
    "bitsandbytes": ("", ".dequantize()"),
    "fp8": (", quantization_config=FineGrainedFP8Config(dequantize=True)", ""),
    "mxfp4": (", quantization_config=Mxfp4Config(dequantize=True)", ""),
    "compressed-tensors": (", quantization_config=CompressedTensorsConfig(dequantize=True)", ""),
    "higgs": ("", ".dequantize()"),
}
"""How `transformers` gives weights back in full: what `from_pretrained` takes, what comes after it."""


def refuse(config: Mapping[str, Any]) -> None:
    """Stop on quantised weights, with how to have them in full precision; `transformers` has dequantised GGUF already.

    Raises:
        UnsupportedArchitecture: the config, or that of its language model, says that its weights are quantised.
    """
    inner = config.get("text_config")
    settings = config.get("quantization_config") or (inner.get("quantization_config") if isinstance(inner, Mapping) else None)
    if not settings:
        return
    method = settings.get("quant_method") if isinstance(settings, Mapping) else getattr(settings, "quant_method", None)
    method = str(getattr(method, "value", method) or "bitsandbytes")  # (a live model has an enumeration; the first had no name)
    if method == "gguf":
        return
    if (kind := method.partition("_")[0]) in DEQUANTISE:  # bitsandbytes_4bit
        options, after = DEQUANTISE[kind]
        call = f"AutoModelForCausalLM.from_pretrained(…{options}){after}.save_pretrained(folder)"
        way = f"save it dequantised, {call}, and load that folder"
    else:
        way = "give the model that it was quantised from, a copy that its quantiser has written back, or a GGUF file of it"
    raise UnsupportedArchitecture(
        f"the weights of this {config.get('model_type')} model are quantised by {method} (quantization_config), "
        f"and are needed in full precision: {way}"
    )
