"""How activations are stored: in a float format, or in 8 bits with one scale for each row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import ConfigError, NotFinite

SCALE = ".scale"  # after the name of a site: the scales of its rows
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGEST = 127


def packed(x: Float[Tensor, "row *rest"], dtype: str, site: str) -> dict[str, Tensor]:
    """The tensors that are stored of a site: its values and, with int8, `scale` such that values are `q · scale`, `[row]`.

    Raises:
        NotFinite: an activation is NaN or infinite.
        ConfigError: one is too large for the format.
    """
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise NotFinite(f"{site} holds NaN or infinity; look at the model and the text")
    if not x.is_floating_point():
        return {site: x.cpu().contiguous()}
    if dtype != "int8":
        stored = x.to(FLOATS[dtype]).cpu().contiguous()
        if not bool(stored.isfinite().all()):
            largest = float(x.abs().max())
            raise ConfigError(f"{site} holds {largest:.3g}, and {dtype} ends below; store bfloat16, int8 or float32")
        return {site: stored}
    flat = x.float().flatten(1)
    scale = flat.abs().amax(1) / LARGEST
    q = (flat / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8)
    return {site: q.view(x.shape).cpu().contiguous(), site + SCALE: scale.cpu().contiguous()}


def unpacked(tensors: Mapping[str, Tensor], site: str) -> Float[Tensor, "row *rest"]:
    """The activations of a site: as they are stored or, from int8, as float32."""
    x = tensors[site]
    if site + SCALE not in tensors:
        return x
    return x.float() * tensors[site + SCALE].view(-1, *[1] * (x.ndim - 1))
