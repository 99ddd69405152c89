"""A small language of what transformers compute over tokens and positions. A program is data, and needs no Torch.

A program is a list of lines. Each line makes one variable, which has a value at every position: a code (one of `size` values)
or numbers (a vector of `size` reals). `tokens` and `positions` are codes that are there from the start.

    Attend    one attention head: a selector picks keys, an aggregate says what is taken from them
    Map       a table over the joint values of some codes (booleans are codes of two values)
    Weigh     numbers that are linear in other variables
    Bucket    a number against thresholds: how many of them it reaches
    Multiply  products of numbers; runs, and cannot be compiled exactly

A `ReadOut` turns variables into logits, and those into answers.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from cutaway.errors import ProgramError, nearest

RELATIONS = ("offset", "mirror", "equal", "among", "largest", "smallest", "table")
AGGREGATES = ("copy", "mean", "count", "exists")
READINGS = ("most likely", "above")
RESERVED = {"tokens", "positions", "predict", "range", "max", "sum", "any", "len", "n", "q", "k", "t", "x", "logits"}
Row = tuple[float, ...]
Table = tuple[Row, ...]


@dataclass(frozen=True)
class Kind:
    """What a variable holds at each position: a code below `size`, or `size` numbers."""

    size: int
    numeric: bool = False

    def __str__(self) -> str:
        return f"{self.size} number{'s' * (self.size > 1)}" if self.numeric else f"codes 0 to {self.size - 1}"


@dataclass(frozen=True)
class Term:
    """One criterion of a selector: a score for each pair of query and key position.

    Args:
        relation: `offset` (the key stands `constant` before the query; before the first position there is the first),
            `mirror` (key position = `constant` − query position), `equal` (the key's value = the query's + `constant`), `among`
            (the key's value is one of `values`), `largest` and `smallest` (the key's value is the score), or `table`.
        key, query: variables; `query` only for `equal` and for a table that depends on it.
        table: `[query value][key value]`, or one row where there is no query.
        weight: the factor of the score in a soft selector.
    """

    relation: str
    key: str = "positions"
    query: str | None = None
    constant: int = 0
    values: tuple[int, ...] = ()
    table: Table = ()
    weight: float = 1.0

    def score(self, query: int, key: int) -> float:
        """The score of a key, from the values of the variables at query and key."""
        if self.relation == "offset":
            return float(key == max(query - self.constant, 0))
        if self.relation == "mirror":
            return float(key == self.constant - query)
        if self.relation == "equal":
            return float(key == query + self.constant)
        if self.relation == "among":
            return float(key in self.values)
        if self.relation == "table":
            return self.table[query if self.query else 0][key]
        return float(key if self.relation == "largest" else -key)

    @property
    def asks(self) -> str | None:
        """The variable that is read at the query."""
        return "positions" if self.relation in ("offset", "mirror") else self.query

    @property
    def yes_or_no(self) -> bool:
        """Whether every score is 0 or 1."""
        return self.relation in ("offset", "mirror", "equal", "among") or (
            self.relation == "table" and all(value in (0, 1) for row in self.table for value in row)
        )


@dataclass(frozen=True)
class Selector:
    """Which keys a query attends to.

    Hard (`temperature` None): those with the highest score, by the first term, then the second, …; ties share equally.
    Soft: all, by the softmax of the weighted sum of scores over `temperature`. Without terms: all visible keys, equally.
    """

    terms: tuple[Term, ...] = ()
    temperature: float | None = None

    def leaves_one(self, of: str) -> bool:
        """Whether the selected keys hold one value of a variable for certain, whatever the input."""
        if self.temperature is not None or not self.terms:
            return False
        first = self.terms[0]
        at_once = first.relation == "offset" and first.constant >= 0
        at_start = first.relation == "among" and first.key == "positions" and first.values == (0,)
        return (
            at_once
            or at_start
            or any(term.key in ("positions", of) and term.relation in ("largest", "smallest") for term in self.terms)
        )


@dataclass(frozen=True)
class Attend:
    """One attention head.

    Args:
        of: the variable that is taken from the keys (not for `count` and `exists`).
        how: `copy` (the selected key's value), `mean` (of the keys' values: of codes the share of each value, or the mean of the
            rows of `table`, `[value][number]`), `count` or `exists` (of keys after the first token for which all terms hold).
    """

    name: str
    select: Selector
    of: str = "tokens"
    how: str = "copy"
    table: Table | None = None


@dataclass(frozen=True)
class Map:
    """Codes from the joint values of codes: `table` is flat, the last input changes fastest."""

    name: str
    inputs: tuple[str, ...]
    table: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Weigh:
    """Numbers: `bias` plus, for each variable, the row of its table that its code names (or numbers times table)."""

    name: str
    terms: tuple[tuple[str, Table], ...]
    bias: Row


@dataclass(frozen=True)
class Bucket:
    """How many of the ascending `edges` a number reaches. No value lies nearer to an edge than `gap`."""

    name: str
    of: str
    edges: Row
    gap: float


@dataclass(frozen=True)
class Multiply:
    """Products of two variables' numbers, one by one. It runs; ReLU layers cannot compute it exactly."""

    name: str
    left: str
    right: str


Line = Attend | Map | Weigh | Bucket | Multiply


@dataclass(frozen=True)
class ReadOut:
    """Logits, linear in variables, and what is answered.

    Args:
        terms: variable and table `[value][token]` (of numbers: `[number][token]`).
        bias: one number per token.
        kind: `most likely` (one token; the first of equals), or `above` (all tokens whose logit is above 0).
        at: answer at every position (None), at the `last`, or wherever one of these tokens stands.
    """

    terms: tuple[tuple[str, Table], ...]
    bias: Row
    kind: str = "most likely"
    at: str | tuple[int, ...] | None = None


@dataclass(frozen=True)
class Program:
    """Lines that make variables, and a read-out. Checked when it is made.

    Args:
        vocabulary: the names of the tokens that go in.
        n_ctx: how many positions there are at most.
        outputs: the names of the tokens that come out; None: those that go in.
        causal: keys after the query are not visible.
        bos: the token that every input begins with, if there is one; counting needs it.

    Raises:
        ProgramError: a line uses what is not there, or tables of the wrong size; the message names the line.
    """

    name: str
    vocabulary: tuple[str, ...]
    n_ctx: int
    lines: tuple[Line, ...]
    read_out: ReadOut
    outputs: tuple[str, ...] | None = None
    causal: bool = True
    bos: int | None = None
    about: str = ""
    kinds: dict[str, Kind] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if not self.vocabulary or self.n_ctx < 1:
            raise ProgramError(f"a program needs a vocabulary and at least one position, not n_ctx={self.n_ctx}")
        if self.bos is not None and not 0 <= self.bos < len(self.vocabulary):
            raise ProgramError(f"bos={self.bos} is no token; the vocabulary has {len(self.vocabulary)}")
        kinds = {"tokens": Kind(len(self.vocabulary)), "positions": Kind(self.n_ctx)}
        object.__setattr__(self, "kinds", kinds)
        for number, line in enumerate(self.lines, start=1):
            check = Check(self, kinds, f"line {number} ({line.name})")
            check.name(line.name)
            kinds[line.name] = check.kind(line)
        Check(self, kinds, "the read-out").read_out(self.read_out)

    @property
    def answers(self) -> tuple[str, ...]:
        """The names of the tokens that come out."""
        return self.vocabulary if self.outputs is None else self.outputs

    @cached_property
    def live(self) -> tuple[Line, ...]:
        """The lines that the read-out depends on."""
        wanted = {name for name, _ in self.read_out.terms}
        kept: list[Line] = []
        for line in reversed(self.lines):
            if line.name in wanted:
                wanted |= set(reads(line))
                kept.append(line)
        return tuple(reversed(kept))

    def number(self, line: Line) -> int:
        """The number of a line, from 1."""
        return self.lines.index(line) + 1

    def __str__(self) -> str:
        from cutaway.programs.printing import as_python

        return as_python(self)


def reads(line: Line) -> list[str]:
    """The variables that a line reads."""
    if isinstance(line, Attend):
        names = [name for term in line.select.terms for name in (term.asks, term.key) if name]
        return names if line.how in ("count", "exists") else [*names, line.of]
    if isinstance(line, Map):
        return list(line.inputs)
    if isinstance(line, Weigh):
        return [name for name, _ in line.terms]
    return [line.of] if isinstance(line, Bucket) else [line.left, line.right]


@dataclass(frozen=True)
class Check:
    """Checks of one line; errors begin with where it stands."""

    program: Program
    kinds: dict[str, Kind]
    where: str

    def fail(self, what: str) -> ProgramError:
        return ProgramError(f"{self.where} {what}")

    def name(self, name: str) -> None:
        if not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED or name.isupper():
            raise self.fail(f"cannot be called {name!r}: a variable's name is a Python name in small letters, and none of ours")
        if name in self.kinds:
            raise self.fail(f"has the name of an earlier line, {name!r}")

    def variable(self, name: str, *, numeric: bool | None = None) -> Kind:
        if name not in self.kinds:
            raise self.fail(
                f"reads {name!r}, which no line before it makes{nearest(name, self.kinds)}; there are {', '.join(self.kinds)}"
            )
        kind = self.kinds[name]
        if numeric is not None and kind.numeric != numeric:
            wanted = "numbers" if numeric else "codes"
            raise self.fail(f"needs {wanted}, and {name!r} holds {kind}")
        return kind

    def table(self, table: Sequence[Sequence[float]], rows: int, columns: int | None, what: str) -> int:
        widths = {len(row) for row in table}
        if len(table) != rows or len(widths) != 1 or (columns is not None and widths != {columns}):
            shape = f"{len(table)} rows of {sorted(widths)}"
            raise self.fail(f"has a table of {shape} for {what}; needed are {rows} rows of {columns or 'one length'}")
        return widths.pop()

    def kind(self, line: Line) -> Kind:
        """The kind of what a line makes."""
        if isinstance(line, Attend):
            return self._attend(line)
        if isinstance(line, Map):
            return self._map(line)
        if isinstance(line, Weigh):
            self._terms(line.terms, len(line.bias))
            return Kind(len(line.bias), numeric=True)
        if isinstance(line, Bucket):
            return self._bucket(line)
        left, right = self.variable(line.left, numeric=True), self.variable(line.right, numeric=True)
        if left.size != right.size:
            raise self.fail(f"multiplies {left} by {right}; both need one length")
        return left

    def _attend(self, line: Attend) -> Kind:
        for term in line.select.terms:
            self.term(term)
        if line.how not in AGGREGATES:
            raise self.fail(f"aggregates by {line.how!r}{nearest(line.how, AGGREGATES)}; there are {', '.join(AGGREGATES)}")
        soft = line.select.temperature
        if soft is not None and not soft > 0:
            raise self.fail(f"has the temperature {soft}; it must be above 0")
        if line.how in ("count", "exists"):
            if soft is not None or not all(term.yes_or_no for term in line.select.terms):
                raise self.fail(f"{line.how}s keys, and not every term of its selector says yes or no")
            return Kind(2 if line.how == "exists" else self.program.n_ctx)
        of = self.variable(line.of)
        if line.how == "copy":
            if not line.select.leaves_one(line.of):
                raise self.fail(
                    "copies from keys that may differ; end the selector with latest() or earliest(), or take the mean"
                )
            if line.table is not None:
                raise self.fail("copies, and so needs no table; take a Map of what it copies")
            return of
        if line.table is None:
            return Kind(of.size, numeric=True)
        return Kind(self.table(line.table, of.size, None, f"the values of {line.of!r}"), numeric=True)

    def term(self, term: Term) -> None:
        """A term of a selector."""
        if term.relation not in RELATIONS:
            raise self.fail(f"selects by {term.relation!r}{nearest(term.relation, RELATIONS)}; there are {', '.join(RELATIONS)}")
        key = self.variable(term.key, numeric=False)
        query = None if term.query is None else self.variable(term.query, numeric=False)
        if term.relation in ("offset", "mirror") and (term.key != "positions" or term.query is not None):
            raise self.fail(f"selects by {term.relation}, which compares positions and nothing else")
        if (term.relation == "equal") != (query is not None) and term.relation != "table":
            raise self.fail(
                f"selects by {term.relation}, which {'needs' if term.relation == 'equal' else 'takes no'} query variable"
            )
        if term.relation == "table":
            self.table(term.table, 1 if query is None else query.size, key.size, "query × key")
        if any(not 0 <= value < key.size for value in term.values):
            raise self.fail(f"selects values {term.values} of {term.key!r}, which has the {key}")

    def _map(self, line: Map) -> Kind:
        sizes = [self.variable(name, numeric=False).size for name in line.inputs]
        if not line.inputs or len(line.table) != prod(sizes):
            raise self.fail(f"has a table of {len(line.table)} entries; its inputs have {prod(sizes)} joint values")
        if any(not 0 <= value < line.size for value in line.table):
            raise self.fail(f"gives values from {min(line.table)} to {max(line.table)}; it says that there are {line.size}")
        return Kind(line.size)

    def _bucket(self, line: Bucket) -> Kind:
        if self.variable(line.of, numeric=True).size != 1:
            raise self.fail(f"compares one number, and {line.of!r} holds {self.kinds[line.of]}; weigh them first")
        if list(line.edges) != sorted(set(line.edges)) or not line.edges:
            raise self.fail(f"has the edges {line.edges}; they must ascend")
        if not line.gap > 0:
            raise self.fail(f"has gap={line.gap}: how far from an edge do values keep? It must be above 0")
        return Kind(len(line.edges) + 1)

    def _terms(self, terms: Iterable[tuple[str, Table]], width: int) -> None:
        for name, table in terms:
            self.table(table, self.variable(name).size, width, f"{name!r}")

    def read_out(self, read: ReadOut) -> None:
        """The read-out."""
        if read.kind not in READINGS:
            raise self.fail(
                f"is of kind {read.kind!r}{nearest(read.kind, READINGS)}; there are {' and '.join(map(repr, READINGS))}"
            )
        if len(read.bias) != len(self.program.answers):
            raise self.fail(f"has {len(read.bias)} biases for {len(self.program.answers)} tokens")
        self._terms(read.terms, len(read.bias))
        if isinstance(read.at, str) and read.at != "last":
            raise self.fail(f"is at {read.at!r}; it can be at every position (None), at the 'last', or at some tokens")
        if isinstance(read.at, tuple) and any(not 0 <= token < len(self.program.vocabulary) for token in read.at):
            raise self.fail(f"is at the tokens {read.at}; the vocabulary has {len(self.program.vocabulary)}")


# Short ways to write terms, tables and read-outs.


def offset(distance: int) -> Term:
    """The key that stands `distance` before the query (behind it, where negative)."""
    return Term("offset", constant=distance)


def first() -> Term:
    """The first position."""
    return Term("among", values=(0,))


def mirror(constant: int) -> Term:
    """The key whose position and the query's sum to `constant`."""
    return Term("mirror", constant=constant)


def equal(query: str, key: str, constant: int = 0) -> Term:
    """Keys whose value is the query's, plus a constant."""
    return Term("equal", key, query, constant)


def same(variable: str) -> Term:
    """Keys with the value that the query has, too."""
    return equal(variable, variable)


def among(key: str, values: Iterable[int]) -> Term:
    """Keys whose value is one of these."""
    return Term("among", key, values=tuple(values))


def latest() -> Term:
    """The later, the better."""
    return Term("largest")


def earliest() -> Term:
    """The earlier, the better."""
    return Term("smallest")


def largest(key: str) -> Term:
    """The larger the key's value, the better."""
    return Term("largest", key)


def smallest(key: str) -> Term:
    """The smaller the key's value, the better."""
    return Term("smallest", key)


def scores(key: str, table: Sequence[Sequence[float]], query: str | None = None, weight: float = 1.0) -> Term:
    """A table of scores, `[query value][key value]`; one row where they do not depend on the query."""
    return Term("table", key, query, table=tuple(map(tuple, table)), weight=weight)


def hard(*terms: Term) -> Selector:
    """The keys that are best by the first term, among them those best by the second, …"""
    return Selector(terms)


def soft(*terms: Term, temperature: float = 1.0) -> Selector:
    """All keys, by the softmax of their scores."""
    return Selector(terms, temperature)


def one_hot(size: int, scale: float = 1.0) -> Table:
    """The table that gives each value a token (or number) of its own."""
    return tuple(tuple(scale * (row == column) for column in range(size)) for row in range(size))


def says(variable: str, size: int, *, at: str | tuple[int, ...] | None = None) -> ReadOut:
    """The read-out that answers a variable's value, of which there are `size`."""
    return ReadOut(((variable, one_hot(size)),), (0.0,) * size, at=at)
