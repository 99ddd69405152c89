"""Places that count a row's own tokens, and the parts of a generation: where an edit is made whatever the padding.

A column is a number of the tensor; a place is a token of a row. With padding on the left the two differ, so an edit at
`own(-1)` is at another column in each row. `edits_at` turns such an edit into edits at columns, for one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from cutaway.errors import ShapeError, UnknownRole, nearest
from cutaway.numbers_given import whole
from cutaway.prompts import Prompts

if TYPE_CHECKING:
    from cutaway.runs.edits import Change, Edit

PARTS = ("all", "prompt", "generated")


@dataclass(frozen=True)
class Places:
    """Some of a row's own tokens.

    Args:
        tokens: their numbers, from 0; -1 is a row's own last token (of its prompt, in a generation); None: all.
        start, stop: a range of them, beside or instead of numbers.
        strict: whether every row must have the numbered tokens; otherwise a row that lacks one goes without.
        part: "all", or only the "prompt", or only what is "generated". Without a generation everything is prompt.
        each: for each row, the numbers of its own tokens; `name` is what to call them (a role).
    """

    tokens: tuple[int, ...] | None = None
    start: int | None = None
    stop: int | None = None
    part: str = "all"
    strict: bool = True
    each: tuple[tuple[int, ...], ...] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ShapeError(f"part={self.part!r} is not known{nearest(str(self.part), PARTS)}; there are {', '.join(PARTS)}")

    def __str__(self) -> str:
        if self.name:
            return self.name
        numbers = "" if self.tokens is None else ",".join(map(str, self.tokens))
        if self.start is not None or self.stop is not None:
            numbers += f"{'' if self.start is None else self.start}:{'' if self.stop is None else self.stop}"
        return f"own {numbers}" if numbers and self.part == "all" else f"{self.part} {numbers}".strip()

    def mask(self, own: Bool[Tensor, "batch column"], prompt_columns: int) -> Bool[Tensor, "batch column"]:
        """Which columns these are.

        Args:
            own: true where a column is a token and not padding; of all columns so far.
            prompt_columns: how many of them are the prompt.

        Raises:
            ShapeError: a row has no such token.
        """
        place = own.long().cumsum(-1) - 1
        prompt = own[:, :prompt_columns].sum(-1, keepdim=True)
        here = own.clone()
        if self.tokens is not None:
            numbers = torch.tensor(self.tokens, device=own.device)
            wanted = torch.where(numbers < 0, numbers + prompt, numbers)
            lacking = (wanted < 0) | ((wanted >= prompt) & (own.shape[1] == prompt_columns))
            if self.strict and bool(lacking.any()):
                row = int(lacking.any(1).nonzero()[0])
                raise ShapeError(f"an edit at {self}: row {row} has {int(prompt[row])} tokens of its own")
            here &= (place[..., None] == wanted[:, None]).any(-1)
        for bound, above in ((self.start, True), (self.stop, False)):
            if bound is not None:
                edge = bound + prompt if bound < 0 else bound
                here &= place >= edge if above else place < edge
        if self.each is not None:
            if len(self.each) != len(own):
                raise ShapeError(f"an edit at {self}: {len(self.each)} rows have such a token, and {len(own)} run")
            here &= torch.stack(
                [torch.isin(row, torch.tensor(some, device=own.device)) for row, some in zip(place, self.each, strict=True)]
            )
        if self.part != "all":
            columns = torch.arange(own.shape[1], device=own.device) < prompt_columns
            here &= columns if self.part == "prompt" else ~columns
        return here


def own(*tokens: int, start: int | None = None, stop: int | None = None) -> Places:
    """A row's own tokens, whatever its padding: `own(-1)` its last one, `own(start=2)` all but the first two."""
    return Places(tokens or None, start, stop)


def at_roles(prompts: Any, roles: str | int | Sequence[str | int]) -> Places:
    """The tokens that have a role in `Prompts`, in each row its own; a number counts from a row's start or its end.

    Raises:
        UnknownRole: the prompts have no such role.
    """
    listed = [roles] if isinstance(roles, str | int) else list(roles)
    if not isinstance(prompts, Prompts):
        if any(isinstance(one, str) and one != "end" for one in listed):
            named = next(one for one in listed if isinstance(one, str) and one != "end")
            raise UnknownRole(f"an edit at {named!r}: roles are those of Prompts; give Prompts that have it")
        return own(*(-1 if isinstance(one, str) else one for one in listed))
    places = torch.stack([prompts.place(one) for one in listed], 1).tolist()
    return Places(each=tuple(tuple(row) for row in places), name=", ".join(map(str, listed)))


def with_places(edit: Edit, prompts: Any) -> Edit:
    """An edit whose positions are named by roles, at the places that have them."""
    given = edit.positions
    if isinstance(given, str) or (isinstance(given, list | tuple) and any(isinstance(one, str) for one in given)):
        return replace(edit, positions=at_roles(prompts, given))
    return edit


def counted(edit: Edit, real: Bool[Tensor, "batch column"] | None, axes: Sequence[str], *, strict: bool = False) -> list[Edit]:
    """An edit on padded texts, where a negative number is a row's own token, counted from its last: one edit for some rows each.

    Numbers from 0 stay columns.

    Args:
        real: true where a column is a token and not padding; None: nothing is padding.
        axes: the words of the site's axes.

    Raises:
        ShapeError: a row has no such token; or (`strict`) none of the numbered columns is a token in some row.
    """
    if real is None or isinstance(edit.positions, Places):
        return [edit]
    real = real.cpu()
    rows = numbers_of(edit.examples, len(real))
    numbered = {name: _whole_numbers(given) for name in ("positions", "sources") if (given := getattr(edit, name)) is not None}
    if not numbered:
        return [edit]
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for row in rows:
        groups.setdefault(tuple(_columns_of(edit, real[row], row, given, strict) for given in numbered.values()), []).append(row)
    if list(groups) == [tuple(map(tuple, numbered.values()))]:
        return [edit]
    out = []
    for columns, some in groups.items():
        change = edit.change if edit.examples is None else some_examples(edit.change, axes, rows, some, len(real))
        every = edit.examples is None and len(groups) == 1
        out.append(replace(edit, change=change, examples=None if every else some, **dict(zip(numbered, columns, strict=True))))
    return out


def _columns_of(edit: Edit, real: Bool[Tensor, "column"], row: int, given: Sequence[int], strict: bool) -> tuple[int, ...]:
    """The columns of a row that are numbered."""
    own = real.nonzero().flatten().tolist()
    end = own[-1] + 1
    columns = tuple(end + one if one < 0 else one for one in given)
    for one, column in zip(given, columns, strict=True):
        if one < 0 and column not in own:
            raise ShapeError(f"the edit '{edit.label}': row {row} has {len(own)} tokens of its own, and so none at {one}")
    if strict and not set(columns) & set(own):
        raise ShapeError(
            f"the edit '{edit.label}' would change nothing in row {row}, where column {columns[0]} is padding; "
            f"places.own({given[0]}) is a row's own token, and examples= chooses rows"
        )
    return columns


def some_examples(change: Change, axes: Sequence[str], rows: Sequence[int], some: Sequence[int], batch: int) -> Change:
    """A change that has one value for each of the chosen rows, and not one for each of the batch, for some of them."""
    for field in ("values", "vector", "direction"):
        value: Any = getattr(change, field, None)
        own = isinstance(value, Tensor) and value.ndim == len(axes) and len(value) == len(rows) > 1
        if own and len(rows) != batch and list(some) != list(rows):
            return replace(change, **{field: value[[list(rows).index(row) for row in some]]})  # type: ignore[type-var]
    return change


def _whole_numbers(given: Any) -> list[int]:
    """One number or several, as a list."""
    several = [given] if getattr(given, "ndim", None) == 0 or not hasattr(given, "__iter__") else list(given)
    return [whole(one, "a position") for one in several]


def numbers_of(given: Any, size: int) -> list[int]:
    """Numbers from 0 of what is chosen along an axis; None: all."""
    return list(range(size)) if given is None else [one % size for one in _whole_numbers(given)]


PROMPT, GENERATED = Places(part="prompt"), Places(part="generated")


def edits_at(
    edit: Edit, own: Bool[Tensor, "batch column"], prompt_columns: int, site: str, axes: Sequence[str], *, start: int = 0
) -> list[Edit]:
    """An edit as edits at columns, one for the rows that share their columns; columns before `start` are left out.

    Args:
        own: true where a column is a token and not padding.
        prompt_columns: how many columns are the prompt.
        site, axes: the full name of its site, and the words of its axes.

    Raises:
        ShapeError: a row has no such token.
    """
    if not isinstance(edit.positions, Places):
        return [edit]
    places, here = edit.positions, edit.positions.mask(own, prompt_columns)
    # `place`: of each column, which of its row's own tokens it is; `prompt`: how many of them are the prompt's.
    place, prompt = own.long().cumsum(-1) - 1, own[:, :prompt_columns].sum(-1)
    rows = numbers_of(edit.examples, len(own))
    groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for row in rows:
        columns = [one for one in here[row].nonzero().flatten().tolist() if one >= start]
        tokens = [] if places.tokens is None else [one % int(prompt[row]) if one < 0 else one for one in places.tokens]
        # Columns ascend and tokens stand as they were given, so values by token must be taken in the columns' order.
        which = tuple(tokens.index(int(place[row, column])) for column in columns) if tokens else ()
        groups.setdefault((tuple(columns), which), []).append(row)
    out = []
    for (columns_, which), some in groups.items():
        if columns_:
            change = some_values(edit.change, site, axes, which, of=len(places.tokens or ()))
            if change is edit.change and prompt_columns < own.shape[1]:  # values of the prompt's columns reach no generated one
                columns_ = tuple(one for one in columns_ if one < prompt_columns or values_along(change, site, axes) == 1)
                change = some_values(change, site, axes, columns_, of=prompt_columns)
            every = edit.examples is None and len(groups) == 1
            if edit.examples is not None:
                change = some_examples(change, axes, rows, some, len(own))
            out.append(replace(edit, change=change, positions=columns_, examples=None if every else some))
    return out


def values_along(change: Change, site: str, axes: Sequence[str]) -> int:
    """How many positions the values of a change have: 1 where they are the same at each."""
    source, axis = change.source(site), _position(axes)
    return 1 if source is None or source.ndim < -axis else source.shape[axis]


def some_values(change: Change, site: str, axes: Sequence[str], which: Sequence[int], *, of: int) -> Change:
    """A change that has one value for each of `of` chosen tokens, for some of them."""
    if of < 2 or values_along(change, site, axes) != of or list(which) == list(range(of)):
        return change
    source = change.source(site)
    assert source is not None
    field = {"Put": "values", "Add": "vector", "ProjectOut": "direction"}[type(change).__name__]
    chosen = torch.tensor(list(which), device=source.device)
    return replace(change, **{field: source.index_select(_position(axes), chosen)})  # type: ignore[type-var]


def _position(axes: Sequence[str]) -> int:
    """Which axis is the position (of the destination), counted from the last."""
    return next(index for index, word in enumerate(axes) if word in ("pos", "dest")) - len(axes)
