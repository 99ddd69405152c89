"""A circuit as a picture: layers up, components across, edges as wide as their effects, patterns behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.errors import ShapeError
from cutaway.view.arrays import Labels, Values, as_array, as_labels, number
from cutaway.view.figure import Figure

MOST = 1_000  # edges that travel


def circuit_layers(
    edges: Sequence[tuple[str, str]],
    effects: Values,
    *,
    sure: Values | None = None,
    patterns: Mapping[str, Values] | None = None,
    tokens: Labels | None = None,
    patterns_of: str = "",
    title: str = "A circuit",
    value_name: str = "effect",
) -> Figure:
    """The edges of a circuit between its components; a click on one shows the patterns of the heads at its ends.

    Args:
        edges: pairs of a writer ("embed", "0.3", "0.mlp") and a reader ("1.2.q", "1.mlp", "logits").
        effects: one number for each edge.
        sure: how often each edge is chosen when prompts are drawn again, 0 to 1.
        patterns: head → its pattern [dest, src], of these `tokens`.
        patterns_of: what the patterns are of, in words.

    Raises:
        ShapeError: no edges, labels that are no components, or numbers and edges that do not fit.
    """
    if not len(edges):
        raise ShapeError("circuit_layers needs at least one edge; none was given")
    sizes = _sized(effects, len(edges), "effects")
    known = None if sure is None else _sized(sure, len(edges), "sure")
    order = np.argsort(-np.abs(np.nan_to_num(sizes)), kind="stable")[:MOST]
    ends = [(str(edges[at][0]), *_reader(str(edges[at][1]))) for at in order]
    names = sorted({name for one in ends for name in one[:2]}, key=_place)
    rows = sorted({_place(name)[:2] for name in names})
    nodes = [{"name": name, "row": rows.index(_place(name)[:2]), "mlp": name.endswith(".mlp")} for name in names]
    arrays: dict[str, Any] = {"effects": sizes[order][None]}
    arrays |= {} if known is None else {"sure": known[order][None]}
    heads = [name for name in names if name in (patterns or {})]
    shown = {head: as_array((patterns or {})[head], f"patterns[{head!r}]", ndim=2) for head in heads}
    labels: list[str] = []
    if shown:
        arrays["patterns"] = np.stack(list(shown.values()))
        labels = as_labels(tokens, arrays["patterns"].shape[1], "tokens", "position") or []
    lines = [f"{len(edges)} edges between {len(names)} components; the strongest:"]
    lines += [f"  {edges[at][0]} → {edges[at][1]}: {number(float(sizes[at]))}" for at in order[:8]]
    meta = {
        "nodes": nodes, "rows": [_row(*row) for row in rows], "sources": [names.index(one[0]) for one in ends],
        "targets": [names.index(one[1]) for one in ends], "reads": [one[2] for one in ends], "heads": heads,
        "valueName": value_name, "patternsOf": patterns_of,
        "rest": "" if len(edges) <= MOST else f"the strongest {MOST} of {len(edges)} edges",
    }  # fmt: skip
    return Figure("layers", title, arrays, tuple(labels), meta, "\n".join(lines), 190 + 58 * len(rows))


def _sized(values: Values, count: int, name: str) -> Any:
    array = as_array(values, name, ndim=1)
    if len(array) != count:
        raise ShapeError(f"{name} has {len(array)} numbers for {count} edges")
    return array


def _reader(label: str) -> tuple[str, str]:
    """The component that reads, and by what: queries, keys, values, or nothing of the kind."""
    found = re.fullmatch(r"(\d+\.\d+)\.([qkv])", label)
    return (found[1], found[2]) if found else (label, "")


def _place(name: str) -> tuple[int, int, int]:
    """Layer, attention or MLP, and place across."""
    if name in ("embed", "pos_embed"):
        return -1, 0, int(name == "pos_embed")
    if name == "logits":
        return 10**6, 0, 0
    found = re.fullmatch(r"(\d+)\.(?:(\d+)|mlp)", name)
    if not found:
        raise ShapeError(
            f"{name!r} is no component of a circuit; there are 'embed', '0.3', '0.mlp', and as readers '0.3.q' and 'logits'"
        )
    return int(found[1]), int(found[2] is None), int(found[2] or 0)


def _row(layer: int, mlp: int) -> str:
    return "embed" if layer < 0 else "logits" if layer == 10**6 else f"{layer} MLP" if mlp else f"layer {layer}"
