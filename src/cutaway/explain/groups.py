"""Groups from tables of products, and their irreducible representations as real orthogonal matrices.

A table need not be a group's own: `a - b`, `a b^-1` or `2 a + 3 b` are products of relabelled elements, `left[a] ∘ right[b]`
(an isotope; all loops isotopic to a group are that group, Albert 1943).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOLERANCE = 1e-6

Elements = Int[Tensor, "element"]


@dataclass(frozen=True, eq=False)
class Representation:
    """An irreducible representation.

    Args:
        name: of cyclic groups the frequency k of w = 2πk/n, else its dimension and a letter.
        matrices: one real orthogonal matrix for each element.
    """

    name: str
    matrices: Float[Tensor, "element d d"]

    @property
    def characters(self) -> Float[Tensor, "element"]:
        """The traces, constant on classes of conjugate elements."""
        return self.matrices.diagonal(dim1=1, dim2=2).sum(-1)


@dataclass(frozen=True, eq=False)
class FiniteGroup:
    """A group whose elements are numbers from 0.

    Args:
        products: `[x, y]` is x ∘ y.
        identity: the element that changes nothing.
    """

    products: Int[Tensor, "element element"]
    identity: int

    @property
    def size(self) -> int:
        """How many elements there are."""
        return len(self.products)

    @cached_property
    def inverses(self) -> Elements:
        """The inverse of each element."""
        return (self.products == self.identity).long().argmax(1)

    @cached_property
    def quotients(self) -> Int[Tensor, "element element"]:
        """`[x, y]` is the inverse of x, times y."""
        return self.products[self.inverses]

    @cached_property
    def exponents(self) -> Elements | None:
        """Of a cyclic group, each element's power of a generator (the number after the identity, where it is one)."""
        for generator in [(self.identity + 1) % self.size, *range(self.size)]:
            powers = [self.identity]
            while len(powers) < self.size and (following := int(self.products[powers[-1], generator])) != self.identity:
                powers.append(following)
            if len(powers) == self.size:
                return torch.tensor(powers).argsort()
        return None

    @cached_property
    def representations(self) -> list[Representation]:
        """The real irreducible representations but the trivial one."""
        return _waves(self.exponents) if self.exponents is not None else _irreducible(self)

    def projector(self, one: Representation) -> Float[Tensor, "element element"]:
        """Onto the functions of an element that an irreducible representation's entries span."""
        kernel = one.characters[self.quotients]
        return kernel / ((kernel[0] @ kernel[:, 0]) / kernel[0, 0])


def group_of(table: Int[Tensor, "a b"]) -> tuple[FiniteGroup, Elements, Elements] | None:
    """The group, `left` and `right` with `table[a, b]` = left[a] ∘ right[b]; None where there are none."""
    size = len(table)
    every = torch.arange(size)
    if not (torch.equal(table.sort(0).values, every[:, None].expand(size, size)) and _is_latin(table, every)):
        return None
    of_left, of_right = (table == every).all(1).nonzero(), (table == every[:, None]).all(0).nonzero()
    u, v = (int(found[0]) if len(found) else 0 for found in (of_left, of_right))
    left, right = table[:, v], table[u]
    products = table[left.argsort()][:, right.argsort()]
    for x in range(size):  # (x y) z = x (y z)
        if not torch.equal(products[products[x]], products[x][products]):
            return None
    return FiniteGroup(products, int(table[u, v])), left, right


def _is_latin(table: Int[Tensor, "a b"], every: Elements) -> bool:
    return torch.equal(table.sort(1).values, every.expand(len(table), -1))


def _waves(exponents: Elements) -> list[Representation]:
    """Rotations by w = 2πk/n for every frequency k; where n is even, the last is a change of sign."""
    n = len(exponents)
    found = []
    for k in range(1, n // 2 + 1):
        angles = exponents.double() * (2 * math.pi * k / n)
        cos, sin = angles.cos(), angles.sin()
        matrices = cos[:, None, None] if 2 * k == n else torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
        found.append(Representation(str(k), matrices))
    return found


def _irreducible(group: FiniteGroup) -> list[Representation]:
    """From the eigenspaces of a random symmetric matrix that commutes with all left translations: each holds one of them."""
    dice = torch.Generator().manual_seed(0)
    weights = torch.rand(group.size, generator=dice, dtype=torch.float64)
    weights = weights + weights[group.inverses]
    levels, vectors = torch.linalg.eigh(weights[group.quotients])
    ends = ((levels[1:] - levels[:-1]) > TOLERANCE * group.size).nonzero().flatten() + 1
    found: list[Representation] = []
    for space in vectors.tensor_split(ends.tolist(), dim=1):
        translated = space[group.quotients]  # [g, h]: the row of the inverse of g, times h
        matrices = torch.einsum("hi,ghj->gij", space, translated)
        one = Representation("", matrices)
        trivial = bool((one.characters - one.characters[group.identity]).abs().max() < TOLERANCE)
        if not trivial and all(float((one.characters - other.characters).abs().max()) > TOLERANCE for other in found):
            found.append(one)
    found.sort(key=lambda one: one.matrices.shape[1])
    sizes = [one.matrices.shape[1] for one in found]
    letters = [sizes[:at].count(size) for at, size in enumerate(sizes)]
    return [
        Representation(f"{size}{chr(97 + letter)}", one.matrices) for one, size, letter in zip(found, sizes, letters, strict=True)
    ]
