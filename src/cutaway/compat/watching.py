"""Do something to a module of somebody else's as soon as it is imported, or now if it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class Watch(MetaPathFinder):
    """Waits for one module while it is switched on."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]):
        self.name, self.then = name, then

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module itself, followed by what is to be done; None for every other name."""
        spec = PathFinder.find_spec(fullname, path) if fullname == self.name else None
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_then(module: ModuleType) -> None:
                run(module)
                self.then(module)

            spec.loader.exec_module = run_and_then  # type: ignore[method-assign]
        return spec

    def start(self) -> None:
        """Do it now where the module is imported, else when it is."""
        if self.name in sys.modules:
            self.then(sys.modules[self.name])
        sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """Wait no more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
