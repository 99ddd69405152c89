"""What `transformers` 4 had and 5 has not, for notebooks of its time: modules that moved, and a row of tokens decoded one by one.

Both stand while the aliases are installed. A module that is there is never replaced.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from cutaway.compat.watching import Watch

FAST = re.compile(r"transformers\.models\.(\w+)\.tokenization_\1_fast")
MOVED = {"transformers.generation_utils": "transformers.generation.utils", "transformers.deepspeed": "transformers.integrations"}
"""A module of `transformers` 4 → the one that has its names now."""


class _MovedModule(ModuleType):
    """A module whose names are looked up where they are now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for place in (MOVED.get(self.__name__, self.__name__.removesuffix("_fast")), "transformers"):
            if find_spec(place) is not None and hasattr(found := import_module(place), name):
                return getattr(found, name)
        raise AttributeError(f"{self.__name__} is no module of transformers 5, and no other has {name!r}")


class _Finder(MetaPathFinder, Loader):
    """Asked last: for what nobody else has."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED or FAST.fullmatch(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _MovedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: names are looked up when somebody asks for one."""


def _row_by_row(module: ModuleType) -> None:
    base = module.PreTrainedTokenizerBase
    if base in _kept:
        return
    _kept[base] = inherited = base.batch_decode

    def batch_decode(self: Any, sequences: Any, *args: Any, **options: Any) -> list[str]:
        """Decode rows of tokens; the tokens of a single row one by one, as release 4 did."""
        rows = sequences.tolist() if hasattr(sequences, "tolist") else list(sequences)
        if rows and all(isinstance(one, int) for one in rows):
            rows = [[one] for one in rows]
        decoded = inherited(self, rows, *args, **options)
        return [decoded] if isinstance(decoded, str) else decoded

    base.batch_decode = batch_decode


_FINDER = _Finder()
_WATCH = Watch("transformers.tokenization_utils_base", _row_by_row)
_kept: dict[Any, Any] = {}  # the class of all tokenizers → its method, as `transformers` has it


def allow() -> None:
    """Find moved modules from now on; decode as release 4 did, in a `transformers` that is imported or will be."""
    sys.meta_path.append(_FINDER)
    _WATCH.start()


def forbid() -> None:
    """As `transformers` itself has it again."""
    sys.meta_path.remove(_FINDER)
    _WATCH.stop()
    for base, inherited in _kept.items():
        base.batch_decode = inherited
    _kept.clear()
    for name in [one for one, module in sys.modules.items() if isinstance(module, _MovedModule)]:
        del sys.modules[name]
