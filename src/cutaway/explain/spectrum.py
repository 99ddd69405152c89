"""Sums modulo a number by trigonometry: which frequencies of the embedding carry them (https://arxiv.org/abs/2301.05217).

cos(w(a + b)) = cos(wa)cos(wb) - sin(wa)sin(wb): a network that adds modulo p keeps a few frequencies w = 2πk/p of each number,
and its logit of c is a sum of cos(w(a + b - c)) over them. They are read from the embedding's spectrum, and tested by
taking them out of the embedding: without them the answers must go, with them alone they must stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.explain.fitting import Fit
from cutaway.explain.subject import Subject
from cutaway.explain.tree import leaves


@dataclass(frozen=True)
class Spectrum:
    """The frequencies of a modular sum.

    Args:
        modulus: the number of residues.
        frequencies: k of w = 2πk/p, largest share of the embedding's variance first.
        shares: of the embedding's variance, by frequency.
        kept, removed: accuracy of the sums with only these frequencies in the embedding, and without them.
        identity: the share of the logits' variance at the answers that cosines of a + b - c with these frequencies explain.
    """

    modulus: int
    frequencies: tuple[int, ...]
    shares: tuple[float, ...]
    kept: float
    removed: float
    identity: float

    def sentence(self) -> str:
        """What was found, in words."""
        named = ", ".join(map(str, self.frequencies))
        return (
            f"the sum modulo {self.modulus} is carried by the frequencies {named}: with them alone in the embedding "
            f"{self.kept:.1%} of the sums are right, without them {self.removed:.1%}; cosines of w(a + b - c) with these "
            f"frequencies are {self.identity:.1%} of the logits' variance"
        )


@torch.no_grad()
def spectrum_of(fitted: Fit, subject: Subject) -> Spectrum | None:
    """The frequencies of a model whose program is a sum modulo the number of its tokens; None of any other."""
    ends = leaves(fitted.tree)
    variable = ends[0].variable if len(ends) == 1 else None
    if variable is None or "_plus_" not in variable.name:
        return None
    p = len(fitted.setting.content)
    model = subject.model
    numbers = model.embed.W_E[:p]
    waves = fourier(p)
    power = (waves @ numbers.double()).square().sum(1)
    shares = torch.stack([power[2 * k - 1] + power[2 * k] for k in range(1, (p - 1) // 2 + 1)])
    shares = shares / shares.sum()
    order = shares.argsort(descending=True).tolist()
    count = next((n for n in range(1, len(order)) if _accuracy(subject, waves, p, order[:n], keep=True) > 0.99), len(order))
    chosen = order[:count]
    kept, removed = (_accuracy(subject, waves, p, chosen, keep=keep) for keep in (True, False))
    frequencies = tuple(k + 1 for k in chosen)
    return Spectrum(p, frequencies, tuple(float(shares[k]) for k in chosen), kept, removed, _identity(subject, p, frequencies))


def fourier(p: int) -> Tensor:
    """The real Fourier basis of p residues: a constant, then cosine and sine of each frequency."""
    at = torch.arange(p, dtype=torch.float64)
    rows = [torch.ones(p, dtype=torch.float64) / math.sqrt(p)]
    for k in range(1, (p - 1) // 2 + 1):
        for wave in (torch.cos, torch.sin):
            row = wave(2 * math.pi * k * at / p)
            rows.append(row / row.norm())
    return torch.stack(rows)


def _pairs(subject: Subject, p: int) -> Tensor:
    """All inputs `a b …`, their further tokens as in the examples."""
    a, b = (grid.reshape(-1) for grid in torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij"))
    rest = [torch.full_like(a, p)] * (subject.cfg.n_ctx - 2)
    return torch.stack([a, b, *rest], 1)


def _accuracy(subject: Subject, waves: Tensor, p: int, chosen: list[int], *, keep: bool) -> float:
    """How many sums are right with only these frequencies in the embedding of numbers, or without them."""
    rows = [0] + [row for k in chosen for row in (2 * k + 1, 2 * k + 2)]
    inside = waves[rows] if keep else waves[rows[1:]]
    projection = inside.T @ inside
    W_E = subject.model.embed.W_E
    before = W_E[:p].clone()
    part = projection @ before.double()
    try:
        W_E[:p] = (part if keep else before.double() - part).to(W_E.dtype)
        pairs = _pairs(subject, p)
        said = subject.logits(pairs)[:, -1].argmax(-1)
    finally:
        W_E[:p] = before
    return float((said == (pairs[:, 0] + pairs[:, 1]) % p).double().mean())


def _identity(subject: Subject, p: int, frequencies: tuple[int, ...]) -> float:
    """The share of the variance of the logits, over all pairs and answers, that cosines of w(a + b - c) explain."""
    pairs = _pairs(subject, p)
    logits = subject.logits(pairs)[:, -1, :p].double()
    logits = logits - logits.mean(1, keepdim=True)
    apart = (pairs[:, 0] + pairs[:, 1])[:, None] - torch.arange(p)
    waves = [torch.cos(2 * math.pi * k * apart.double() / p).flatten() for k in frequencies]
    basis = torch.linalg.qr(torch.stack(waves, 1)).Q
    flat = logits.flatten()
    return float((basis.T @ flat).square().sum() / flat.square().sum())
