"""One run with edits: `run(model, tokens, edits=, keep=, metric=)`, and edits in any other run of a network.

The same edits that a sweep makes in its cells are made here by hooks: a run with edits is the cell of a sweep is a hook by
hand. Columns of an edit are those of the whole run, so that they mean the same in each step of a generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from cutaway.errors import ConfigError, ShapeError
from cutaway.model import sites
from cutaway.model.hook_points import HookPoint
from cutaway.model.transformer import Transformer
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.edits import Edit, Put
from cutaway.runs.metrics import Metric, among_real, as_metric, settled
from cutaway.runs.other_runs import check_values
from cutaway.runs.places import Places, counted, edits_at, some_values, values_along, with_places
from cutaway.runs.values import mean_over
from cutaway.tokens import check_mask


@runtime_checkable
class MakesEdits(Protocol):
    """What stands for some edits of a network: a steering vector with its strength, a circuit."""

    def edits_for(self, model: Transformer) -> Sequence[Edit]: ...


AnyEdits = Edit | MakesEdits | Sequence[Edit | MakesEdits]
ManyEdits = Edit | MakesEdits | Sequence[Edit | MakesEdits | Sequence[Edit | MakesEdits]]


@dataclass(frozen=True, eq=False)
class Run:
    """What a run gave.

    Args:
        logits: `[batch, pos, d_vocab_out]`.
        cache: the kept sites.
        value: the metric, `[batch]`, `[batch, pos]` where it keeps positions, or `[]`; None: no metric was asked for.
    """

    logits: Tensor
    cache: ActivationCache
    value: Tensor | None = None


@torch.no_grad()
def run(
    model: Transformer,
    tokens: Any,
    *,
    edits: AnyEdits = (),
    keep: Sequence[str | tuple[Any, ...]] | str = (),
    metric: Any = None,
    mask: Tensor | None = None,
) -> Run:
    """Run once, with edits made.

    Example: `run(model, tokens, edits=[zero().at(("z", 3), heads=1)], keep=["resid_post5"], metric=loss(tokens)).value`

    Args:
        tokens: text, texts, `Prompts`, or token ids `[batch, pos]`.
        edits: what is changed: edits, or what makes them (a `Steer`). Held or averaged values of the run itself
            (`freeze()`, `mean()`) are those of a run without edits, which is made first.
        keep: sites whose activations are kept, after the edits; full or short names.
        metric: one of `cutaway.runs.metrics`, or any function of logits.
        mask: `[batch, pos]`, 1 for tokens and 0 for padding; found in the tokens where None.

    Raises:
        UnknownSite, ShapeError: an edit or a kept site does not fit the network or the tokens.
    """
    found, mask, real = tokens_of(model, tokens, mask)
    measure = None if metric is None else as_metric(settled(metric, model, tokens))
    measure = measure if real is None else among_real(measure, real, found)
    every = [of_real(with_places(one, tokens), real) for one in as_edits(model, edits)]
    check_values(model, every, real, (found.shape[0], found.shape[1]))
    clean_needed = isinstance(measure, Metric) and measure.compares
    taken = [sites.resolve(one.site, model.hook_dict, model.cfg.n_layers) for one in every if _own_values(one)]
    clean: Tensor | None = None
    store: dict[str, Tensor] = {}
    if taken or clean_needed:
        clean, store = Transformer.run_with_cache(model, found, attention_mask=mask, names_filter=list(dict.fromkeys(taken)))
    every = [_with_values(one, store, model) for one in every]
    kept = [keep] if isinstance(keep, str) else keep
    names = [sites.resolve(name, model.hook_dict, model.cfg.n_layers) for name in kept]
    with edited(model, every):
        logits, store = Transformer.run_with_cache(model, found, attention_mask=mask, names_filter=names)
    value = None
    if isinstance(measure, Metric):
        value = measure(logits, clean) if measure.compares else measure(logits)
    elif measure is not None:
        value = measure(logits)
    return Run(logits, ActivationCache(store, model), value)


def tokens_of(model: Transformer, tokens: Any, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Tokens `[batch, pos]`, the mask that attention needs, and which tokens are real (None: all), given or found.

    Raises:
        ShapeError, TokenError: the mask is not one of these tokens.
    """
    found, padding = model.tokens_and_padding(tokens, None, None)
    if mask is None:
        return (found, None, None) if padding is None else (found, padding if model.needs_mask(padding) else None, padding.bool())
    mask = check_mask(mask.to(found.device), found)
    return found, mask, mask.bool()


def of_real(edit: Edit, real: Tensor | None) -> Edit:
    """The edit, its mean over the run's own examples (if it takes one) over these tokens."""
    change = edit.change
    if real is None or not isinstance(change, Put) or change.values is not None or not change.mean_over:
        return edit
    return replace(edit, change=replace(change, real=real))


def as_edits(model: Transformer, given: AnyEdits) -> list[Edit]:
    """A flat list of edits.

    Raises:
        ShapeError: something else was given.
    """
    out: list[Edit] = []
    for one in given if isinstance(given, Sequence) else [given]:
        if isinstance(one, Edit):
            out.append(one)
        elif isinstance(one, MakesEdits):
            out += one.edits_for(model)
        else:
            raise ShapeError(f"edits are made by a change at a place, as in zero().at(('z', 0), heads=3), not {one!r}")
    return out


def plainly(model: Transformer, given: Any) -> Any:
    """What a sweep is given, with edits in place of what makes them; what is made by one stays one cell."""
    if isinstance(given, MakesEdits):
        return [as_edits(model, given)]
    if not isinstance(given, list | tuple):
        return given
    return [one if isinstance(one, Edit) else as_edits(model, one) for one in given]


@contextmanager
def edited(model: Transformer, edits: AnyEdits) -> Iterator[Transformer]:
    """Make edits in everything that the model runs inside: `with edited(model, edits): model.generate(…)`.

    Raises:
        ConfigError: an edit takes its values from the run itself, which only `run` and `sweep` can give.
        HookNeverFired: the model ran, and never passed an edited site.
    """
    pairs = hooks_of(model, edits)
    if not pairs:  # no scope of its own: a caller's hooks with `level=` count scopes
        yield model
        return
    with model.hooks(pairs):
        yield model


def hooks_of(model: Transformer, edits: AnyEdits) -> list[tuple[str, Any]]:
    """Pairs of site and function for `model.hooks(…)`, which make edits in any run, steps of a generation included."""
    prompt = {"columns": 0}
    pairs = []
    every = [with_places(one, None) for one in as_edits(model, edits)]
    check_values(model, every, None)
    for edit in every:
        if _own_values(edit):
            raise ConfigError(
                f"the edit '{edit.label}' takes values from the run itself; use cutaway.run or sweep, or give it a cache"
            )
        pairs.append((sites.resolve(edit.site, model.hook_dict, model.cfg.n_layers), _hook_of(model, edit, prompt)))
    return pairs


def _hook_of(model: Transformer, edit: Edit, prompt: dict[str, int]) -> Any:
    table = sites.table(model.cfg)

    def make(x: Tensor, hook: HookPoint) -> Tensor:
        site = str(hook.name)
        if not edit.change.declared:
            return edit.bind(model.cfg, len(x), _columns(model, site, x), table).applied(x)
        total = _columns(model, site, x)
        if model.prompt_columns is not None or model.current.start == 0:
            prompt["columns"] = total if model.prompt_columns is None else model.prompt_columns
        for local in _local(model, edit, site, len(x), total, prompt["columns"]):
            local.bind(model.cfg, len(x), total, table).write(x, range(model.current.start, total), None)
        return x

    make.order = edit.change.order  # type: ignore[attr-defined]
    return make


def _columns(model: Transformer, site: str, x: Tensor) -> int:
    """How many columns the run has so far, those that were kept from earlier steps included."""
    axis = model.position_axis(site)
    assert axis is not None
    return model.current.start + x.shape[axis]


def _local(model: Transformer, edit: Edit, site: str, batch: int, total: int, prompt: int) -> list[Edit]:
    """An edit at columns of the run under way: those of this step, one edit for the rows that share their columns."""
    start, axes = model.current.start, sites.axes(site, model.cfg)
    if isinstance(edit.positions, Places):
        real = model.real
        tokens = torch.ones(batch, total, dtype=torch.bool) if real is None else real[:, :total].cpu()
        return edits_at(edit, tokens, prompt, site, axes, start=start)
    if prompt == total:
        return counted(edit, model.real, axes, strict=True) if _numbered(edit) else [edit]
    given = [edit.positions] if isinstance(edit.positions, int) else edit.positions
    if given is None and values_along(edit.change, site, axes) == 1:
        return [edit]
    columns = [one + prompt if one < 0 else one for one in (range(prompt) if given is None else given)]
    here = [index for index, column in enumerate(columns) if start <= column < total]
    if not here:
        return []
    change = some_values(edit.change, site, axes, [columns[index] for index in here], of=prompt)
    change = some_values(change, site, axes, here, of=len(columns)) if change is edit.change else change
    return [replace(edit, change=change, positions=[columns[index] for index in here])]


def _numbered(edit: Edit) -> bool:
    return edit.positions is not None or edit.sources is not None


def _own_values(edit: Edit) -> bool:
    """Whether an edit takes its values from the run itself, as it is without edits."""
    return isinstance(edit.change, Put) and edit.change.values is None


def _with_values(edit: Edit, store: dict[str, Tensor], model: Transformer) -> Edit:
    if not _own_values(edit) or not isinstance(edit.change, Put):
        return edit
    site = sites.resolve(edit.site, model.hook_dict, model.cfg.n_layers)
    over = edit.change.mean_over
    value = mean_over(store[site], site, over, edit.change.real) if over else store[site]
    return replace(edit, change=Put(value, edit.change.word))
