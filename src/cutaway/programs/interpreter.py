"""Run a program on a list of tokens: plain Python, line by line, no weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cutaway.errors import ContextTooLong, ProgramError, TokenError
from cutaway.programs.language import Attend, Bucket, Line, Map, Multiply, Program, Selector, Table, Weigh

Values = dict[str, list[Any]]  # of codes an int at each position, of numbers a list of floats


@dataclass(frozen=True)
class Evaluation:
    """What a program computes on one input.

    Args:
        values: variable → its value at each position.
        logits: `[position][token]`.
        answers: position → token, or (read-out `above`) all tokens above 0.
    """

    values: Values
    logits: list[list[float]]
    answers: dict[int, Any]


def run(program: Program, tokens: Sequence[int]) -> Evaluation:
    """Run a program.

    Raises:
        TokenError: tokens outside the vocabulary, or none, or not the first token that the program needs.
        ContextTooLong: more tokens than the program has positions.
    """
    tokens = [int(token) for token in tokens]
    check_tokens(program, tokens)
    values: Values = {"tokens": tokens, "positions": list(range(len(tokens)))}
    for line in program.lines:
        values[line.name] = variable(program, line, values)
    read = program.read_out
    logits = weighed(read.terms, read.bias, values, len(tokens))
    at = answered(program, tokens)
    if read.kind == "above":
        return Evaluation(values, logits, {q: [t for t, x in enumerate(logits[q]) if x > 0] for q in at})
    return Evaluation(values, logits, {q: max(range(len(logits[q])), key=logits[q].__getitem__) for q in at})


def predict(program: Program, tokens: Sequence[int]) -> dict[int, Any]:
    """The answers alone: position → token, or all tokens above 0."""
    return run(program, tokens).answers


def check_tokens(program: Program, tokens: Sequence[int]) -> None:
    """Refuse what the program cannot take."""
    if not tokens:
        raise TokenError(f"{program.name} needs at least one token")
    if len(tokens) > program.n_ctx:
        raise ContextTooLong(f"{program.name} has {program.n_ctx} positions, and there are {len(tokens)} tokens")
    wrong = [token for token in tokens if not 0 <= token < len(program.vocabulary)]
    if wrong:
        raise TokenError(f"{program.name} has the tokens 0 to {len(program.vocabulary) - 1}, not {wrong[0]}")
    if program.bos is not None and tokens[0] != program.bos:
        name = program.vocabulary[program.bos]
        raise TokenError(f"every input of {program.name} begins with the token {program.bos} ({name}), not with {tokens[0]}")


def answered(program: Program, tokens: Sequence[int]) -> list[int]:
    """The positions at which the program answers."""
    at = program.read_out.at
    if at is None:
        return list(range(len(tokens)))
    return [len(tokens) - 1] if at == "last" else [q for q, token in enumerate(tokens) if token in at]


def variable(program: Program, line: Line, values: Values) -> list[Any]:
    """What a line makes, at every position, from the variables before it."""
    length = len(values["tokens"])
    if isinstance(line, Attend):
        size = program.kinds[line.of].size
        return [_attended(line, values, q, range(q + 1) if program.causal else range(length), size) for q in range(length)]
    if isinstance(line, Map):
        sizes = [program.kinds[name].size for name in line.inputs]
        columns = zip(*(values[name] for name in line.inputs), strict=True)
        return [line.table[joint(sizes, codes)] for codes in columns]
    if isinstance(line, Weigh):
        return weighed(line.terms, line.bias, values, length)
    if isinstance(line, Bucket):
        return [sum(x >= edge for edge in line.edges) for (x,) in values[line.of]]
    if isinstance(line, Multiply):
        pairs = zip(values[line.left], values[line.right], strict=True)
        return [[a * b for a, b in zip(left, right, strict=True)] for left, right in pairs]
    raise ProgramError(f"no line of a program: {line!r}")


def joint(sizes: Sequence[int], codes: Sequence[int]) -> int:
    """Where joint values stand in a flat table whose last input changes fastest."""
    index = 0
    for size, code in zip(sizes, codes, strict=True):
        index = index * size + code
    return index


def weighed(terms: Sequence[tuple[str, Table]], bias: Sequence[float], values: Values, length: int) -> list[list[float]]:
    """`bias` plus each variable's row of its table (or its numbers times the table), at every position."""
    out = []
    for q in range(length):
        row = list(bias)
        for name, table in terms:
            value = values[name][q]
            picked = table[value] if isinstance(value, int) else _product(value, table)
            row = [a + b for a, b in zip(row, picked, strict=True)]
        out.append(row)
    return out


def _product(numbers: Sequence[float], table: Table) -> list[float]:
    return [math.fsum(x * row[t] for x, row in zip(numbers, table, strict=True)) for t in range(len(table[0]))]


def scorer(selector: Selector, values: Values, q: int) -> Callable[[int], tuple[float, ...]]:
    """The scores of each key by each term, for one query."""
    columns = [(term, values[term.asks][q] if term.asks else 0, values[term.key]) for term in selector.terms]
    return lambda k: tuple(term.score(at_query, keys[k]) for term, at_query, keys in columns)


def weights(selector: Selector, values: Values, q: int, keys: range) -> dict[int, float]:
    """Attention: key position → weight, of one query; keys without weight are left out."""
    score = scorer(selector, values, q)
    if selector.temperature is None:
        scored = {k: score(k) for k in keys}
        best = max(scored.values())
        chosen = [k for k in keys if scored[k] == best]
        return {k: 1 / len(chosen) for k in chosen}
    factors = [term.weight / selector.temperature for term in selector.terms]
    total = {k: math.fsum(x * f for x, f in zip(score(k), factors, strict=True)) for k in keys}
    top = max(total.values())
    raised = {k: math.exp(x - top) for k, x in total.items()}
    whole = math.fsum(raised.values())
    return {k: x / whole for k, x in raised.items()}


def _attended(line: Attend, values: Values, q: int, keys: range, size: int) -> Any:
    if line.how in ("count", "exists"):
        score = scorer(line.select, values, q)
        found = sum(all(score(k)) for k in keys if k > 0)
        return int(found > 0) if line.how == "exists" else found
    weight = weights(line.select, values, q, keys)
    of = values[line.of]
    if line.how == "copy":
        return of[next(iter(weight))]
    rows = {k: _row(of[k], line.table, size) for k in weight}
    width = len(next(iter(rows.values())))
    if line.select.temperature is None:  # as a reader would write it, so that printed programs give the same bits
        return [math.fsum(row[i] for row in rows.values()) / len(rows) for i in range(width)]
    return [math.fsum(weight[k] * row[i] for k, row in rows.items()) for i in range(width)]


def _row(value: Any, table: Table | None, size: int) -> Sequence[float]:
    """What a key's value counts as in a mean."""
    if isinstance(value, int):
        return [float(value == other) for other in range(size)] if table is None else table[value]
    return value if table is None else _product(value, table)
