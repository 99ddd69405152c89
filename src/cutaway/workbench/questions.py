"""Questions that take longer than a click: which switch moves most, who writes this, why a head looked, which edges matter.

Each is an analysis of the library, asked about what is on the page. Answers are rows: a label, a value, and where it makes sense
the switch that takes the row's subject off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from cutaway import view
from cutaway.analysis.score_pathways import components_looked_up, constant, projected, sites_into
from cutaway.circuits.attribution import edge_attribution
from cutaway.errors import ConfigError, PromptError, ShapeError
from cutaway.model.components import Component, norm_before, stream_site, writers
from cutaway.model.positions import Stream
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.decompose import written
from cutaway.runs.sweep import sweep
from cutaway.view import Figure
from cutaway.workbench import maps
from cutaway.workbench.prompt_pair import PromptPair
from cutaway.workbench.runs import Between, KeptRun
from cutaway.workbench.session import Session, StateRuns
from cutaway.workbench.state import AnySwitch, Ask, EdgeSwitch, HeadSwitch, MlpSwitch, State
from cutaway.workbench.switches import edit_of, label

ROWS = 20
PAIRS = 12  # components of a query, and of a key, that are shown
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class AnswerRow:
    """One line of an answer."""

    label: str
    value: float
    switch: AnySwitch | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What a question found."""

    title: str
    unit: str
    rows: list[AnswerRow]
    figure: Figure | None = None
    note: str = ""

    def message(self) -> dict[str, Any]:
        """As a message has it."""
        rows = [{"label": row.label, "value": row.value, "switch": msgspec.to_builtins(row.switch)} for row in self.rows]
        return {"title": self.title, "unit": self.unit, "rows": rows, "note": self.note}


def ask(session: Session, what: Ask, progress: Progress, between: Between) -> Answer:
    """Answer a question about what the page shows.

    Raises:
        CutawayError: it has no answer here; says why.
    """
    now, prompts = session.state, session.pair
    found = session.find(now, prompts, between)
    if what.what == "strongest":
        return _strongest(session, now, found, progress, between)
    if what.what == "edges":
        return _edges(session, found, progress)
    if what.what == "look":
        return _looked(session, now, prompts, found, what)
    return _writers(session, now, prompts, found)


def _largest(rows: list[AnswerRow]) -> list[AnswerRow]:
    return sorted(rows, key=lambda row: -abs(row.value))[:ROWS]


def _strongest(session: Session, now: State, found: StateRuns, progress: Progress, between: Between) -> Answer:
    """Every head and MLP switched by itself, beside the switches that are on: a sweep."""
    model = session.model
    every: list[AnySwitch] = []
    for row in range(len(maps.rows(model))):
        for layer in range(model.cfg.n_layers):
            head = row < model.cfg.n_heads
            every.append(HeadSwitch(now.how, 0.0, layer, row) if head else MlpSwitch(now.how, 0.0, layer))
    cells = [[*found.edits, edit_of(one, found.own, found.other)] for one in every]
    result = sweep(model, found.own.tokens, cells, found.metric, audit=1, progress=progress, between=between)
    values = result.values.data.flatten().float().cpu()
    effects = values - found.after
    key = session.map_key(found, msgspec.structs.replace(now, colour="ablation"))
    session.know_map(key, effects.view(-1, model.cfg.n_layers), found.metric.unit)
    rows = [AnswerRow(label(one), value, one) for one, value in zip(every, effects.tolist(), strict=True)]
    beside = f"beside {len(found.edits)} that are on; " if found.edits else ""
    return Answer(
        f"change of the {found.metric.name} by one switch", found.metric.unit, _largest(rows),
        note=f"{len(rows)} switches, each by itself, {beside}{result.audit}",
    )  # fmt: skip


def _edges(session: Session, found: StateRuns, progress: Progress) -> Answer:
    """Edges by attribution: to first order, what each carries of the difference between the prompts."""
    if found.other is None or found.other.length != found.own.length:
        raise PromptError("edges are scored by what they carry from the other prompt; write one of as many tokens")
    scores = edge_attribution(session.model, found.own.tokens, found.other.tokens, found.metric, steps=3, progress=progress)
    rows = [
        AnswerRow(f"{writer} → {reader}", value, EdgeSwitch("patch", 0.0, writer, reader))
        for writer, reader, value in scores.top(ROWS)
    ]
    return Answer(
        "edges that matter", found.metric.unit, rows,
        note=f"{scores.method}: an estimate of the {found.metric.name} that each edge carries; switch one to see it exactly",
    )  # fmt: skip


def _writers(session: Session, now: State, prompts: PromptPair, found: StateRuns) -> Answer:
    """Who writes what the selected head or MLP reads (at the selected position), else who writes the answer."""
    model, place = session.model, now.selected
    if place.layer is None:
        values = maps.direct(found.now, found.at, found.answers.right, found.answers.wrong)
        rows = [AnswerRow(str(one), float(values[row, layer]), _off(one, now.how)) for row in range(len(values))
                for layer in range(model.cfg.n_layers) for one in [maps.component(model, row, layer)]]  # fmt: skip
        return Answer("who writes the answer (directly)", "logits", _largest(rows))
    at = place.position if place.position is not None and place.position < found.own.length else found.at
    reader = Component("mlp", place.layer) if place.head is None else Component("reads", place.layer, place.head, "q")
    shares = shares_of(found.now, reader, at)
    name = f"MLP {place.layer}" if place.head is None else f"head {place.layer}.{place.head}"
    rows = [AnswerRow(str(one), value, _off(one, now.how)) for one, value in shares]
    total = sum(row.value for row in rows)
    word = prompts.words[now.side][at]
    note = f"each component's share of the stream that {name} reads at {at} ({word!r}): its product with the stream, over the "
    note += f"stream's square; all shares add up to {total:.3f}"
    return Answer(f"who writes what {name} reads", "share", _largest(rows), note=note)


@torch.no_grad()
def shares_of(kept: KeptRun, reader: Component, at: int) -> list[tuple[Component, float]]:
    """Each writer's share of the stream that a component reads at a position; they sum to 1."""
    every = writers(kept.model.cfg, reader)
    parts = written(kept.model, kept, every, (1, kept.length))[:, 0, at].double()
    stream = kept.site(stream_site(kept.model.cfg, reader))[0, at].double()
    shares = (parts @ stream) / (stream @ stream)
    return list(zip(every, shares.tolist(), strict=True))


def _off(one: Component, how: Any) -> AnySwitch | None:
    if one.kind == "head" and one.layer is not None and one.index is not None:
        return HeadSwitch(how, 0.0, one.layer, one.index)
    return MlpSwitch(how, 0.0, one.layer) if one.kind == "mlp" and one.layer is not None else None


def _looked(session: Session, now: State, prompts: PromptPair, found: StateRuns, what: Ask) -> Answer:
    """Why a head looks from a query to a key: its score by components of the query and of the key."""
    place = now.selected
    if place.layer is None or place.head is None or what.query is None or what.key is None:
        raise ShapeError("select a head, and in its pattern the cell that you ask about")
    if max(what.query, what.key) >= found.own.length or what.key > what.query:
        raise ShapeError(f"there is no query {what.query} that sees a key {what.key}")
    scores, labels = score_parts(found.now, place.layer, place.head, what.query, what.key)
    words = prompts.words[now.side]
    queries, keys = (scores.sum(1 - axis).abs().topk(min(PAIRS, len(labels))).indices.tolist() for axis in (0, 1))
    title = f"head {place.layer}.{place.head}: score of {words[what.query]!r} ({what.query}) → {words[what.key]!r} ({what.key})"
    figure = view.heat_map(
        scores[queries][:, keys], [labels[key] for key in keys], [labels[query] for query in queries], x_name="of the key",
        y_name="of the query", value_name="part of the score", title=title,
    )  # fmt: skip
    rows = [AnswerRow(f"query {labels[q]} × key {labels[k]}", float(scores[q, k]), EdgeSwitch(now.how, 0.0, labels[k],
            f"{place.layer}.{place.head}.k") if labels[k] != "constant" and "bias" not in labels[k] else None)
            for q in queries for k in keys]  # fmt: skip
    note = f"the whole score is {float(scores.sum()):.3f} (before the mask and the softmax); norms' scales are those of this run"
    return Answer(title, "score", _largest(rows), figure, note)


@torch.no_grad()
def score_parts(kept: KeptRun, layer: int, head: int, query: int, key: int) -> tuple[Tensor, list[str]]:
    """One attention score by components of its query and of its key, `[component, component]`, which sum to it; and their labels.

    Raises:
        ConfigError: queries and keys are normalised, so that the score is no such sum.
    """
    model = kept.model
    if model.cfg.use_qk_norm or (norm_before(model.cfg, Component("reads", layer, 0, "q")) is None and model.cfg.post_norm_only):
        raise ConfigError("this network normalises queries and keys, so its scores are no sum over components")
    attn = model.blocks[layer].attn
    cache = ActivationCache(kept.gather(sites_into(model, layer)), model)
    parts, labels = components_looked_up(cache, layer)
    sides = []
    for which in "qk":
        x = projected(model, layer, parts, which)
        own = constant(model, layer, which).to(x.dtype).expand(1, *x.shape[1:])
        x = torch.cat([x, own])
        if attn.rotary is not None:
            x = torch.stack([attn.rotary.rotate(one, Stream()) for one in x])
        sides.append(x[:, 0, query if which == "q" else key, head].double())
    return (sides[0] @ sides[1].T / attn.attn_scale).float(), [*labels, "constant"]
