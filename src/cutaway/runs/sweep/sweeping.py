"""The public call of a sweep, its result, and its audit.

Every result is audited: cells drawn at random run again as plain full forward passes, and the largest difference
is part of the result. How it works is in docs/design/sweeps.md.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import ConfigError, NotExact, NotFinite, ShapeError, UnknownName, nearest
from cutaway.executors import Executor, executor_of
from cutaway.model.dialect_attention import has_masks
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options
from cutaway.runs.bars import DelayedBar
from cutaway.runs.editing import ManyEdits, of_real, plainly, tokens_of
from cutaway.runs.grids import Cells, Grid, at_columns, label_of
from cutaway.runs.metrics import Metric, among_real, as_metric, settled
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Means, Result
from cutaway.runs.sweep.baseline import Baseline, baseline_of, share
from cutaway.runs.sweep.baseline import check as check_baseline
from cutaway.runs.sweep.baseline import run as run_baseline
from cutaway.runs.sweep.cells import Sweep, own_means
from cutaway.runs.sweep.clean import is_forward
from cutaway.runs.sweep.elsewhere import fill
from cutaway.runs.sweep.engine import Engine, Progress, plain_values
from cutaway.runs.sweep.gradient import estimate
from cutaway.runs.sweep.keyed import Keyed
from cutaway.runs.sweep.saved import Saved
from cutaway.view import Figure, bar_chart, sweep_grid

BOUNDS = {  # the largest difference from a full forward pass, relative to the largest value, that rounding may make
    torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 3e-1,
}  # fmt: skip
METHODS = ("exact", "gradient", "screen")
ESTIMATED = "estimates to first order, from gradients: where the network is far from linear even signs may be wrong"


@dataclass(frozen=True)
class Audit:
    """Cells that ran again as plain full forward passes.

    Args:
        cells: their labels.
        examples: how many examples of each, at most.
        difference: the largest difference, relative to the largest value of the whole sweep (or to 1e-4, if that is larger);
            NaN where nothing was checked.
    """

    cells: tuple[str, ...]
    examples: int
    difference: float

    def __str__(self) -> str:
        if not self.cells:
            return "no cell was run again, so nothing was checked"
        again = f"{len(self.cells)} cell{'s' * (len(self.cells) != 1)} run again in full"
        return f"{again}: largest relative difference {self.difference:.1e}"


@dataclass(frozen=True, eq=False)
class SweepResult(Result):
    """The metric of every cell.

    Args:
        values: `[*cells, batch]`, or `[*cells, batch, pos]` by position, or `[*cells]` for a function of the whole batch.
        clean: the metric without any edit, with the same last axes.
        audit: how far cells are from plain full forward passes.
        method: how the values were computed.
        exact: after a screen, the numbers of the cells that were computed exactly.
        task, options: what was asked, for records.
        baseline: what random changes of the same size do, where it was asked for.
    """

    values: Labelled
    clean: Labelled
    audit: Audit
    method: str = "exact"
    notes: tuple[str, ...] = field(default=())
    exact: tuple[int, ...] = field(default=())
    task: Sweep | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    baseline: Baseline | None = None

    @property
    def effects(self) -> Labelled:
        """What each edit changes: its value minus the clean run's."""
        values = self.values
        return Labelled(values.data - self.clean.data, values.axes, values.labels, f"change of {values.what}", values.unit)

    def mean(self, *, effects: bool = False) -> Means:
        """Means over examples, with intervals."""
        values = self.effects if effects else self.values
        if "batch" not in values.axes:
            raise ShapeError("the metric gave one number for all examples; there is no mean over them")
        return values.means("batch")

    def averages(self, *, effects: bool = False) -> Labelled:
        """Means over examples and positions, one number per cell."""
        values = self.effects if effects else self.values
        over = values.axes[len(values.axes) - self.clean.data.ndim :]
        return values.mean(*over) if over else values

    def table(self, *, effects: bool = False) -> Tensor:
        """The same, as a plain tensor in the shape of the grid."""
        return self.averages(effects=effects).data

    def figure(self) -> Figure:
        """What each edit changes: bars for one axis, a grid for two, panels for three."""
        shown = self.averages(effects=True)
        label = f"{shown.what}{f' ({shown.unit})' if shown.unit else ''}"
        if shown.data.ndim == 1:
            high = None if self.baseline is None else self.baseline.high
            marks = None if high is None else {"95% of random changes": high, "and below zero": -high}
            names = shown.names(shown.axes[0])
            return bar_chart(names, {shown.what: shown.data}, value_name=label, title=label, references=marks)
        if shown.data.ndim == 0:
            raise ShapeError("one number is no figure; print its summary()")
        data = shown.data.reshape(-1, *shown.shape[-2:])
        kinds = None
        if len(data) > 1:
            kinds = [" ".join(one) for one in itertools.product(*(shown.names(axis) for axis in shown.axes[:-2]))]
        row, column = shown.axes[-2:]
        return sweep_grid(
            data if kinds else data[0], shown.names(row), shown.names(column), kinds=kinds, row_name=row, column_name=column,
            value_name=label, title=label,
        )  # fmt: skip

    def top(self, count: int = 10) -> list[tuple[str, float]]:
        """The cells that change the metric most: label and mean change."""
        shown = self.averages(effects=True)
        names = [" ".join(f"{axis} {one}" for axis, one in zip(shown.axes, place, strict=True) if axis != "cell") or place[0]
                 for place in itertools.product(*(shown.names(axis) for axis in shown.axes))]  # fmt: skip
        flat = shown.data.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:count].tolist()
        return [(names[index], float(flat[index])) for index in order]

    def summary(self) -> str:
        unit = f" {self.values.unit}" if self.values.unit else ""
        clean = float(self.clean.data.nanmean()) if self.clean.data.numel() else math.nan
        lines = [f"{self.values.what}: {clean:.4g}{unit} in the clean run; the largest changes of {self._count()} edits:"]
        lines += [f"  {name}: {value:+.4g}{unit}" for name, value in self.top(8)]
        lines += [] if self.baseline is None else [self.baseline.summary()]
        return "\n".join([*lines, str(self.audit), *self.notes])

    def _count(self) -> int:
        return math.prod(self.values.shape[: self.values.data.ndim - self.clean.data.ndim])


@with_provenance
@options(top=0, audit=0, baseline=0, seed=0, memory=1)
def sweep(
    model: Transformer,
    tokens: Any,
    edits: Grid | ManyEdits | Cells,
    metric: Any = None,
    *,
    mask: Tensor | None = None,
    method: str = "exact",
    top: int = 10,
    skip: str = "all",
    dtype: torch.dtype | None = None,
    audit: int = 2,
    baseline: int = 0,
    seed: int = 0,
    memory: int | None = None,
    resume: Path | str | None = None,
    results: Path | str | None = None,
    executor: str | Executor | None = None,
    progress: Progress | None = None,
    between: Callable[[], None] | None = None,
) -> SweepResult:
    """The metric of every edit.

    Args:
        tokens: what runs: text, texts, `Prompts` or token ids `[batch, pos]`.
        edits: a grid, an edit, or a list of edits (or of lists of edits that happen together); what makes edits (a
            circuit) stands for one.
        metric: one of `cutaway.metrics`, or any function of logits `[batch, pos, d_vocab]`; None: what `Prompts` say themselves.
        mask: `[batch, pos]`, 1 for tokens and 0 for padding; found in the tokens where None.
        method: "exact"; "gradient", a first-order estimate of every cell from two forward passes and a backward; or
            "screen", which then computes the `top` cells exactly and says how well the two agree.
        skip: "all" recomputes only what an edit reaches; "layers" skips only the layers before it, each cell in a batch
            of its own, so that its bits are those of a plain forward pass.
        dtype: run a copy of the network in this precision: cheaper, and the audit, in full precision, says how far off.
        audit: how many cells, drawn at random, run again in full; and as many of the baseline. 0: none, as the result says.
        baseline: how many cells, drawn at random, also run with random changes of the same size in place of their own.
        seed: of what is drawn at random.
        memory: bytes beside the weights; a clean run that does not fit is kept on disk (`plan` says so). None: what is free.
        resume: a folder that keeps finished chunks, so that the same call goes on where an interrupted one stopped. Of a
            screen or of gradients nothing but a screen's baseline is kept.
        results: a folder of results by what they are (model, tokens, edit, metric), for any number of sweeps: cells that are
            there are not computed again, and a wider sweep computes what is new.
        executor: where chunks are computed: "processes:N", "ray", "ray:ADDRESS", "ranks" or one of `cutaway.executors`, which
            all need `results` that they all see; "local" gives their bits in this process.
        progress: called with (work done, all work).
        between: called between the layers of a chunk of cells. What it raises stops the sweep.

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
    if method not in METHODS:
        raise UnknownName(f"no method called {method!r}{nearest(method, METHODS)}; there are {', '.join(METHODS)}")
    if method != "exact" and (executor is not None or results is not None):
        raise ConfigError(f"executor= and results= are for method='exact', not {method!r}, which is two passes over the prompts")
    if between is not None and executor is not None:
        raise ConfigError("between= is called in this process; leave out executor=")
    task = replace(task_of(model, tokens, edits, metric, mask=mask, skip=skip, memory=memory), between=between)
    check_baseline(task.cells, baseline)
    runs = task if dtype is None else replace(task, model=copy.deepcopy(model).to(dtype))
    options = {"method": method, "top": top, "skip": skip, "dtype": None if dtype is None else str(dtype), "seed": seed}
    count = {"exact": len(task.cells.edits), "screen": min(top, len(task.cells.edits)), "gradient": 0}[method]
    own = share(progress := progress or DelayedBar("sweeping"), 0, count, count + baseline)
    if method != "exact":
        engine = Engine(runs)
        found = _screened(task, runs, engine, count, audit, seed, own)
    else:
        saved = _saved(runs, resume, results, executor, own)
        engine = Engine(runs, saved)
        with torch.no_grad():
            engine.run(None if isinstance(saved, Keyed) else own)  # a filled folder of results has reported its progress
            found = finished(task, engine, audited(task, engine, audit, seed))
    found = replace(found, options=options | ({"baseline": baseline} if baseline else {}))
    if not baseline:
        return found
    rest = share(progress, count, baseline, count + baseline)
    estimated = method == "gradient"
    random_cells, random = run_baseline(runs, engine.cells, baseline, seed, estimated=estimated, resume=resume, progress=rest)
    return _with_baseline(found, replace(random_cells, model=task.model), random, audit, seed)


def _saved(
    task: Sweep,
    resume: Path | str | None,
    results: Path | str | None,
    executor: str | Executor | None,
    progress: Progress | None,
) -> Saved | Keyed | None:
    """What is kept of a sweep, filled by an executor."""
    if results is None and executor is None:
        return None if resume is None else Saved(resume, task)
    if resume is not None or results is None:
        raise ConfigError("executor= needs results=, a folder that all workers see, and neither goes with resume=")
    kept = Keyed(results, task)
    fill(kept, executor_of(executor), progress)
    return kept


def _with_baseline(found: SweepResult, task: Sweep, engine: Engine, audit: int, seed: int) -> SweepResult:
    """A result with its baseline, which is audited too."""
    assert engine.values is not None and engine.clean is not None
    _check_finite(task, engine.values, engine.clean)
    base = baseline_of(task, engine, found.averages(effects=True), found.clean)
    if found.method == "gradient" or not audit:
        return replace(found, baseline=base)
    with torch.no_grad():
        own, more = found.audit, audited(task, engine, audit, seed)
    examples, difference = max(own.examples, more.examples), max(own.difference, more.difference)
    return replace(found, baseline=base, audit=Audit(own.cells + more.cells, examples, difference))


def _screened(
    task: Sweep, runs: Sweep, engine: Engine, top: int, audit: int, seed: int, progress: Progress | None
) -> SweepResult:
    """Estimate every cell by gradients, then compute the `top` ones exactly."""
    engine.values, engine.clean = estimate(runs, engine.settled(), engine.plan.batches)
    if not top:
        return finished(task, engine, Audit((), 0, math.nan), "gradient", (ESTIMATED,))
    estimated, clean = engine.values, engine.clean
    effects = estimated - clean
    effects = effects if effects.ndim == 1 else effects.mean(1)
    chosen = sorted(effects.abs().argsort(descending=True)[:top].tolist())
    some = Cells(tuple(task.cells.edits[number] for number in chosen), ("cell",), (len(chosen),), [list(map(str, chosen))])
    exact = Engine(replace(runs, cells=some))
    with torch.no_grad():
        exact.run(progress)
        engine.split = exact.split
        found = audited(replace(task, cells=some), exact, audit, seed)
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


def task_of(
    model: Transformer, tokens: Any, edits: Grid | ManyEdits | Cells, metric: Any = None, *, mask: Tensor | None = None,
    skip: str = "all", memory: int | None = None,
) -> Sweep:  # fmt: skip
    """What a sweep is asked, checked."""
    if skip not in ("all", "layers"):
        raise ConfigError(f"skip={skip!r} is not known; there are 'all' and 'layers'")
    found, mask, real = tokens_of(model, tokens, mask)
    given = Cells.of(plainly(model, edits), model.cfg, found.shape[1])
    listed = not isinstance(edits, Grid | Cells)  # (a grid goes over all columns, whichever rows have a token there)
    cells = at_columns(given, model, tokens, found, mask, real, strict=listed)
    if real is not None:
        cells = replace(cells, edits=tuple(tuple(of_real(edit, real) for edit in one) for one in cells.edits))
    if not cells.edits:
        raise ShapeError("there is no edit to sweep over")
    if len(found) == 1 and ("batch",) in own_means(cells, model.cfg).values():
        raise ShapeError(
            "the mean over one example is that example, and changes nothing; run several, or take the mean over positions "
            "too (over=('batch', 'pos')), or over a reference"
        )
    chosen = as_metric(settled(metric, model, tokens))
    chosen = chosen if real is None else among_real(chosen, real, found)
    if isinstance(chosen, Metric):
        chosen.check(model.cfg.d_vocab_out)
        chosen.counted(found.shape[0], found.shape[1])
    if not is_forward(model, found, mask):
        raise ConfigError(
            f"the forward pass of {type(model).__name__} gives other logits than its network, and a sweep runs the network; make "
            "each edit in model.run_with_hooks, or sweep over a plain HookedTransformer with the same weights"
        )
    if not model.untouched() or has_masks(model.blocks.children()):
        skip = "layers"  # somebody else's hooks, modules and masks may read any position
    return Sweep(model, found, mask, cells, chosen, skip, memory)


def audited(task: Sweep, engine: Engine, count: int, seed: int) -> Audit:
    """Run some cells again as plain full forward passes; means over the sweep's examples are taken again, too.

    Raises:
        NotExact: a cell is further off than `BOUNDS` allow, and than logits of their size round.
    """
    cells = engine.plan.cells  # as they were before the engine took means
    count = min(count, len(cells))
    if not count:
        return Audit((), 0, math.nan)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(cells), generator=generator)[:count].tolist()
    worst, examples, off = 0.0, 0, {}
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
    if off:
        raise NotExact(
            f"{len(off)} of {len(chosen)} audited cells differ from their full forward passes by more than {bound:g} of the "
            f"largest value: {', '.join(list(off.values())[:5])}; so this sweep is not exact. Run it with skip='layers', and "
            "report it"
        )
    return Audit(tuple(label_of(task.cells.edits[number]) for number in chosen), examples, worst)


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


def finished(
    task: Sweep,
    engine: Engine,
    audit: Audit,
    method: str = "exact",
    notes: tuple[str, ...] = (),
    exact: tuple[int, ...] = (),
) -> SweepResult:
    """The result of a sweep.

    Raises:
        NotFinite: a value is not a finite number.
    """
    assert engine.values is not None and engine.clean is not None
    metric, cells = task.metric, task.cells
    values, clean = engine.values, engine.clean
    _check_finite(task, values, clean)
    rest = ("batch", "pos")[: clean.ndim]
    clash = {"pos": "position"} if "pos" in cells.axes and "pos" in rest else {}
    axes = (*cells.axes, *(clash.get(axis, axis) for axis in rest))
    labels = {axis: names for axis, names in zip(cells.axes, cells.labels, strict=True) if axis not in ("pos", "layer")}
    labels |= {axis: names for axis, names in zip(cells.axes, cells.labels, strict=True) if names != _numbers(len(names))}
    shaped = values.reshape(*cells.shape, *values.shape[1:])
    return SweepResult(
        Labelled(shaped, axes, labels, metric.name, metric.unit),
        Labelled(clean, axes[len(cells.axes) :], {}, metric.name, metric.unit),
        audit, method, notes + _split(engine), exact, task,
    )  # fmt: skip


def _split(engine: Engine) -> tuple[str, ...]:
    """A note where memory ran out and chunks ran in parts, which round differently from the planned ones."""
    some = f"{engine.split} chunk{'s' * (engine.split != 1)}"
    return (f"memory ran out in {some} of cells, which ran in smaller ones",) if engine.split else ()


def _numbers(count: int) -> list[str]:
    return list(map(str, range(count)))


def _check_finite(task: Sweep, values: Tensor, clean: Tensor) -> None:
    wanted = torch.ones_like(clean, dtype=torch.bool)
    if isinstance(task.metric, Metric):
        mask = task.metric.wanted(task.batch, task.length).to(clean.device)
        wanted = mask if clean.ndim == 2 else mask.any(1)
    if not bool((clean.isfinite() | ~wanted).all()):
        raise NotFinite(f"the {task.metric.name} of the clean run is not a finite number; look at the model and the tokens")
    bad = ~(values.isfinite() | ~wanted)
    if bool(bad.any()):
        found = bad.flatten(1).any(1).nonzero().flatten().tolist() if bad.ndim > 1 else bad.nonzero().flatten().tolist()
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise NotFinite(
            f"the {task.metric.name} of the cell '{label_of(task.cells.edits[found[0]])}'{more} is not a finite number; "
            "look at the values that its edit puts in"
        )
