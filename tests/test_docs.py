"""The documentation: no link leads nowhere, every public name is on a page, every page is in the site, and the site builds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cutaway

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site names them."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


def broken(page: Path) -> list[str]:
    """Links of a page to files or headings that are not there."""
    found = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        place, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / place).resolve() if place else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_link_leads_nowhere(page: Path) -> None:
    assert not broken(page), f"{page.relative_to(ROOT)}: {broken(page)}"


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# One thing\n[a](a.md) [b](b.md) [c](#one-thing) [d](#two) [e](https://x.org)\n```\n[f](f.md)\n```\n")
    assert broken(page) == ["b.md", "#two"]


def test_every_public_name_is_in_the_reference() -> None:
    space: dict[str, Any] = {"__file__": str(DOCS / "reference.py"), "__name__": "reference"}
    exec((DOCS / "reference.py").read_text(encoding="utf-8"), space)
    written = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert written == space["page"](), "docs/reference.md is out of date: run `make reference`"
    named = re.findall(r"^::: (\S+)$", written, re.MULTILINE)
    assert len(named) == len(set(cutaway.__all__) - {"__version__"})


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} == listed


def test_the_site_builds_without_a_network(tmp_path: Path) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("the site's builder is not installed: pip install 'cutaway[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "reference.html").read_text(encoding="utf-8")
    assert "cutaway.analysis.logit_lens.lens" in page
    fetched = re.compile(r'<(?:script|img|iframe)[^>]* src="https?:|<link[^>]* rel="stylesheet"[^>]* href="https?:|@import')
    assert not [one for one in tmp_path.rglob("*.html") if fetched.search(one.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", cutaway._MODULES)
def test_every_namespace_names_a_near_one(name: str) -> None:
    module = getattr(cutaway, name)
    real = next(one for one in getattr(module, "__all__", dir(module)) if len(one) > 3 and not one.startswith("_"))
    with pytest.raises(AttributeError, match=f"did you mean .*'{real}'"):
        getattr(module, real + "x")
    with pytest.raises(AttributeError, match="did you mean 'sweep'"):
        cutaway.sweeep  # noqa: B018
