"""Figures and pages as HTML: self-contained, small enough or refused, the same again after a round trip."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway import view
from cutaway.errors import ConfigError, ShapeError
from tests.view.view_browser import ROOT, UI

STATIC = ROOT / "src" / "cutaway" / "view" / "static"


def causal(heads: int, n: int) -> np.ndarray:
    """Random attention: each row sums to one."""
    weights = np.tril(np.random.default_rng(0).gamma(0.2, size=(heads, n, n)).astype(np.float32)) + 1e-6 * np.eye(
        n, dtype=np.float32
    )
    return weights / weights.sum(-1, keepdims=True)


def test_a_figure_comes_back_from_json() -> None:
    figure = view.heat_map(np.eye(3), ["<s>", " a", "🙂"], title="t", marks=[(0, 1, "here")])
    again = view.Figure.from_json(figure.to_json())
    assert (again.view, again.title, again.meta, again.text, again.height) == (
        figure.view, figure.title, figure.meta, figure.text, figure.height,
    )  # fmt: skip
    np.testing.assert_array_equal(again.arrays["p0"], figure.arrays["p0"])
    assert again.to_json() == figure.to_json()
    assert json.loads(figure.to_json())["encoding"] == "gzip+base64"


def test_a_page_fetches_nothing_and_tokens_are_no_markup() -> None:
    tokens = ["</script>", "<img src=x>", "</noscript><p>"]
    page = view.attention_patterns(tokens, causal(2, 3), title="<b>title</b>").html()
    assert page.count("</script>") == 2  # the data's and the bundle's own
    assert "<title>&lt;b&gt;title&lt;/b&gt;</title>" in page
    assert "<b>title" not in page
    assert "<img" not in page
    assert "<p>" not in page
    assert all(address.startswith("http://www.w3.org/") for address in re.findall(r"https?://[^\s\"'`)]+", page))  # names of SVG
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)
    assert "default-src 'none'" in page


def test_notebooks_get_a_sandboxed_frame_and_text() -> None:
    bundle = view.heat_map(np.eye(2), title='a "quoted" title')._repr_mimebundle_()
    assert bundle["text/plain"].startswith('a "quoted" title')
    assert bundle["text/html"].startswith('<iframe sandbox="allow-scripts" srcdoc="&lt;!doctype html')
    assert "<script" not in bundle["text/html"]
    assert 'title="a &quot;quoted&quot; title"' in bundle["text/html"]


def test_sizes_of_attention() -> None:
    def size(n: int) -> int:
        return len(view.attention_patterns([f"t{i}" for i in range(n)], causal(12, n)).html())

    assert size(64) <= 150_000
    assert size(1024) <= 6_000_000


def test_above_five_megabytes_values_are_rounded_to_eight_bits() -> None:
    figure = view.attention_patterns([f"t{i}" for i in range(1024)], causal(12, 1024))
    payload = figure.payload()
    again = view.Figure.from_json(json.dumps({"data": payload}))
    error = np.abs(again.arrays["patterns"] - figure.arrays["patterns"]).max()
    assert 1e-3 < error <= figure.arrays["patterns"].max() / 252
    small = view.attention_patterns(list("abcd"), causal(1, 4))
    np.testing.assert_array_equal(view.Figure.from_wire(small.wire()).arrays["patterns"], small.arrays["patterns"])


def test_ten_thousand_tokens_are_refused_in_place() -> None:
    n = 10_000
    figure = view.attention_patterns([str(i) for i in range(n)], np.broadcast_to(np.float32(0.5), (1, n, n)))
    shown = figure._repr_html_()
    assert 'role="alert"' in shown
    assert "Draw fewer tokens" in shown
    assert ".save(" in shown
    assert len(shown) < 2_000
    page = view.page("p", [view.Section("s", ["before", figure, "after"])]).html()
    assert "Draw fewer tokens" in page
    assert "<p>after</p>" in page


def test_too_much_text_is_refused() -> None:
    with pytest.raises(ShapeError, match="20001 tokens"):
        view.colored_tokens(["a"] * 20_001, np.zeros(20_001))


def test_saving_writes_the_page(tmp_path: Path) -> None:
    figure = view.heat_map(np.eye(2))
    path = figure.save(str(tmp_path / "figure.html"))
    assert path.read_text(encoding="utf-8") == figure.html()


@pytest.mark.parametrize("ending", [".png", ".SVG", ".pdf"])
def test_a_page_is_not_saved_as_an_image(ending: str, tmp_path: Path) -> None:
    page = view.page("Title", [view.Section("One", [view.heat_map(np.eye(2))])])
    with pytest.raises(ConfigError, match=r"HTML page, not \..*; call it 'figure\.html'"):
        page.save(tmp_path / f"figure{ending}")
    assert not list(tmp_path.iterdir())


def test_a_page_has_contents_anchors_and_one_bundle() -> None:
    figure = view.heat_map(np.eye(2))
    inner = [view.Section("Inner & more", ["text"])]
    sections = [
        view.Section("First", ["one\ntwo", ["item <i>"], figure], summary="found <b>", sections=inner),
        view.Section("First", [figure, view.Code("x < y")]),
    ]
    page = view.page("Title", sections, intro="hello", subtitle="sub").html()
    bundle = (STATIC / "figure.js").read_text(encoding="utf-8")
    assert page.count(bundle) == 1 and page.index("<p>hello</p>") < page.index("<script")  # painted before anything runs
    assert page.count('<script type="text/cutaway">') == 2
    assert re.findall(r'<li><a href="#([^"]+)">', page) == ["first", "inner-more", "first-2"]
    assert all(f'<section id="{anchor}">' in page for anchor in ("first", "inner-more", "first-2"))
    assert "<p>one<br>two</p>" in page
    assert "<li>item &lt;i&gt;</li>" in page
    assert "found &lt;b&gt;" in page
    assert "x &lt; y" in page


def test_a_page_of_one_section_says_its_title_once() -> None:
    named, other = view.heat_map(np.eye(2), title="Eye"), view.heat_map(np.eye(2), title="Another")
    page = view.page("Title", [view.Section("Eye", [named])]).html()
    assert "<nav" not in page and 'class="cutaway ct-untitled"' in page
    several = view.page("Title", [view.Section("Eye", [other]), view.Section("More", [named])]).html()
    assert "<nav" in several and 'class="cutaway ct-untitled"' not in several


def test_figures_are_values() -> None:
    figure = view.heat_map(np.eye(2), title="a")
    with pytest.raises(AttributeError):
        figure.title = "b"  # type: ignore[misc]
    assert figure.with_title("b").title == "b"
    assert repr(figure) == "<Figure grid: a (p0 [2, 2])>"


def test_showing_opens_a_browser_or_says_where_the_file_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or len(opened) == 1)
    figure = view.heat_map(np.eye(2))
    figure.show()
    assert Path(opened[0].removeprefix("file://")).read_text(encoding="utf-8") == figure.html()
    assert capsys.readouterr().out == ""
    figure.show()
    assert "no browser could be opened; the figure is in " in capsys.readouterr().out


def test_showing_in_a_notebook_displays_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("cutaway.view.html.in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    figure = view.heat_map(np.eye(2))
    figure.show()
    assert shown == [figure]


def test_a_widget_carries_the_figure_and_its_selection() -> None:
    pytest.importorskip("anywidget")
    figure = view.heat_map(np.eye(2))
    widget = figure.widget()
    assert widget.data == figure.wire()
    assert widget.selection is None
    widget.selection = {"panel": 0, "row": 1, "column": 1}
    assert widget.get_state()["selection"] == {"panel": 0, "row": 1, "column": 1}
    widget.close()


def test_without_anywidget_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from cutaway.view import widget

    widget._widget_class.cache_clear()
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cutaway\[notebook\]'"):
        view.heat_map(np.eye(2)).widget()


def node(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of ui/, or skip, saying why."""
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    if not (UI / "node_modules").is_dir():
        pytest.skip("ui/node_modules is missing; run: make ui")
    return subprocess.run(command, cwd=UI, capture_output=True, text=True, check=False)


def test_the_committed_bundle_is_what_ui_builds() -> None:
    done = node("node", "build.mjs", "--check")
    assert done.returncode == 0, done.stderr


def test_the_tests_in_typescript_pass() -> None:
    done = node("npx", "--no-install", "vitest", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Tests .*passed", done.stdout)


def test_types_in_typescript_hold() -> None:
    done = node("npx", "--no-install", "tsc", "--noEmit")
    assert done.returncode == 0, done.stdout


def test_the_lock_file_names_no_registry() -> None:
    assert '"resolved"' not in (UI / "package-lock.json").read_text(encoding="utf-8")


def test_the_gallery_shows_every_builder_and_is_current() -> None:
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "examples" / "gallery.py")
    assert spec and spec.loader
    gallery: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert text == gallery.markdown(), "write it again: python examples/gallery.py --docs"
    builders = {name for name in view.__all__ if name[0].islower()} - {"page"}
    assert {name for name in builders if f"view.{name}(" in text} == builders
    for example in gallery.VIEWS:
        assert (ROOT / "docs" / "gallery" / f"{example.__name__}.png").stat().st_size > 2_000
    design = (ROOT / "docs" / "design" / "figures.md").read_text(encoding="utf-8")
    assert {name for name in view.__all__ if not re.search(rf"\b{name}\(", design)} <= {"Figure", "Page"}


@pytest.mark.parametrize("name", ["page.xyz", "page.gif", "page.json"])
def test_a_page_is_not_saved_under_the_name_of_something_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"saved as an HTML page, not .*call it 'page\.html'"):
        view.bar_chart(["a"], [1.0]).save(tmp_path / name)
    assert not any(tmp_path.iterdir())
