"""A session: the state, its history, and what follows from it. One session serves all pages; it knows nothing of sockets.

`set` changes the state and is quick; `look` computes what the page shows and runs in the worker's thread. What it finds is
given to `post`: figures for places of the page, and small messages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec
import torch
from torch import Tensor

from cutaway.errors import PromptError, ShapeError, UnknownName
from cutaway.model.transformer import Transformer
from cutaway.runs import editing, generation
from cutaway.runs.edits import Edit
from cutaway.runs.metrics import Metric
from cutaway.view import Figure
from cutaway.workbench import figures, maps, prompt_pair, state, switches
from cutaway.workbench.prompt_pair import AnswerTokens, PromptPair, other_side
from cutaway.workbench.runs import Between, KeptRun, nothing, run_clean, run_edited
from cutaway.workbench.state import Side, State

MOST_STEPS = 1_000
GREEDY = generation.Sampling(do_sample=False)
Post = Callable[[str, Any], None]
"""What is told the pages: (kind of message, its fields), or ("figure", a `Figure` whose meta has `slot` and `turn`)."""


@dataclass(frozen=True)
class HistoryStep:
    """A line of the history: the state after it, and the metric once it is known."""

    label: str
    state: State
    value: float | None = None


@dataclass(frozen=True, eq=False)
class StateRuns:
    """The runs of one state, and what the metric says of them."""

    own: KeptRun
    other: KeptRun | None
    now: KeptRun
    edits: list[Edit]
    answers: AnswerTokens
    metric: Metric
    at: int
    before: float
    after: float
    counterpart: float | None
    key: Any

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Logits at the answer, before and after."""
        return self.own.logits(self.at), self.now.logits(self.at)


class Session:
    """One model, taken apart by hand.

    Args:
        name: what `loading` finds the model by, when a record runs again.
        post: is told what pages show.
    """

    def __init__(self, model: Transformer, name: str, post: Post = lambda kind, message: None):
        self.model, self.name, self.post = model, name, post
        self.turn = 0
        self._lock = threading.RLock()
        self._runs: dict[tuple[int, ...], KeptRun] = {}
        self._last: KeptRun | None = None
        self._maps: dict[Any, tuple[Tensor, str]] = {}
        self._sent: dict[str, Any] = {}
        self.on_screen: dict[str, Figure] = {}
        self.generated: str = ""
        first = state.changed(State(), prompt_pair.opening(model))
        self.pair: PromptPair = prompt_pair.pair_of(model, first)
        self.steps: list[HistoryStep] = [HistoryStep("start", first)]
        self.at_step = 0
        self.state = first

    # What changes the state.

    def restore(self, given: State) -> None:
        """Take over the state of a page's address, unless somebody has worked here already."""
        if self.turn == 0 and len(self.steps) == 1:
            self._change(given, "start", replaces=True)

    def set(self, fields: dict[str, Any], *, slide: bool = False) -> list[str]:
        """New values of some fields; what had to be given up for them, in words.

        Raises:
            CutawayError: they do not fit the model or each other; the state stays as it is.
        """
        with self._lock:
            new = state.changed(self.state, fields)
            dropped: list[str] = []
            if {"clean", "corrupted", "side", "chat"} & set(fields) and "switches" not in fields:
                new, dropped = self._fitting(new)
            if {"clean", "corrupted"} & set(fields) and "roles" not in fields:
                new = msgspec.structs.replace(new, roles={})
            last = self.steps[self.at_step]
            before = self.steps[self.at_step - 1].state if self.at_step else None
            replaces = slide and before is not None and last.label.startswith("slide: ")
            label = _what(self.state, new, slide)
            self._change(new, label, replaces=replaces)
            return dropped

    def example(self, name: str, number: int) -> None:
        """Take an example of a behaviour."""
        with self._lock:
            fields = prompt_pair.example(self.model, name, number)
            self._change(state.changed(self.state, fields), f"{name}, example {number}")

    def go(self, to: int) -> None:
        """Go to a step of the history.

        Raises:
            UnknownName: there is none.
        """
        with self._lock:
            if to >= len(self.steps):
                raise UnknownName(f"there is no step {to}: there are {len(self.steps)}, counted from 0")
            kept = {name: getattr(self.steps[to].state, name) for name in (*state.EXPERIMENT, "roles")}
            self.pair = prompt_pair.pair_of(self.model, self.steps[to].state)
            self.state = self._checked(msgspec.structs.replace(self.state, **kept))
            self.at_step = to
            self.turn += 1

    def _fitting(self, new: State) -> tuple[State, list[str]]:
        """The state without switches that its prompts do not allow any more."""
        prompts = prompt_pair.pair_of(self.model, new)
        length, other = self._lengths(prompts, new.side)
        kept, dropped = [], []
        for one in new.switches:
            try:
                switches.check(one, self.model, length, other)
                kept.append(one)
            except (ShapeError, PromptError) as error:
                dropped.append(f"switched back on: {switches.label(one)} ({error})")
        return msgspec.structs.replace(new, switches=tuple(kept)), dropped

    def _lengths(self, prompts: PromptPair, side: Side) -> tuple[int, int | None]:
        other = prompts.tokens.get(other_side(side))
        return prompts.tokens[side].shape[1], None if other is None else other.shape[1]

    def _checked(self, new: State) -> State:
        """A state that fits the model.

        Raises:
            CutawayError: it does not.
        """
        prompts = prompt_pair.pair_of(self.model, new)
        prompt_pair.check_answers(self.model, new)
        length, other = self._lengths(prompts, new.side)
        for one in new.switches:
            switches.check(one, self.model, length, other)
        cfg = self.model.cfg
        for layer, head in new.pins:
            if layer >= cfg.n_layers or head >= cfg.n_heads:
                raise ShapeError(
                    f"there is no head {layer}.{head}: there are {cfg.n_layers} layers of {cfg.n_heads} heads, counted from 0"
                )
        maps.seen_as(new.source, prompts.tokens[new.side][0], new.roles, None) if new.colour == "attention" else None
        return new

    def _change(self, new: State, label: str, *, replaces: bool = False) -> None:
        with self._lock:
            self._checked(new)
            step = state.experiment(new) != state.experiment(self.state)
            self.pair = prompt_pair.pair_of(self.model, new)
            self.state = new
            self.turn += 1
            if replaces:
                self.steps[self.at_step] = HistoryStep(label, new)
            elif step:
                del self.steps[self.at_step + 1 :]
                self.steps.append(HistoryStep(label, new))
                del self.steps[1 : max(1, len(self.steps) - MOST_STEPS)]
                self.at_step = len(self.steps) - 1

    # What follows from it.

    @cached_property
    def behaviours(self) -> list[str]:
        """The behaviours whose prompts this model can read; looked up when the first page asks, while the first runs go on."""
        return prompt_pair.examples(self.model)

    def about(self) -> dict[str, Any]:
        """What a page must know about the model."""
        cfg = self.model.cfg
        return {
            "name": self.name, "layers": cfg.n_layers, "heads": cfg.n_heads, "mlp": not cfg.attn_only, "context": cfg.n_ctx,
            "behaviours": [{"name": name, "count": prompt_pair.DRAWN} for name in self.behaviours],
            "chat": getattr(self.model.tokenizer, "chat_template", None) is not None,
            "kinds": list(maps.KINDS), "text": self.model.tokenizer is not None,
        }  # fmt: skip

    def shown(self) -> dict[str, Any]:
        """The state, its prompts and its history, as messages have them."""
        with self._lock:
            now = self.state
            texts = {side: self._text(getattr(now, side)) for side in ("clean", "corrupted")}
            steps = [{"label": one.label.removeprefix("slide: "), "value": one.value} for one in self.steps]
            return {
                "turn": self.turn, "state": msgspec.to_builtins(now), "words": self.pair.words, "why": self.pair.why,
                "differ": self.pair.differ, "at": self.pair.at(now.side, now.at), "steps": steps, "step": self.at_step,
                "labels": [switches.label(one) for one in now.switches], "sources": maps.sources(now.roles), "texts": texts,
            }  # fmt: skip

    def _text(self, given: Any) -> str:
        if not isinstance(given, list):
            return str(given)
        return "".join(prompt_pair.words_of(self.model, torch.tensor(given))) if self.model.tokenizer is not None else ""

    def run_of(self, tokens: Tensor, between: Between = nothing) -> KeptRun:
        """The clean run of a prompt; the last few are kept."""
        key = tuple(tokens[0].tolist())
        kept = self._runs.get(key)
        if kept is None:
            kept = run_clean(self.model, tokens, between)
            with self._lock:
                while len(self._runs) >= 4:
                    self._runs.pop(next(iter(self._runs)))
                self._runs[key] = kept
        return kept

    def find(self, now: State, prompts: PromptPair, between: Between = nothing) -> StateRuns:
        """The runs of a state."""
        own = self.run_of(prompts.tokens[now.side], between)
        there = prompts.tokens.get(other_side(now.side))
        other = None if there is None else self.run_of(there, between)
        at = prompts.at(now.side, now.at)
        places = {now.side: own} | ({} if other is None else {other_side(now.side): other})
        rows = {side: kept.logits(prompts.at(side, now.at)) for side, kept in places.items()}
        known = prompt_pair.answers(self.model, now, rows.get("clean", rows[now.side]), rows.get("corrupted"))
        metric = prompt_pair.metric_of(now, known, at)
        edits = switches.edits_of(now.switches, own, other)
        run = own
        if edits:
            marks = [(switch, edit) for switch, edit in zip(now.switches, edits, strict=True)]
            run = run_edited(own, [((one, _of(other)), edit) for one, edit in marks], self._last, between)
            self._last = run
        clean, row = own.logits(at), run.logits(at)
        counterpart = None if other is None else prompt_pair.measure(metric, at, rows[other_side(now.side)], clean)
        return StateRuns(
            own, other, run, edits, known, metric, at, prompt_pair.measure(metric, at, clean, clean),
            prompt_pair.measure(metric, at, row, clean), counterpart, (_of(own), _of(other), now.switches, at),
        )  # fmt: skip

    def look(self, between: Between = nothing) -> None:
        """Compute what the page shows, the numbers first. `between` may raise where nobody waits for it any more.

        Raises:
            CutawayError: what the state asks cannot be computed.
        """
        with self._lock:
            now, prompts, turn, step = self.state, self.pair, self.turn, self.at_step
        found = self.find(now, prompts, between)
        with self._lock:
            if turn == self.turn and step < len(self.steps):
                self.steps[step] = replace(self.steps[step], value=found.after)
        self._say_values(found, now, turn)
        changed = bool(found.edits)
        self._draw("next", turn, lambda: figures.bars(self.model, figures.likeliest(*found.rows), changed), (found.key, "next"))
        self._draw_map(found, now, prompts, turn, between, waits=False)
        self.post("drawn", {"turn": turn})
        between()
        self._draw_attention(found, now, prompts, turn)
        between()
        self._draw_map(found, now, prompts, turn, between, waits=True)
        self._draw_lens(found, turn)
        self._write_on(found, now, turn, between)

    def _say_values(self, found: StateRuns, now: State, turn: int) -> None:
        names = prompt_pair.words_of(self.model, torch.tensor([found.answers.right, found.answers.wrong]))
        self.post("value", {
            "turn": turn, "before": found.before, "after": found.after, "other": found.counterpart, "metric": found.metric.name,
            "unit": found.metric.unit, "right": names[0], "wrong": names[1], "switched": bool(found.edits),
            "start": min(found.now.edits, default=self.model.cfg.n_layers),
        })  # fmt: skip

    def _draw(self, slot: str, turn: int, make: Callable[[], Figure], key: Any) -> None:
        """Send a figure, unless the page shows it already."""
        if self._sent.get(slot) == key:
            return
        figure = figures.note(make(), slot=slot, turn=turn)
        self._sent[slot], self.on_screen[slot] = key, figure
        self.post("figure", figure)

    def _draw_attention(self, found: StateRuns, now: State, prompts: PromptPair, turn: int) -> None:
        if not now.pins:
            if self.on_screen.pop("attention", None) is not None:
                self._sent.pop("attention", None)
                self.post("gone", {"slot": "attention"})
            return
        words = prompts.words[now.side]
        make = lambda: figures.attention(words, now.pins, now, found.own, found.now)  # noqa: E731 (drawn only if it is new)
        self._draw("attention", turn, make, (now.pins, now.attention, found.key))

    def _draw_lens(self, found: StateRuns, turn: int) -> None:
        start = min(found.now.edits, default=0)
        make = lambda: figures.lens(  # noqa: E731
            self.model, found.at, found.own.lens(found.at), found.now.lens(found.at, start) if found.edits else None, start
        )
        self._draw("lens", turn, make, found.key)

    def _draw_map(self, found: StateRuns, now: State, prompts: PromptPair, turn: int, between: Between, *, waits: bool) -> None:
        """The map, at once if it is known; else when everything that is quicker has been drawn."""
        key = self.map_key(found, now)
        if key not in self._maps and waits and now.colour != "ablation":
            while len(self._maps) >= 32:
                self._maps.pop(next(iter(self._maps)))
            self._maps[key] = self._map(found, now, prompts, between)
        if key not in self._maps and not waits:
            return
        values, unit = self._maps.get(key, (None, ""))
        self._draw("map", turn, lambda: figures.map_figure(self.model, now, values, unit), (key, now.switches, values is None))

    def map_key(self, found: StateRuns, now: State) -> Any:
        """What the values of a map depend on."""
        base = (now.colour, _of(found.own), found.at)
        if now.colour == "attention":
            place = now.selected.position if now.source == maps.SELECTED else now.roles.get(now.source)
            return (*base, now.source, now.query, place)
        if now.colour == "change":
            return (*base, _of(found.other))
        return (*base, found.answers, now.metric, *((now.how, _of(found.other)) if now.colour == "ablation" else ()))

    def answered(self, figure: Figure | None) -> None:
        """Show the figure of an answer, or take away that of the last one."""
        self._sent.pop("answer", None)
        if figure is not None:
            self._draw("answer", self.turn, lambda: figure, object())
        elif self.on_screen.pop("answer", None) is not None:
            self.post("gone", {"slot": "answer"})

    def know_map(self, key: Any, values: Tensor, unit: str) -> None:
        """Values of a map that took longer."""
        self._maps[key] = values, unit

    def _map(self, found: StateRuns, now: State, prompts: PromptPair, between: Between) -> tuple[Tensor, str]:
        if now.colour == "attention":
            seen = maps.seen_as(now.source, found.own.tokens[0].cpu(), now.roles, now.selected.position)
            return maps.attention(found.own, seen, found.at if now.query == "end" else None, between), ""
        if now.colour == "change":
            if found.other is None:
                return torch.full((len(maps.rows(self.model)), self.model.cfg.n_layers), torch.nan), ""
            there = prompts.at(other_side(now.side), now.at)
            return maps.change(found.own, found.at, found.other, there, between), "length of the difference"
        wrong = found.answers.wrong if now.metric == "logit difference" else None
        return maps.direct(found.own, found.at, found.answers.right, wrong, between), "logits"

    def _write_on(self, found: StateRuns, now: State, turn: int, between: Between) -> None:
        """Generate text with the switches on, and without, and say each word as it comes."""
        if not now.words or self.model.tokenizer is None:
            return
        texts: dict[str, str] = {}
        most = min(now.words, self.model.cfg.n_ctx - found.own.length)
        for which, made in (("after", found.edits), ("before", []))[: 2 if found.edits else 1]:
            ids: list[int] = []
            with editing.edited(self.model, made):
                for token in generation.stream(self.model, found.own.tokens, most, sampling=GREEDY):
                    between()
                    ids.append(int(token))
                    texts[which] = str(self.model.tokenizer.decode(ids))
                    self.post("text", {"turn": turn, **texts, "done": False})
        self.generated = texts.get("after", "")
        self.post("text", {"turn": turn, **texts, "done": True})

    def peek(self, layer: int, head: int) -> None:
        """Show one head's attention for a moment.

        Raises:
            ShapeError: there is no such head.
        """
        with self._lock:
            now, prompts, turn = self.state, self.pair, self.turn
        if layer >= self.model.cfg.n_layers or head >= self.model.cfg.n_heads:
            raise ShapeError(f"there is no head {layer}.{head}")
        own = self.run_of(prompts.tokens[now.side])
        last = self._last if now.switches and self._last is not None and self._last.tokens is own.tokens else own
        figure = figures.attention(prompts.words[now.side], [(layer, head)], now, own, last)
        self.post("figure", figures.note(figure, slot="peek", turn=turn))


def _of(kept: KeptRun | None) -> tuple[int, ...] | None:
    """What tells clean runs apart."""
    return None if kept is None else tuple(kept.tokens[0].tolist())


def _what(old: State, new: State, slide: bool) -> str:
    """What a step did, in words."""
    before, after = set(old.switches), set(new.switches)
    parts = [switches.label(one) for one in new.switches if one not in before]
    parts += [f"{switches.label(one)} undone" for one in old.switches if one not in after] if not parts else []
    names = {
        "clean": "clean prompt",
        "corrupted": "corrupted prompt",
        "at": "position",
        "right": "answer",
        "wrong": "other answer",
    }
    fields = [name for name in state.EXPERIMENT if name != "switches"]
    parts += [names.get(name, name) for name in fields if getattr(old, name) != getattr(new, name)]
    return ("slide: " if slide else "") + (", ".join(parts) or "no change")
