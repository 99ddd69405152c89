"""Pairs of prompts, and what an ablated edge carries: the corrupted run's activation, a mean, or zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.analysis.shared import aligned, as_tokens, real_tokens
from cutaway.circuits.components import Written, written
from cutaway.errors import ConfigError, ShapeError, nearest
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts
from cutaway.runs.metrics import among_real, settled

ABLATIONS = ("resample", "mean", "mean over positions", "zero")


def one_ablation(given: str) -> str:
    """An ablation by its word.

    Raises:
        ConfigError: it is not known.
    """
    if given not in ABLATIONS:
        raise ConfigError(f"ablation={given!r} is not known{nearest(given, ABLATIONS)}; there are {', '.join(ABLATIONS)}")
    return given


def as_pair(model: Transformer, clean: Any, corrupted: Any, ablation: str = "resample") -> tuple[Tensor, Tensor | None]:
    """Tokens of both, checked; `Prompts` bring their own counterparts.

    Raises:
        ConfigError: an ablation that is not known.
        ShapeError: prompts that do not align, row by row, or none to resample from.
    """
    one_ablation(ablation)
    if corrupted is None and isinstance(clean, Prompts) and ablation == "resample":
        corrupted = clean.counterparts
    if corrupted is None:
        if ablation == "resample":
            raise ShapeError("resampling needs corrupted prompts; give them, or ablate by 'mean' or 'zero'")
        return as_tokens(model, clean), None
    pair = aligned(model, clean, corrupted)
    return pair.clean, pair.corrupted


def metric_on(model: Transformer, metric: Any, clean: Any) -> Any:
    """The metric in the model's tokens; on rows that are padded it reads no padding."""
    asked = settled(metric, model, clean)
    tokens, real = real_tokens(model, clean)
    return asked if real is None else among_real(asked, real, tokens)


def ablated(model: Transformer, ablation: str, tokens: Tensor, source: Tensor | None, over: Tensor) -> Written:
    """What ablated edges carry, for these tokens.

    Args:
        source: the corrupted prompts, for "resample".
        over: the prompts that means are over, position by position ("mean") or over all ("mean over positions").
    """
    if ablation == "resample":
        assert source is not None
        return written(model, source)
    if ablation == "zero":
        first = written(model, tokens[:1])
        parts = torch.zeros(
            len(first.parts), *tokens.shape, first.parts.shape[-1], device=first.parts.device, dtype=first.parts.dtype
        )
        return Written(parts, first.rest, run=False)
    mean = mean_parts(model, over, by_position=ablation == "mean").expand(-1, tokens.shape[1], -1)
    return Written(mean[:, None].expand(-1, len(tokens), -1, -1), written(model, tokens[:1]).rest, run=False)


def mean_parts(model: Transformer, tokens: Tensor, *, by_position: bool, room: int = 16) -> Tensor:
    """What each writer adds, mean over the prompts' real tokens: `[writer, pos, d_model]`, or `[writer, 1, d_model]` of all."""
    real = real_tokens(model, tokens)[1]
    kept = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
    total: Tensor | None = None
    for rows in batches(len(tokens), room):
        parts = written(model, tokens[rows]).parts.masked_fill(~kept[rows][..., None], 0).sum(1)
        total = parts if total is None else total + parts
    assert total is not None
    return total / kept.sum(0).clamp(min=1)[:, None] if by_position else total.sum(1, keepdim=True) / kept.sum()


def batches(count: int, room: int) -> Iterator[slice]:
    """Slices of at most `room` examples."""
    for first in range(0, count, max(1, room)):
        yield slice(first, min(first + max(1, room), count))
