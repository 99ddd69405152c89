"""Aliases: modules called `transformer_lens…` and `circuitsvis…` whose names are found in cutaway.

`names.py` has the table. A module is made when somebody imports it, and a name is looked up when somebody asks for it,
so that installing costs nothing. What is handed out is cutaway's own object, never a copy.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from cutaway.compat import plotly_titles, transformers4
from cutaway.compat.names import ELSEWHERE, IF_ABSENT, IMPORTED_WHOLE, MODULES, ROOTS
from cutaway.compat.watching import Watch
from cutaway.errors import CutawayError, nearest
from cutaway.sources.short_names import LEFT_TO_THE_DIALECT, OURS_TOO

_displaced: dict[str, ModuleType] = {}  # modules of the originals, imported before `install`


def _masks_in_state_dicts(module: ModuleType, on: bool = True) -> None:
    module.DialectAttention.in_state_dict = on


def _models_say_what_they_do(module: ModuleType, on: bool = True) -> None:
    module.HookedTransformer.says = on


SWITCHES = {  # (none is imported here, since they take Torch)
    "cutaway.model.dialect_attention": _masks_in_state_dicts,
    "cutaway.hooked_transformer": _models_say_what_they_do,
}
_WATCHES = [Watch(name, switch) for name, switch in SWITCHES.items()]


class NoSuchAlias(CutawayError, ImportError):
    """A name of the original that cutaway has nothing for."""


def install() -> None:
    """Make `import transformer_lens` and `import circuitsvis` reach cutaway; installing twice is installing once."""
    if installed():
        return
    for name in [one for one in sys.modules if _root(one) in ROOTS]:
        _displaced[name] = sys.modules.pop(name)
    sys.meta_path.insert(0, _FINDER)
    LEFT_TO_THE_DIALECT.update(OURS_TOO)
    for watch in _WATCHES:
        watch.start()
    plotly_titles.allow()
    transformers4.allow()


def uninstall() -> None:
    """Take the aliases away again; originals that were imported before `install` are back as they were."""
    if not installed():
        return
    sys.meta_path.remove(_FINDER)
    LEFT_TO_THE_DIALECT.clear()
    for watch in _WATCHES:
        watch.stop()
    for name, switch in SWITCHES.items():
        if name in sys.modules:
            switch(sys.modules[name], False)
    plotly_titles.forbid()
    transformers4.forbid()
    for name in [one for one, module in sys.modules.items() if isinstance(module, Alias)]:
        del sys.modules[name]
    sys.modules.update(_displaced)
    _displaced.clear()


def installed() -> bool:
    """Whether the aliases stand."""
    return _FINDER in sys.meta_path


def _root(module: str) -> str:
    return module.partition(".")[0]


class Alias(ModuleType):
    """A module whose names live elsewhere: `targets` says where, as `module:attribute` or `module`."""

    def __init__(self, name: str, targets: Mapping[str, str]):
        super().__init__(name, f"What notebooks import as {name}, found in cutaway.")
        self._targets = dict(targets)
        self.__all__ = [one for one in self._targets if not one.startswith("_")]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in self._targets:  # importers and inspectors look for these
            raise AttributeError(name)
        target = self._targets.get(name) or _in_passing(self.__name__).get(name)
        if target is None:
            raise AttributeError(_unknown(f"{self.__name__}.{name}"))
        module, _, attribute = target.partition(":")
        found = import_module(module)
        return getattr(found, attribute) if attribute else found

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Alias) and self._targets.get(name, "").partition(":")[2]:
            return  # the import system binds each submodule; here that name is the class of the same name
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self._targets)

    def __repr__(self) -> str:
        return f"<module {self.__name__!r}, an alias of cutaway>"


class AliasFinder(MetaPathFinder, Loader):
    """Finds the aliases, before the import system looks for installed packages of these names."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module of this name; None where it is none of ours to answer for.

        Raises:
            NoSuchAlias: it would be a part of an aliased package, and cutaway has nothing for it.
        """
        if fullname in IF_ABSENT and PathFinder.find_spec(fullname) is not None:
            return None
        if _root(fullname) not in (*ROOTS, *IF_ABSENT):
            return None
        if fullname not in MODULES:
            raise NoSuchAlias(_unknown(fullname), name=_root(fullname))
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The alias, with its names but nothing imported yet."""
        return Alias(spec.name, _targets(spec.name))

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: names are looked up when they are asked for."""


def _targets(module: str) -> dict[str, str]:
    """The names of a module, and where each is."""
    targets: dict[str, str] = {}
    for name, home in MODULES[module].items():
        targets |= {one: f"{home}:{one}" for one in _names(import_module(home))} if name == "*" else {name: home}
    return targets


@functools.cache
def _in_passing(module: str) -> dict[str, str]:
    """Names of other modules of the same package: the original's modules import them, so that they can be had from there, too."""
    if "." not in module:
        return {}
    others = [one for one in MODULES if _root(one) == _root(module) and "." in one and one != module]
    every = [pair for one in others for pair in _targets(one).items()]
    return dict(reversed(every)) | {name: f"{_root(module)}.{name}" for name in IMPORTED_WHOLE}


def _names(module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or what is defined in it."""
    own = [name for name, thing in vars(module).items() if getattr(thing, "__module__", None) == module.__name__]
    return list(getattr(module, "__all__", own))


_FINDER = AliasFinder()


def _unknown(fullname: str) -> str:
    """A sentence about a name that is not there: why, what is, and how to get it."""
    parent, _, name = fullname.rpartition(".")
    while parent not in MODULES:
        parent, _, name = parent.rpartition(".")
    there = sorted(one for one in _FINDER.create_module(ModuleSpec(parent, _FINDER)).__dir__())
    reason = ELSEWHERE.get(name)
    lead = f"cutaway answers for {parent}, and has no {name!r} in it"
    lead += f": {reason}" if reason else nearest(name, there)
    return (
        f"{lead}. It has {', '.join(there)}. If a published notebook needs {name}, open an issue that names both; "
        f"cutaway.compat.uninstall() gives back an installed {_root(parent)}"
    )
