"""Attention: patterns of one layer, a gallery of all heads, a map of what each head does.

Every matrix is [dest, src]: a row is the token that looks (query), a column the token it looks at (key).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cutaway.errors import ShapeError
from cutaway.numbers_given import options
from cutaway.view.arrays import Array, Labels, Values, as_array, as_labels, color_range, number, top_cells
from cutaway.view.figure import Figure

MASKED = -9_999  # scores that are no answer: masks write −∞, −1e5 or the smallest number there is


def attention_patterns(
    tokens: Labels,
    patterns: Values,
    head_names: Labels | None = None,
    *,
    src_tokens: Labels | None = None,
    title: str = "Attention patterns",
    value_name: str = "attention",
    scale: str = "sequential",
    range: Values | None = None,
    per_head: bool = False,
) -> Figure:
    """Attention patterns over tokens: a thumbnail for each head, the chosen one large, and the text itself.

    Args:
        tokens: the text, one string for each position (dest, and src unless `src_tokens` is given).
        patterns: [head, dest, src] or [dest, src].
        head_names: one for each head; numbers without.
        scale: "sequential", "viridis", or "diverging" for differences and scores.
        range: values at the ends of the colour scale; by default what the data span (from 0).
        per_head: whether each head starts with a colour scale of its own (readers can switch).

    Raises:
        ShapeError: shapes and labels do not fit.
    """
    values = as_array(patterns, "patterns", ndim=(2, 3, 4))
    if values.ndim == 4:
        if values.shape[0] != 1:
            raise ShapeError(f"patterns has a batch of {values.shape[0]} texts; choose one, [head, dest, src]")
        values = values[0]
    values = values[None] if values.ndim == 2 else values
    return _attention(tokens, values, head_names, src_tokens, title, value_name, scale, range, per_head, None)


def head_gallery(
    tokens: Labels,
    patterns: Values,
    *,
    src_tokens: Labels | None = None,
    title: str = "All heads",
    value_name: str = "attention",
    scale: str = "sequential",
    range: Values | None = None,
    per_head: bool = True,
) -> Figure:
    """Every head of a model at once, a row of thumbnails for each layer; a click shows one large.

    Args:
        patterns: [layer, head, dest, src].

    Raises:
        ShapeError: shapes and labels do not fit.
    """
    values = as_array(patterns, "patterns", ndim=4)
    layers, heads = values.shape[:2]
    names = [f"{layer}.{head}" for layer in np.arange(layers) for head in np.arange(heads)]
    flat = values.reshape(layers * heads, *values.shape[2:])
    return _attention(tokens, flat, names, src_tokens, title, value_name, scale, range, per_head, heads)


def _attention(
    tokens: Labels,
    values: Any,
    head_names: Labels | None,
    src_tokens: Labels | None,
    title: str,
    value_name: str,
    scale: str,
    given: Values | None,
    per_head: bool,
    columns: int | None,
) -> Figure:
    values = _masked(values)
    heads, dests, srcs = values.shape
    dest = as_labels(tokens, dests, "tokens", "dest (query) positions") or []
    src = None if src_tokens is None else as_labels(src_tokens, srcs, "src_tokens", "src (key) positions")
    if src is None and srcs != dests:
        raise ShapeError(f"patterns is {dests} queries × {srcs} keys; give src_tokens for the {srcs} keys")
    names = as_labels(head_names, heads, "head_names", "heads", default="")
    colors = color_range([values], scale, given)
    if given is None and scale != "diverging" and colors[0] > 0:
        colors[0] = 0.0
    lines = [f"{heads} heads, {dests} × {srcs} tokens, {value_name} {number(colors[0])} to {number(colors[1])}"]
    for head, row, column in top_cells(values, 3):
        reads = f"{dest[row]!r} ({row}) → {(src or dest)[column]!r} ({column})"
        lines.append(f"head {(names or [])[head]}: from {reads} {number(float(values[head, row, column]))}")
    meta = {
        "heads": names,
        "srcTokens": src,
        "range": colors,
        "scale": scale,
        "valueName": value_name,
        "perHead": per_head,
        "columns": columns,
    }
    rows = -(-heads // columns) if columns else 1
    height = 250 + rows * 92 + min(640, max(150, dests * 28))
    return Figure("attention", title, {"patterns": values}, tuple(dest), meta, "\n".join(lines), height)


def _masked(values: Array) -> Array:
    """Scores above the diagonal that a causal mask pushed out of sight (−∞, −100000) are left out, as a pattern's zeros are."""
    above = ~np.tri(values.shape[-2], values.shape[-1], dtype=bool)
    if values.shape[-1] == values.shape[-2] > 1 and all((head[above] <= MASKED).all() for head in values):
        return np.where(above, np.float32(0), values)
    return values


@options(threshold=(0, 1))
def head_types(
    scores: Mapping[str, Values],
    *,
    threshold: float | int = 0.4,
    title: str = "What each head does",
    letters: Mapping[str, str] | None = None,
) -> Figure:
    """A map of layers × heads: each head's strongest kind, by letter and colour, where it passes the threshold.

    Args:
        scores: for each kind (for example "induction"), its score [layer, head].
        threshold: the least score that counts.
        letters: one letter for each kind; by default the first letter that is still free.

    Raises:
        ShapeError: no kinds, or scores of different shapes.
    """
    if not scores:
        raise ShapeError("head_types needs at least one kind with its scores [layer, head]; none was given")
    kinds = list(scores)
    values = [as_array(scores[kind], f"scores[{kind!r}]", ndim=2) for kind in kinds]
    if len({value.shape for value in values}) > 1:
        raise ShapeError(
            "scores differ in shape: " + ", ".join(f"{k} {list(v.shape)}" for k, v in zip(kinds, values, strict=True))
        )
    stack = np.stack(values)
    finite = np.where(np.isnan(stack), -np.inf, stack)
    best = np.where(finite.max(0) >= threshold, finite.argmax(0), -1)
    signs = _letters(kinds, letters or {})
    lines = [f"a head is of a kind where its score is at least {number(threshold)}; · where none is"]
    lines += [f"layer {layer}: " + " ".join(signs[kind] if kind >= 0 else "·" for kind in row) for layer, row in enumerate(best)]
    lines.append("; ".join(f"{sign} {kind}" for sign, kind in zip(signs, kinds, strict=True)))
    meta = {"kinds": kinds, "letters": signs, "threshold": threshold}
    arrays = {"best": best.astype(np.float32), "scores": stack}
    return Figure("headtypes", title, arrays, (), meta, "\n".join(lines), 170 + 32 * best.shape[0])


def _letters(kinds: Iterable[str], given: Mapping[str, str]) -> list[str]:
    chosen: list[str] = []
    for kind in kinds:
        free = (letter for letter in kind.upper() + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter.isalpha() and letter not in chosen)
        chosen.append(given.get(kind) or next(free, "?"))
    return chosen
