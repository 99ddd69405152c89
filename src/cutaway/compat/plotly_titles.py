"""Plotly's old names for parts of titles: `titlefont` and its like, which Plotly 6 dropped and notebooks still use.

Plotly has a table for such names, `_mapped_properties`, which is empty today. While the aliases are installed, whatever
has a title has the old names in it again.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from cutaway.compat.watching import Watch

MODULE = "plotly.basedatatypes"
OLD_NAMES = {  # old name → where it is now, and the only class that had it (None: all that have a title)
    "titlefont": (("title", "font"), None),
    "titleside": (("title", "side"), "ColorBar"),
    "titleposition": (("title", "position"), "Pie"),
}


class _MappedProperties:
    """The table of a class: the old names where it has a title and not the name itself."""

    def __get__(self, thing: Any, kind: type) -> dict[str, tuple[str, str]]:
        if "title" not in getattr(kind, "_valid_props", ()):
            return {}
        return {old: new for old, (new, only) in OLD_NAMES.items() if only in (None, kind.__name__)}


def _add(module: ModuleType) -> None:
    if vars(module.BasePlotlyType).get("_mapped_properties") == {}:  # older versions have names of their own there
        module.BasePlotlyType._mapped_properties = _MappedProperties()


_WATCH = Watch(MODULE, _add)


def allow() -> None:
    """Understand the old names from now on, in a plotly that is imported or will be."""
    _WATCH.start()


def forbid() -> None:
    """Leave plotly as it is by itself."""
    _WATCH.stop()
    module = sys.modules.get(MODULE)
    if module is not None and isinstance(vars(module.BasePlotlyType)["_mapped_properties"], _MappedProperties):
        module.BasePlotlyType._mapped_properties = {}
