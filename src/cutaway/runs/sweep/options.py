"""What a sweep is asked, as two values: `SweepOptions`, how it runs, and `Sweep`, of what: network, tokens, cells, metric."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, ShapeError
from cutaway.executors import Executor
from cutaway.model import sites
from cutaway.model.dialect_attention import has_masks
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import check_options, one_of, size
from cutaway.runs.editing import ManyEdits, of_real, plainly, tokens_of
from cutaway.runs.edits import Put
from cutaway.runs.grids import Cells, Grid, at_columns
from cutaway.runs.metrics import AnyMetric, Metric, among_real, as_metric, settled
from cutaway.runs.plain_runs import is_forward

Progress = Callable[[float, float], None]
R = TypeVar("R")
METHODS = ("exact", "gradient", "screen")
LEAST = {"top": 0, "audit": 0, "baseline": 0, "seed": 0, "memory": 1}


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep runs.

    Args:
        method: "exact"; "gradient", a first-order estimate of every cell from two forward passes and a backward; or
            "screen", which then computes the `top` cells exactly and says how well the two agree.
        top: how many cells a screen computes exactly.
        skip: "all" recomputes only what an edit reaches; "layers" skips only the layers before it, each cell in a batch
            of its own, so that its bits are those of a plain forward pass.
        dtype: run a copy of the network in this precision: cheaper, and the audit, in full precision, says how far off.
        audit: how many cells, drawn at random, run again in full; and as many of the baseline. 0: none, as the result says.
        baseline: how many cells, drawn at random, also run with random changes of the same size in place of their own.
        seed: of what is drawn at random.
        memory: bytes, or a text such as "512 MiB", beside the weights; a clean run that does not fit is kept on disk (`plan`
            says so). None: what is free.
        resume: a folder that keeps finished chunks, so that the same call goes on where an interrupted one stopped. Of a
            screen or of gradients nothing but a screen's baseline is kept.
        results: a folder of results by what they are (model, tokens, edit, metric), for any number of sweeps: cells that are
            there are not computed again, and a wider sweep computes what is new.
        executor: where chunks are computed: "processes:N", "ray", "ray:ADDRESS", "ranks" or one of `cutaway.executors`, which
            all need `results` that they all see; "local" gives their bits in this process.
        progress: called with (work done, all work).
        between: called between the layers of a chunk of cells. What it raises stops the sweep.

    Raises:
        UnknownName, ConfigError: a value is not known, or two do not go together.
    """

    method: str = "exact"
    top: int = 10
    skip: str = "all"
    dtype: torch.dtype | None = None
    audit: int = 2
    baseline: int = 0
    seed: int = 0
    memory: int | str | None = None
    resume: Path | str | None = None
    results: Path | str | None = None
    executor: str | Executor | None = None
    progress: Progress | None = None
    between: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        check_options(self.__dict__, **LEAST)
        one_of(self.method, METHODS, "method")
        if self.skip not in ("all", "layers"):
            raise ConfigError(f"skip={self.skip!r} is not known; there are 'all' and 'layers'")
        if self.method != "exact" and (self.executor is not None or self.results is not None):
            raise ConfigError(
                f"executor= and results= are for method='exact', not {self.method!r}, which is two passes over the prompts"
            )
        if self.between is not None and self.executor is not None:
            raise ConfigError("between= is called in this process; leave out executor=")

    @property
    def room(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else size(self.memory, "memory")

    def written(self) -> dict[str, Any]:
        """Those that a record keeps."""
        kept = {name: getattr(self, name) for name in ("method", "top", "skip", "dtype", "seed")}
        kept["dtype"] = None if self.dtype is None else str(self.dtype)
        return kept | ({"baseline": self.baseline} if self.baseline else {})


def options_as_keywords(call: Callable[..., R]) -> Callable[..., R]:
    """A function with `options=`, which takes each field of `SweepOptions` as a keyword, too; its signature lists them."""
    own, kind = inspect.signature(call), inspect.Parameter.KEYWORD_ONLY
    known = [inspect.Parameter(one.name, kind, default=one.default, annotation=one.type) for one in fields(SweepOptions)]

    @functools.wraps(call)
    def with_options(*given: Any, options: SweepOptions = SweepOptions(), **keywords: Any) -> R:
        named = {one.name: keywords.pop(one.name) for one in known if one.name in keywords}
        check_options(named, **LEAST)
        return call(*given, options=replace(options, **named) if named else options, **keywords)

    with_options.__dict__["__signature__"] = own.replace(parameters=[*own.parameters.values(), *known])
    return with_options


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a sweep is asked: a network, tokens, cells, a metric, and how it runs."""

    model: Transformer
    tokens: Tensor
    mask: Tensor | None
    cells: Cells
    metric: AnyMetric
    options: SweepOptions = SweepOptions()

    @property
    def batch(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        """Tokens and mask of some examples."""
        return self.tokens[first:last], None if self.mask is None else self.mask[first:last]


def task_of(
    model: Transformer, tokens: Any, edits: Grid | ManyEdits | Cells, metric: Any = None, *, mask: Tensor | None = None,
    options: SweepOptions = SweepOptions(),
) -> Sweep:  # fmt: skip
    """What a sweep is asked, checked.

    Raises:
        ShapeError: there is no edit, or one does not fit; a mean over one example.
        ConfigError: the model's forward pass is not its network's; functions as edits have no baseline.
    """
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
    for edit in (edit for one in cells.edits for edit in one if options.baseline):
        if not edit.change.declared:
            raise ConfigError(
                f"the edit '{edit.label}' is a function, which may read across positions and examples, so no random change of "
                "its size can stand for it; use declared edits (zero, patch, add …), or baseline=0"
            )
    if not model.untouched() or has_masks(model.blocks.children()):
        options = replace(options, skip="layers")  # somebody else's hooks, modules and masks may read any position
    return Sweep(model, found, mask, cells, chosen, options)


def own_means(cells: Cells, cfg: HookedTransformerConfig) -> dict[str, tuple[str, ...]]:
    """Sites at which a cell takes the mean over the sweep's own examples → axes of the mean.

    Raises:
        ShapeError: means over different axes at the same site.
    """
    found: dict[str, tuple[str, ...]] = {}
    table = sites.table(cfg)
    for edit in itertools.chain.from_iterable(cells.edits):
        change = edit.change
        if isinstance(change, Put) and change.values is None and change.mean_over:
            site = sites.resolve(edit.site, table, cfg.n_layers)
            if found.setdefault(site, change.mean_over) != change.mean_over:
                raise ShapeError(f"one sweep takes means over {found[site]} and {change.mean_over} at {site!r}; split it")
    return found
