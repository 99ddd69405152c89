"""Answers as plain data: what passes between the process that runs a reader's function and the one that compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

REPORT = "report"  # a JSON object a line: which case is being run, what was raised
DEEPEST = 20
VALUES: tuple[Any, ...] = (bool, int, float, str)
LISTS: tuple[Any, ...] = (list, tuple, set, frozenset)


def plain(value: Any, depth: int = 0) -> Any:
    """Tensors, numbers, texts and lists of them as such, without what their classes may say of themselves.

    Anything else, or what is nested too deeply, becomes a text in a tuple, which equals no answer.
    """
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized and not value.is_meta:
        return value.detach().cpu().as_subclass(Tensor).clone()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.array(value)) if value.ndim else value.item()
    if value is None or value is Ellipsis:
        return None
    # An answer may be of a class that its author wrote, whose `__eq__`, `__iter__` or `items` say what a checker wants to hear.
    # So values are taken by the built-in classes' own methods.
    for kind in VALUES:
        if isinstance(value, kind):
            return value if type(value) is kind else kind.__new__(kind, value)
    if depth < DEEPEST:
        if isinstance(value, dict):
            return {plain(key, depth + 1): plain(one, depth + 1) for key, one in dict.items(value)}
        for kind in LISTS:
            if isinstance(value, kind):
                made = [plain(one, depth + 1) for one in kind.__iter__(value)]
                return made if kind is list else kind(made)
    return (f"an object of the class {type(value).__name__}",)
