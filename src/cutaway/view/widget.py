"""The live figure for notebooks: an anywidget whose `selection` travels both ways.

Selections are dictionaries in the words of the view, such as `{"head": 3, "dest": 5, "src": 2}` for attention, `{"layer":
0, …}` too in a gallery, `{"component": …, "answer": …, "position": …}` for attribution, `{"panel": …, "row": …,
"column": …}` for heat maps. Setting one pins it in the figure; pinning in the figure sets it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from cutaway.view.html import static


def live(data: bytes) -> Any:
    """A widget that shows the figure with these bytes (`Figure.wire`).

    Raises:
        ModuleNotFoundError: the optional extra is not installed.
    """
    return _widget_class()(data=data)


@cache
def _widget_class() -> Any:
    try:
        import anywidget
        import traitlets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed, which live figures need; install it with: pip install 'cutaway[notebook]'"
        ) from error

    class FigureWidget(anywidget.AnyWidget):
        """A figure and what is selected in it."""

        _esm = static("widget.js")
        _css = static("figure.css")
        data = traitlets.Bytes().tag(sync=True)
        selection = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)

    return FigureWidget
