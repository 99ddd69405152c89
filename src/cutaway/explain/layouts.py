"""Proposals for inputs of one layout: what stands at the place that belongs to the query's, and sums of two numbers with carries.

Which place belongs to which is read from the examples: separators are the places whose token never changes, numbers the runs
between them. A digit of a sum needs the carry: 1 where the nearest less significant pair that is not nine sums up to more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.explain.mechanisms import CHOICE, Proposal, Setting
from cutaway.explain.subject import InputSet, Subject
from cutaway.programs.language import Attend, Line, Map, Selector, Term

ALWAYS = 0.99  # of the examples
LATEST, EARLIEST = Term("largest", "positions"), Term("smallest", "positions")
Places = Mapping[int, Sequence[int]]


@dataclass(frozen=True, eq=False)
class Layout:
    """Inputs of one length.

    Args:
        answered: the places of the answers, ascending.
        runs: before the first answer, the places between separators: first and one past the last.
    """

    tokens: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch pos"]
    answered: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, part: InputSet) -> Layout | None:
        """The layout of inputs that have one length and answers at the same places."""
        counted: Bool[Tensor, "batch pos"] = part.counted
        if len(part.prompts.lengths.unique()) > 1 or not bool((counted == counted[0]).all()):
            return None
        answered = counted[0].nonzero().flatten().tolist()
        tokens = part.prompts.tokens
        varies = [bool((column != column[0]).any()) for column in tokens.T[: answered[0] + 1]]
        edges = [at for at in range(len(varies) + 1) if (at < len(varies) and varies[at]) != (at > 0 and varies[at - 1])]
        return cls(tokens, part.answers, tuple(answered), tuple(zip(edges[::2], edges[1::2], strict=True)))

    @property
    def said(self) -> tuple[int, ...]:
        """The places of the answers without the last one where it is always the same: a token that ends every input."""
        ends = len(self.answers[:, self.answered[-1]].unique()) == 1
        return self.answered[:-1] if ends else self.answered


def layout_proposals(subject: Subject, setting: Setting, part: InputSet) -> list[Proposal]:
    """Proposals for these inputs; none where they have several layouts, or answers are sets."""
    layout = None if subject.several else Layout.of(part)
    if layout is None:
        return []
    return [*placed(layout, setting), *carried(layout, setting)]


def looking(places: Places, setting: Setting, order: Term = LATEST, *more: Term) -> Selector:
    """A selector of the keys at these places of each query; of several by `more` terms, then by order."""
    table = tuple(tuple(float(key in places.get(query, ())) for key in range(setting.n_ctx)) for query in range(setting.n_ctx))
    return Selector((Term("table", "positions", "positions", table=table), *more, order))


def placed(layout: Layout, setting: Setting) -> Iterator[Proposal]:
    """The token at the place that holds the answer, one for each query's place."""
    if len(layout.answered) < 2:
        return
    found: dict[int, list[int]] = {}
    for query in layout.answered:
        last = query + 1 if setting.causal else layout.tokens.shape[1]
        same = (layout.tokens[:, :last] == layout.answers[:, query : query + 1]).double().mean(0) >= ALWAYS
        varied = len(layout.answers[:, query].unique()) > 1
        if varied and bool(same.any()):
            found[query] = same.nonzero().flatten().tolist()
    if len(found) < 2:
        return
    back = set.intersection(*({query - key for key in keys} for query, keys in found.items()))
    mirrors = set.intersection(*({query + key for key in keys} for query, keys in found.items()))
    cost = math.log2(setting.longest)
    if back and min(back) >= 0:
        chosen = Selector((Term("offset", constant=min(back)),))
        yield Proposal((Attend("placed", chosen, "tokens"),), 2 * CHOICE + cost, answers=True)
    elif mirrors:
        chosen = Selector((Term("mirror", constant=min(mirrors)), LATEST))
        yield Proposal((Attend("placed", chosen, "tokens"),), 2 * CHOICE + cost + 1, answers=True)
    else:
        places = {query: keys[-1:] for query, keys in found.items()}
        yield Proposal((Attend("placed", looking(places, setting), "tokens"),), 2 * CHOICE + cost * len(found), answers=True)


@dataclass(frozen=True)
class Columns:
    """How a digit of a result comes from the pair of digits in its column and what the column below passes on.

    Args:
        code: digits above and below → the number of the pair; `codes` how many there are.
        passes: number of a pair → what it passes on: 1, 0, or 2: as the pair below does.
        digit: number of a pair, whether the one below passes on → the digit.
    """

    name: str
    code: Callable[[int, int], int]
    codes: int
    passes: Callable[[int], int]
    digit: Callable[[int, int], int]


def columns(base: int) -> list[Columns]:
    """Sums with their carries, and differences with what they borrow."""
    nine = base - 1
    return [
        Columns("", lambda a, b: a + b, 2 * base - 1, lambda sum_: 2 if sum_ == nine else int(sum_ > nine),
                lambda sum_, one: (sum_ + one) % base),
        Columns("difference_", lambda a, b: a - b + nine, 2 * base - 1, lambda code: 2 if code == nine else int(code < nine),
                lambda code, one: (code - nine - one) % base),
    ]  # fmt: skip


def carried(layout: Layout, setting: Setting) -> Iterator[Proposal]:
    """Digits of the sum or difference of two numbers: the pair of digits at the query's place, with the carry into it."""
    if len(layout.runs) != 2 or not setting.causal:
        return
    (first, end), (second, last) = layout.runs
    base = int(layout.tokens[:, [*range(first, end), *range(second, last)]].max()) + 1
    said = layout.said
    count, answers = end - first, len(said)
    contiguous = 2 <= base <= 16 and said == tuple(range(layout.answered[0], layout.answered[0] + answers))
    if last - second != count or count < 2 or answers not in (count, count + 1) or not contiguous or second == end:
        return
    separator, query = second - 1, layout.answered[0]
    for kind, (name, ascending) in itertools.product(columns(base), (("ending", False), ("beginning", True))):
        pair, name = _pairs(kind, second - first, base, setting), kind.name + name  # where the least significant digit is
        here: dict[int, list[int]] = {}
        lower: dict[int, list[int]] = {}
        for number in range(answers):
            index = number if ascending else number - (answers - count)
            inside = 0 <= index < count
            here[query + number] = [second + index] if inside else [separator]
            below = range(second, second + index) if ascending else range(second + index + 1, last)
            lower[query + number] = [*below, separator if ascending else query]
        order = LATEST if ascending else EARLIEST
        decided = Term("among", pair[-1].name, values=(0, 1))
        carry = Attend(f"carry_{name}", looking(lower, setting, order, decided), pair[-1].name)
        at = Attend(f"pair_{name}", looking(here, setting), pair[-2].name)
        table = tuple(kind.digit(code, int(carries == 1)) for code in range(kind.codes) for carries in range(3))
        made = Map(f"digit_{name}", (at.name, carry.name), table, base)
        bits = 8 * CHOICE + 2 * math.log2(setting.longest) + math.log2(base)
        yield Proposal((*pair, carry, at, made), bits, answers=True)
        raw = tuple(kind.digit(code, 0) for code in range(kind.codes))
        yield Proposal((*pair[:-1], at, Map(f"{at.name}_alone", (at.name,), raw, base)), bits - CHOICE, answers=True)


def _pairs(kind: Columns, back: int, base: int, setting: Setting) -> tuple[Line, ...]:
    """The number of each digit's pair with the one `back` places before, and what it passes on; of other tokens as of 0 and 0."""
    digits = range(setting.d_vocab)
    both = [(a, b) if a < base and b < base else (0, 0) for b in digits for a in digits]
    above = Attend("above", Selector((Term("offset", constant=back),)), "tokens")
    pair = Map(f"{kind.name}pair", ("tokens", "above"), tuple(kind.code(a, b) for a, b in both), kind.codes)
    table = tuple(kind.passes(code) for code in range(kind.codes))
    return above, pair, Map(f"{kind.name}decided", (pair.name,), table, 3)
