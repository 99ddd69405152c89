"""The workbench: a page on this machine where a model is taken apart by hand, and every click is an experiment that replays.

    bench = cutaway.workbench(model)     # or: cutaway open MODEL

The module itself can be called, so that the front door has one name for the room and for what it does.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from cutaway.errors import suggest_names
from cutaway.workbench.serving import Workbench, workbench


class _Room(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Workbench:
        return workbench(*args, **options)

    __call__.__doc__ = workbench.__doc__


sys.modules[__name__].__class__ = _Room
__all__ = ["Workbench", "workbench"]

suggest_names(__name__)
