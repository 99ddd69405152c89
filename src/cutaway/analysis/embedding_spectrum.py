"""How embeddings of ordered tokens vary: in few directions, in circles (a few frequencies of their order)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def principal(W: Float[Tensor, "token d"]) -> float:
    """The share of variance in three principal components."""
    values = torch.linalg.svdvals(W - W.mean(0)).square()
    return float(values[:3].sum() / values.sum())


def spectrum(W: Float[Tensor, "token d"]) -> Float[Tensor, "frequency"]:
    """The share of variance at each frequency of the tokens' order, the constant left out."""
    power = torch.fft.rfft(W, dim=0).abs().square().sum(1)[1:]
    return power / power.sum()


def frequencies(W: Float[Tensor, "token d"]) -> float:
    """The share of variance in the largest frequencies, five at most."""
    count = min(5, (len(W) - 1) // 4)
    return float(spectrum(W).topk(max(count, 1)).values.sum())
