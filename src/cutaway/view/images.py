"""Figures as images, drawn by a browser of this machine (Chromium, Chrome, Edge) without a window, offline.

PNG and PDF are pictures of the figure's own page. SVG is drawn by Plotly in that browser: lines, text and colours stay editable.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cutaway.errors import ConfigError, PackageNeeded
from cutaway.view.plotly_figures import to_plotly
from cutaway.writing import write

if TYPE_CHECKING:
    from cutaway.view.figure import Figure

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
DRAWN = (".png", ".pdf", ".svg")
SECONDS = 120


def browser() -> str:
    """The program that takes pictures.

    Raises:
        PackageNeeded: there is none.
    """
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise PackageNeeded(f"images are drawn by a browser, and none of {', '.join(BROWSERS)} is installed; save .html instead")
    return found


def picture(page: str, path: Path, *, width: int = 1000, height: int = 600, dark: bool = False) -> bytes:
    """The bytes of a page as an image of the kind that the path's name says.

    Raises:
        ConfigError: the browser failed; says how.
    """
    ending = path.suffix.lower()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"figure{ending}"
        take = [f"--screenshot={out}" if ending == ".png" else f"--print-to-pdf={out}", "--force-device-scale-factor=2"]
        take += ["--blink-settings=preferredColorScheme=0"] if dark else []
        _browse(page, [*take, f"--window-size={width},{height}"], folder)
        if not out.is_file():
            raise ConfigError(f"the browser {browser()} drew nothing")
        return out.read_bytes()


def svg(figure: Figure, *, width: int = 1000) -> bytes:
    """A figure as SVG, drawn by Plotly.

    Raises:
        PackageNeeded: Plotly or a browser is missing.
        ConfigError: the browser failed.
    """
    plot = to_plotly(figure).update_layout(width=width, height=max(figure.height, 300))
    from plotly.offline import get_plotlyjs

    script = (
        f"Plotly.toImage({plot.to_json()}, {{format: 'svg', width: {width}, height: {max(figure.height, 300)}}})"
        ".then(uri => { document.body.textContent = decodeURIComponent(uri.split(',').slice(1).join(',')) })"
    ).replace("</", "<\\/")  # text of a token must not end the script
    page = f"<!doctype html><meta charset='utf-8'><script>{get_plotlyjs()}</script><body><script>{script}</script></body>"
    with tempfile.TemporaryDirectory() as folder:
        found = re.search("<body>(.*)</body>", _browse(page, ["--dump-dom"], folder), re.DOTALL)
    image = "" if found is None else html.unescape(found[1])
    if not image.startswith("<svg"):
        raise ConfigError(f"the browser {browser()} drew no SVG of {figure.title or figure.view!r}; save .png instead")
    return image.encode()


def _browse(page: str, words: list[str], folder: str) -> str:
    """Open a page in the browser with these words of its command line, and say what it printed.

    Raises:
        ConfigError: the browser failed; says how.
    """
    program, source = browser(), Path(folder) / "figure.html"
    write(source, page)
    always = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-pdf-header-footer"]
    own = [f"--user-data-dir={folder}/profile", "--virtual-time-budget=4000"]
    command = [program, *always, *own, *words, source.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise ConfigError(f"the browser {program} failed: {done.stderr.strip()[-200:]}")
    return done.stdout
