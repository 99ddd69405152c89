"""Which layer computes what: a program as materials, each written by one head, one MLP or the embedding. No weights yet.

A material is what takes room in the stream: one dimension per value of a code, or per number. Functions of one code (a Map of one
variable, a Bucket of what depends on one code) and sums are linear in it, so they take no room: what reads them reads through
their table. An MLP makes a code from several codes and at most one number against thresholds; where that saves a layer, it reads
what its inputs are made of. Each material stands as early as what it reads allows, so the layers are the fewest that this way
of computing needs.

Stages count half layers: 0 is the embedding, 1 the attention of layer 0, 2 its MLP, and so on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

from cutaway.errors import ProgramError
from cutaway.programs.interpreter import joint, run
from cutaway.programs.language import Attend, Bucket, Line, Map, Multiply, Program, Table, Term, Weigh, one_hot

NEURONS = 20_000  # an MLP of more is refused


@dataclass(frozen=True)
class ValueCode:
    """A code as a function of one material's value."""

    material: str
    table: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """Numbers as a linear function of materials: material → `[dimension][number]`, and a bias."""

    parts: dict[str, list[list[float]]]
    bias: list[float]


@dataclass(frozen=True)
class StepFunction:
    """A number against ascending edges, each with a distance to which values do not come near."""

    of: Reading
    edges: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Joint:
    """What an MLP makes: a code from codes and at most one number; `table` is flat, the number's bucket changes fastest."""

    codes: tuple[str, ...]
    sizes: tuple[int, ...]
    number: StepFunction | None
    table: tuple[int, ...]

    @property
    def neurons(self) -> int:
        """How many neurons it takes."""
        return prod(self.sizes) * (1 + (2 * len(self.number.edges) if self.number else 0))


@dataclass(frozen=True)
class Scored:
    """A term of a head's scores: `[query material's value][key material's value]`; one row without a query."""

    query: str | None
    key: str
    table: Table


@dataclass(frozen=True)
class Head:
    """One head: its scores, and what it moves (`of`)."""

    scores: tuple[Scored, ...]
    of: Reading


@dataclass(frozen=True)
class Material:
    """What takes `size` dimensions of the stream, from this stage on."""

    name: str
    size: int
    stage: int
    line: str
    made: Head | Joint | None = None  # None: the embedding


@dataclass
class Placed:
    """A program's materials, and how each of its variables reads from them."""

    program: Program
    materials: dict[str, Material] = field(default_factory=dict)
    codes: dict[str, ValueCode] = field(default_factory=dict)
    numbers: dict[str, Reading] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """How many layers: at least one, since a network has one."""
        return max(1, *((material.stage + 1) // 2 for material in self.materials.values()))

    def reading(self, name: str) -> Reading:
        """A variable as numbers: of a code, one number per value."""
        if name in self.numbers:
            return self.numbers[name]
        code, size = self.codes[name], self.program.kinds[name].size
        return Reading({code.material: [[float(value == other) for other in range(size)] for value in code.table]}, [0.0] * size)

    def stage(self, names: set[str] | dict[str, object]) -> int:
        """The stage after which all of these materials are there."""
        return max((self.materials[name].stage for name in names), default=0)


def place(program: Program) -> Placed:
    """Give every live line its place.

    Raises:
        ProgramError: a line that no weights compute exactly; says which and why.
    """
    placed = Placed(program)
    for name in ("tokens", "positions"):
        size = program.kinds[name].size
        _add(placed, Material(name, size, 0, name))
    for line in program.live:
        _PLACE[type(line)](placed, line, f"line {program.number(line)} ({line.name})")
    return placed


def _add(placed: Placed, material: Material, *, numeric: bool = False) -> None:
    placed.materials[material.name] = material
    if numeric:
        placed.numbers[material.name] = Reading(
            {material.name: [list(row) for row in one_hot(material.size)]}, [0.0] * material.size
        )
    else:
        placed.codes[material.name] = ValueCode(material.name, tuple(range(material.size)))


# Attention.


def _attend(placed: Placed, line: Attend, where: str) -> None:
    if line.how in ("count", "exists"):
        return _count(placed, line, where)
    kind = placed.program.kinds[line.name]
    of = placed.reading(line.of)
    if line.table is not None:
        of = times(of, line.table)
    factors = hard_weights(placed, line) if line.select.temperature is None else soft_weights(line)
    scored = [_scored(placed, term, factor) for term, factor in zip(line.select.terms, factors, strict=True)]
    head = Head(tuple(one for one in scored if one is not None), of)
    _add(placed, Material(line.name, kind.size, _attention_stage(placed, head), line.name, head), numeric=kind.numeric)


def _attention_stage(placed: Placed, head: Head) -> int:
    read = set(head.of.parts) | {name for one in head.scores for name in (one.query, one.key) if name}
    return (placed.stage(read) + 1) // 2 * 2 + 1


MARGIN = 20.0  # between the scores of what is selected and what is not: e^-20 is below the precision of float32


def hard_weights(placed: Placed, line: Attend) -> list[float]:
    """Factors that let each term decide before those after it."""
    factors: list[float] = []
    below = 0.0
    for term in reversed(line.select.terms):
        rows = term_table(placed.program, term)
        steps = [b - a for row in rows for a, b in itertools.pairwise(sorted(set(row)))]
        factor = (MARGIN + below) / min(steps) if steps else 0.0
        below += factor * max(max(row) - min(row) for row in rows)
        factors.append(factor)
    return factors[::-1]


def soft_weights(line: Attend) -> list[float]:
    """Factors of a softmax."""
    assert line.select.temperature is not None
    return [term.weight / line.select.temperature for term in line.select.terms]


def term_table(program: Program, term: Term) -> list[list[float]]:
    """A term's scores, `[value asked][key value]`."""
    queries = range(program.kinds[term.asks].size) if term.asks else range(1)
    return [[term.score(q, k) for k in range(program.kinds[term.key].size)] for q in queries]


def _scored(placed: Placed, term: Term, factor: float) -> Scored | None:
    """A term's scores over materials, its smallest of each row 0; nothing where all keys score alike."""
    table = [[factor * (x - min(row)) for x in row] for row in term_table(placed.program, term)]
    return _over_materials(placed, term.asks, term.key, table)


def _over_materials(placed: Placed, asks: str | None, key: str, table: list[list[float]]) -> Scored | None:
    if all(x == 0 for row in table for x in row):
        return None
    if all(row == table[0] for row in table):
        asks, table = None, table[:1]
    keys = placed.codes[key]
    query_code = placed.codes[asks] if asks else None
    rows = [table[value] for value in query_code.table] if query_code else table
    scores = tuple(tuple(row[value] for value in keys.table) for row in rows)
    return Scored(query_code.material if query_code else None, keys.material, scores)


def _count(placed: Placed, line: Attend, where: str) -> None:
    """Counting: the first position scores as if selected, whatever it holds, so the weight on it is 1 / (1 + count)."""
    program = placed.program
    scored = []
    for term in line.select.terms:
        there = at_first(program, term.key)
        if there is None:
            hint = (
                "give the program a token that every input begins with (bos)"
                if program.bos is None
                else "let a map say what it is"
            )
            what = f"counts keys by {term.key!r}, which is not the same at the first position of every input"
            raise ProgramError(f"{where} {what}, and that position is what a head counts against; {hint}")
        table = term_table(program, term)
        scored.append(_over_materials(placed, term.asks, term.key, [[MARGIN * x for x in row] for row in table]))
        makes_up = [[MARGIN * (1 - row[there]) * (k == 0) for k in range(program.n_ctx)] for row in table]
        scored.append(_over_materials(placed, term.asks, "positions", makes_up))
    at_start = Reading({"positions": [[-float(k == 0)] for k in range(program.n_ctx)]}, [0.0])
    head = Head(tuple(one for one in scored if one is not None), at_start)
    weight = Material(f"{line.name} (weight on the first)", 1, _attention_stage(placed, head), line.name, head)
    _add(placed, weight, numeric=True)
    counts = range(program.n_ctx - 1) if line.how == "count" else range(1)
    edges = tuple((-(1 / (c + 1) + 1 / (c + 2)) / 2, (1 / (c + 1) - 1 / (c + 2)) / 2) for c in counts)
    size = program.kinds[line.name].size
    step = StepFunction(placed.numbers[weight.name], edges) if edges else None
    _make(placed, line.name, size, Joint((), (), step, tuple(range(len(edges) + 1))), where)


def at_first(program: Program, name: str) -> int | None:
    """The value of a code at the first position, where it is the same for every input; else None."""
    if program.causal and program.bos is not None:  # the first position sees itself alone
        value = run(program, [program.bos]).values[name][0]
        assert isinstance(value, int)
        return value
    known: dict[str, int | None] = {"positions": 0, "tokens": program.bos}
    for line in program.lines:
        known[line.name] = _mapped_at_first(program, line, known) if isinstance(line, Map) else None
    return known[name]


def _mapped_at_first(program: Program, line: Map, known: dict[str, int | None]) -> int | None:
    sizes = [program.kinds[name].size for name in line.inputs]
    values = [known[name] for name in line.inputs]
    possible = [range(size) if value is None else (value,) for value, size in zip(values, sizes, strict=True)]
    found = {line.table[joint(sizes, codes)] for codes in itertools.product(*possible)}
    return found.pop() if len(found) == 1 else None


# MLPs, and what needs none.


def _map(placed: Placed, line: Map, where: str) -> None:
    codes = [placed.codes[name] for name in line.inputs]
    sizes = [placed.program.kinds[name].size for name in line.inputs]
    materials = tuple(dict.fromkeys(code.material for code in codes))

    def value(*values: int) -> int:
        value_of = dict(zip(materials, values, strict=True))
        return line.table[joint(sizes, [code.table[value_of[code.material]] for code in codes])]

    widths = tuple(placed.materials[name].size for name in materials)
    _check_neurons(prod(widths), where)
    table = tabulated(widths, value)
    if len(materials) == 1:
        placed.codes[line.name] = ValueCode(materials[0], table)
    else:
        _make(placed, line.name, line.size, Joint(materials, widths, None, table), where)


def _bucket(placed: Placed, line: Bucket, where: str) -> None:
    of = placed.numbers[line.of]
    if len(of.parts) == 1:
        (material, rows) = next(iter(of.parts.items()))
        if material in placed.codes:  # linear in one code, and so a function of it
            values = [row[0] + of.bias[0] for row in rows]
            placed.codes[line.name] = ValueCode(material, tuple(sum(x >= edge for edge in line.edges) for x in values))
            return
    step = StepFunction(of, tuple((edge, line.gap) for edge in line.edges))
    _make(placed, line.name, len(line.edges) + 1, Joint((), (), step, tuple(range(len(line.edges) + 1))), where)


def _make(placed: Placed, name: str, size: int, made: Joint, where: str) -> None:
    """Give a code to an MLP, the earliest that can make it."""
    made = _earlier(placed, made)
    _check_neurons(made.neurons, where)
    _add(placed, Material(name, size, _joint_stage(placed, made), name, made))


def _check_neurons(count: int, where: str) -> None:
    if count > NEURONS:
        raise ProgramError(f"{where} needs {count} neurons, one for each joint value of its inputs; at most {NEURONS} are made")


def _joint_stage(placed: Placed, made: Joint) -> int:
    read = set(made.codes) | (set(made.number.of.parts) if made.number else set())
    return placed.stage(read) // 2 * 2 + 2


def _earlier(placed: Placed, made: Joint) -> Joint:
    """The same code, read from what its latest inputs are made of, as long as that saves a layer."""
    while True:
        latest = placed.stage(set(made.codes))
        wider: Joint | None = made
        for name in made.codes:
            inner = placed.materials[name]
            if inner.stage == latest and wider is not None:
                wider = _through(placed, wider, inner) if isinstance(inner.made, Joint) else None
        if wider is None or wider.neurons > NEURONS // 4 or _joint_stage(placed, wider) >= _joint_stage(placed, made):
            return made
        made = wider


def _through(placed: Placed, outer: Joint, inner: Material) -> Joint | None:
    """`outer` with one of its codes replaced by what an earlier MLP made that from; None where that takes two numbers."""
    made = inner.made
    assert isinstance(made, Joint)
    if outer.number is not None and made.number is not None and outer.number is not made.number:
        return None
    number = outer.number or made.number
    names = tuple(dict.fromkeys([*(name for name in outer.codes if name != inner.name), *made.codes]))
    sizes = tuple(placed.materials[name].size for name in names)
    buckets = (len(number.edges) + 1,) if number else ()

    def of(joined: Joint, value_of: dict[str, int], bucket: int) -> int:
        places = [value_of[name] for name in joined.codes] + ([bucket] if joined.number else [])
        return joined.table[joint([*joined.sizes, *(buckets if joined.number else ())], places)]

    def value(*values: int) -> int:
        value_of, bucket = dict(zip(names, values, strict=False)), values[-1]
        return of(outer, value_of | {inner.name: of(made, value_of, bucket)}, bucket)

    return Joint(names, sizes, number, tabulated((*sizes, *buckets), value))


def _weigh(placed: Placed, line: Weigh, where: str) -> None:
    placed.numbers[line.name] = weighed(placed, line.terms, line.bias)


def weighed(placed: Placed, terms: tuple[tuple[str, Table], ...], bias: tuple[float, ...]) -> Reading:
    """A sum of variables times tables, over materials."""
    parts: dict[str, list[list[float]]] = {}
    total = list(bias)
    for name, table in terms:
        one = times(placed.reading(name), table)
        total = [a + b for a, b in zip(total, one.bias, strict=True)]
        for material, rows in one.parts.items():
            old = parts.get(material)
            parts[material] = (
                rows if old is None else [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(old, rows, strict=True)]
            )
    return Reading(parts, total)


def times(reading: Reading, table: Table) -> Reading:
    """A reading times a matrix."""

    def product(row: list[float]) -> list[float]:
        return [sum(x * other[column] for x, other in zip(row, table, strict=True)) for column in range(len(table[0]))]

    return replace(
        reading, parts={name: list(map(product, rows)) for name, rows in reading.parts.items()}, bias=product(reading.bias)
    )


def tabulated(sizes: tuple[int, ...], value: Callable[..., int]) -> tuple[int, ...]:
    """A flat table of a function; the last argument changes fastest."""
    return tuple(value(*codes) for codes in itertools.product(*map(range, sizes)))


def _multiply(placed: Placed, line: Line, where: str) -> None:
    raise ProgramError(f"{where} multiplies two numbers; attention and ReLU layers compute products only approximately")


_PLACE: dict[type, Callable[..., None]] = {Attend: _attend, Map: _map, Bucket: _bucket, Weigh: _weigh, Multiply: _multiply}
