"""Which few variables determine a target, and the table that says how.

All single variables are tried, then pairs, then more on top of the best pairs; the shortest description wins. Numbers count by
thresholds: neighbouring values are one as long as the target does not tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.explain.mechanisms import CHOICE, Proposal
from cutaway.programs.language import Bucket, Line, Map

BEST = 16  # variables, and sets of variables, that more are added to
MOST = 4  # variables together
LARGEST_TABLE = 2**14
EDGE_BITS = 8.0
MOST_EDGES = 64
FEW = 4  # items for each entry of a table, at the least
PAIRED = 160  # short variables of which every pair is tried
SHORT = 100.0  # bits
SAMPLE = 1000  # items on which sets are compared
BINS = 64  # of a number, while sets are compared
DENSE = 4  # cells for each item, at most, for counting in an array rather than by sorting
ROUGHLY = 0.1  # of the items may be wrong within bins


@dataclass(frozen=True, eq=False)
class Determined:
    """Variables whose joint values determine a target.

    Args:
        sizes: how many values each has, after thresholds.
        edges: thresholds of those that are numbers, with the distance that values keep from them.
        table: joint value → target; `bits` of everything.
    """

    variables: tuple[Proposal, ...]
    sizes: tuple[int, ...]
    edges: dict[str, tuple[tuple[float, ...], float]]
    table: dict[int, int]
    bits: float

    def proposal(self, name: str, size: int, *, itself: bool = True) -> Proposal:
        """The target as a variable: thresholds, then a table; or, with `itself`, a variable that is the target."""
        lines: dict[str, Line] = {line.name: line for one in self.variables for line in one.lines}
        inputs = []
        for one in self.variables:
            if one.name in self.edges:
                edges, gap = self.edges[one.name]
                bucket = Bucket(f"{name}_{one.name}_steps", one.name, edges, gap)
                lines[bucket.name] = bucket
                inputs.append(bucket.name)
            else:
                inputs.append(one.name)
        common = max(set(self.table.values()), key=list(self.table.values()).count)
        table = tuple(self.table.get(code, common) for code in range(math.prod(self.sizes)))
        first, same = self.variables[0], all(code == value for code, value in self.table.items())
        if itself and same and len(inputs) == 1 and self.sizes[0] <= size and first.name not in (*self.edges, "positions"):
            return first
        return Proposal((*lines.values(), Map(name, tuple(inputs), table, size)), self.bits, answers=True)


def determine(
    target: Int[Tensor, "item"], bank: Sequence[Proposal], columns: dict[str, Tensor], sizes: dict[str, int]
) -> Determined | None:
    """The shortest set of at most four variables of the bank that determines the target; None where none does."""
    codes = {one.name: coarse(columns[one.name]) if one.numeric else columns[one.name] for one in bank}
    rough = {one.name for one in bank if one.numeric and len(columns[one.name].unique()) > BINS}
    by_name = {one.name: one for one in bank}
    names = list(codes)
    step = max(1, len(target) // SAMPLE)  # sets are tried on a sample, and only those that pass on everything
    grid, answers = torch.stack([codes[name][::step] for name in names]), target[::step]
    short = sorted((name for name in names if name not in rough), key=lambda name: by_name[name].bits)[:PAIRED]

    def length(one: tuple[str, ...]) -> float:
        return sum(by_name[name].bits for name in one) + tried[one][1]

    def grown(sets: list[tuple[str, ...]], by: list[str]) -> dict[tuple[str, ...], tuple[int, int]]:
        rows, tried = grid[[names.index(name) for name in by]], {}
        for one in sets:
            joint = _numbered(grid, [names.index(name) for name in one])
            for name, wrong in zip(by, _missed(rows, joint, answers), strict=True):
                if name not in one:
                    tried[tuple(sorted((*one, name)))] = wrong
        return tried

    sets: list[tuple[str, ...]] = [()]
    best: Determined | None = None
    for count in range(MOST):
        tried = grown(sets, names)
        if count == 1:  # two that say nothing alone, as parities do
            tried = grown([(name,) for name in short], short) | tried
        order = sorted(tried, key=lambda one: (tried[one][0], length(one)))
        # Numbers are tried as coarse codes, so a set with one of them may miss a few items and be exact all the same.
        exact = [one for one in order if tried[one][0] <= ROUGHLY * len(answers) * any(name in rough for name in one)]
        made = [found for one in exact[:BEST] if (found := _made(one, target, by_name, columns, codes, sizes)) is not None]
        best = min([*made, *([best] if best else [])], key=lambda one: one.bits, default=None)
        if best is not None and (best.bits < SHORT or len(best.variables) <= count):
            return best  # a long description by few variables may have a shorter one by one more
        sets = order[: BEST // (1 + count)]  # fewer of the larger ones: each has as many extensions as there are variables
    return best


def _numbered(grid: Int[Tensor, "variable item"], rows: list[int]) -> Int[Tensor, "item"] | None:
    """The joint values of some variables, numbered; None of no variable."""
    joint: Tensor | None = None
    for row in rows:
        both = grid[row] if joint is None else joint * (int(grid[row].max()) + 1) + grid[row]
        joint = torch.unique(both, return_inverse=True)[1]
    return joint


def _missed(grid: Tensor, joint: Tensor | None, target: Tensor) -> list[tuple[int, int]]:
    """For each variable, `[variable, item]`: how many items are not the most frequent target of their joint value with it, and
    how many joint values there are."""
    variables, items = grid.shape
    joint = torch.zeros_like(target) if joint is None else joint
    widths, others, width = grid.amax(1) + 1, int(joint.max()) + 1, int(target.max()) + 1
    starts = widths.cumsum(0) - widths
    cell = (starts[:, None] + grid) * others + joint
    of_variable = torch.arange(variables).repeat_interleave(widths)  # of each value of a variable
    size = len(of_variable) * others
    if size * width <= DENSE * grid.numel():
        counts = (cell * width + target).flatten().bincount(minlength=size * width).view(size, width)
        best = counts.amax(1)
        there, of = (best > 0).long(), of_variable.repeat_interleave(others)
    else:
        pairs, count = torch.unique(cell * width + target, return_counts=True)  # sorted: one cell's targets stand together
        cells, inverse = torch.unique_consecutive(torch.div(pairs, width, rounding_mode="floor"), return_inverse=True)
        best = torch.zeros_like(cells).scatter_reduce(0, inverse, count, "amax")
        there, of = torch.ones_like(cells), of_variable[torch.div(cells, others, rounding_mode="floor")]
    nothing = torch.zeros(variables, dtype=torch.long)
    wrong, values = items - nothing.index_add(0, of, best), nothing.index_add(0, of, there)
    return list(zip(wrong.tolist(), values.tolist(), strict=True))


def coarse(numbers: Float[Tensor, "item"]) -> Int[Tensor, "item"]:
    """Numbers as codes: each its own where there are few, else by quantiles."""
    values, rank = numbers.unique(return_inverse=True)
    return rank if len(values) <= BINS else rank * BINS // len(values)


def _joint(names: Sequence[str], codes: dict[str, Tensor], widths: dict[str, int]) -> Int[Tensor, "item"]:
    joint = torch.zeros_like(next(iter(codes.values())))
    for name in names:
        joint = joint * widths[name] + codes[name]
    return joint


def _made(
    names: tuple[str, ...], target: Int[Tensor, "item"], by_name: dict[str, Proposal], columns: dict[str, Tensor],
    codes: dict[str, Tensor], sizes: dict[str, int],
) -> Determined | None:  # fmt: skip
    """The table over these variables; numbers become thresholds one after the other."""
    now, widths = dict(codes), {name: int(codes[name].max()) + 1 for name in names} | {n: sizes[n] for n in names if n in sizes}
    edges: dict[str, tuple[tuple[float, ...], float]] = {}
    bits = 0.0
    for name in names:
        if not by_name[name].numeric:
            continue
        others = _joint([one for one in names if one != name], now, widths) if len(names) > 1 else torch.zeros_like(target)
        found, gap = thresholds(columns[name], others, target)
        if not 0 < len(found) <= MOST_EDGES:
            return None
        now[name], widths[name] = (columns[name][:, None] >= torch.tensor(found, dtype=torch.float64)).sum(1), len(found) + 1
        edges[name] = (found, gap)
        bits += EDGE_BITS * len(found)
    if math.prod(widths[name] for name in names) > LARGEST_TABLE:
        return None
    joint = _joint(names, now, widths)
    pairs = torch.stack([joint, target], 1).unique(dim=0).tolist()
    table = dict(pairs)
    itself = len(names) == 1 and not edges and all(code == value for code, value in table.items())
    if len(table) != len(pairs) or (len(table) * FEW > len(target) and not itself):
        return None  # a table with an entry for every few items is a list of the items
    bits += CHOICE + sum(by_name[name].bits for name in names) + len(table) * math.log2(max(int(target.max()) + 1, 2))
    return Determined(tuple(by_name[name] for name in names), tuple(widths[name] for name in names), edges, table, bits)


def thresholds(
    numbers: Float[Tensor, "item"], others: Int[Tensor, "item"], target: Int[Tensor, "item"]
) -> tuple[tuple[float, ...], float]:
    """Edges between which the target is a function of the other variables, and how far values keep from them."""
    values, rank = numbers.unique(return_inverse=True)
    rows = torch.stack([rank, others, target], 1).unique(dim=0).tolist()
    edges: list[float] = []
    gaps: list[float] = []
    constants: dict[int, int] = {}
    at = 0
    while at < len(rows):
        here = rows[at][0]
        end = at
        while end < len(rows) and rows[end][0] == here:
            end += 1
        new = {other: answer for _, other, answer in rows[at:end]}
        if any(constants.get(other, answer) != answer for other, answer in new.items()):
            low, high = float(values[here - 1]), float(values[here])
            edges.append((low + high) / 2)
            gaps.append((high - low) / 2)
            constants = {}
        constants |= new
        at = end
    return tuple(edges), min(gaps, default=1.0)
