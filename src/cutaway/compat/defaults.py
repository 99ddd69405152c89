"""The dialect's defaults: None means "as the model has it", and a scope may set it otherwise."""

from __future__ import annotations

from functools import reduce
from typing import Any

from cutaway.errors import UnknownName, nearest

USE_DEFAULT_VALUE = None


def override_or_use_default_value(default_flag: Any, override: Any = None) -> Any:
    """`override`, or the default where that is None."""
    return default_flag if override is None else override


def get_nested_attr(obj: Any, attr_str: str) -> Any:
    """`obj.a.b.c` for `"a.b.c"`."""
    return reduce(getattr, attr_str.split("."), obj)


def set_nested_attr(obj: Any, attr_str: str, value: Any) -> None:
    """`obj.a.b.c = value` for `"a.b.c"`."""
    owner, _, name = attr_str.rpartition(".")
    setattr(get_nested_attr(obj, owner) if owner else obj, name, value)


class LocallyOverridenDefaults:
    """A scope in which a model's `prepend_bos` or `padding_side` is another; None leaves it alone."""

    def __init__(self, model: Any, **overrides: Any):
        self.model, self.overrides = model, {name: value for name, value in overrides.items() if value is not None}
        self._before: dict[str, Any] = {}
        places = {
            "prepend_bos": ("cfg.default_prepend_bos", (True, False)),
            "padding_side": ("default_padding_side", ("left", "right")),
        }
        for name, value in self.overrides.items():
            if name not in places:
                raise UnknownName(f"no default called {name!r}{nearest(name, places)}; there are {', '.join(places)}")
            if value not in places[name][1]:
                raise ValueError(f"{name}={value!r} is not known; there are {', '.join(map(str, places[name][1]))}")
        self._places = {name: places[name][0] for name in self.overrides}

    def __enter__(self) -> None:
        for name, place in self._places.items():
            self._before[place] = get_nested_attr(self.model, place)
            set_nested_attr(self.model, place, self.overrides[name])

    def __exit__(self, *_: Any) -> None:
        for place, value in self._before.items():
            set_nested_attr(self.model, place, value)
