"""What a page shows, as figures: the same views as everywhere, each for one place of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway import view
from cutaway.model.transformer import Transformer
from cutaway.view import Figure
from cutaway.workbench import maps
from cutaway.workbench.prompt_pair import words_of
from cutaway.workbench.runs import KeptRun
from cutaway.workbench.state import AnySwitch, HeadSwitch, MlpSwitch, State

BARS = 8  # next tokens of each run
COLOURS = {
    "attention": ("attention", "viridis"),
    "direct": ("direct effect on the answer", "diverging"),
    "ablation": ("exact effect of switching it off", "diverging"),
    "change": ("difference between the prompts", "viridis"),
}


@dataclass(frozen=True, eq=False)
class Next:
    """The next tokens before and after."""

    ids: list[int]
    before: list[float]
    after: list[float]


def likeliest(before: Float[Tensor, "1 d"], after: Float[Tensor, "1 d"]) -> Next:
    """The likeliest next tokens of two runs, by the larger of their two probabilities."""
    both = torch.cat([before, after]).double().softmax(-1)
    ids = both.amax(0).topk(min(BARS, both.shape[1])).indices
    return Next(ids.tolist(), both[0, ids].tolist(), both[1, ids].tolist())


def bars(model: Transformer, found: Next, changed: bool) -> Figure:
    """Next-token probabilities, before and after."""
    names = words_of(model, torch.tensor(found.ids))
    series = {"without switches": found.before, "with switches": found.after} if changed else {"probability": found.before}
    return view.bar_chart(names, series, value_name="probability")


def map_figure(model: Transformer, state: State, values: Tensor | None, unit: str) -> Figure:
    """The map: layers across, heads and the MLP down; switches are outlined."""
    name, scale = COLOURS[state.colour]
    every = maps.rows(model)
    if values is None:
        values = torch.full((len(every), model.cfg.n_layers), torch.nan)
    if state.colour == "attention":
        name = f"attention from {'the end' if state.query == 'end' else 'every token'} to: {state.source}"
    marks = [mark for one in state.switches if (mark := _mark(model, one)) is not None and mark[0] < len(values)]
    return view.heat_map(
        values, [str(layer) for layer in range(model.cfg.n_layers)], every[: len(values)], x_name="layer", y_name="head",
        value_name=f"{name}{f' ({unit})' if unit else ''}", marks=marks, scale=scale,
        range=(0, 1) if state.colour == "attention" else None,
    )  # fmt: skip


def _mark(model: Transformer, switch: AnySwitch) -> tuple[int, int, str] | None:
    if isinstance(switch, HeadSwitch):
        return switch.head, switch.layer, f"switched: {switch.how}"
    if isinstance(switch, MlpSwitch):
        return model.cfg.n_heads, switch.layer, f"switched: {switch.how}"
    return None


def attention(words: Sequence[str], pins: Sequence[tuple[int, int]], state: State, own: KeptRun, now: KeptRun) -> Figure:
    """Patterns of some heads, with the switches, without, or the difference."""
    patterns = []
    for layer, head in pins:
        before, after = own.attention(layer)[head], now.attention(layer)[head]
        patterns.append({"now": after, "clean": before, "change": after - before}[state.attention])
    names = [f"{layer}.{head}" for layer, head in pins]
    scale = "diverging" if state.attention == "change" else "viridis"
    what = "change of attention" if state.attention == "change" else "attention"
    fixed = None if state.attention == "change" else (0, 1)
    return view.attention_patterns(words, torch.stack(patterns), names, title="", value_name=what, scale=scale, range=fixed)


def lens(model: Transformer, at: int, before: Tensor, after: Tensor | None, start: int) -> Figure:
    """What each layer would predict at one position, before and after; rows of `after` begin at layer `start`."""
    columns: list[Tensor] = []
    words: list[list[str]] = []
    names = ["without"]
    for logits, first in ((before, 0), (after, start)):
        if logits is None:
            continue
        top = logits.float().softmax(-1).max(-1)
        shown = [str(word) for word in words_of(model, top.indices)]
        values = top.values.cpu()
        columns.append(torch.cat([columns[0][:first], values]) if first else values)
        words.append([*words[0][:first], *shown] if first else shown)
    names += ["with"] * (len(columns) - 1)
    layers = [f"before {layer}" for layer in range(model.cfg.n_layers)] + ["end"]
    cells = [list(row) for row in zip(*words, strict=True)]
    return view.heat_map(
        torch.stack(columns, 1), names, layers, x_name="", y_name="layer", value_name="probability of the likeliest token",
        scale="viridis", range=(0, 1), text=cells,
    )  # fmt: skip


def note(figure: Figure, **more: Any) -> Figure:
    """The same figure with more in its header: which place of the page it is for, and which turn it belongs to."""
    return Figure(figure.view, figure.title, figure.arrays, figure.tokens, {**figure.meta, **more}, figure.text, figure.height)
