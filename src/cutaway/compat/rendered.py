"""What calls of CircuitsVis give back: figures whose `str` is HTML, as code written for it expects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from cutaway.view import Figure, Page
from cutaway.view.html import frame


class Html(ABC):
    """HTML under every name by which notebooks ask for it."""

    @abstractmethod
    def show_code(self) -> str:
        """The HTML: a piece that needs nothing else and can stand in any page."""

    @property
    def data(self) -> str:
        """The HTML, under the name that IPython's `HTML` has for it."""
        return self.show_code()

    @property
    def local_src(self) -> str:
        """The HTML; nothing in it is fetched from anywhere."""
        return self.show_code()

    @property
    def cdn_src(self) -> str:
        """The same as `local_src`."""
        return self.show_code()

    def __html__(self) -> str:
        return self.show_code()

    def __str__(self) -> str:
        return self.show_code()


class Rendered(Html, Figure):
    """A figure; `str(figure)` is HTML."""

    @classmethod
    def of(cls, figure: Figure) -> Rendered:
        """The same figure, as CircuitsVis would hand it over."""
        return cls(**{field.name: getattr(figure, field.name) for field in fields(Figure)})

    def show_code(self) -> str:
        """The HTML: a piece that needs nothing else and can stand in any page."""
        return frame(self.html(), self.height, self.title or self.view)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": Figure.__str__(self)}


class RenderedPage(Html):
    """Several figures under headings, for a batch of texts; `str(page)` is HTML."""

    def __init__(self, page: Page, figures: Sequence[Rendered]):
        self.page, self.figures = page, tuple(figures)
        self.height = min(900, 120 + sum(figure.height + 60 for figure in figures))

    def html(self) -> str:
        """A complete page."""
        return self.page.html()

    def save(self, path: Any, *, replace: bool = False) -> Any:
        """Write the page to a file, and say where."""
        return self.page.save(path, replace=replace)

    def show_code(self) -> str:
        """The HTML: a piece that needs nothing else and can stand in any page."""
        return frame(self.html(), self.height, self.page.title)

    def _repr_html_(self) -> str:
        return self.show_code()

    def __repr__(self) -> str:
        return f"<RenderedPage: {len(self.figures)} figures>"
