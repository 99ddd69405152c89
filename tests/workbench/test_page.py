"""The page in a real browser: every control, by pointer and by keyboard alone, looked at by axe, with hostile tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cutaway import HookedTransformer, HookedTransformerConfig
from cutaway.tokens import CharTokenizer
from cutaway.workbench import serving
from tests.view.test_browser import HOSTILE
from tests.view.view_browser import Browser
from tests.workbench import clicks


class Page:
    """A browser at a workbench."""

    def __init__(self, chrome: Browser, made: serving.Workbench, **options: Any):
        self.chrome, self.session = chrome, made.bench.session
        chrome("open", url=made.address, ready="html[data-turn]", **options)

    def __call__(self, command: str, **options: Any) -> Any:
        return self.chrome(command, **options)

    def drawn(self) -> None:
        """Wait until the newest turn of the session is on the page."""
        self("wait", code=f"Number(document.documentElement.dataset.turn) >= {self.session.turn}")

    def evaluate(self, code: str) -> Any:
        return self("evaluate", code=code)

    def named(self, name: str, kind: str = "button") -> None:
        """Click the control with this text."""
        self("click", selector=f'{kind}:has-text("{name}"):visible')
        self("wait", code="true")

    def settled(self, condition: str) -> None:
        """Wait until the session is as a condition in Python says."""
        import time

        end = time.monotonic() + 20
        while not eval(condition, {"state": self.session.state, "session": self.session}):
            assert time.monotonic() < end, condition
            time.sleep(0.02)


def serve(model: Any, folder: Path, **fields: Any) -> serving.Workbench:
    made, _ = serving.prepare(model, model.cfg.model_name, folder=folder, port=8600)
    if fields:
        made.bench.session.set(fields)
    return serving.start(made)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.Workbench]:
    model = HookedTransformer.from_pretrained("attn-only-2l", device="cpu")
    made = serve(model, tmp_path_factory.mktemp("records"))
    yield made
    made.stop()


@pytest.fixture
def page(chrome: Browser, served: serving.Workbench) -> Page:
    fields = {"clean": "The king said to the king", "corrupted": "The king said to the man", "right": None, "wrong": None}
    plain: dict[str, Any] = {"switches": [], "selected": {}, "pins": [], "side": "clean", "colour": "direct"}
    served.bench.session.set({**fields, **plain})
    return Page(chrome, served)


def test_every_control(page: Page) -> None:
    session = page.session
    first = float(page("text", selector="#after").replace("−", "-"))
    page("click", selector="#map .ct-area", x=30, y=30)  # a head of the map
    page.settled("session.state.selected.head is not None and session.state.pins")
    page("wait", code="document.querySelector('#attention canvas')")
    page.named("switch off")
    page.settled("len(session.state.switches) == 1")
    page.drawn()
    after = float(page("text", selector="#after").replace("−", "-"))
    assert after == pytest.approx(session.steps[-1].value, rel=1e-2, abs=1e-2) and after != first
    page.named("scale", "label")
    page("click", selector='.wb-choice label:has-text("click switches off")')
    page("click", selector="#map .ct-area", x=5, y=5)
    page.settled("len(session.state.switches) == 2")
    page("wait", code="document.querySelector('.wb-chip input[type=range]')")
    page(
        "evaluate",
        code="""(() => { const s = document.querySelector('.wb-chip input[type=range]'); s.value = 1.5;
                             s.dispatchEvent(new Event('input', {bubbles: true})); })()""",
    )
    page.settled("session.state.switches[-1].factor == 1.5")
    page("click", selector=".wb-chip button >> nth=0")
    page.settled("len(session.state.switches) == 1")
    page.named("undo")
    page.settled("len(session.state.switches) == 2")
    page.named("redo")
    page.settled("len(session.state.switches) == 1")
    page("click", selector=".wb-token >> nth=2")
    page.settled("session.state.selected.position == 2")
    page("choose", selector='select:near(:text("colour"))', value="attention")
    page.settled("session.state.colour == 'attention'")
    page("wait", code="document.querySelector('#map .ct-legend').textContent.includes('attention')")
    page("click", selector="summary:has-text('an edge')")
    page.named("switch the edge")
    page.settled("session.state.switches[-1].writer == 'embed'")
    page.named("steer")
    page.settled("session.state.switches[-1].plus == ' love'")
    page.named("which single switch")
    page("wait", code="document.querySelectorAll('.wb-row').length > 5")
    page.named("which edges matter")
    page("wait", code="[...document.querySelectorAll('#ask h3')].some(one => one.textContent.includes('edges'))")
    page.named("all back on")
    page.settled("session.state.switches == ()")
    page("click", selector='#changed input[type="checkbox"]')
    page("wait", code="document.querySelector('.wb-texts dd')?.textContent.length > 3")
    page("click", selector='#corrupted, input[name="which prompt runs"] >> nth=1')
    page.settled("session.state.side == 'corrupted'")
    page("fill", selector="textarea >> nth=1", text="A king said")
    page("press", key="Enter")
    page.settled("session.state.corrupted == 'A king said'")
    page("wait", code="document.querySelector('.wb-why')?.textContent.includes('patching is off')")
    assert page.evaluate("[...document.querySelectorAll('input:disabled')].length") >= 1
    page.named("save the record")
    page("wait", code="document.querySelector('.wb-notices').textContent.includes('cutaway replay')")
    page.chrome.quiet()


def test_by_keyboard_alone(page: Page) -> None:
    page("focus", selector="#map .ct-area")
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page("press", key=key)
    page.settled("session.state.selected.head is not None")
    for _ in range(60):
        page("press", key="Tab")
        if page.evaluate("document.activeElement.textContent") == "switch off":
            break
    page("press", key="Enter")
    page.settled("len(session.state.switches) == 1")
    reached = set()
    page("focus", selector=".wb-head button")
    for _ in range(140):
        page("press", key="Tab")
        reached.add(page.evaluate("document.activeElement.closest('section')?.id"))
    assert {"prompts", "map", "selected", "switches", "ask", "changed", "attention", "steps"} <= reached
    page.chrome.quiet()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_axe_finds_nothing_in_any_width(chrome: Browser, served: serving.Workbench, width: int, dark: bool) -> None:
    one = {"kind": "head", "layer": 1, "head": 2}
    served.bench.session.set({"selected": {"layer": 1, "head": 2}, "pins": [[1, 2]], "switches": [one]})
    page = Page(chrome, served, width=width, dark=dark)
    page("wait", code="document.querySelector('#attention canvas') && document.querySelector('#lens canvas')")
    assert page("axe") == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    chrome.quiet()


def test_hostile_tokens_are_text(chrome: Browser, tmp_path: Path) -> None:
    words = [word for word in dict.fromkeys(HOSTILE) if word] + list("abcdefgh")
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, d_head=8, n_heads=2, d_mlp=16, n_ctx=32, d_vocab=len(words), act_fn="relu",
        normalization_type="LN", seed=0, model_name="<img src=x onerror=alert(1)>",
    )  # fmt: skip
    model = HookedTransformer(cfg)
    model.set_tokenizer(CharTokenizer(words))
    made = serve(model, tmp_path, clean=list(range(12)), pins=[[1, 1]], switches=[{"kind": "head", "layer": 0, "head": 1}])
    try:
        page = Page(chrome, made)
        page.drawn()
        assert page.evaluate("document.title").startswith("<img")
        assert page.evaluate("document.querySelectorAll('img').length") == 0
        assert len(page.evaluate("[...document.querySelectorAll('.wb-token')].map(one => one.textContent)")) == 12
        chrome.quiet()
    finally:
        made.stop()


def test_a_page_that_lost_its_server_says_so_and_comes_back(chrome: Browser, tmp_path: Path) -> None:
    made = serve(clicks.small_model(), tmp_path, clean=[1, 2, 3], corrupted=[3, 2, 1])
    token, port = made.bench.token, int(made.address.split(":")[2].split("/")[0])
    page = Page(chrome, made)
    made.bench.session.set({"side": "corrupted"})
    made.stop()
    page("wait", code="document.querySelector('.wb-notices').textContent.includes('trying again')")
    again, _ = serving.prepare(clicks.small_model(), "small", folder=tmp_path, port=port)
    again.bench.token = token
    serving.start(again)
    try:
        page("wait", code="!document.querySelector('.wb-notices').textContent.includes('trying again')")
        page("wait", code="document.querySelectorAll('.wb-token').length == 6")
    finally:
        again.stop()


def test_the_address_holds_the_state(chrome: Browser, tmp_path: Path) -> None:
    made = serve(clicks.small_model(), tmp_path, clean=[1, 2, 3], corrupted=[3, 2, 1], switches=[{"kind": "mlp", "layer": 1}])
    page = Page(chrome, made)
    address = page.evaluate("location.hash")
    assert json.loads(page.evaluate("decodeURIComponent(location.hash.slice(1))"))["switches"][0]["kind"] == "mlp"
    assert "token=" not in page.evaluate("location.href")
    made.stop()
    again = serve(clicks.small_model(), tmp_path)
    try:
        again.address += address
        page = Page(chrome, again)
        page.settled("len(session.state.switches) == 1 and session.state.clean == [1, 2, 3]")
    finally:
        again.stop()
