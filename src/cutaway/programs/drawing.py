"""Random programs: small ones of every kind, each of which compiles.

What is drawn is decided by the seed alone. The last line is read out, and most of what is drawn is used by it.
"""

from __future__ import annotations

import random
from math import prod

from cutaway.errors import ProgramError
from cutaway.numbers_given import options
from cutaway.programs import language as lang
from cutaway.programs.language import Attend, Bucket, Kind, Line, Map, Program, ReadOut, Selector, Term
from cutaway.programs.placing import place
from cutaway.programs.shipped import BOS, compared, letters

CODES = 40  # at most as many joint values of what a map reads


@options(seed=0, lines=1, size=1, n_ctx=2)
def draw(seed: int, *, lines: int | None = None, size: int = 3, n_ctx: int = 21, causal: bool | None = None) -> Program:
    """A random program.

    Args:
        lines: how many lines; None: one to four.
        size: how many tokens, beside the one that begins every input.
        causal: None: either.
    """
    dice = random.Random(seed)
    while True:
        program = _Drawing(dice, size, n_ctx, causal).program(seed, lines)
        try:
            place(program)
        except ProgramError:  # a count by what is unknown at the first position, or a very large table
            continue
        return program


class _Drawing:
    """A program as far as it is drawn."""

    def __init__(self, dice: random.Random, size: int, n_ctx: int, causal: bool | None):
        self.dice, self.n_ctx, self.size = dice, n_ctx, size
        self.causal = dice.random() < 0.6 if causal is None else causal
        self.kinds = {"tokens": Kind(size + 1), "positions": Kind(n_ctx)}
        self.lines: list[Line] = []

    def program(self, seed: int, count: int | None) -> Program:
        for number in range(count or self.dice.randint(1, 4)):
            line = self._line(f"made_{number + 1}")
            self.lines += line if isinstance(line, list) else [line]
        last = self.lines[-1].name
        return Program(
            f"random_{seed}", (BOS, *letters(self.size)), self.n_ctx, tuple(self.lines), self._read_out(last),
            _numbered(self.kinds[last].size), self.causal, 0, "drawn at random",
        )  # fmt: skip

    def _line(self, name: str) -> Line | list[Line]:
        draws = [self._copied, self._copied, self._counted, self._mapped, self._averaged]
        return self.dice.choice(draws)(name)

    def _codes(self, most: int = 99, *, fresh: bool = True) -> str:
        """A variable that holds codes; later ones are likelier."""
        names = [name for name, kind in self.kinds.items() if not kind.numeric and kind.size <= most]
        return names[-1] if fresh and self.dice.random() < 0.6 else self.dice.choice(names)

    def _criterion(self) -> Term:
        """A term that says yes or no."""
        kind = self.dice.choice(["offset", "same", "among", "table", "equal"])
        if kind == "offset":
            return lang.offset(self.dice.randint(1, 3))
        if kind == "table":
            name = self._codes(8)
            return lang.scores(name, self._relation(self.kinds[name].size), query=name)
        if kind == "among":
            name = self._codes()
            return lang.among(name, sorted(self.dice.sample(range(self.kinds[name].size), 1 + (self.kinds[name].size > 2))))
        query, key = self._codes(), self._codes()
        return lang.equal(query, key) if kind == "equal" else lang.same(query)

    def _relation(self, size: int) -> tuple[tuple[float, ...], ...]:
        if self.dice.random() < 0.5:
            return compared(size, lambda q, k: k < q)
        return tuple(tuple(float(self.dice.random() < 0.5) for _ in range(size)) for _ in range(size))

    def _selector(self) -> Selector:
        last = lang.latest() if self.dice.random() < 0.5 else lang.earliest()
        if self.dice.random() < 0.3:
            return lang.hard(lang.offset(self.dice.randint(1, 3)))
        if self.dice.random() < 0.2:
            return lang.hard(lang.largest(self._codes(8)), last)
        return lang.hard(self._criterion(), last)

    def _copied(self, name: str) -> Line:
        of, select = self._codes(12), self._selector()
        self.kinds[name] = self.kinds[of]
        return Attend(name, select, of)

    def _counted(self, name: str) -> Line:
        how, select = self.dice.choice(["count", "exists"]), lang.hard(self._criterion())
        self.kinds[name] = Kind(2 if how == "exists" else self.n_ctx)
        return Attend(name, select, how=how)

    def _mapped(self, name: str) -> Line:
        inputs = tuple(dict.fromkeys(self._codes(fresh=at == 0) for at in range(2)))
        sizes = [self.kinds[one].size for one in inputs]
        size = self.dice.randint(2, 4)
        if prod(sizes) > CODES and len(inputs) > 1:
            inputs, sizes = inputs[:1], sizes[:1]
        self.kinds[name] = Kind(size)
        return Map(name, inputs, tuple(self.dice.randrange(size) for _ in range(prod(sizes))), size)

    def _averaged(self, name: str) -> list[Line]:
        """The share of keys whose token is in a set, against a threshold that no share comes near to."""
        of = self._codes(8)
        size = self.kinds[of].size
        chosen = set(self.dice.sample(range(size), max(1, size // 2)))
        numbers = f"{name}_share"
        self.kinds[numbers], self.kinds[name] = Kind(1, numeric=True), Kind(2)
        parts = self.dice.choice([2, 3, 4])
        step = 1 / (2 * parts * self.n_ctx)
        edge = self.dice.randint(1, parts - 1) / parts - step
        table = tuple((float(value in chosen),) for value in range(size))
        return [Attend(numbers, lang.hard(), of, "mean", table), Bucket(name, numbers, (edge,), step)]

    def _read_out(self, name: str) -> ReadOut:
        return lang.says(name, self.kinds[name].size)


def _numbered(size: int) -> tuple[str, ...]:
    """Names of what comes out: its number."""
    return tuple(map(str, range(size)))
