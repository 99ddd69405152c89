"""Figures in a real browser: drawn with the network blocked, read, walked with the keyboard, and looked at by pixel."""

from __future__ import annotations

import base64
import importlib.util
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway import view
from tests.view.view_browser import ROOT, Browser

# The scales once more, written independently of ui/: colours at equal distances.
STOPS = {
    "sequential": "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838",
    "viridis": "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
    "diverging": "08306b 2f6fb3 84b6dc f7f7f5 f7b267 d9731a 7f3b08",
    "diverging dark": "a8d4ff 5a9bd8 2c5580 1c1e22 80501f dd8a35 ffd9a3",
}
HOSTILE = [
    "<s>",
    "</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\n",
    "שלום",
    "🙂",
    "w" * 2000,
    "&amp;",
    "\u202e",
    "-->",
    "",
]


@cache
def gallery() -> Any:
    """The module of examples."""
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "examples" / "gallery.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def examples() -> dict[str, view.Figure]:
    return gallery().figures()


NAMES = [example.__name__ for example in gallery().VIEWS]


@pytest.fixture
def show(chrome: Browser, tmp_path: Path) -> Callable[..., Browser]:
    """Opens a figure or a page in the browser."""

    def open_(thing: view.Figure | view.Page, **options: Any) -> Browser:
        chrome("open", file=str(thing.save(tmp_path / "page.html", replace=True)), **options)
        return chrome

    return open_


def colors(values: np.ndarray, scale: str, low: float, high: float) -> np.ndarray:
    """What a scale makes of values, [row, column, RGB]."""
    stops = np.array([[int(stop[i : i + 2], 16) for i in (0, 2, 4)] for stop in STOPS[scale].split()], float)
    levels = np.clip(np.floor((values.astype(np.float64) - low) / (high - low) * 255 + 0.5), 0, 255)
    at = levels / 255 * (len(stops) - 1)
    mixed = [np.interp(at, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.floor(np.stack(mixed, -1) + 0.5)


def assert_painted(pixels: np.ndarray, values: np.ndarray, scale: str, low: float, high: float) -> None:
    """The pixels are the scale's colours of the values, up to rounding of a colour by one."""
    assert pixels.shape[:2] == values.shape
    wanted = colors(values, scale, low, high)
    far = np.abs(pixels[..., :3].astype(float) - wanted).max(-1)
    assert far.max() <= 1, f"cell {np.unravel_index(far.argmax(), far.shape)}"
    assert (pixels[..., 3] == 255).all()


# ------------------------------------------------------------------------------------------------- every view


def test_every_view_is_drawn_without_the_network(show: Callable[..., Browser]) -> None:
    browser = show(gallery().page())
    what = "[one.dataset.ready, one.firstChild.dataset.view, one.closest('section').innerText]"
    found = browser("evaluate", code=f"[...document.querySelectorAll('.cutaway')].map(one => {what})")
    assert len(found) == len(NAMES)
    for name, (ready, drawn, text) in zip(NAMES, found, strict=True):
        assert (ready, drawn) == ("yes", examples()[name].view), name
        assert examples()[name].title in text
        assert "could not be drawn" not in text
        assert len(text) > len(examples()[name].title) + 40
    canvases = "[...document.querySelectorAll('canvas.ct-cells')].every(one => one.width > 1 && one.height > 1)"
    assert browser("evaluate", code=canvases)
    browser.quiet()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_serious_for_axe(show: Callable[..., Browser], dark: bool) -> None:
    edge = view.Section("Edges", [view.table(["a", ""], [[1, ""]]), view.heat_map([[float("nan")]])])
    browser = show(view.page("All", [*gallery().page().sections, edge]), dark=dark)
    serious = [one for one in browser("axe") if one["impact"] in ("serious", "critical")]
    assert not serious, "\n".join(f"{one['id']}: {one['nodes']}" for one in serious)
    browser.quiet()


@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_fits_its_window(show: Callable[..., Browser], width: int) -> None:
    browser = show(gallery().page(), width=width)
    assert browser("evaluate", code="document.documentElement.scrollWidth") <= width
    links = browser(
        "evaluate", code="[...document.querySelectorAll('.ct-toc a')].map(a => !!document.getElementById(a.hash.slice(1)))"
    )
    assert len(links) == len(NAMES)
    assert all(links)


def test_dark_and_light_differ_and_can_be_switched(show: Callable[..., Browser]) -> None:
    back = "getComputedStyle(document.documentElement).backgroundColor"
    browser = show(examples()["heat_map"], dark=True)
    dark, painted = browser("evaluate", code=back), browser.canvas(".ct-cells")
    browser("click", selector=".ct-theme")
    assert browser("evaluate", code=back) != dark
    assert (browser.canvas(".ct-cells") != painted).any()


def test_an_edge_shows_the_patterns_behind_it(show: Callable[..., Browser]) -> None:
    """Strongest first; width by effect; a click shows the pattern of the head that reads, and again hides it."""
    pattern = np.tril(np.ones((3, 3))) / np.arange(1, 4)[:, None]
    figure = view.circuit_layers(
        [("embed", "0.1.v"), ("0.1", "1.0.k"), ("1.0", "logits")], [0.5, -2.0, 1.0], sure=[1, 0.9, 0.25],
        patterns={"0.1": pattern, "1.0": pattern}, tokens=["a", "b", "c"],
    )  # fmt: skip
    browser = show(figure)
    widths = "[...document.querySelectorAll('path.ct-edge')].map(one => Number(one.getAttribute('stroke-width')))"
    assert browser("evaluate", code=widths) == pytest.approx([1.95, 3.3, 6.0])
    browser("focus", selector="svg.ct-layers")
    for key in ("ArrowRight", "Enter"):
        browser("press", key=key)
    said = browser("text", selector=".ct-readout")
    assert "0.1 → 1.0.k" in said and "-2" in said.replace("−", "-") and "90% of the draws" in said
    assert browser("evaluate", code="document.querySelectorAll('.ct-head-button').length") == 2
    assert_painted(browser.canvas(".ct-cells")[:, :1], pattern[:, :1].astype(np.float32), "sequential", 0, 1)
    browser("press", key="Enter")
    assert browser("evaluate", code="document.querySelectorAll('.ct-head-button').length") == 0
    browser.quiet()


# ------------------------------------------------------------------------------------------------- hostile text


def hostile() -> list[view.Figure]:
    """Every kind of view, with hostile text wherever text goes."""
    n = len(HOSTILE)
    square = np.tril(np.ones((2, n, n))) / np.arange(1, n + 1)[:, None]
    noise = np.random.default_rng(0).normal(size=(n, n))
    script, image = HOSTILE[1], HOSTILE[2]
    return [
        view.attention_patterns(HOSTILE, square, HOSTILE[:2], title=image),
        view.top_samples([HOSTILE, HOSTILE], [noise[:3], noise[:3]], names=HOSTILE[:3], menu_name=script),
        view.heat_map(noise, HOSTILE, HOSTILE, x_name=script, title=image, marks=[(0, 0, image)]),
        view.bar_chart(HOSTILE, {script: noise[0], image: noise[1]}, title=script),
        view.line_chart({script: noise[0], image: noise[1]}, HOSTILE, x_name=image, references={image: 0.5}),
        view.table(HOSTILE, [HOSTILE, HOSTILE], title=script, note=image),
        view.attribution(np.stack([noise, noise]), [script, image], HOSTILE, HOSTILE, answer_name=image),
        view.lens_grid(HOSTILE, noise, [HOSTILE] * n, title=script + image),
        view.token_log_probs(HOSTILE, -abs(noise), HOSTILE, range(n)),
        view.topk_tokens(HOSTILE, noise[:, None, :], neuron_names=HOSTILE, title=image + script),
        view.vocabulary_circuit(noise, None, HOSTILE, row_name=image),
        view.head_types({script: [[1.0]], image: [[0.0]]}, title=image),
        view.circuit_layers([("embed", "0.1.v"), ("0.1", "logits")], [1.0, -1.0], title=image, value_name=script),
    ]


@pytest.mark.parametrize("width", [360, 1200])
def test_hostile_tokens_show_as_text(show: Callable[..., Browser], width: int) -> None:
    figures = hostile()
    section = view.Section(HOSTILE[2], [HOSTILE[1], HOSTILE, view.Code(HOSTILE[1]), *figures], summary=HOSTILE[2])
    browser = show(view.page(HOSTILE[1], [section]), width=width)
    assert browser("evaluate", code="document.images.length") == 0
    assert browser("evaluate", code="document.title") == HOSTILE[1]
    texts = browser("evaluate", code="[...document.querySelectorAll('.cutaway')].map(one => one.textContent)")
    assert len(texts) == len(figures)
    for figure, text in zip(figures, texts, strict=True):
        assert "</script>" in text, figure.view
        assert "<img src=x" in text, figure.view
        assert "could not be drawn" not in text, figure.view
    assert browser("evaluate", code="document.documentElement.scrollWidth") <= width
    browser.quiet()


def test_tokens_keep_their_white_space_visible(show: Callable[..., Browser]) -> None:
    browser = show(view.colored_tokens([" a", "\n", "\t", "<bos>", "שלום"], [1, 2, 3, 4, 5]))
    shown = browser("evaluate", code="[...document.querySelectorAll('.ct-token')].map(one => one.textContent)")
    assert shown == ["·a", "↵", "⇥", "<bos>", "שלום"]


# ------------------------------------------------------------------------------------------------- interaction


def test_hover_previews_click_pins_shift_click_compares(show: Callable[..., Browser]) -> None:
    values = np.arange(12.0).reshape(3, 4)
    browser = show(view.heat_map(values, list("abcd"), list("xyz"), x_name="column", y_name="row"))
    cell = browser("evaluate", code="document.querySelector('.ct-area').getBoundingClientRect().width") / 4

    def at(row: int, column: int) -> dict[str, float]:
        return {"x": (column + 0.5) * cell, "y": (row + 0.5) * cell}

    browser("hover", selector=".ct-area", **at(1, 2))
    assert browser("text", selector=".ct-readout") == "row y · column c: 6.00"
    browser("click", selector=".ct-area", **at(1, 2))
    browser("hover", selector=".ct-legend", x=1, y=1)
    assert browser("text", selector=".ct-readout") == "pinned: row y · column c: 6.00"
    browser("click", selector=".ct-area", shift=True, **at(2, 3))
    assert "compared: row z · column d: 11.0 (difference 5.00)" in browser("text", selector=".ct-readout")
    browser("click", selector=".ct-area", **at(1, 2))
    browser("hover", selector=".ct-legend", x=1, y=1)
    assert browser("text", selector=".ct-readout").startswith("Point at a cell")
    browser("click", selector=".ct-area", **at(0, 0))
    browser("press", key="Escape")
    assert "pinned" not in browser("text", selector=".ct-readout")


def test_attention_with_the_keyboard_alone(show: Callable[..., Browser]) -> None:
    tokens = ["<s>", " the", " cat"]
    patterns = np.tril(np.random.default_rng(0).random((4, 3, 3)))
    figure = view.head_gallery(tokens, patterns.reshape(2, 2, 3, 3))
    browser = show(figure)
    browser("focus", selector=".ct-area")
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight"):
        browser("press", key=key)
    said = browser("text", selector=".ct-readout")
    assert "head 0.0 · from (query) 2 “·cat” → to (key) 1 “·the”" in said
    browser("press", key="]")
    assert "head 0.1" in browser("text", selector=".ct-readout")
    browser("press", key="}")
    assert "head 1.1" in browser("text", selector=".ct-readout")
    browser("press", key="{")
    browser("press", key="[")
    browser("press", key="Enter")
    assert f"pinned: head 0.0 · from (query) 2 “·cat” → to (key) 1 “·the”: {patterns[0, 2, 1]:.3f}" in browser(
        "text", selector=".ct-readout"
    )


def test_the_text_follows_the_matrix_and_the_matrix_the_text(show: Callable[..., Browser]) -> None:
    patterns = np.tril(np.full((1, 4, 4), 0.1)) + np.eye(4) * 0.3
    patterns[0, 3, 1] = 0.9
    browser = show(view.attention_patterns(list("abcd"), patterns))
    browser("hover", selector=".ct-area", x=5, y=browser("evaluate", code="document.querySelector('.ct-area').clientHeight") - 5)
    assert "what (query) 3 “d” looks at" in browser("text", selector=".ct-strip")
    shades = "[...document.querySelectorAll('.ct-strip .ct-token')].map(one => one.style.background)"
    first = browser("evaluate", code=shades)
    assert first[1] == f"rgb({', '.join(str(int(c)) for c in colors(np.array([0.9]), 'sequential', 0, 0.9)[0])})"
    browser("hover", selector=".ct-strip .ct-token:nth-child(3)", x=3, y=3)
    assert "from (query) 2 “c” → to (key) 2 “c”" in browser("text", selector=".ct-readout")
    assert browser("evaluate", code="getComputedStyle(document.querySelector('.ct-hover')).display") == "block"


def test_a_cell_is_echoed_in_the_other_panels(show: Callable[..., Browser]) -> None:
    browser = show(view.small_multiples({"one": np.eye(4), "two": np.eye(4) * 2}))
    browser("click", selector=".ct-area", x=5, y=5)
    left = "[...document.querySelectorAll('.ct-pinned')].map(box => [box.style.left, box.classList.contains('ct-echo')])"
    assert browser("evaluate", code=left) == [["0px", False], ["0px", True]]


def test_references_are_named_beside_the_series_and_not_across_them(show: Callable[..., Browser]) -> None:
    named = {"unsteered": 1.5}
    figures = [
        view.line_chart({"a": [1, 2], "b": [2, 1.5]}, references=named),
        view.line_chart({"a": [1, 2]}, y_name="loss", references=named),
        view.bar_chart(["x", "y"], [1, 2], references=named),
    ]
    browser = show(view.page("Charts", [view.Section("All", figures)]))
    legends = browser("evaluate", code="[...document.querySelectorAll('.cutaway .ct-legend')].map(one => one.innerText)")
    assert len(legends) == 3 and all("unsteered: 1.50" in legend for legend in legends)
    assert browser("evaluate", code="document.querySelectorAll('svg.ct-chart .ct-reference').length") == 3
    drawn = browser("evaluate", code="[...document.querySelectorAll('svg.ct-chart')].map(one => one.textContent).join(' ')")
    assert "unsteered" not in drawn


def test_attribution_adds_up_on_the_page(show: Callable[..., Browser]) -> None:
    values = np.array([[[1.0, 2.0]], [[3.0, -4.0]]])
    browser = show(view.attribution(values, ["one", "two"], ["p"], ["a", "b"], total=[[4.5, -2.0]], correct=[0]))
    assert "sum +4.00 of +4.50; left over +0.500" in browser("text", selector=".ct-sub")
    names = browser("evaluate", code="[...document.querySelectorAll('select option')].map(one => one.textContent)")
    assert names == ["sum of all", "left over", "one", "two"]
    assert_painted(browser.canvas(".ct-cells"), np.array([[4.0], [-2.0]]), "diverging", -4, 4)
    browser("choose", selector="select", value=1)
    assert_painted(browser.canvas(".ct-cells"), np.array([[0.5], [0.0]]), "diverging", -0.5, 0.5)
    browser("choose", selector="select", value=3)
    assert_painted(browser.canvas(".ct-cells"), np.array([[3.0], [-4.0]]), "diverging", -4, 4)
    assert browser("evaluate", code="document.querySelectorAll('.ct-mark').length") == 1


def test_zoom_magnifies_without_new_pixels_and_the_largest_cells_are_a_table(show: Callable[..., Browser]) -> None:
    values = np.zeros((100, 100))
    values[40, 70], values[3, 99] = -3, 2
    browser = show(view.heat_map(values, y_name="from"))
    wide = "document.querySelector('.ct-area').clientWidth"
    before, pixels = browser("evaluate", code=wide), browser.canvas(".ct-cells")
    browser("click", selector="button[aria-label='zoom in']")
    assert browser("evaluate", code=wide) == 2 * before
    np.testing.assert_array_equal(browser.canvas(".ct-cells"), pixels)
    browser("click", selector=".ct-top summary")
    rows = "[...document.querySelectorAll('.ct-top tbody tr')].map(row => [...row.children].map(cell => cell.textContent))"
    assert browser("evaluate", code=rows)[:2] == [["40", "70", "−3.00"], ["3", "99", "2.00"]]
    browser("click", selector=".ct-top tbody button")
    assert "pinned: from 40 · column 70: −3.00" in browser("text", selector=".ct-readout")


def test_menus_and_sorting(show: Callable[..., Browser]) -> None:
    browser = show(view.table(["name", "score"], [["b", 1.5], ["a", -2.0], ["c", 10.25]]))
    first = "[...document.querySelectorAll('tbody td:first-child')].map(one => one.textContent)"
    browser("click", selector="th:nth-child(2) button")
    assert browser("evaluate", code=first) == ["c", "b", "a"]
    browser("click", selector="th:nth-child(2) button")
    assert browser("evaluate", code=first) == ["a", "b", "c"]
    browser = show(view.vocabulary_circuit(np.array([[1.0, 5.0], [-7.0, 2.0]]), None, [" dog", " cat"]))
    assert "·cat" in browser("text", selector=".ct-search b")
    browser("fill", selector="input", text="dog")
    browser("click", selector=".ct-found button")
    assert "+5.00" in browser("text", selector=".ct-search tbody")


# ------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("scale", ["sequential", "viridis", "diverging"])
def test_pixels_of_a_heat_map(show: Callable[..., Browser], scale: str) -> None:
    values = np.random.default_rng(1).normal(size=(9, 14)).astype(np.float32)
    figure = view.heat_map(values, scale=scale)
    low, high = figure.meta["range"]
    assert_painted(show(figure).canvas(".ct-cells"), values, scale, low, high)
    if scale == "diverging":
        assert_painted(show(figure, dark=True).canvas(".ct-cells"), values, "diverging dark", low, high)


def test_pixels_of_panels_with_and_without_a_common_scale(show: Callable[..., Browser]) -> None:
    values = np.random.default_rng(1).normal(size=(3, 5, 5)).astype(np.float32) * np.array([1, 2, 9])[:, None, None]
    browser = show(view.sweep_grid(values, kinds=["a", "b", "c"]))
    most = np.abs(values).max()
    for panel in range(3):
        assert_painted(browser.canvas(".ct-cells", panel), values[panel], "diverging", -most, most)
    browser("click", selector="input[type=checkbox]")
    for panel in range(3):
        own = np.abs(values[panel]).max()
        assert_painted(browser.canvas(".ct-cells", panel), values[panel], "diverging", -own, own)


@pytest.mark.parametrize("kind", ["circuit", "lens grid", "sweep grid"])
def test_pixels_of_other_grids(show: Callable[..., Browser], kind: str) -> None:
    values = np.random.default_rng(4).normal(size=(6, 8)).astype(np.float32)
    if kind == "lens grid":
        values = np.abs(values)
        figure = view.lens_grid(list("abcdefgh"), values, [["w"] * 8] * 6)
    else:
        figure = view.circuit(values) if kind == "circuit" else view.sweep_grid(values)
    low, high = figure.meta["range"]
    assert_painted(show(figure).canvas(".ct-cells"), values, figure.meta["scale"], low, high)


def test_contrast_draws_the_ends_of_the_scale_together(show: Callable[..., Browser]) -> None:
    values = np.array([[1.0, -0.25], [0.1, 8.0]])
    browser = show(view.heat_map(values))
    browser("fill", selector="input[type=range]", text="3")
    assert_painted(browser.canvas(".ct-cells"), values, "diverging", -1, 1)
    assert "values reach −0.250 to 8.00" in browser("text", selector=".ct-legend")
    browser = show(view.heat_map(values + 1, scale="viridis", range=(0, 8)))
    browser("fill", selector="input[type=range]", text="2")
    assert_painted(browser.canvas(".ct-cells"), values + 1, "viridis", 0, 2)


def test_pixels_of_attention_and_its_thumbnails(show: Callable[..., Browser]) -> None:
    n = 200
    patterns = np.tril(np.random.default_rng(2).random((3, n, n)) * 0.2)
    patterns[1, 150, 3] = 1.0  # one bright cell
    browser = show(view.attention_patterns([f"t{i}" for i in range(n)], patterns))
    kept = view.Figure.from_wire(view.attention_patterns([f"t{i}" for i in range(n)], patterns).wire()).arrays["patterns"]
    main = browser.canvas(".ct-cells")
    lower = np.tri(n, dtype=bool)
    assert (main[~lower] == 0).all()
    wanted = colors(kept[0], "sequential", 0, 1)
    assert np.abs(main[lower][:, :3] - wanted[lower]).max() <= 1
    thumb = browser.canvas(".ct-thumb", 1)
    k = -(-n // 72)
    edge = -(-n // k)
    assert thumb.shape[:2] == (edge, edge)
    padded = np.full((edge * k, edge * k), -np.inf)
    padded[:n, :n] = np.where(lower, kept[1], -np.inf)
    pooled = padded.reshape(edge, k, edge, k).max((1, 3))
    seen = np.isfinite(pooled)
    assert (thumb[~seen] == 0).all()
    assert np.abs(thumb[seen][:, :3] - colors(pooled, "sequential", 0, 1)[seen]).max() <= 1
    np.testing.assert_array_equal(thumb[150 // k, 3 // k, :3], [0xFE, 0xE8, 0x38])


def test_pixels_where_many_cells_share_one(show: Callable[..., Browser]) -> None:
    values = np.random.default_rng(3).normal(0, 0.1, (3, 3000)).astype(np.float32)
    values[1, 1234], values[2, 2999] = 5, -5
    browser = show(view.heat_map(values))
    pixels = browser.canvas(".ct-cells")
    k = 3000 // pixels.shape[1] + (3000 % pixels.shape[1] > 0)
    assert k > 1
    assert "boldest" in browser("text", selector=".ct-legend")
    padded = np.pad(values, ((0, 0), (0, -3000 % k))).reshape(3, -1, k)
    bold = np.take_along_axis(padded, np.abs(padded).argmax(-1)[..., None], -1)[..., 0]
    assert_painted(pixels, bold.astype(np.float32), "diverging", -5, 5)


def test_what_is_not_finite_is_drawn_and_said(show: Callable[..., Browser]) -> None:
    browser = show(view.heat_map([[1, np.nan, np.inf], [-np.inf, 0, np.nan]]))
    pixels = browser.canvas(".ct-cells")
    assert pixels[0, 1, :3].tolist() == pixels[1, 2, :3].tolist() == [158, 158, 158]
    assert pixels[0, 2, :3].tolist() != pixels[1, 0, :3].tolist()
    legend = browser("text", selector=".ct-legend")
    assert "NaN (2 cells)" in legend
    assert "+∞ (1 cell)" in legend
    assert "−∞ (1 cell)" in legend


def test_rounded_values_are_marked(show: Callable[..., Browser]) -> None:
    patterns = np.tril(np.random.default_rng(0).random((12, 64, 64)))
    browser = show(view.attention_patterns([f"t{i}" for i in range(64)], patterns))
    browser("hover", selector=".ct-area", x=2, y=2)
    assert re.search(r": ≈ 0\.\d+", browser("text", selector=".ct-readout"))
    assert "≈ stored in 16 bits" in browser("text", selector=".ct-legend")


# ------------------------------------------------------------------------------------------------- hosts


def test_a_figure_in_a_sandboxed_frame(chrome: Browser, tmp_path: Path) -> None:
    file = tmp_path / "notebook.html"
    body = view.heat_map(np.eye(3), title="in a frame")._repr_html_()
    file.write_text(f"<!doctype html><meta charset=utf-8><title>host</title><link rel=icon href=data:,>{body}", encoding="utf-8")
    chrome("open", file=str(file), ready="iframe")
    before = re.search(r"height:(\d+px)", body)
    assert before
    chrome("enter")
    assert "in a frame" in chrome("text", selector="figcaption")
    assert_painted(chrome.canvas(".ct-cells"), np.eye(3), "diverging", -1, 1)
    inside = chrome("evaluate", code="document.documentElement.getBoundingClientRect().height")
    chrome("open", file=str(file), ready="iframe")
    wait = "new Promise(done => setTimeout(() => done(document.querySelector('iframe').style.height), 700))"
    after = chrome("evaluate", code=wait)
    assert after != before[1]
    assert abs(float(after.removesuffix("px")) - inside) <= 2
    chrome.quiet()


WIDGET = """<!doctype html><meta charset=utf-8><title>widget</title><link rel=icon href=data:,><div id=place></div>
<script type=module>
const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
const {{ default: widget }} = await import("data:text/javascript;base64,{code}");
const values = {{ data: new DataView(bytes("{data}").buffer), selection: {{ layer: 1, head: 0, dest: 2, src: 1 }} }};
const heard = {{}};
window.model = {{
  get: (name) => values[name], set: (name, value) => {{ values[name] = value; heard[name]?.(); }},
  save_changes: () => (window.saved = values.selection), off: () => {{}},
  on: (event, call) => (heard[event.split(":")[1]] = call),
}};
window.stop = await widget.render({{ model, el: document.getElementById("place") }});
document.documentElement.dataset.ready = "yes";
</script>"""


def test_a_widget_and_python_share_the_selection(chrome: Browser, tmp_path: Path) -> None:
    figure = view.head_gallery(list("abc"), np.tril(np.ones((2, 2, 3, 3))))
    code = (ROOT / "src/cutaway/view/static/widget.js").read_bytes()
    page = WIDGET.format(code=base64.b64encode(code).decode(), data=base64.b64encode(figure.wire()).decode())
    (tmp_path / "widget.html").write_text(page, encoding="utf-8")
    chrome("open", file=str(tmp_path / "widget.html"))
    assert "pinned: head 1.0 · from (query) 2 “c” → to (key) 1 “b”" in chrome("text", selector=".ct-readout")
    chrome("evaluate", code="model.set('selection', { layer: 0, head: 1, dest: 1, src: 0 })")
    assert "pinned: head 0.1 · from (query) 1 “b” → to (key) 0 “a”" in chrome("text", selector=".ct-readout")
    chrome("click", selector=".ct-area", x=3, y=3)
    assert chrome("evaluate", code="window.saved") == {"layer": 0, "head": 1, "dest": 0, "src": 0}
    chrome("press", key="Escape")
    assert chrome("evaluate", code="window.saved") is None
    chrome("evaluate", code="window.stop()")
    assert chrome("evaluate", code="document.getElementById('place').innerText") == ""
    chrome.quiet()


@pytest.mark.parametrize("count", [1, 2])
def test_very_few_tokens(show: Callable[..., Browser], count: int) -> None:
    browser = show(view.attention_patterns(["a", "b"][:count], np.tri(count)[None]))
    browser("hover", selector=".ct-area", x=3, y=3)
    assert "from (query) 0 “a” → to (key) 0 “a”: 1.00" in browser("text", selector=".ct-readout")
    browser.quiet()


def test_damaged_data_says_so_in_place(chrome: Browser, tmp_path: Path) -> None:
    page = view.heat_map(np.eye(3)).html()
    payload = re.search(r'type="text/cutaway">([^<]+)<', page)
    assert payload
    file = tmp_path / "damaged.html"
    file.write_text(page.replace(payload[1], payload[1][:200]), encoding="utf-8")
    chrome("open", file=str(file))
    assert "could not be drawn" in chrome("text", selector="[role=alert]")
