"""Figures as images: PNG or PDF, drawn by a browser of this machine without a window; and as figures of Plotly.

A figure is drawn by its page, so a browser (Chromium, Chrome, Edge) takes the picture. It runs offline on a temporary file.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.errors import ConfigError, PackageNeeded
from cutaway.writing import write

if TYPE_CHECKING:
    from cutaway.view.figure import Figure

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
DRAWN = (".png", ".pdf")
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
    program = browser()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "figure.html", Path(folder) / f"figure{path.suffix.lower()}"
        write(source, page)
        take = f"--screenshot={out}" if path.suffix.lower() == ".png" else f"--print-to-pdf={out}"
        words = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-pdf-header-footer",
            f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", "--force-device-scale-factor=2",
            "--virtual-time-budget=4000", *(["--blink-settings=preferredColorScheme=0"] if dark else []), take, source.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode or not out.is_file():
            raise ConfigError(f"the browser {program} drew nothing: {done.stderr.strip()[-200:]}")
        return out.read_bytes()


def to_plotly(figure: Figure) -> Any:
    """The figure as one of Plotly: bars, lines and heat maps.

    Raises:
        PackageNeeded: Plotly is not installed (extra `plots`).
        ConfigError: a figure that Plotly has no kind for.
    """
    try:
        from plotly import graph_objects
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise PackageNeeded("Plotly is not installed: pip install 'cutaway[plots]'") from error
    meta = figure.meta
    if figure.view == "bars":
        bars = [
            graph_objects.Bar(name=name, x=list(meta["groups"]), y=row.tolist())
            for name, row in zip(meta["series"], figure.arrays["y"], strict=True)
        ]
        made = graph_objects.Figure(bars)
        return made.update_layout(title=figure.title, xaxis_title=meta["xName"], yaxis_title=meta["valueName"])
    if figure.view == "lines":
        x = list(meta["x"]) if meta["x"] else figure.arrays["x"].tolist() if "x" in figure.arrays else None
        lines = [
            graph_objects.Scatter(name=name, x=x, y=row.tolist(), mode="lines+markers" if meta["points"] else "lines")
            for name, row in zip(meta["series"], figure.arrays["y"], strict=True)
        ]
        made = graph_objects.Figure(lines)
        return made.update_layout(title=figure.title, xaxis_title=meta["xName"], yaxis_title=meta["yName"])
    if figure.view == "grid":
        panels = meta["panels"]
        made = make_subplots(rows=1, cols=len(panels), subplot_titles=[one["name"] for one in panels])
        low, high = meta["range"]
        scale = "RdBu" if meta["scale"] == "diverging" else "Blues"
        for at, panel in enumerate(panels):
            x, y = panel["x"] or meta["x"], panel["y"] or meta["y"]
            drawn = graph_objects.Heatmap(
                z=figure.arrays[f"p{at}"].tolist(), x=x, y=y, zmin=low, zmax=high, colorscale=scale, text=panel["text"],
                texttemplate="%{text}" if panel["text"] else None, showscale=at == 0,
            )  # fmt: skip
            made.add_trace(drawn, row=1, col=at + 1)
        made.update_yaxes(autorange="reversed", title=meta["yName"])
        return made.update_xaxes(title=meta["xName"]).update_layout(title=figure.title)
    raise ConfigError(f"a figure of the kind {figure.view!r} has no counterpart in Plotly; .html(), .save('figure.png') draw it")
