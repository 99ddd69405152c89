"""A figure is data: a view's name, arrays, labels. It is lowered to HTML, to bytes or to text when somebody looks.

Nothing is ever fetched from a network, and token text never becomes markup.
"""

from __future__ import annotations

import base64
import json
import tempfile
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from cutaway import reading
from cutaway.errors import NotReadable, ShapeError
from cutaway.view import html, images, plotly_figures, widget, wire
from cutaway.view.arrays import Array
from cutaway.writing import check_new, write

QUANTISE_ABOVE = 5_000_000  # bytes of base64 in a notebook or a page
REFUSE_ABOVE = 25_000_000
MOST_CELLS = 40_000_000  # stored values: more cannot be less than 25 MB unless they are mostly alike


class _Packed(msgspec.Struct):
    """What `to_json` writes, as far as it is read."""

    data: str


@dataclass(frozen=True, eq=False)
class Figure:
    """One figure: which view draws it, and everything that the view needs.

    `text` is what a terminal shows; `height` is a first guess in CSS pixels, corrected by the page itself.
    """

    view: str
    title: str
    arrays: Mapping[str, Array]
    tokens: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    height: int = 420

    def wire(self, dtype: wire.Dtype | None = None) -> bytes:
        """The figure as gzipped bytes (`view.wire` has the format)."""
        header = {
            "view": self.view,
            "title": self.title,
            "tokens": list(self.tokens),
            "meta": dict(self.meta),
            "text": self.text,
            "height": self.height,
        }
        return wire.pack(header, self.arrays, dtype=dtype)

    @classmethod
    def from_wire(cls, data: bytes) -> Figure:
        """The figure that `wire` wrote, up to the precision it was written with.

        Raises:
            NotReadable: damaged, too large, or something else.
        """
        header, arrays = wire.unpack(data)
        known = {name: header[name] for name in ("text", "meta", "height") if name in header}
        return cls(header.get("view", ""), header.get("title", ""), arrays, tuple(header.get("tokens", ())), **known)

    def to_json(self) -> str:
        """The same bytes, as base64 in a small JSON object."""
        data = base64.b64encode(self.wire()).decode()
        return json.dumps({"v": wire.VERSION, "view": self.view, "title": self.title, "encoding": "gzip+base64", "data": data})

    @classmethod
    def from_json(cls, text: str) -> Figure:
        """The figure that `to_json` wrote.

        Raises:
            NotReadable: damaged, too large, or something else.
        """
        packed = reading.decode(text, _Packed, "this figure")
        try:
            return cls.from_wire(base64.b64decode(packed.data, validate=True))
        except ValueError as error:
            raise NotReadable("this figure is damaged: its data is not base64") from error

    def payload(self, *, limit: bool = True) -> str:
        """The bytes as base64, quantised to 8 bits where they would exceed 5 MB.

        Raises:
            ShapeError: more than 25 MB even so, unless `limit` is off.
        """
        cells = sum(_stored(array) for array in self.arrays.values())
        if limit and cells > MOST_CELLS:
            raise self._too_large(cells)
        data = self.wire() if cells < QUANTISE_ABOVE * 2 else b""  # at 2 bytes a value, more can hardly fit
        if not data or len(data) * 4 / 3 > QUANTISE_ABOVE:
            data = self.wire("u8")
        if limit and len(data) * 4 / 3 > REFUSE_ABOVE:
            raise self._too_large(len(data) * 4 // 3)
        return base64.b64encode(data).decode()

    def _too_large(self, size: int) -> ShapeError:
        return ShapeError(
            f"{self.title or self.view} would put about {size / 1e6:.0f} MB into this page, and {REFUSE_ABOVE // 10**6} MB is "
            "the most that notebooks survive. Draw fewer tokens or heads (a window of the text, one layer), or call "
            ".save('figure.html') and open that file in a browser"
        )

    def html(self, *, limit: bool = False) -> str:
        """A complete page that holds this figure and needs nothing else."""
        return html.document(self.title or self.view, html.holder(self.payload(limit=limit), self.text, self.height))

    def save(self, path: str | Path, *, replace: bool = False) -> Path:
        """Write the page to a file, and say where; `.png`, `.pdf` and `.svg` are drawn by a browser of this machine.

        An SVG is the figure as Plotly draws it (extra `plots`), the others are pictures of the page.

        Raises:
            ConfigError: the file's name is that of another kind of image.
            PackageNeeded: an image is asked for, and there is no browser.
            AlreadyThere: the file exists, and `replace` is off.
        """
        path = Path(path)
        if path.suffix.lower() in images.DRAWN:
            check_new(path, replace=replace)
            if path.suffix.lower() == ".svg":
                return write(path, images.svg(self))
            return write(path, images.picture(self.html(), path, height=self.height + 2 * html.MARGIN))
        return html.save(path, self.html, replace=replace)

    def plotly(self) -> Any:
        """The figure as one of Plotly (extra `plots`): bars, lines, heat maps, tokens, graphs, tables.

        Raises:
            PackageNeeded: Plotly is not installed.
            ConfigError: a figure that Plotly has no kind for.
        """
        return plotly_figures.to_plotly(self)

    def show(self) -> None:
        """Display in a notebook; elsewhere, open a browser on a temporary file."""
        if html.in_notebook():
            html.display(self)
            return
        with tempfile.NamedTemporaryFile("w", suffix=".html", delete=False, encoding="utf-8") as file:
            file.write(self.html())
        if not webbrowser.open(Path(file.name).as_uri()):
            print(f"no browser could be opened; the figure is in {file.name}")

    def widget(self) -> Any:
        """The live figure for a notebook, whose `selection` can be read and set (needs `cutaway[notebook]`)."""
        return widget.live(self.wire())

    def with_title(self, title: str) -> Figure:
        """The same figure under another title."""
        return replace(self, title=title)

    def _repr_html_(self) -> str:
        try:
            return html.frame(self.html(limit=True), self.height, self.title or self.view)
        except ShapeError as error:
            return html.notice(str(error))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": str(self)}

    def __str__(self) -> str:
        return f"{self.title}\n{self.text}".strip() if self.title else self.text or repr(self)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.arrays.items())
        return f"<Figure {self.view}: {self.title or 'untitled'}{f' ({shapes})' if shapes else ''}>"


def _stored(array: Array) -> int:
    """How many values travel: square matrices are taken for lower triangles."""
    square = array.ndim >= 2 and array.shape[-1] == array.shape[-2]
    return array.size // 2 if square else array.size
