"""Logits that are computed when they are looked at, for metrics that are just functions.

`LazyLogits` passes for the tensor of all logits. Picking by constants (`logits[:, -1]`, `logits[:, -1, ids]`,
`.gather(-1, ids)` after it) computes only what is picked; anything else computes them all. They note which positions a function
looks at, so that after a trial on the clean run a sweep can leave out the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import ShapeError

Compute = Callable[[Tensor | None, Tensor | None], Tensor]  # positions, columns (None: all) → logits [batch, pos, column]


class Padding:
    """Which tokens are real, for logits that a function looks at: picked padding is refused, looked over it is noted.

    Args:
        real: `[batch, pos]`.
    """

    def __init__(self, real: Tensor):
        self.real = real.cpu()
        self.seen = False  # whether several positions were looked at together, and some were padding

    def picked(self, rows: Any, places: Any) -> None:
        """Positions that were picked by number.

        Raises:
            ShapeError: one is padding.
        """
        at = places if isinstance(places, int) else torch.as_tensor(places).cpu()
        chosen = self.real[rows.cpu() if isinstance(rows, Tensor) else rows, at] if _pairs(rows) else self.real[:, at]
        if not bool(chosen.all()):
            where = f"column {places}" if isinstance(places, int) else "columns"
            raise ShapeError(
                f"the metric, a function of logits, picks {where}, where some rows have padding; pick each row's own last token, "
                "as in logits[torch.arange(len(ends)), ends], or take one of cutaway.metrics, which do"
            )

    def over(self, places: list[int]) -> None:
        """Positions that were looked at together."""
        self.seen = self.seen or not bool(self.real[:, places].all())


def _pairs(rows: Any) -> bool:
    return isinstance(rows, int | list | Tensor)


class NotComputed(Exception):
    """A function looked at positions that its trial on the clean run did not look at."""


class LazyLogits(Tensor):
    """Logits `[batch, pos, d_vocab]`, or one position of them `[batch, d_vocab]`, computed on demand."""

    _compute: Compute
    _wanted: set[int]  # the positions that were looked at so far
    _at: list[int] | int | None  # the positions this stands for: some, one (without its axis), or all
    _length: int
    _padding: Padding | None

    @staticmethod
    def make(
        compute: Compute,
        wanted: set[int],
        sizes: tuple[int, int, int],
        like: Tensor,
        at: list[int] | int | None = None,
        padding: Padding | None = None,
    ) -> LazyLogits:
        """Logits of `sizes` (batch, pos, d_vocab), in the precision and on the device of `like`."""
        batch, length, vocab = sizes
        shape = (batch, vocab) if isinstance(at, int) else (batch, length if at is None else len(at), vocab)
        made: LazyLogits = Tensor._make_wrapper_subclass(LazyLogits, shape, dtype=like.dtype, device=like.device)
        made._compute, made._wanted, made._at, made._length, made._padding = compute, wanted, at, length, padding
        return made

    @staticmethod
    def of(logits: Tensor, padding: Padding) -> Tensor:
        """Logits that are there already, of texts that are padded."""
        if isinstance(logits, LazyLogits):
            logits._padding = padding
            return logits

        def compute(positions: Tensor | None, columns: Tensor | None) -> Tensor:
            some = logits if positions is None else logits[:, positions.to(logits.device)]
            return some if columns is None else some[..., columns.to(logits.device)]

        batch, length, vocab = logits.shape
        return LazyLogits.make(compute, set(), (batch, length, vocab), logits, padding=padding)

    def whole(self) -> Tensor:
        """All of it, as a plain tensor."""
        return self._picked(None)

    def _picked(self, columns: Tensor | None) -> Tensor:
        if self._at is None:
            self._wanted.update(range(self._length))
            if self._padding is not None:
                self._padding.over(list(range(self._length)))
            return self._compute(None, columns)
        places = [self._at] if isinstance(self._at, int) else self._at
        self._wanted.update(places)
        if self._padding is not None and not isinstance(self._at, int):
            self._padding.over(places)
        logits = self._compute(torch.tensor(places, dtype=torch.long), columns)
        return logits[:, 0] if isinstance(self._at, int) else logits

    def _narrowed(self, at: list[int] | int, padding: Padding | None) -> LazyLogits:
        with torch._C.DisableTorchFunctionSubclass():
            batch, vocab = self.shape[0], self.shape[-1]
            return LazyLogits.make(self._compute, self._wanted, (batch, self._length, vocab), self, at, padding)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        with torch._C.DisableTorchFunctionSubclass():
            if isinstance(first, LazyLogits):
                if func is Tensor.__getitem__:
                    return _pick(first, args[1] if isinstance(args[1], tuple) else (args[1],))
                if func in (Tensor.gather, torch.gather) and (found := _gathered(first, args[1:], kwargs)) is not None:
                    return found
                if getattr(func, "__name__", "") == "__get__" or func in (Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__):
                    return func(*args, **kwargs)
            return func(*(_plain(one) for one in args), **{name: _plain(one) for name, one in kwargs.items()})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        return func(*(_plain(one) for one in args), **{name: _plain(one) for name, one in kwargs.items()})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"<logits {tuple(self.shape)}, computed when looked at>"


def _plain(x: Any) -> Any:
    if isinstance(x, LazyLogits):
        return x.whole()
    if isinstance(x, list | tuple):
        return type(x)(_plain(one) for one in x)
    return x


def _pick(logits: LazyLogits, index: tuple[Any, ...]) -> Tensor:
    """`logits[index]`, computing only the positions and columns that are picked, where that can be told."""
    ndim = 2 if isinstance(logits._at, int) else 3
    full = _expanded(index, ndim)
    if full is None:
        return logits.whole()[index]
    batch, columns = full[0], full[-1]
    if ndim == 3:
        found = _positions(logits, full[1])
        if found is None:
            return logits.whole()[index]
        padding = logits._padding
        if padding is not None and not isinstance(full[1], slice):
            padding.picked(batch, found)
            padding = None  # looked at
        if _everything(batch) and _everything(columns):
            return logits._narrowed(found, padding) if isinstance(found, int) or found != list(range(logits._length)) else logits
        if isinstance(found, int):
            return _pick(logits._narrowed(found, padding), (batch, columns))
        if isinstance(full[1], slice):
            return _columns(logits._narrowed(found, padding), (batch, slice(None), columns))
        places = sorted(set(found))
        within = torch.tensor([places.index(one) for one in found], dtype=torch.long).reshape(torch.as_tensor(full[1]).shape)
        return _columns(logits._narrowed(places, padding), (batch, within, columns))
    if _everything(batch) and _everything(columns):
        return logits
    return _columns(logits, (batch, columns))


def _columns(logits: LazyLogits, index: tuple[Any, ...]) -> Tensor:
    """The same, where positions are settled: only the picked columns."""
    columns = index[-1]
    if isinstance(columns, int):
        compact = logits._picked(torch.tensor([columns % logits.shape[-1]], dtype=torch.long))
        where = (*index[:-1], 0)
        return compact[where]
    if isinstance(columns, Tensor | list) and (ids := torch.as_tensor(columns)).dtype == torch.long and ids.numel():
        known, within = (ids % logits.shape[-1]).unique(return_inverse=True)
        where = (*index[:-1], within)
        return logits._picked(known)[where]
    return logits.whole()[index]


def _gathered(logits: LazyLogits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """`logits.gather(-1, ids)` from the columns in `ids` only; None: not that case."""
    given = dict(zip(("dim", "index"), args, strict=False)) | kwargs
    dim, ids = given.get("dim"), given.get("index")
    if not isinstance(ids, Tensor) or isinstance(ids, LazyLogits) or dim not in (-1, logits.ndim - 1) or not ids.numel():
        return None
    known, within = ids.unique(return_inverse=True)
    return logits._picked(known).gather(-1, within.to(logits.device))


def _expanded(index: tuple[Any, ...], ndim: int) -> list[Any] | None:
    """One entry for each axis; None where the index is of a kind that is not followed (new axes, masks over several)."""
    if any(one is None or isinstance(one, bool) for one in index):
        return None
    if any(isinstance(one, Tensor) and (one.dtype == torch.bool or isinstance(one, LazyLogits)) for one in index):
        return None
    if sum(one is Ellipsis for one in index) > 1:
        return None
    if Ellipsis in [one for one in index if not isinstance(one, Tensor)]:
        at = next(i for i, one in enumerate(index) if one is Ellipsis)
        index = (*index[:at], *[slice(None)] * (ndim - len(index) + 1), *index[at + 1 :])
    if len(index) > ndim:
        return None
    return [*index, *[slice(None)] * (ndim - len(index))]


def _positions(logits: LazyLogits, index: Any) -> list[int] | int | None:
    """Which positions an index picks: one, a list, or None where it cannot be told."""
    places = list(range(logits._length)) if logits._at is None else logits._at
    assert isinstance(places, list)
    if isinstance(index, int):
        return places[index]
    if isinstance(index, slice):
        return places[index]
    if isinstance(index, list | Tensor):
        ids = torch.as_tensor(index)
        if ids.dtype == torch.long and ids.ndim <= 1:
            return [places[one] for one in ids.flatten().tolist()]
    return None


def _everything(index: Any) -> bool:
    return isinstance(index, slice) and index == slice(None)
