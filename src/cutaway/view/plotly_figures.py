"""Figures as figures of Plotly: bars, lines, heat maps, tokens, graphs and tables; the values are the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.errors import ConfigError, PackageNeeded

# Blue below 0 and orange above, as in pages (ui/src/core/color.ts).
DIVERGING = ["#08306b", "#2f6fb3", "#84b6dc", "#f7f7f5", "#f7b267", "#d9731a", "#7f3b08"]

if TYPE_CHECKING:
    from cutaway.view.figure import Figure


def to_plotly(figure: Figure) -> Any:
    """The figure as one of Plotly.

    Raises:
        PackageNeeded: Plotly is not installed (extra `plots`).
        ConfigError: a figure that Plotly has no kind for.
    """
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise PackageNeeded("Plotly is not installed: pip install 'cutaway[plots]'") from error
    draw = DRAWN.get(figure.view)
    if draw is None:
        raise ConfigError(
            f"a figure of the kind {figure.view!r} has no counterpart in Plotly; .html(), .save('figure.png') draw it"
        )
    return draw(graph_objects, figure).update_layout(title=plain(figure.title))


def plain(text: Any) -> str:
    """A text as Plotly takes it for text: it reads `<b>` and `&lt;` as markup, and tokens hold anything."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;")


def bars(go: Any, figure: Figure) -> Any:
    """A series of bars for each row, with its intervals."""
    meta, arrays = figure.meta, figure.arrays
    groups = list(map(plain, meta["groups"]))
    made = go.Figure([
        go.Bar(name=plain(name), x=groups, y=row.tolist(), error_y=_interval(arrays, at))
        for at, (name, row) in _rows(meta, arrays)
    ])  # fmt: skip
    return made.update_layout(xaxis_title=meta["xName"], yaxis_title=meta["valueName"])


def lines(go: Any, figure: Figure) -> Any:
    """A line for each row, with its intervals."""
    meta, arrays = figure.meta, figure.arrays
    x = list(map(plain, meta["x"])) if meta["x"] else arrays["x"].tolist() if "x" in arrays else None
    mode = "lines+markers" if meta["points"] else "lines"
    made = go.Figure([
        go.Scatter(name=plain(name), x=x, y=row.tolist(), mode=mode, error_y=_interval(arrays, at))
        for at, (name, row) in _rows(meta, arrays)
    ])  # fmt: skip
    return made.update_layout(xaxis_title=meta["xName"], yaxis_title=meta["yName"])


def _rows(meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    return enumerate(zip(meta["series"], arrays["y"], strict=True))


def _interval(arrays: Mapping[str, Any], at: int) -> dict[str, Any] | None:
    """Bars of an interval from what is kept of it, its lower and upper ends."""
    if "low" not in arrays or not np.isfinite(arrays["low"][at]).any():
        return None
    y, low, high = arrays["y"][at], arrays["low"][at], arrays["high"][at]
    return {"type": "data", "symmetric": False, "array": (high - y).tolist(), "arrayminus": (y - low).tolist()}


def grid(go: Any, figure: Figure) -> Any:
    """Heat maps beside each other."""
    meta = figure.meta
    parts = [
        (one["name"], figure.arrays[f"p{at}"], one["x"] or meta["x"], one["y"] or meta["y"], one["text"])
        for at, one in enumerate(meta["panels"])
    ]
    return _maps(go, parts, meta["range"], meta["scale"], meta["xName"], meta["yName"])


def _maps(go: Any, parts: Any, ends: Any, scale: str, x_name: str, y_name: str) -> Any:
    """Panels of (name, values, x labels, y labels, text); rows downwards."""
    from plotly.subplots import make_subplots

    made = make_subplots(rows=1, cols=len(parts), subplot_titles=[plain(part[0]) for part in parts])
    colors: Any = {"diverging": DIVERGING, "viridis": "Viridis"}.get(scale, "Cividis")
    for at, (_, values, x, y, text) in enumerate(parts, start=1):
        words = None if text is None else [list(map(plain, row)) for row in text]
        z = [[None if value != value else value for value in row] for row in values.tolist()]
        heat = go.Heatmap(
            z=z, zmin=ends[0], zmax=ends[1], colorscale=colors, showscale=at == 1, text=words,
            texttemplate="%{text}" if words else None,
        )  # fmt: skip
        made.add_trace(heat, row=1, col=at)
        for axis, labels in ((made.update_xaxes, x), (made.update_yaxes, y)):  # positions with labels: two may be called the same
            if labels:
                axis(tickmode="array", tickvals=list(range(len(labels))), ticktext=list(map(plain, labels)), row=1, col=at)
    made.update_yaxes(autorange="reversed", title=y_name)
    return made.update_xaxes(title=x_name)


def attribution(go: Any, figure: Figure) -> Any:
    """Components × positions; of all answers components × answers, means over positions."""
    meta, values = figure.meta, figure.arrays["values"]
    name, x = ("position", meta["positions"]) if values.ndim == 2 else (meta["answerName"], meta["answers"])
    shown = values if values.ndim == 2 else np.nanmean(values, 1)
    end = float(np.nanmax(np.abs(shown))) or 1.0
    return _maps(go, [("", shown, x, meta["components"], None)], (-end, end), "diverging", name, "component")


def head_types(go: Any, figure: Figure) -> Any:
    """A map of layers × heads for each kind."""
    parts = [(kind, values, None, None, None) for kind, values in zip(figure.meta["kinds"], figure.arrays["scores"], strict=True)]
    return _maps(go, parts, (0, 1), "sequential", "head", "layer")


def tokens(go: Any, figure: Figure) -> Any:
    """Texts as rows of cells that hold their tokens; of a single text a row for each kind of value."""
    meta = figure.meta
    values = [figure.arrays[f"v{at}"] for at in range(len(meta["texts"]))]
    rows = [(list(text), value[0]) for text, value in zip(meta["texts"], values, strict=True)]
    if len(rows) == 1:
        rows = [(list(meta["texts"][0]), row) for row in values[0].reshape(-1, values[0].shape[-1])]
    width = max(len(words) for words, _ in rows)
    shown = np.full((len(rows), width), np.nan)
    text = [words + [""] * (width - len(words)) for words, _ in rows]
    for at, (words, row) in enumerate(rows):
        shown[at, : len(words)] = row
    ends = meta["range"] or (float(np.nanmin(shown)), float(np.nanmax(shown)))
    return _maps(go, [("", shown, None, None, text)], ends, meta["scale"], "position", "text")


def layers(go: Any, figure: Figure) -> Any:
    """A graph: components at their layers, edges between them."""
    meta, effects = figure.meta, figure.arrays["effects"][0].tolist()
    rows: dict[int, list[int]] = {}
    for at, node in enumerate(meta["nodes"]):
        rows.setdefault(node["row"], []).append(at)
    place = {at: (number + 0.5) / len(there) for there in rows.values() for number, at in enumerate(there)}
    far = max(map(abs, effects), default=1.0) or 1.0
    traces = []
    for source, target, effect in zip(meta["sources"], meta["targets"], effects, strict=True):
        ends = [(place[at], meta["nodes"][at]["row"]) for at in (source, target)]
        style = {"width": 0.5 + 5 * abs(effect) / far, "color": "#c25a00" if effect > 0 else "#0b63a5"}
        traces.append(
            go.Scatter(x=[one for one, _ in ends], y=[row for _, row in ends], mode="lines", line=style, hoverinfo="skip")
        )
    names = [node["name"] for node in meta["nodes"]]
    where = [place[at] for at in range(len(names))], [node["row"] for node in meta["nodes"]]
    texts = list(map(plain, names))
    traces.append(go.Scatter(x=where[0], y=where[1], mode="markers+text", text=texts, textposition="top center"))
    made = go.Figure(traces).update_layout(showlegend=False)
    made.update_xaxes(visible=False)
    return made.update_yaxes(tickmode="array", tickvals=list(range(len(meta["rows"]))), ticktext=meta["rows"])


def table(go: Any, figure: Figure) -> Any:
    """A table."""
    columns, rows = figure.meta["columns"], figure.meta["rows"]
    cells = [[plain(row[at]) if isinstance(row[at], str) else row[at] for row in rows] for at in range(len(columns))]
    return go.Figure(go.Table(header={"values": list(map(plain, columns))}, cells={"values": cells}))


DRAWN: dict[str, Callable[[Any, Figure], Any]] = {
    "bars": bars, "lines": lines, "grid": grid, "attribution": attribution, "headtypes": head_types, "tokens": tokens,
    "layers": layers, "table": table,
}  # fmt: skip
