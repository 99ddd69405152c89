"""What a page shows is what `run_with_hooks` gives by hand, and the record of a session replays to the same bits."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cutaway import HookedTransformer, records
from cutaway.workbench import recording
from cutaway.workbench.session import Session
from tests.workbench import clicks


class Page:
    """What a page would show: the last message of each kind, the last figure of each place."""

    def __init__(self, model: Any, length: int = 9):
        self.said: dict[str, Any] = {}
        self.session = clicks.session_of(model, length)
        self.session.post = self.take

    def take(self, kind: str, said: Any) -> None:
        self.said[f"figure {said.meta['slot']}" if kind == "figure" else kind] = said


def click(page: Page, draw: random.Random, length: int) -> None:
    """One random click: a switch on or off, a step back or forth, the other prompt, something to look at."""
    session, model = page.session, page.session.model
    on = list(msgspec.to_builtins(session.state.switches))
    kind = draw.choice(["on", "on", "on", "off", "undo", "side", "pin", "colour"])
    if kind == "on":
        session.set({"switches": [*on, clicks.switch(model, draw, length)][-6:]})
    elif kind == "off" and on:
        on.pop(draw.randrange(len(on)))
        session.set({"switches": on})
    elif kind == "undo":
        session.go(draw.randrange(1, len(session.steps)))
    elif kind == "side":
        session.set({"side": draw.choice(["clean", "corrupted"])})
    elif kind == "pin":
        session.set({"pins": [[draw.randrange(model.cfg.n_layers), draw.randrange(model.cfg.n_heads)]]})
    else:
        session.set({"colour": draw.choice(["attention", "direct", "change"])})
    session.look()


def check(page: Page) -> None:
    """The numbers of the page beside those of hooks by hand."""
    now = page.session.state
    logits = clicks.by_hand(page.session.model, now)[0, -1].double()
    value = page.said["value"]
    wanted = float(logits[now.right] - logits[now.wrong])  # type: ignore[index]
    assert value["after"] == pytest.approx(wanted, abs=2e-4 * max(1.0, float(logits.abs().max())))
    figure = page.said["figure next"]
    top = logits.softmax(-1)
    shown = dict(zip(figure.meta["groups"], figure.arrays["y"][-1].tolist(), strict=True))
    if page.session.model.tokenizer is None:
        for token, probability in shown.items():
            assert probability == pytest.approx(float(top[int(token)]), abs=1e-4)
    assert max(shown.values()) == pytest.approx(float(top.max()), abs=1e-4) or not now.switches


def sequences(model: HookedTransformer, count: int, folder: Path, length: int = 9, clicks_each: int = 8) -> None:
    for seed in range(count):
        page, draw = Page(model, length), random.Random(seed)
        page.session.look()
        for _ in range(clicks_each):
            click(page, draw, length)
            check(page)
        assert not any(point.listening for point in model.hook_points()), "a hook was left on"
        if not any(step.state.switches for step in page.session.steps):
            continue
        place, apart = recording.save(page.session, folder / f"record-{seed}")
        assert apart < 1e-3
        for record in records.records_in(place):
            assert records.replay(record, model).same_bits


def test_random_clicks_on_a_small_model(tmp_path: Path) -> None:
    sequences(clicks.small_model(), 4, tmp_path)


def test_random_clicks_on_the_bundled_model(tmp_path: Path) -> None:
    sequences(HookedTransformer.from_pretrained("attn-only-2l", device="cpu"), 1, tmp_path, length=12)


@pytest.mark.fuzz
def test_two_hundred_random_sequences_of_clicks(tmp_path: Path) -> None:
    sequences(clicks.small_model(1), 150, tmp_path)
    sequences(HookedTransformer.from_pretrained("attn-only-2l", device="cpu"), 50, tmp_path / "bundled", length=12)


def test_python_code_gives_the_numbers_of_the_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = HookedTransformer.from_pretrained("attn-only-2l", device="cpu")
    monkeypatch.setattr(HookedTransformer, "from_pretrained", lambda name, device: model)  # as the code loads it
    draw, seen = random.Random(5), set()
    for _ in range(10):
        page = Page(model, 10)
        some = [clicks.switch(model, draw, 10) for _ in range(4)]
        page.session.set({"switches": some, "side": draw.choice(["clean", "corrupted"]), "words": 2})
        page.session.look()
        first = int(clicks.by_hand(model, page.session.state)[0, -1].argmax())
        assert page.said["text"]["done"] and page.said["text"]["after"].startswith(model.to_string([first]))
        seen |= {type(one).__name__ for one in page.session.state.switches}
        session = page.session
        exec(recording.code(session, session.find(session.state, session.pair)), {"HERE": "a page"})
        before, after = map(float, re.findall(r"-?\d+\.\d*(?:e-?\d+)?", capsys.readouterr().out))
        assert before == pytest.approx(page.said["value"]["before"], abs=2e-3)
        assert after == pytest.approx(page.said["value"]["after"], abs=2e-3)
    assert {"HeadSwitch", "EdgeSwitch", "LookSwitch", "SteerSwitch", "PositionSwitch"} <= seen


def test_a_run_computes_only_the_layers_after_the_first_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = clicks.small_model()
    page = Page(model)
    page.session.look()
    ran: list[int] = []
    run_blocks = type(model).run_blocks

    def counted(self: Any, resid: Any, stream: Any, start: int = 0, stop: int | None = None) -> Any:
        ran.append(start)
        return run_blocks(self, resid, stream, start, stop)

    monkeypatch.setattr(type(model), "run_blocks", counted)
    for switches, first in (([[1, 0]], 1), ([[1, 0], [2, 3]], 2), ([[2, 3]], 2), ([[0, 1], [2, 3]], 0)):
        page.session.set({"switches": [{"kind": "head", "layer": layer, "head": head} for layer, head in switches]})
        ran.clear()
        page.session.find(page.session.state, page.session.pair)
        assert ran == list(range(first, 3)), switches


def test_the_address_gives_the_state_back() -> None:
    model = clicks.small_model()
    page, draw = Page(model), random.Random(2)
    for _ in range(6):
        click(page, draw, 9)
    kept = page.session.shown()["state"]
    other = Session(model, "small")
    from cutaway.workbench import state

    other.restore(state.changed(state.State(), kept))
    assert other.shown()["state"] == kept
    other.set({"side": "clean", "switches": []})
    now = other.shown()["state"]
    other.restore(state.State())  # somebody works here: a second tab's address does not undo it
    assert other.shown()["state"] == now
