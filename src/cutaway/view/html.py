"""HTML around figures: a complete document, a sandboxed frame for notebooks, a notice.

Figures travel as base64 in a script element of an unknown type, so that no token text is ever parsed as markup.
"""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Callable
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from cutaway.errors import ConfigError
from cutaway.writing import check_new, named, write

MARGIN = 24  # CSS pixels around a figure in its frame
ENDINGS = ("", ".html", ".htm")


@cache
def static(name: str) -> str:
    """A file of the committed bundle."""
    return files("cutaway.view").joinpath("static").joinpath(name).read_text(encoding="utf-8")


@cache
def script_hash() -> str:
    """The one script that a page may run, by its hash: whatever else found its way into a page is not run."""
    digest = hashlib.sha256(static("figure.js").encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def holder(payload: str, text: str, height: int, *, titled: bool = True) -> str:
    """The element that the bundle replaces by the figure; without scripts it shows the figure's text."""
    kind = "cutaway" if titled else "cutaway ct-untitled"
    return (
        f'<div class="{kind}" style="min-height:{height}px"><script type="text/cutaway">{payload}</script>'
        f'<noscript><pre class="ct-text">{escape(text)}</pre></noscript></div>'
    )


def document(title: str, body: str, *, head: str = "", kind: str = "single") -> str:
    """A complete HTML page with one copy of the bundle, which may load nothing from anywhere."""
    policy = (
        f"default-src 'none'; script-src {script_hash()}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        "<!doctype html>\n"
        f'<html lang="en" class="ct-{kind}"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{static("figure.css")}</style>{head}</head>\n'
        f"<body>{body}\n<script>{static('figure.js')}</script></body></html>\n"
    )


def save(path: str | Path, page: Callable[[], str], *, replace: bool = False) -> Path:
    """Write a page to a file, and say where; a name without an ending gets `.html`.

    Raises:
        ConfigError: the file's name is that of something else.
        NotWritten: the folder or the disk does not take it; `AlreadyThere`, where it exists and `replace` is off.
    """
    path = named(path, ".html")
    if path.suffix.lower() not in ENDINGS:
        name = path.with_suffix(".html").name
        raise ConfigError(
            f"this is saved as an HTML page, not {path.suffix}; call it {name!r}; figures also as .png, .svg "
            "or .pdf, and the numbers of a result are found.to_frame().to_csv(…)"
        )
    return write(check_new(path, replace=replace), page())


def frame(page: str, height: int, title: str) -> str:
    """The page inside a sandboxed frame, whose height follows what the page reports."""
    listen = (
        "const f=this;window.addEventListener('message',e=>{if(e.source===f.contentWindow&&e.data&&e.data.cutawayHeight)"
        "f.style.height=Math.ceil(e.data.cutawayHeight)+'px'});f.contentWindow.postMessage({cutawayAsk:1},'*')"
    )
    return (
        f'<iframe sandbox="allow-scripts" srcdoc="{escape(page)}" title="{escape(title)}" onload="{escape(listen)}" '
        f'style="width:100%;height:{height + MARGIN}px;border:0;color-scheme:light dark"></iframe>'
    )


def notice(message: str) -> str:
    """A message in place of a figure."""
    return f'<div role="alert" style="border-left:4px solid #c60;padding:.5em 1em;font-family:sans-serif">{escape(message)}</div>'


def in_notebook() -> bool:
    """Whether an IPython kernel is running this."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def display(thing: Any) -> None:
    """Show in the notebook that is running."""
    from IPython.display import display as show

    show(thing)
