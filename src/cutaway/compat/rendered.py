"""What calls of CircuitsVis give back: figures whose `str` is HTML, as code written for it expects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from cutaway.view import Figure, Page
from cutaway.view.html import frame


class Rendered(Figure):
    """A figure; `str(figure)` is a piece of HTML that needs nothing else and can stand in any page."""

    @classmethod
    def of(cls, figure: Figure) -> Rendered:
        """The same figure, as CircuitsVis would hand it over."""
        return cls(**{field.name: getattr(figure, field.name) for field in fields(Figure)})

    def show_code(self) -> str:
        """The HTML."""
        return frame(self.html(), self.height, self.title or self.view)

    @property
    def data(self) -> str:
        """The HTML, under the name that IPython's `HTML` has for it."""
        return self.show_code()

    def __html__(self) -> str:
        return self.show_code()

    def __str__(self) -> str:
        return self.show_code()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": Figure.__str__(self)}


class RenderedPage:
    """Several figures under headings, for a batch of texts; `str(page)` is HTML as that of `Rendered`."""

    def __init__(self, page: Page, figures: Sequence[Rendered]):
        self.page, self.figures = page, tuple(figures)
        self.height = min(900, 120 + sum(figure.height + 60 for figure in figures))

    def html(self) -> str:
        """A complete page."""
        return self.page.html()

    def save(self, path: Any) -> Any:
        """Write the page to a file, and say where."""
        return self.page.save(path)

    def show_code(self) -> str:
        """The HTML."""
        return frame(self.html(), self.height, self.page.title)

    @property
    def data(self) -> str:
        """The HTML, under the name that IPython's `HTML` has for it."""
        return self.show_code()

    def _repr_html_(self) -> str:
        return self.show_code()

    def __html__(self) -> str:
        return self.show_code()

    def __str__(self) -> str:
        return self.show_code()

    def __repr__(self) -> str:
        return f"<RenderedPage: {len(self.figures)} figures>"
