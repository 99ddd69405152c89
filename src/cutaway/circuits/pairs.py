"""Pairs of prompts, and what an ablated edge carries: the corrupted run's activation, a mean, or zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.analysis.shared import aligned, as_tokens, real_tokens
from cutaway.circuits.components import Parts, Written, rests, written
from cutaway.circuits.graph import Graph
from cutaway.errors import ConfigError, ShapeError, nearest
from cutaway.model.key_values import KeyValueCache
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts
from cutaway.runs.metrics import Metric, among_real, as_metric, settled

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


def check_apart(clean: Tensor, corrupted: Tensor | None) -> None:
    """Make sure that there is something to take from the corrupted run.

    Raises:
        ShapeError: both runs have the same tokens, so that every effect is rounding.
    """
    if corrupted is not None and torch.equal(clean, corrupted):
        raise ShapeError("clean and corrupted prompts are the same, so there is nothing to recover; give prompts that differ")


def metric_on(model: Transformer, metric: Any, clean: Any, *, functions: bool = False) -> Any:
    """The metric in the model's tokens; on rows that are padded it reads no padding.

    Raises:
        ShapeError: no metric; or a function, where only some positions are computed.
    """
    measure = as_metric(settled(metric, model, clean))
    if not functions and not isinstance(measure, Metric):
        raise ShapeError(
            f"{measure.name} is a function of whole logits, and circuits compute what a metric reads; give one of "
            "cutaway.metrics (edge_effects takes functions where everything after an edge is recomputed)"
        )
    tokens, real = real_tokens(model, clean)
    return measure if real is None else among_real(measure, real, tokens)


def constant_parts(
    model: Transformer, ablation: str, over: Tensor, length: int, parts: Callable[[Tensor], Parts] | None = None,
    count: int | None = None,
) -> Float[Tensor, "writer pos d_model"] | None:  # fmt: skip
    """What edges carry that are ablated by zero or by a mean; None for "resample".

    Args:
        over: the prompts that means are over, position by position ("mean") or over all ("mean over positions").
        parts, count: what the writers add in a run, and how many they are; None: those of the graph.

    Raises:
        ShapeError: means position by position, and the prompts that they are over are shorter.
    """
    if ablation == "resample":
        return None
    if ablation == "zero":
        count = len(Graph(model.cfg).writers) if count is None else count
        return model.W_U.new_zeros(1, 1, 1).expand(count, length, model.cfg.d_model)
    parts = (lambda tokens: written(model, tokens).parts) if parts is None else parts
    mean = mean_parts(model, over, parts, by_position=ablation == "mean")
    if ablation == "mean over positions":
        return mean.expand(-1, length, -1)
    if mean.shape[1] < length:
        raise ShapeError(
            f"means position by position over prompts of {mean.shape[1]} tokens do not reach over {length}; ablate by 'mean over "
            "positions', 'zero' or 'resample', or give longer prompts"
        )
    return mean[:, :length]


def ablated(
    model: Transformer, tokens: Tensor, source: Tensor | None, constant: Tensor | None, kept: KeyValueCache | None = None
) -> Written:
    """What ablated edges carry, for these tokens: `constant` parts, or what is written in the `source` run."""
    if constant is None:
        assert source is not None
        return written(model, source, kept)
    return Written(Graph(model.cfg), constant[:, None].expand(-1, len(tokens), -1, -1), rests(model), run=False)


def first_differences(model: Transformer, tokens: Tensor, source: Tensor | None, wanted: Tensor) -> Int[Tensor, "batch"]:
    """For each example the first position where the two runs differ, or the metric reads.

    What is written before it is the same in both runs, and no later position changes it: runs begin there, with the kept keys
    and values of the shared beginning.
    """
    none = torch.zeros(len(tokens), dtype=torch.long)
    if source is None or model.cfg.attention_dir != "causal":
        return none
    if any(model.tokens_and_mask(one, None, None)[1] is not None for one in (tokens, source)):
        return none
    return ((tokens != source).cpu() | wanted.cpu()).int().argmax(1)


def mean_parts(
    model: Transformer, tokens: Tensor, parts: Callable[[Tensor], Parts], *, by_position: bool, room: int = 16
) -> Tensor:
    """What each writer adds, mean over the prompts' real tokens: `[writer, pos, d_model]`, or `[writer, 1, d_model]` of all."""
    real = real_tokens(model, tokens)[1]
    kept = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
    total: Tensor | None = None
    for rows in batches(len(tokens), room):
        some = parts(tokens[rows]).masked_fill(~kept[rows][..., None], 0).sum(1)
        total = some if total is None else total + some
    assert total is not None
    return total / kept.sum(0).clamp(min=1)[:, None] if by_position else total.sum(1, keepdim=True) / kept.sum()


def batches(count: int, room: int) -> Iterator[slice]:
    """Slices of at most `room` examples."""
    for first in range(0, count, max(1, room)):
        yield slice(first, min(first + max(1, room), count))
