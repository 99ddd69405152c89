"""Where edits take their numbers from: a tensor, a store of activations, means over one, or its examples in another order.

All are site → tensor, and say of each site which run its numbers come from, where that is known (`origin_in`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import ShapeError
from cutaway.model.origins import Kept, Origin, Passed, made_from
from cutaway.numbers_given import index
from cutaway.runs.random_numbers import cycle

Values = Tensor | Mapping[str, Tensor]
Index = tuple[slice | Tensor, ...]


def values_of(cache: Any) -> Values:
    """The tensor, or the mapping of full site names, in whatever was given."""
    if isinstance(cache, Tensor):
        return cache
    store: Any = getattr(cache, "cache_dict", cache)
    if not isinstance(store, Mapping):
        raise ShapeError(f"an edit takes a tensor or a cache of site → tensor, not {type(cache).__name__}")
    if getattr(cache, "has_batch_dim", True):
        return store
    return made_from(store, lambda tensor: tensor.unsqueeze(0))


def origin_in(values: Values | None, site: str) -> Origin | None:
    """The run that an entry of a store, or what was derived from one, comes from; None: that is not known."""
    return values.origin_of(site) if isinstance(values, Kept | DerivedValues) else None


def passed_in(values: Any) -> Passed | None:
    """The run that all these values passed in, and which of its tokens they are of; None: that is not known."""
    return values.passed if isinstance(values, Kept | DerivedValues) else None


def mean_axes(site: str, over: Sequence[str]) -> list[int]:
    """Which axes of a site a mean is taken over; the position of patterns and scores is that of the destination."""
    by_head = site.endswith(("hook_pattern", "hook_attn_scores"))
    return [{"batch": 0, "pos": 2 if by_head else 1}[axis] for axis in over]


def mean_over(x: Tensor, site: str, over: Sequence[str], real: Tensor | None = None) -> Tensor:
    """The mean of a site over axes, which stay with one entry; padding (where `real` is false) does not count."""
    total, weight = summed_over(x, site, over, real)
    return total / weight


def summed_over(x: Tensor, site: str, over: Sequence[str], real: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sum over the real tokens, and how many there are (1 where there are none, so that a mean of nothing is 0)."""
    axes, x = mean_axes(site, over), x if x.is_floating_point() else x.float()
    if real is None:
        return x.sum(axes, keepdim=True), x.new_tensor(math.prod(x.shape[axis] for axis in axes))
    place = mean_axes(site, ["pos"])[0]
    kept = real.to(x.device).bool().reshape([len(x), *(x.shape[axis] if axis == place else 1 for axis in range(1, x.ndim))])
    return x.masked_fill(~kept, 0).sum(axes, keepdim=True), kept.sum(axes, keepdim=True).clamp(min=1)


class DerivedValues(Mapping[str, Tensor]):
    """Tensors made from others when they are first asked for."""

    def __init__(self, values: Values):
        self.values_ = values
        self.made: dict[str, tuple[Tensor, Origin | None]] = {}

    @abstractmethod
    def derive(self, site: str, tensor: Tensor) -> Tensor:
        """The tensor that stands for a site's."""

    @property
    def passed(self) -> Passed | None:
        """The run that the tensors are of; `real` says of which tokens their positions are."""
        return passed_in(self.values_)

    @abstractmethod
    def derived(self, origin: Origin, tensor: Tensor) -> Origin | None:
        """The origin of what stands for a site's tensor."""

    def _made(self, site: str) -> tuple[Tensor, Origin | None]:
        if site not in self.made:
            source = self.values_ if isinstance(self.values_, Tensor) else self.values_[site]
            origin = origin_in(self.values_, site)
            self.made[site] = self.derive(site, source), None if origin is None else self.derived(origin, source)
        return self.made[site]

    def __getitem__(self, site: str) -> Tensor:
        return self._made(site)[0]

    def origin_of(self, site: str) -> Origin | None:
        """Where these numbers come from; None: that is not known."""
        return self._made(site)[1]

    def __contains__(self, site: object) -> bool:
        return isinstance(self.values_, Tensor) or site in self.values_

    def __iter__(self) -> Any:
        return iter(() if isinstance(self.values_, Tensor) else self.values_)

    def __len__(self) -> int:
        return 0 if isinstance(self.values_, Tensor) else len(self.values_)


class AveragedValues(DerivedValues):
    """Means over examples or positions. Padding does not count: where `real` is None, what the run that passed says is real."""

    def __init__(self, values: Values, over: tuple[str, ...], real: Tensor | None = None):
        super().__init__(values)
        known = passed_in(values)
        self.over, self.real = over, real if real is not None or known is None else known.real

    def derive(self, site: str, tensor: Tensor) -> Tensor:
        wanted = len(tensor), tensor.shape[mean_axes(site, ["pos"])[0]]
        if self.real is not None and tuple(self.real.shape) != wanted:
            raise ShapeError(f"the mask of a mean is {tuple(self.real.shape)}, and {site!r} has {wanted} examples and positions")
        return mean_over(tensor, site, self.over, self.real)

    @property
    def passed(self) -> Passed | None:
        known = passed_in(self.values_)
        return None if known is None else replace(known, real=None)

    def derived(self, origin: Origin, tensor: Tensor) -> Origin | None:
        return origin.mean() if self.over == ("batch",) and self.real is None else None


class ReorderedValues(DerivedValues):
    def __init__(self, values: Values, seed: int, order: Tensor | None):
        super().__init__(values)
        self.seed, self.order = seed, order

    def derive(self, site: str, tensor: Tensor) -> Tensor:
        return tensor[self._order(tensor).to(tensor.device)]

    @property
    def passed(self) -> Passed | None:
        known = passed_in(self.values_)
        return known if known is None or known.real is None else replace(known, real=self.derive("", known.real))

    def derived(self, origin: Origin, tensor: Tensor) -> Origin | None:
        order = self._order(tensor)
        return origin.rows(lambda x: x[order.to(x.device)])

    def _order(self, tensor: Tensor) -> Tensor:
        return cycle(len(tensor), self.seed) if self.order is None else self.order


def finite_numbers(given: Any, what: str, *, finite: bool = True) -> Tensor:
    """A tensor of floating-point numbers, from one of these or of whole numbers.

    Raises:
        ShapeError: bools, texts or anything else; NaN or infinities.
    """
    try:
        value = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise ShapeError(f"{what} is made of numbers, not {given!r}") from None
    if value.dtype == torch.bool or value.is_complex():
        raise ShapeError(f"{what} is made of numbers, not {value.dtype}")
    value = value if value.is_floating_point() else value.float()
    if finite and not bool(value.isfinite().all()):
        raise ShapeError(f"{what} is not finite: it holds NaN or infinities")
    return value


def other_examples(order: Any, values: Values) -> Tensor:
    """For each example the one whose activations it gets.

    Raises:
        ShapeError: no such list, or an example would get its own.
    """
    size, order = len(values if isinstance(values, Tensor) else next(iter(values.values()))), torch.as_tensor(order)
    listed = [index(one, size, "example") for one in order.tolist()] if order.ndim == 1 else []
    if len(listed) != size or any(one == own for own, one in enumerate(listed)):
        raise ShapeError(
            f"an order names for each of {size} examples another one, whose activations it gets, not {order.tolist()}"
        )
    return order


def index_of(chosen: Sequence[tuple[int, ...] | None], sizes: Sequence[int]) -> Index:
    """An index that takes the product of the chosen entries; slices where they are neighbours, so that views suffice."""
    parts: list[slice | Tensor] = []
    for numbers in chosen:
        if numbers is None:
            parts.append(slice(None))
        elif numbers and numbers == tuple(range(numbers[0], numbers[0] + len(numbers))):
            parts.append(slice(numbers[0], numbers[-1] + 1))
        else:
            parts.append(torch.tensor(numbers, dtype=torch.long))
    lists = [isinstance(part, Tensor) for part in parts]
    if sum(lists) < 2:
        return tuple(parts)
    first, last = lists.index(True), len(lists) - 1 - lists[::-1].index(True)
    for axis in range(first, last + 1):
        part = parts[axis]
        full = part if isinstance(part, Tensor) else torch.arange(sizes[axis])[part]
        parts[axis] = full.reshape([-1 if other == axis else 1 for other in range(first, last + 1)])
    return tuple(parts)
