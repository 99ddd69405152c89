"""Pages run their one script and no other, also inside the frame of a notebook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cutaway import view
from cutaway.view import html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def dom(page: str, folder: Path) -> str:
    """The page as a browser has it after its scripts ran."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    (folder / "page.html").write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=4000"]
    command = [CHROMIUM, *options, "--dump-dom", (folder / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_page_says_what_it_may_do() -> None:
    page = view.heat_map(np.eye(3)).html()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["script-src"].startswith("'sha256-") and "unsafe" not in rules["script-src"]
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "\r" not in html.static("figure.js"), "a browser would hash other line ends"


def test_figures_are_drawn_and_strange_scripts_are_not_run(tmp_path: Path) -> None:
    page = view.heat_map(np.eye(3), title="A figure").html()
    hostile = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><base href='http://x/'>"
    shown = dom(page.replace("</body>", f"{hostile}</body>"), tmp_path)
    assert "<canvas" in shown or "<svg" in shown, "the figure was not drawn"
    assert "<title>A figure</title>" in shown


def test_the_frame_of_a_notebook_follows_its_figure(tmp_path: Path) -> None:
    figure = view.heat_map(np.random.default_rng(0).normal(size=(40, 3)))
    framed = figure._repr_html_()
    first = re.search(r"height:(\d+)px", framed)
    after = re.search(r'<iframe[^>]*style="[^"]*height: ?(\d+)px', dom(f"<!doctype html><body>{framed}</body>", tmp_path))
    assert first is not None and after is not None
    assert first[1] != after[1], "the page inside did not report its height, so its script did not run"
