"""Norm scales, measured: what each norm divides by, and how far that is from a constant.

A norm is linear once its scale is frozen. Circuits of weights put one number there, the mean; its spread says
how good that approximation is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from cutaway.analysis.shared import Subject, network, real_tokens, run_for, scale_of
from cutaway.errors import ShapeError, UnknownName
from cutaway.model.frozen_norms import norms_of
from cutaway.model.placement import stacked
from cutaway.model.transformer import Transformer
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Means, Result
from cutaway.view import Figure, line_chart


@dataclass(frozen=True, eq=False)
class NormScales(Result):
    """The scale that each norm divided by, `[norm, batch, pos]`; NaN at padding."""

    values: Labelled

    def of(self, norm: str) -> float:
        """The mean scale of a norm: `0.ln1`, …, `ln_final`."""
        return self.values.sel(norm=norm).mean().item()

    def spread_of(self, norm: str) -> float:
        """The standard deviation of a norm's scale."""
        return self.values.sel(norm=norm).std().item()

    def by_position(self) -> Means:
        """Mean over examples at each position, with intervals."""
        return self.values.means("batch")

    def std_by_position(self) -> Labelled:
        """Standard deviation over examples at each position."""
        return self.values.std("batch")

    def figure(self) -> Figure:
        """The mean scale of each norm over positions, with the range that nine tenths of the examples fall in."""
        data = self.values.data
        tails = torch.nanquantile(data.float(), torch.tensor([0.05, 0.95], device=data.device), dim=1)
        names = self.values.names("norm")
        return line_chart(
            dict(zip(names, data.nanmean(1), strict=True)),
            intervals={name: tails[:, i] for i, name in enumerate(names)},
            x_name="position", y_name="scale", title="What each norm divides by", interval_name="5% to 95% of examples",
        )  # fmt: skip

    def summary(self) -> str:
        """Mean and standard deviation of each norm's scale."""
        lines = ["scale of each norm: mean ± standard deviation over examples and positions"]
        for name in self.values.names("norm"):
            mean, std = self.of(name), self.spread_of(name)
            lines.append(f"{name}: {mean:.4g} ± {std:.2g} ({std / mean:.0%})")
        return "\n".join(lines)


@with_provenance
def norm_scales(subject: Subject, tokens: Any = None) -> NormScales:
    """Measure the scale of every norm of the residual stream.

    Args:
        subject: a network, to be run on `tokens`, or a cache that holds the `hook_scale` sites.

    Raises:
        ShapeError: the network has no norms.
        MissingActivation: the cache lacks a scale.
    """
    cfg = network(subject).cfg
    norms = norms_of(cfg)
    if not norms:
        raise ShapeError("this network has no norms, so there are no scales to measure; circuits need none")
    cache = run_for(subject, tokens, list(norms.values()), "norm_scales")
    stack = stacked(scale_of(cache, site)[..., 0] for site in norms.values())
    real = None if tokens is None else real_tokens(network(subject), tokens)[1]
    if real is not None:
        stack = stack.masked_fill(~real.to(stack.device), torch.nan)
    return NormScales(Labelled(stack, ("norm", "batch", "pos"), {"norm": list(norms)}, "norm scale"))


def divisor(model: Transformer, scales: NormScales | None, norm: str) -> float:
    """The number that stands for a norm's scale in a circuit: its mean, or 1 where none were measured or it has no norm."""
    if scales is None or norm not in norms_of(model.cfg):
        return 1.0
    if norm not in scales.values.names("norm"):
        raise UnknownName(f"the measured scales lack {norm!r}; measure them on this network: norm_scales(model, tokens)")
    value = scales.of(norm)
    return value if math.isfinite(value) else 1.0
