"""Attribution patching: what edits would do, to first order, from two forward passes and one backward.

The change of the metric is taken to be the gradient at the edited site times the change of the activation there. It costs
next to nothing and ranks well; where the network is far from linear it is wrong, so `screen` computes the top cells exactly.

Source: Nanda 2023 (https://www.neelnanda.io/mechanistic-interpretability/attribution-patching), Syed et al. 2023
(https://arxiv.org/abs/2310.10348).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import ShapeError
from cutaway.model.transformer import Transformer
from cutaway.runs.metrics import AnyMetric, Metric
from cutaway.runs.plain_runs import gradients
from cutaway.runs.sweep.cells import Cell
from cutaway.runs.sweep.options import Sweep

GRAPH = 2**23  # numbers that the graph of one backward pass may keep, about


def value_of(model: Transformer, metric: AnyMetric, wanted: Tensor | None, first: int) -> Callable[[Tensor], Tensor]:
    """A metric as a function of the stream after the last layer, for some examples; means over positions are taken."""

    def value(resid: Tensor) -> Tensor:
        if not isinstance(metric, Metric):
            out: Any = metric.function(model.logits_of(resid))
            return torch.as_tensor(out)
        assert wanted is not None
        if metric.compares:
            raise ShapeError(f"{metric.name} has no gradient at the clean run, where it is smallest; use method='exact'")
        rows, places = wanted.nonzero(as_tuple=True)
        logits = model.logits_of(resid[rows, places], metric.columns())
        return metric.by_example(metric.of_tokens(logits, rows + first, places), wanted)

    return value


def estimate(task: Sweep, cells: Sequence[Cell], batches: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """What each cell's metric would be to first order, `[cell, batch]` (`[cell]` for a function), and the clean run's.

    Raises:
        ShapeError: the metric has no useful gradient, or does not depend on the logits.
    """
    estimates, cleans = [], []
    sites = list(dict.fromkeys(bound.site for cell in cells for bound in cell.bounds))
    for first, last in _smaller(task, batches):
        tokens, mask = task.rows(first, last)
        wanted = None
        if isinstance(task.metric, Metric):
            wanted = task.metric.wanted(task.batch, task.length)[first:last].to(tokens.device)
        value = value_of(task.model, task.metric, wanted, first)
        kept, grads, clean = gradients(task.model, tokens, sites, value, mask=mask)
        with torch.no_grad():
            effects = torch.stack([_effect(cell, kept, grads, first, last) for cell in cells]).to(clean.device)
        if clean.ndim == 0:
            effects = effects.sum(1)
        estimates.append(clean + effects)
        cleans.append(clean)
    if estimates[0].ndim == 1:
        return estimates[0], cleans[0]
    return torch.cat(estimates, 1), torch.cat(cleans)


def _smaller(task: Sweep, batches: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Batches whose graph keeps no more than about `GRAPH` numbers; a function of the whole batch is not split."""
    cfg = task.model.cfg
    per_token = cfg.n_layers * (8 * cfg.d_model + 2 * (cfg.d_mlp or 0))
    step = max(1, GRAPH // (per_token * task.length)) if isinstance(task.metric, Metric) else task.batch
    for first, last in batches:
        yield from ((at, min(at + step, last)) for at in range(first, last, step))


def _effect(cell: Cell, kept: dict[str, Tensor], grads: dict[str, Tensor], first: int, last: int) -> Tensor:
    """The first-order change for each example."""
    total = next(iter(kept.values())).new_zeros(last - first)  # on one device, wherever the layers lie
    for bound in cell.bounds:
        local = bound.local(first, last)
        if local is None:
            continue
        x, gradient = kept[bound.site], grads[bound.site]
        if not bound.change.declared:
            total = total + ((bound.change.new(x, None) - x) * gradient).flatten(1).sum(1).to(total.device)
            continue
        index = local.index()
        old = x[index]
        change = (local.change.new(old, local.value(x)) - old) * gradient[index]
        summed = change.flatten(1).sum(1).to(total.device)
        if local.chosen[0] is None:
            total = total + summed
        else:
            total = total.index_add(0, torch.tensor(local.chosen[0], device=total.device), summed)
    return total
