"""The dialect's ways of attaching one function to points by name, by a predicate, or to some points."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cutaway.model.listeners import HookFunction


class NamedHooks:
    """Methods of a root module that begin with an underscore, which subclasses of others call; `hooks()` is our own way."""

    mod_dict: dict[str, Any]
    hook_dict: Any
    context_level: int

    def _enable_hook_with_name(self, name: str, hook: HookFunction, dir: str) -> None:
        """Attach to the point of this name, until the scope of this level ends."""
        self.mod_dict[name].add_hook(hook, dir=dir, level=self.context_level)

    def _enable_hooks_for_points(
        self, hook_points: Iterable[tuple[str, Any]], enabled: Callable[[str], bool], hook: HookFunction, dir: str
    ) -> None:
        """Attach to those of some points whose name the predicate takes."""
        for name, point in hook_points:
            if enabled(name):
                point.add_hook(hook, dir=dir, level=self.context_level)

    def _enable_hook(self, name: str | Callable[[str], bool], hook: HookFunction, dir: str) -> None:
        """Attach to the point of a name, or to all that a predicate takes."""
        if isinstance(name, str):
            self._enable_hook_with_name(name=name, hook=hook, dir=dir)
        else:
            self._enable_hooks_for_points(hook_points=self.hook_dict.items(), enabled=name, hook=hook, dir=dir)
