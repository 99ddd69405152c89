"""The public call of a sweep, its screen by gradients, and its audit.

Every result is audited: cells drawn at random run again as plain full forward passes, and the largest difference
is part of the result. How it works is in docs/design/sweeps.md.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import ConfigError, NotExact
from cutaway.executors import executor_of
from cutaway.model.transformer import Transformer
from cutaway.runs.bars import DelayedBar
from cutaway.runs.editing import ManyEdits
from cutaway.runs.grids import Cells, Grid, label_of
from cutaway.runs.kept_sweeps.by_key import Keyed
from cutaway.runs.kept_sweeps.interrupted import Saved
from cutaway.runs.kept_sweeps.workers import fill
from cutaway.runs.metrics import Metric
from cutaway.runs.provenance import with_provenance
from cutaway.runs.sweep.baseline import baseline_of, share
from cutaway.runs.sweep.baseline import run as run_baseline
from cutaway.runs.sweep.engine import Engine, plain_values
from cutaway.runs.sweep.gradient import estimate
from cutaway.runs.sweep.layouts import parts_of
from cutaway.runs.sweep.options import Progress, Sweep, SweepOptions, options_as_keywords, own_means, task_of
from cutaway.runs.sweep.result import Audit, SweepResult, check_finite, finished

BOUNDS = {  # the largest difference from a full forward pass, relative to the largest value, that rounding may make
    torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 3e-1,
}  # fmt: skip
ESTIMATED = "estimates to first order, from gradients: where the network is far from linear even signs may be wrong"


@with_provenance
@options_as_keywords
def sweep(
    model: Transformer,
    tokens: Any,
    edits: Grid | ManyEdits | Cells,
    metric: Any = None,
    *,
    mask: Tensor | None = None,
    options: SweepOptions = SweepOptions(),  # noqa: B008 (frozen)
) -> SweepResult:
    """The metric of every edit.

    Args:
        tokens: what runs: text, texts, `Prompts` or token ids `[batch, pos]`.
        edits: a grid, an edit, or a list of edits (or of lists of edits that happen together); what makes edits (a
            circuit) stands for one.
        metric: one of `cutaway.metrics`, or any function of logits `[batch, pos, d_vocab]`; None: what `Prompts` say themselves.
        mask: `[batch, pos]`, 1 for tokens and 0 for padding; found in the tokens where None.
        options: how it runs (method, baseline, memory, resume, …); each field of `SweepOptions` may be a keyword of its own.

    Raises:
        CheckpointError: the folder holds another sweep, or edits that are functions should go to other processes.
        WorkerFailed: a chunk failed three times in workers.
        UnknownSite, ShapeError: an edit does not fit the network or the tokens.
        NotExact: an audited cell is further from its full forward pass than its precision allows (`BOUNDS`).
        NotFinite: a metric is not a finite number; says of which cell.
        OutOfMemory: the device has no memory for one cell alone; where a chunk of cells is too large, its halves run.
        ConfigError: not even one cell fits into `memory`, functions as edits have no baseline, or a number is negative.
        TokenError: the metric names a token that the vocabulary lacks.
    """
    task = task_of(model, tokens, edits, metric, mask=mask, options=options)
    runs = task if options.dtype is None else replace(task, model=copy.deepcopy(model).to(options.dtype))
    cells, baseline = len(task.cells.edits), options.baseline
    count = {"exact": cells, "screen": min(options.top, cells), "gradient": 0}[options.method]
    own = share(progress := options.progress or DelayedBar("sweeping"), 0, count, count + baseline)
    if options.method != "exact":
        engine = Engine(runs)
        found = _screened(task, runs, engine, count, own)
    else:
        with torch.no_grad():
            engine = _exact(runs, own)
            found = finished(task, engine, audited(task, engine))
    found = replace(found, options=options.written())
    if not baseline:
        return found
    rest = share(progress, count, baseline, count + baseline)
    random_cells, random = run_baseline(runs, engine.cells, rest)
    return _with_baseline(found, replace(random_cells, model=task.model), random)


def _exact(task: Sweep, progress: Progress | None) -> Engine:
    """An engine that has computed every cell: group by group of prompts that look alike, or all of them together."""
    together = task.options.results is not None or task.options.executor is not None
    parts = [] if together else parts_of(task)
    if not parts:
        saved = _saved(task, progress)
        engine = Engine(task, saved)
        engine.run(None if isinstance(saved, Keyed) else progress)  # a filled folder of results has reported its progress
        return engine
    engine, folder = Engine(task), task.options.resume
    work, done = [one.task.tokens.numel() * (1 + len(one.cells)) for one in parts], 0
    for number, part in enumerate(parts):
        own = Engine(part.task, None if folder is None else Saved(Path(folder) / f"rows-{number}", part.task))
        own.run(share(progress, done / sum(work), work[number] / sum(work), 1.0))
        engine.put(own, part.rows, part.cells)
        done += work[number]
    return engine


def _saved(task: Sweep, progress: Progress | None) -> Saved | Keyed | None:
    """What is kept of a sweep, filled by an executor."""
    resume, results, executor = task.options.resume, task.options.results, task.options.executor
    if results is None and executor is None:
        return None if resume is None else Saved(resume, task)
    if resume is not None:
        given = "results=" if executor is None else "executor="
        raise ConfigError(
            f"{given} does not go with resume=: an interrupted sweep goes on from what results= holds; leave out resume="
        )
    if results is None:
        raise ConfigError("executor= needs results=, a folder that all workers see")
    kept = Keyed(results, task)
    fill(kept, executor_of(executor), progress)
    return kept


def _with_baseline(found: SweepResult, task: Sweep, engine: Engine) -> SweepResult:
    """A result with its baseline, which is audited too."""
    assert engine.values is not None and engine.clean is not None
    check_finite(task, engine.values, engine.clean)
    base = baseline_of(task, engine, found.averages(effects=True), found.clean)
    if found.method == "gradient" or not task.options.audit:
        return replace(found, baseline=base)
    with torch.no_grad():
        own, more = found.audit, audited(task, engine)
    examples, difference = max(own.examples, more.examples), max(own.difference, more.difference)
    return replace(found, baseline=base, audit=Audit(own.cells + more.cells, examples, difference))


def _screened(task: Sweep, runs: Sweep, engine: Engine, top: int, progress: Progress | None) -> SweepResult:
    """Estimate every cell by gradients, then compute the `top` ones exactly."""
    engine.values, engine.clean = estimate(runs, engine.settled(), engine.plan.batches)
    if not top:
        return finished(task, engine, Audit((), 0, math.nan), "gradient", (ESTIMATED,))
    estimated, clean = engine.values, engine.clean
    effects = estimated - clean
    effects = effects if effects.ndim == 1 else effects.mean(1)
    chosen = sorted(effects.abs().argsort(descending=True)[:top].tolist())
    some = Cells(tuple(task.cells.edits[number] for number in chosen), ("cell",), (len(chosen),), [list(map(str, chosen))])
    with torch.no_grad():
        exact = _exact(replace(runs, cells=some, options=replace(runs.options, resume=None)), progress)
        engine.split = exact.split
        found = audited(replace(task, cells=some), exact)
    assert exact.values is not None
    values = exact.values.nanmean(-1) if exact.values.ndim > estimated.ndim else exact.values
    engine.values = estimated.index_copy(0, torch.tensor(chosen, device=estimated.device), values)
    note = _agreement(effects[chosen], (values - clean) if values.ndim == 1 else (values - clean).mean(1))
    return finished(task, engine, found, "screen", (note,), tuple(chosen))


def _agreement(estimated: Tensor, exact: Tensor) -> str:
    """How well first-order estimates did where the truth is known."""
    span = float(exact.abs().max()) or 1.0
    off = float((estimated - exact).abs().max()) / span
    same = int((estimated.sign() == exact.sign()).sum())
    order = torch.stack([estimated.argsort().argsort().double(), exact.argsort().argsort().double()])
    rank = float(torch.corrcoef(order)[0, 1]) if len(exact) > 1 else math.nan
    return (
        f"{len(exact)} cells computed exactly; there, estimates have the right sign in {same}, rank correlation {rank:.2f}, "
        f"and are off by at most {off:.2f} of the largest change"
    )


def audited(task: Sweep, engine: Engine) -> Audit:
    """Run some cells again as plain full forward passes; means over the sweep's examples are taken again, too.

    Raises:
        NotExact: a cell is further off than `BOUNDS` allow, and than logits of their size round.
    """
    cells = engine.plan.cells  # as they were before the engine took means
    count = min(task.options.audit, len(cells))
    if not count:
        return Audit((), 0, math.nan)
    generator = torch.Generator().manual_seed(task.options.seed)
    chosen = torch.randperm(len(cells), generator=generator)[:count].tolist()
    worst, examples, off, steady = 0.0, 0, {}, True
    bound = max(BOUNDS[dtype] for dtype in (task.model.cfg.torch_dtype, engine.task.model.cfg.torch_dtype))
    means = bool(own_means(task.cells, task.model.cfg))  # a few examples have a mean of their own
    assert engine.values is not None and engine.clean is not None
    scale = max(_largest(engine.values), _largest(engine.clean), 1e-4)
    for number in chosen:
        cell = cells[number]
        whole = means or not isinstance(task.metric, Metric) or any(not bound.change.declared for bound in cell.bounds)
        some = task.batch if whole else min(task.batch, 2)
        examples = max(examples, some)
        first = int(torch.randint(task.batch - some + 1, (1,), generator=generator))
        again, logits = plain_values(task, cell, first, first + some)
        values = engine.values[number]
        if isinstance(task.metric, Metric):
            values = values[first : first + some]
        difference = _largest(values - again)
        worst = max(worst, difference / scale)
        if difference > max(bound * scale, bound / 10 * _largest_of(task, logits)):
            off[number] = f"'{label_of(task.cells.edits[number])}' by {difference / scale:.1e}"
            steady = steady and _largest(again - plain_values(task, cell, first, first + some)[0]) <= bound * scale
    if off:
        raise not_exact(
            f"{len(off)} of {len(chosen)} audited cells differ from their full forward passes by more than {bound:g} of the "
            f"largest value: {', '.join(list(off.values())[:5])}; so this sweep is not exact", steady, "skip='layers'",
        )  # fmt: skip
    return Audit(tuple(label_of(task.cells.edits[number]) for number in chosen), examples, worst)


def not_exact(what: str, steady: bool, plainly: str) -> NotExact:
    """The error that says what was off, and what to do.

    Args:
        steady: whether the same plain run gives the same numbers twice.
        plainly: the option that computes it without shortcuts.
    """
    if steady:
        return NotExact(f"{what}. Run it with {plainly}, and report it")
    return NotExact(
        f"{what}. The same full pass gives another number each time: the metric or an edit draws at random (as dropout does)"
    )


def _largest_of(task: Sweep, logits: float) -> float:
    """How large a metric of logits of this size is: small differences of large logits round as large ones do."""
    if not isinstance(task.metric, Metric):
        return 0.0
    if task.metric.jumps:
        return math.inf
    ends = task.metric.scaled(torch.tensor([0.0, logits]))
    return float(ends[1] - ends[0])


def _largest(x: Tensor) -> float:
    known = x[~x.isnan()].abs()
    return float(known.max()) if known.numel() else 0.0
