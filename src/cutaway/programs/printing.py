"""A program as Python: a file that runs alone, `predict(tokens) -> {position: token or tokens}`.

`as_python(program)` is the whole file; `line_as_python(program, line)` the right-hand side of one line, for showing it beside a
head or an MLP. Tables that are well-known operations are written as such (`a + b`, `a and b`, `a == b`), and those of cosines
and sines by their formula.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cutaway.errors import ProgramError
from cutaway.programs.language import Attend, Bucket, Line, Map, Multiply, Program, ReadOut, Selector, Table, Term, Weigh

HELPERS = {
    "highest": '''def highest(keys, score):
    """The keys with the highest score."""
    scores = {k: score(k) for k in keys}
    best = max(scores.values())
    return [k for k in keys if scores[k] == best]
''',
    "mean": '''def mean(rows):
    """The mean of rows of numbers."""
    rows = list(rows)
    return [math.fsum(column) / len(rows) for column in zip(*rows)]
''',
    "softly": '''def softly(keys, score, row):
    """The mean of the keys' rows, weighted by the softmax of their scores."""
    scores = {k: score(k) for k in keys}
    top = max(scores.values())
    raised = {k: math.exp(x - top) for k, x in scores.items()}
    whole = math.fsum(raised.values())
    return [math.fsum(raised[k] / whole * row(k)[i] for k in scores) for i in range(len(row(0)))]
''',
    "times": '''def times(numbers, table):
    """A vector times a matrix."""
    return [math.fsum(x * row[i] for x, row in zip(numbers, table)) for i in range(len(table[0]))]
''',
    "plus": '''def plus(*rows):
    """The sum of rows of numbers."""
    return [sum(column) for column in zip(*rows)]
''',
    "share": '''def share(value, size):
    """A value as numbers: 1 in its own place."""
    return [float(value == other) for other in range(size)]
''',
}
OPERATIONS: dict[str, Callable[..., Any]] = {
    "{0}": lambda a: a,
    "1 - {0}": lambda a: 1 - a,
    "{0} + {1}": lambda a, b: a + b,
    "{0} + {1} + 1": lambda a, b: a + b + 1,
    "{0} - {1}": lambda a, b: a - b,
    "{0} - {1} + 1": lambda a, b: a - b + 1,
    "{1} - {0}": lambda a, b: b - a,
    "int({0} == {1})": lambda a, b: a == b,
    "int({0} != {1})": lambda a, b: a != b,
    "int({0} > {1})": lambda a, b: a > b,
    "int({0} < {1})": lambda a, b: a < b,
    "max({0}, {1})": max,
    "min({0}, {1})": min,
    "int({0} and {1})": lambda a, b: bool(a and b),
    "int({0} or {1})": lambda a, b: bool(a or b),
}  # of a map's inputs, tried in this order


def as_python(program: Program) -> str:
    """The program as a file that runs alone."""
    tables: dict[str, Any] = {}
    body = [f"    {line.name} = {_line(program, line, tables)}" for line in program.live]
    body += [f"    {line}" for line in _read_out(program, program.read_out, tables)]
    text = "\n".join(body)
    used = [name for name in HELPERS if f"{name}(" in text]
    title = f"{program.name}: {program.about}" if program.about else program.name
    blocks = [f"# {line}" for line in title.splitlines()] + [""]
    if any("math." in text for text in (*(HELPERS[name] for name in used), *map(repr, tables.values()))):
        blocks.append("import math\n")
    if program.vocabulary != tuple(map(str, range(len(program.vocabulary)))):
        blocks.append(f"VOCABULARY = {list(program.vocabulary)!r}")
    if program.outputs is not None:
        blocks.append(f"OUTPUTS = {list(program.outputs)!r}")
    blocks += [f"{name} = {value!r}" for name, value in tables.items()]
    blocks += [f"\n\n{HELPERS[name].rstrip()}" for name in used]
    what = "token" if program.read_out.kind == "most likely" else "tokens"
    blocks.append(f'\n\ndef predict(tokens):\n    """{{position: {what}}}, from a list of token ids."""\n    n = len(tokens)')
    return "\n".join(blocks) + f"\n{text}\n"


def line_as_python(program: Program, line: Line) -> str:
    """One line, `name = …`, with its tables named and not written out."""
    return f"{line.name} = {_line(program, line, {})}"


def _line(program: Program, line: Line, tables: dict[str, Any]) -> str:
    if isinstance(line, Attend):
        return f"[{_attended(program, line, tables)} for q in range(n)]"
    if isinstance(line, Map):
        return f"[{_mapped(program, line, tables)} for q in range(n)]"
    if isinstance(line, Weigh):
        return f"[{_sum(program, line.terms, line.bias, line.name, tables)} for q in range(n)]"
    if isinstance(line, Bucket):
        one = f"{line.of}[q][0]"
        if len(line.edges) == 1:
            return f"[int({one} >= {line.edges[0]!r}) for q in range(n)]"
        return f"[sum({one} >= edge for edge in {line.edges!r}) for q in range(n)]"
    if isinstance(line, Multiply):
        return f"[[a * b for a, b in zip({line.left}[q], {line.right}[q])] for q in range(n)]"
    raise ProgramError(f"no line of a program: {line!r}")


def at(name: str, place: str) -> str:
    """A variable at a place."""
    return place if name == "positions" else f"{name}[{place}]"


# Attention.


def _attended(program: Program, line: Attend, tables: dict[str, Any]) -> str:
    keys = "range(q + 1)" if program.causal else "range(n)"
    select, condition = line.select, _condition(line.select, line.name, tables)
    if line.how in ("count", "exists"):
        tail = keys.replace("range(", "range(1, ")
        if not select.terms:
            return f"len({tail})" if line.how == "count" else f"int(len({tail}) > 0)"
        both = " and ".join(_score(term, line.name, number, tables) for number, term in enumerate(select.terms))
        if line.how == "exists":
            return f"int(any({both} for k in {tail}))"
        plain = len(select.terms) == 1 and select.terms[0].relation != "table"  # comparisons can be summed as they are
        return f"sum({both} for k in {tail})" if plain else f"sum(bool({both}) for k in {tail})"
    if line.how == "copy":
        return at(line.of, _single(select, keys, condition))
    row = _row(program, line, tables)
    if select.temperature is not None:
        return f"softly({keys}, lambda k: {_softly(select, line.name, tables)}, lambda k: {row})"
    chosen = keys if not select.terms else f"highest({keys}, lambda k: {condition})"
    return f"mean({row} for k in {chosen})"


def _single(select: Selector, keys: str, condition: str) -> str:
    """The one key that a selector leaves."""
    term = select.terms[0]
    if term.relation == "offset" and term.constant >= 0:
        return f"max(q - {term.constant}, 0)" if term.constant else "q"
    if term.relation == "among" and term.key == "positions" and term.values == (0,):
        return "0"
    return f"max({keys}, key=lambda k: {condition})"


def _condition(select: Selector, name: str, tables: dict[str, Any]) -> str:
    parts = [_score(term, name, number, tables) for number, term in enumerate(select.terms)]
    return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"


def _softly(select: Selector, name: str, tables: dict[str, Any]) -> str:
    assert select.temperature is not None
    factors = [term.weight / select.temperature for term in select.terms]
    parts = [_score(term, name, number, tables) for number, term in enumerate(select.terms)]
    return " + ".join(f"({part}) * {factor!r}" for part, factor in zip(parts, factors, strict=True)) or "0.0"


def _score(term: Term, name: str, number: int, tables: dict[str, Any]) -> str:
    key = at(term.key, "k")
    if term.relation == "offset":
        return (
            f"k == max(q - {term.constant}, 0)"
            if term.constant > 0
            else f"k == q + {-term.constant}"
            if term.constant
            else "k == q"
        )
    if term.relation == "mirror":
        return f"k == {term.constant} - q"
    if term.relation == "equal":
        assert term.query is not None
        shift = f" {'+' if term.constant > 0 else '-'} {abs(term.constant)}" if term.constant else ""
        return f"{key} == {at(term.query, 'q')}{shift}"
    if term.relation == "among":
        return f"{key} == {term.values[0]}" if len(term.values) == 1 else f"{key} in {term.values!r}"
    if term.relation == "table":
        return _scored(term, key, name, number, tables)
    return key if term.relation == "largest" else f"-{key}"


COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "{k} < {q}": lambda q, k: k < q,
    "{k} > {q}": lambda q, k: k > q,
    "{k} <= {q}": lambda q, k: k <= q,
    "{k} >= {q}": lambda q, k: k >= q,
    "{k} != {q}": lambda q, k: k != q,
}


def _scored(term: Term, key: str, name: str, number: int, tables: dict[str, Any]) -> str:
    """A table of scores: by name, or as the comparison that it is."""
    if term.query is not None:
        for text, operation in COMPARISONS.items():
            if all(x == operation(q, k) for q, row in enumerate(term.table) for k, x in enumerate(row)):
                return text.format(k=key, q=at(term.query, "q"))
    table = _named(f"{name}_scores{number or ''}", term.table if term.query else term.table[0], tables)
    return f"{table}[{at(term.query, 'q')}][{key}]" if term.query else f"{table}[{key}]"


def _row(program: Program, line: Attend, tables: dict[str, Any]) -> str:
    """The numbers that a key counts as in a mean."""
    kind, value = program.kinds[line.of], at(line.of, "k")
    if line.table is None:
        return value if kind.numeric else f"share({value}, {kind.size})"
    table = _named(f"{line.name}_values", line.table, tables)
    return f"times({value}, {table})" if kind.numeric else f"{table}[{value}]"


def _named(name: str, value: Any, tables: dict[str, Any]) -> str:
    """The name of a table that stands above the function."""
    rows = [list(row) if isinstance(row, tuple) else row for row in value]
    tables[name.upper()] = in_waves(rows) or rows
    return name.upper()


class Formula(str):
    """Python that makes a table."""

    __repr__ = str.__str__


def in_waves(rows: list[Any]) -> Formula | None:
    """A table whose columns (or rows) are all cosines and sines, as the formula that makes it; None of any other."""
    if not rows or not isinstance(rows[0], list) or not isinstance(rows[0][0], float) or max(len(rows), len(rows[0])) < 5:
        return None
    columns = _waves(zip(*rows, strict=True))
    if columns is not None and len({p for _, p in columns}) == 1:
        p = columns[0][1]
        tail = f" + {rows[p:]!r}" if p < len(rows) else ""
        return Formula(f"[[{', '.join(text for text, _ in columns)}] for t in range({p})]{tail}")
    lines = _waves(rows)
    if lines is None:
        return None
    tails = [f" + {row[p:]!r}" if p < len(row) else "" for row, (_, p) in zip(rows, lines, strict=True)]
    return Formula(f"[{', '.join(f'[{text} for t in range({p})]{tail}' for (text, p), tail in zip(lines, tails, strict=True))}]")


def _waves(rows: Iterable[Sequence[float]]) -> list[tuple[str, int]] | None:
    """The formulas of rows that are all waves."""
    found = []
    for row in rows:
        one = wave(row)
        if one is None:
            return None
        found.append(one)
    return found


def wave(numbers: Sequence[float]) -> tuple[str, int] | None:
    """The formula of numbers that are a cosine or a sine of 2πkt/p, and p; up to four numbers at the end may be others."""
    for p in range(len(numbers), max(len(numbers) - 5, 4), -1):
        # A wave's amplitude is √2 times its root mean square: what has another one is no wave, without comparing each number.
        size = math.sqrt(2 * math.fsum(x * x for x in numbers[:p]) / p)
        for k in range(1, (p + 1) // 2):
            for name, function, first in (("cos", math.cos, 0), ("sin", math.sin, 1)):
                known = function(2 * math.pi * k * first / p)
                factor = numbers[first] / known if abs(known) > 1e-9 else 0.0
                if not size or abs(abs(factor) - size) > 1e-9:
                    continue
                if all(abs(factor * function(2 * math.pi * k * t / p) - x) < 1e-9 for t, x in enumerate(numbers[:p])):
                    by = "" if factor == 1 else "-" if factor == -1 else f"{round(factor, 12)!r} * "
                    return f"{by}math.{name}(2 * math.pi * {k} * t / {p})", p
    return None


# Maps, sums and the read-out.


def operation(sizes: Sequence[int], table: Sequence[int]) -> str | None:
    """The operation that a map's table is, if it is a well-known one: `{0} + {1}`; up to a modulus or a bound."""
    places = list(itertools.product(*map(range, sizes)))
    for text, function in OPERATIONS.items():
        if text.count("{1}") != (len(sizes) > 1) or len(sizes) > 2:
            continue
        values = [int(function(*codes)) for codes in places]
        if values == list(table):
            return text
        size = max(table) + 1
        if size > 1 and [value % size for value in values] == list(table):
            return f"({text}) % {size}" if len(sizes) > 1 else f"{text} % {size}"
        if size > 1 and [min(max(value, 0), size - 1) for value in values] == list(table):
            low, high = min(values) < 0, max(values) >= size
            text = f"max({text}, 0)" if low else text
            return f"min({text}, {size - 1})" if high else text
    return None


def _mapped(program: Program, line: Map, tables: dict[str, Any]) -> str:
    sizes = [program.kinds[name].size for name in line.inputs]
    inputs = [at(name, "q") for name in line.inputs]
    text = operation(sizes, line.table)
    if text is not None:
        return text.format(*inputs)
    ones = [place for place in range(len(line.table)) if line.table[place]]
    if len(sizes) == 1 and line.size == 2 and len(ones) <= 3:
        return f"int({inputs[0]} in {tuple(ones)!r})" if len(ones) != 1 else f"int({inputs[0]} == {ones[0]})"
    cases = _cases(sizes, line.table)
    if cases is not None:
        texts = [inputs[1] if case is None else str(case) for case in cases]
        ahead = [f"{text} if {inputs[0]} == {number} else " for number, text in enumerate(texts[:-1]) if text != texts[-1]]
        return "".join(ahead) + texts[-1]
    return _named(line.name, _nested(line.table, sizes), tables) + "".join(f"[{one}]" for one in inputs)


def _cases(sizes: Sequence[int], table: Sequence[int]) -> list[int | None] | None:
    """Of a map whose first input chooses: for each of its values a constant, or None for the second input as it is."""
    if len(sizes) == 1:
        return list(table) if len(table) <= 6 else None
    if len(sizes) != 2:
        return None
    found: list[int | None] = []
    for first in range(sizes[0]):
        row = list(table[first * sizes[1] : (first + 1) * sizes[1]])
        if row != list(range(sizes[1])) and len(set(row)) > 1:
            return None
        found.append(None if row == list(range(sizes[1])) else row[0])
    return found


def _nested(flat: Sequence[int], sizes: Sequence[int]) -> Any:
    if len(sizes) == 1:
        return list(flat)
    step = len(flat) // sizes[0]
    return [_nested(flat[row * step : (row + 1) * step], sizes[1:]) for row in range(sizes[0])]


def _sum(program: Program, terms: Sequence[tuple[str, Table]], bias: Sequence[float], name: str, tables: dict[str, Any]) -> str:
    """`bias` plus the row of each variable."""
    parts = [] if terms and not any(bias) else [repr(list(bias))]
    for number, (variable, table) in enumerate(terms):
        kind, value = program.kinds[variable], at(variable, "q")
        square = len(table) == len(table[0]) and all(x == (i == j) for i, row in enumerate(table) for j, x in enumerate(row))
        if square:
            parts.append(value if kind.numeric else f"share({value}, {kind.size})")
            continue
        named = _named(f"{name}_{variable}{number if (variable, table) in terms[:number] else ''}", table, tables)
        parts.append(f"times({value}, {named})" if kind.numeric else f"{named}[{value}]")
    return parts[0] if len(parts) == 1 else f"plus({', '.join(parts)})"


def _read_out(program: Program, read: ReadOut, tables: dict[str, Any]) -> list[str]:
    places = "range(n)" if read.at is None else "[n - 1]" if read.at == "last" else "range(n)"
    where = f" if tokens[q] in {read.at!r}" if isinstance(read.at, tuple) else ""
    simple = _simple(program, read)
    if simple is not None:
        return [f"return {{q: {at(simple, 'q')} for q in {places}{where}}}"]
    several = _one_of(program, read)
    if several is not None:
        chosen = f"min({', '.join(at(name, 'q') for name in several)}) % {len(program.answers)}"
        return [f"return {{q: {chosen} for q in {places}{where}}}"]
    logits = f"logits = [{_sum(program, read.terms, read.bias, 'logits', tables)} for q in range(n)]"
    if read.kind == "above":
        answer = "[t for t, x in enumerate(logits[q]) if x > 0]"
    else:
        answer = "max(range(len(logits[q])), key=logits[q].__getitem__)"
    return [logits, f"return {{q: {answer} for q in {places}{where}}}"]


def _one_of(program: Program, read: ReadOut) -> list[str] | None:
    """The variables of which one is the answer and the others hold one more than the last token, where it is that simple.

    The likeliest token is then the smallest of them: equal logits give the first token, and no token at all gives token 0.
    """
    width = len(program.answers)
    if read.kind != "most likely" or any(read.bias) or len(read.terms) < 2:
        return None
    for name, table in read.terms:
        codes = program.kinds[name].size == width + 1 and not program.kinds[name].numeric
        if not codes or any(x != (i == j) for i, row in enumerate(table) for j, x in enumerate(row)):
            return None
    return [name for name, _ in read.terms]


def _simple(program: Program, read: ReadOut) -> str | None:
    """The variable whose value is the answer, where the read-out is that simple."""
    if read.kind != "most likely" or len(read.terms) != 1 or any(read.bias):
        return None
    (name, table) = read.terms[0]
    if program.kinds[name].numeric:
        return None
    same = all((x > 0) if i == j else x == 0 for i, row in enumerate(table) for j, x in enumerate(row))
    return name if same and len(table) <= len(program.answers) else None
