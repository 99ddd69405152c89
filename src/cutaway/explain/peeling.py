"""The last line of a program taken off its answers: what is left is a simpler target, which a table may determine.

A copy of what stands a few places before gives its source back by moving the answers; a count gives back where it grows; an
existence gives back where it first holds. What is left can have a last line of the same kinds, so it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.explain.determining import Determined
from cutaway.explain.mechanisms import CHOICE, Proposal
from cutaway.programs.language import Attend, Line, Selector, Term

DEEPEST = 2  # lines taken off, one after the other
FARTHEST = 3  # places that answers are moved
Determine = Callable[[Int[Tensor, "item"], Bool[Tensor, "batch pos"]], Determined | None]


@dataclass(frozen=True, eq=False)
class Target:
    """Codes at some places of the inputs.

    Args:
        where: the places at which they are known.
        size: how many values there are.
    """

    values: Int[Tensor, "batch pos"]
    where: Bool[Tensor, "batch pos"]
    size: int


def peeled(target: Target, determine: Determine, *, causal: bool, depth: int = 1) -> Iterator[Proposal]:
    """Proposals for a target whose last line can be taken off, and whose rest is determined by few variables."""
    for rest, last in (*_shifted(target), *(_counted(target) if causal else ())):
        for inner in _rest(rest, determine, causal, depth):
            line = last(f"{inner.name}_{depth}", inner.name)
            yield Proposal((*inner.lines, line), inner.bits + 2 * CHOICE, answers=True)


def _rest(rest: Target, determine: Determine, causal: bool, depth: int) -> Iterator[Proposal]:
    found = determine(rest.values[rest.where], rest.where)
    if found is not None:
        one = found.proposal(f"inner_{depth}", rest.size)
        if one.lines:
            yield one
    elif depth < DEEPEST:
        yield from peeled(rest, determine, causal=causal, depth=depth + 1)


Made = tuple[Target, Callable[[str, str], Line]]


def _shifted(target: Target) -> Iterator[Made]:
    """The answers moved to the places that they may have been copied from; the first place is copied where there is none."""
    for back in range(1, FARTHEST + 1):
        first = target.values[:, : back + 1]
        known = target.where[:, : back + 1]
        if target.values.shape[1] <= back or bool((known & known[:, -1:] & (first != first[:, -1:])).any()):
            continue
        values, where = torch.zeros_like(target.values), torch.zeros_like(target.where)
        values[:, :-back], where[:, :-back] = target.values[:, back:], target.where[:, back:]

        def shifted(name: str, of: str, back: int = back) -> Line:
            return Attend(f"moved_{name}", Selector((Term("offset", constant=back),)), of)

        yield Target(values, where, target.size), shifted


def _counted(target: Target) -> Iterator[Made]:
    """Where a count grows, or an existence begins; keys are counted after the first, and where they stand."""
    values, where = target.values, target.where.clone()
    grows = torch.zeros_like(values)
    grows[:, 1:] = values[:, 1:] - values[:, :-1]
    where[:, 1:] &= target.where[:, :-1]
    where[:, 0] = False
    begins = bool((values[:, 0] == 0)[target.where[:, 0]].all())
    steps = set(grows[where].unique().tolist())
    if not begins or not where.any() or steps != {0, 1}:
        return
    if int(values[target.where].max()) == 1:
        where[:, 1:] &= values[:, :-1] == 0
        how = "exists"
    else:
        how = "count"

    def made(name: str, of: str) -> Line:
        return Attend(f"{'any' if how == 'exists' else 'number'}_{name}", Selector((Term("among", of, values=(1,)),)), how=how)

    yield Target(grows, where, 2), made
