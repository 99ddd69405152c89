"""The live figure for notebooks: an anywidget whose `selection` travels both ways.

Selections are dictionaries such as `{"panel": 3, "row": 5, "col": 2}`; setting one pins it in the figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anywidget  # the optional extra: pip install cutaway[notebook]
import traitlets

from cutaway.view.html import static

if TYPE_CHECKING:
    from cutaway.view.figure import Figure


class FigureWidget(anywidget.AnyWidget):
    """A figure and what is selected in it."""

    _esm = static("widget.js")
    _css = static("figure.css")
    data = traitlets.Bytes().tag(sync=True)
    selection = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)

    @classmethod
    def of(cls, figure: Figure) -> FigureWidget:
        """A widget that shows `figure`."""
        return cls(data=figure.wire())
