"""Two answers compared: what differs, in a sentence, with the mistakes that are easy to make told apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST = 1e300
FACTORS = {-1.0: "−1 times", 2.0: "twice", 0.5: "half of"}


def difference(got: Any, wanted: Any, *, rtol: float, atol: float) -> str | None:
    """A sentence that says how `got` differs from `wanted`; None where it does not."""
    if got is None or got is Ellipsis:
        return "it returned nothing yet"
    if isinstance(wanted, Tensor):
        return _tensors(got, wanted, rtol, atol)
    if isinstance(wanted, dict):
        return _dictionaries(got, wanted, rtol, atol)
    if isinstance(wanted, list):
        return _lists(got, wanted)
    if isinstance(wanted, float):
        return _numbers(got, wanted, rtol, atol)
    if isinstance(got, Tensor) and got.ndim == 0:
        got = got.item()
    if type(got) is not type(wanted) and not isinstance(got, type(wanted)):
        return f"it returned {_kind(got)}, where {_kind(wanted)} is wanted"
    return None if got == wanted else f"it returned {got!r}, and {wanted!r} is right"


def _numbers(got: Any, wanted: float, rtol: float, atol: float) -> str | None:
    if isinstance(got, Tensor | np.ndarray | np.generic):
        if got.size != 1 if not isinstance(got, Tensor) else got.numel() != 1:
            return f"it returned {_kind(got)}, where one number is wanted"
        got = got.item()
    if isinstance(got, bool) or not isinstance(got, int | float):
        return f"it returned {_kind(got)}, where a number is wanted"
    got = math.inf if abs(got) >= LARGEST else got  # whole numbers may be longer than any float
    if abs(got - wanted) <= atol + rtol * abs(wanted):
        return None
    return f"it returned {got:.6g}, and {wanted:.6g} is right"


def _tensors(got: Any, wanted: Tensor, rtol: float, atol: float) -> str | None:
    if isinstance(got, np.ndarray):
        got = torch.as_tensor(got)
    if not isinstance(got, Tensor):
        return f"it returned {_kind(got)}, where a tensor of shape {list(wanted.shape)} is wanted"
    got = got.detach().cpu()
    if got.shape != wanted.shape:
        hint = "" if got.ndim < 2 or got.mT.shape != wanted.shape else "; are two axes exchanged?"
        return f"its shape is {list(got.shape)}, and {list(wanted.shape)} is wanted{hint}"
    if got.is_complex() or (not wanted.is_floating_point() and got.is_floating_point()):
        return f"it holds {got.dtype} numbers, and {wanted.dtype} is wanted"
    a, b = got.double(), wanted.double()
    if bool(a.isnan().any()):
        return f"{int(a.isnan().sum())} of its {a.numel()} numbers are NaN"
    if torch.allclose(a, b, rtol=rtol, atol=atol):
        return None
    apart = (a - b).abs()
    where = np.unravel_index(int(apart.argmax()), tuple(a.shape)) if a.ndim else ()
    share = float((apart > atol + rtol * b.abs()).double().mean())
    index = f" at [{', '.join(str(int(i)) for i in where)}]" if where else ""
    worst, right = float(a[tuple(where)]), float(b[tuple(where)])
    message = f"{share:.0%} of its numbers are off, most{index}: {worst:.6g}, and {right:.6g} is right"
    return f"{message}{_guess(a, b, rtol, atol)}"


def _guess(a: Tensor, b: Tensor, rtol: float, atol: float) -> str:
    """What may have happened, where it can be told."""
    if a.ndim >= 2 and a.mT.shape == b.shape and torch.allclose(a.mT, b, rtol=rtol, atol=atol):
        return ". With the last two axes exchanged it would be right"
    scale = float((a * b).sum() / (b * b).sum()) if bool(b.any()) else 0.0
    if scale and torch.allclose(a, scale * b, rtol=10 * rtol, atol=10 * atol):
        named = next((words for factor, words in FACTORS.items() if abs(scale - factor) < 1e-2), f"{scale:.4g} times")
        return f". All of it is {named} what it should be"
    shift = float((a - b).mean())
    if torch.allclose(a - shift, b, rtol=rtol, atol=atol):
        return f". All of it is {shift:.4g} too large" if shift > 0 else f". All of it is {-shift:.4g} too small"
    return ""


def _dictionaries(got: Any, wanted: dict[Any, Any], rtol: float, atol: float) -> str | None:
    if not isinstance(got, dict):
        return f"it returned {_kind(got)}, where a dictionary with {', '.join(map(repr, wanted))} is wanted"
    if missing := [key for key in wanted if key not in got]:
        return f"the dictionary lacks {', '.join(map(repr, missing))}"
    if more := [key for key in got if key not in wanted]:
        return f"the dictionary has {', '.join(map(repr, more))}, which nobody asked for"
    for key, value in wanted.items():
        if found := difference(got[key], value, rtol=rtol, atol=atol):
            return f"at {key!r}: {found}"
    return None


def _lists(got: Any, wanted: list[Any]) -> str | None:
    if isinstance(got, str) or not isinstance(got, list | tuple | set | frozenset):
        return f"it returned {_kind(got)}, where a list is wanted, such as {wanted[:3]}"
    if isinstance(wanted[0] if wanted else None, int):
        return _in_order(list(got), wanted)
    found = [tuple(one) if isinstance(one, list) else one for one in got]
    if missing := [one for one in wanted if one not in found]:
        return f"it lacks {_some(missing)} (it has {len(found)}, and there are {len(wanted)})"
    if more := [one for one in found if one not in wanted]:
        return f"it has {_some(more)}, which should not be there"
    if len(found) != len(wanted):
        return f"it has {len(found)} entries, {len(wanted)} of them different; each should be there once"
    return None


def _in_order(got: list[Any], wanted: list[int]) -> str | None:
    """Lists of numbers, whose places mean something; of anything else, the order is free."""
    if len(got) != len(wanted):
        return f"it has {len(got)} entries, and {len(wanted)} are wanted"
    for place, (one, right) in enumerate(zip(got, wanted, strict=True)):
        if one != right:
            return f"at {place} it has {one}, and {right} is right"
    return None


def _some(entries: list[Any]) -> str:
    return ", ".join(map(str, entries[:4])) + (" and more" if len(entries) > 4 else "")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"a tensor of shape {list(value.shape)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
