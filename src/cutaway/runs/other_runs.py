"""Values that edits take from another run: of this model, as it is now, and of tokens where the edit writes tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from cutaway.errors import ConfigError, ShapeError, StaleCache
from cutaway.model.origins import Passed
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Edit, Put, Random
from cutaway.runs.places import Places, numbers_of
from cutaway.runs.values import passed_in

MEANT = "if that is meant, give a plain dictionary, dict(cache.cache_dict), of which nothing is known"


def check_values(
    model: Transformer, edits: Iterable[Edit], real: Bool[Tensor, "batch pos"] | None, shape: tuple[int, int] | None = None
) -> None:
    """Look at where the values of edits come from, as far as the caches that they are from know it.

    Args:
        real: which tokens of the run are no padding; None: all.
        shape: batch and positions of the run; None: not known, and then padding is not looked at.

    Raises:
        ConfigError: another model kept them.
        StaleCache: the model's weights were rewritten since.
        ShapeError: they are of padding, and would go where a token is.
    """
    seen: dict[int, Any] = {}
    for edit in edits:
        change = edit.change.change if isinstance(edit.change, Random) else edit.change
        values = change.values if isinstance(change, Put) else None
        passed = passed_in(values)
        if passed is None:
            continue
        if id(values) not in seen:
            seen[id(values)] = values
            _check_model(model, edit, passed)
        if shape is not None and not (real is None and passed.real is None):
            _check_tokens(edit, passed.real, real, shape)


def _check_model(model: Transformer, edit: Edit, passed: Passed) -> None:
    if passed.model() is not model:
        raise ConfigError(f"the edit '{edit.label}' takes its values from a run of another model; {MEANT}")
    if passed.weights != model.weights_state():
        raise StaleCache(
            f"the edit '{edit.label}' takes its values from a run before the model's weights were rewritten; run again, or, "
            + MEANT
        )


def _check_tokens(edit: Edit, theirs: Tensor | None, ours: Tensor | None, shape: tuple[int, int]) -> None:
    """Both sides have tokens at the same columns, as far as the edit goes."""
    one, other = (torch.ones(shape, dtype=torch.bool) if mask is None else mask.cpu() for mask in (ours, theirs))
    if other.shape[1] != shape[1] or len(other) not in (1, shape[0]) or isinstance(edit.positions, Places):
        return  # what does not fit is refused where the edit is bound
    lacking = one & ~other
    rows = numbers_of(edit.examples, shape[0])
    columns = numbers_of(edit.positions, shape[1])
    found = lacking[rows][:, columns].nonzero()
    if len(found):
        row, column = rows[int(found[0, 0])], columns[int(found[0, 1])]
        raise ShapeError(
            f"the edit '{edit.label}' would put an activation of padding at column {column} of row {row}, where a token is: "
            "its texts and those of the cache are not of one length, row by row; compare texts that align, or choose positions"
        )
