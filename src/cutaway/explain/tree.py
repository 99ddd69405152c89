"""Decision trees over proposed variables: tests choose a leaf, and a leaf answers a constant or a variable's own value.

The tree grows where it answers wrongly, one test at a time, each time the test (with its leaves) that saves the most bits:
what is left over costs `log2` of the choices for each wrong answer, what is said costs its description.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.explain.mechanisms import Proposal

DEEPEST = 3  # more tests than that are a story about noise
MOST_VALUES = 12  # values of a code that are tried as tests, the most frequent first
SAMPLE = 4000  # items on which tests are compared
MOST_EDGES = 24  # thresholds of a number that are tried


@dataclass(frozen=True)
class Leaf:
    """An answer: a constant, or the value of a variable."""

    constant: int | None = None
    variable: Proposal | None = None
    bits: float = 0.0

    def answers(self, columns: dict[str, Tensor], count: int) -> Int[Tensor, "item"]:
        """The answer for each item."""
        if self.variable is not None:
            return columns[self.variable.name]
        assert self.constant is not None
        return torch.full((count,), self.constant)


@dataclass(frozen=True)
class Test:
    """A question: does a code have this value, or does a number reach this edge? `gap` is how far from it numbers keep."""

    variable: Proposal
    value: float
    gap: float = 0.0
    bits: float = 0.0

    def holds(self, columns: dict[str, Tensor]) -> Bool[Tensor, "*item"]:
        """Whether it holds for each item."""
        column = columns[self.variable.name]
        return column >= self.value if self.variable.numeric else column == int(self.value)


@dataclass(frozen=True)
class Split:
    """A test, and what is answered where it holds and where it does not."""

    test: Test
    yes: Tree
    no: Tree


Tree = Leaf | Split


def tree_bits(tree: Tree, seen: frozenset[str] = frozenset()) -> float:
    """The description length of a tree; a variable that is used twice is described once."""
    return _bits(tree, set())


def _bits(tree: Tree, known: set[str]) -> float:
    def variable(one: Proposal | None) -> float:
        if one is None:
            return 0.0
        new = one.name not in known
        known.add(one.name)
        return one.bits if new else 2.0

    if isinstance(tree, Leaf):
        return tree.bits + variable(tree.variable)
    return tree.test.bits + variable(tree.test.variable) + _bits(tree.yes, known) + _bits(tree.no, known)


def answers(tree: Tree, columns: dict[str, Tensor], count: int) -> Int[Tensor, "item"]:
    """What a tree answers to each item."""
    if isinstance(tree, Leaf):
        return tree.answers(columns, count)
    return torch.where(tree.test.holds(columns), answers(tree.yes, columns, count), answers(tree.no, columns, count))


def leaves(tree: Tree) -> list[Leaf]:
    """The leaves, from left to right."""
    return [tree] if isinstance(tree, Leaf) else [*leaves(tree.yes), *leaves(tree.no)]


def tests(tree: Tree) -> list[Test]:
    """The tests, from the root down."""
    return [] if isinstance(tree, Leaf) else [tree.test, *tests(tree.yes), *tests(tree.no)]


class Grower:
    """Fits trees to answers.

    Args:
        proposals: the variables, with `columns[name]` their values at each item.
        target: the answers, `[item]`.
        sets: how many answers there are.
    """

    def __init__(self, proposals: list[Proposal], columns: dict[str, Tensor], target: Int[Tensor, "item"], sets: int) -> None:
        self.columns, self.target, self.sets = columns, target, sets
        self.proposals = proposals
        self.sources = [one for one in proposals if one.answers and not one.numeric]
        self.per_error = math.log2(max(sets, 2)) + math.log2(max(len(target), 2))
        self.tests = [test for one in proposals for test in self._tests(one)]
        # What every leaf could answer, one row each: variables, then the constants that are answers at all.
        self.constants = target.unique().tolist()
        rows = [columns[one.name] == target for one in self.sources] + [target == constant for constant in self.constants]
        self.hits: Float[Tensor, "leaf item"] = torch.stack(rows).float()
        self.leaves = [Leaf(variable=one, bits=3.0) for one in self.sources]
        self.leaves += [Leaf(constant, bits=math.log2(max(sets, 2))) for constant in self.constants]
        self.costs = torch.tensor([tree_bits(leaf) for leaf in self.leaves])
        self.holds = (
            torch.stack([test.holds(columns) for test in self.tests]) if self.tests else torch.zeros(0, len(target)).bool()
        )
        # A variable that the test reads already costs little to read again.
        names = [None if leaf.variable is None else leaf.variable.name for leaf in self.leaves]
        again = torch.tensor([[name == test.variable.name for test in self.tests] for name in names])
        self.answer_bits = torch.where(again, torch.tensor(5.0), self.costs[:, None]) if self.tests else self.costs[:, None]
        self.test_bits = torch.tensor([test.bits + test.variable.bits for test in self.tests])

    def grow(self) -> Tree:
        """The tree."""
        self.generator = torch.Generator().manual_seed(0)
        return self._grow(torch.arange(len(self.target)), DEEPEST)

    def price(self, tree: Tree) -> float:
        """Bits of a tree and of the answers that it gets wrong."""
        return tree_bits(tree) + self.per_error * self.wrong(tree)

    def wrong(self, tree: Tree) -> int:
        """How many answers a tree gets wrong."""
        return int((answers(tree, self.columns, len(self.target)) != self.target).sum())

    def _tests(self, one: Proposal) -> list[Test]:
        """The tests of one variable that are worth trying."""
        values, counts = self.columns[one.name].unique(return_counts=True)
        if len(values) < 2:
            return []
        if one.numeric:
            middles = (values[1:] + values[:-1]) / 2
            gaps = (values[1:] - values[:-1]) / 2
            kept = torch.linspace(0, len(middles) - 1, min(MOST_EDGES, len(middles))).round().long().unique()
            if len(middles) > MOST_EDGES:  # thresholds near zero matter most to differences
                kept = torch.cat([kept, middles.abs().argsort()[:6]]).unique()
            bits = 2.0 + math.log2(len(middles) + 1)
            return [Test(one, float(middles[i]), float(gaps[i]), bits) for i in kept.tolist()]
        if len(values) == 2:
            return [Test(one, float(values[1]), bits=1.0)]
        frequent = values[counts.argsort(descending=True)[:MOST_VALUES]]
        rare = values[-4:]  # separators tend to have the largest numbers
        return [
            Test(one, float(value), bits=math.log2(len(values)) + 1) for value in torch.cat([frequent, rare]).unique().tolist()
        ]

    def leaf(self, items: Int[Tensor, "some"]) -> tuple[Leaf, int]:
        """The best answer for some items, and how many of them it gets wrong."""
        missed = len(items) - self.hits[:, items].sum(1)
        best = int((missed * self.per_error + self.costs).argmin())
        return self.leaves[best], int(missed[best])

    def _grow(self, items: Int[Tensor, "some"], depth: int) -> Tree:
        leaf, wrong = self.leaf(items)
        if not wrong or not depth or len(items) < 4 or not self.tests:
            return leaf
        now = wrong * self.per_error + tree_bits(leaf)
        sample = items if len(items) <= SAMPLE else items[torch.randperm(len(items), generator=self.generator)[:SAMPLE]]
        hits, sampled = self.hits[:, sample], self.holds[:, sample].float()
        inside = sampled.sum(1)
        yes = hits @ sampled.T  # [leaf, test]: right answers of each leaf where each test holds
        no = hits.sum(1, keepdim=True) - yes
        scale = self.per_error * len(items) / len(sample)
        price = self.test_bits + sum(
            ((count - right) * scale + self.answer_bits).amin(0) for count, right in ((inside, yes), (len(sample) - inside, no))
        )
        price = price.masked_fill((inside == 0) | (inside == len(sample)), torch.inf)
        best = int(price.argmin())
        if float(price[best]) >= now:
            return leaf
        holds = self.holds[best, items]
        return Split(self.tests[best], self._grow(items[holds], depth - 1), self._grow(items[~holds], depth - 1))


def pruned(tree: Tree) -> Tree:
    """The tree without splits whose sides answer the same."""
    if isinstance(tree, Leaf):
        return tree
    yes, no = pruned(tree.yes), pruned(tree.no)
    if isinstance(yes, Leaf) and isinstance(no, Leaf) and (yes.constant, yes.variable) == (no.constant, no.variable):
        return yes
    return replace(tree, yes=yes, no=no)
