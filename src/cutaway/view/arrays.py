"""What comes in: lists, NumPy or torch arrays and labels, checked once, with the caller's words in the error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.errors import ShapeError

Array = NDArray[Any]
Values = Any  # a nested list, a NumPy array or a torch tensor
Labels = Iterable[Any]  # strings, or whatever has them


def as_array(values: Values, name: str, *, ndim: int | tuple[int, ...] | None = None) -> Array:
    """`values` as a float32 array.

    Raises:
        ShapeError: ragged, not numbers, empty, or not of `ndim` dimensions.
    """
    if hasattr(values, "detach"):  # a torch tensor; bfloat16 has no NumPy twin
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    elif isinstance(values, (list, tuple)) and any(hasattr(one, "detach") for one in values):
        values = [as_array(one, name) for one in values]
    try:
        array = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise ShapeError(f"{name} must be an array of numbers; this is {_kind(values)} ({error})") from error
    wanted = (ndim,) if isinstance(ndim, int) else ndim
    if wanted is not None and array.ndim not in wanted:
        dims = " or ".join(str(one) for one in wanted)
        raise ShapeError(f"{name} must have {dims} dimensions; its shape is {list(array.shape)}")
    if not array.size:
        raise ShapeError(f"{name} is empty (shape {list(array.shape)}); there is nothing to draw")
    return array


def as_labels(labels: Iterable[Any] | None, count: int, name: str, axis: str, *, default: str | None = None) -> list[str] | None:
    """`labels` as `count` strings; with none given, `default` followed by a number, or None.

    Raises:
        ShapeError: a bare string, or not as many labels as `axis` is long.
    """
    if labels is None:
        return None if default is None else [f"{default}{index}" for index in range(count)]
    if isinstance(labels, str):
        raise ShapeError(f"{name} is one string, {labels[:40]!r}; give a list with one label for each {axis}")
    known = [str(label) for label in labels]
    if len(known) != count:
        raise ShapeError(f"{name} has {len(known)} labels, but the array has {count} along {axis}")
    return known


def finite_range(arrays: Iterable[Array]) -> tuple[float, float]:
    """The smallest and largest finite value; (0, 0) where there is none."""
    lows, highs = [], []
    for array in arrays:
        finite = array[np.isfinite(array)] if not np.isfinite(array).all() else array
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    return (min(lows), max(highs)) if lows else (0.0, 0.0)


def color_range(arrays: Sequence[Array], scale: str, given: Values | None) -> list[float]:
    """The values at the two ends of a colour scale: symmetric around 0 for a diverging one.

    Raises:
        ShapeError: a given range that is not two finite numbers in order.
    """
    if given is not None:
        low, high = (float(end) for end in given)
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ShapeError(f"range={list(given)!r} must be two finite numbers, the smaller one first")
        return [low, high]
    low, high = finite_range(arrays)
    if scale == "diverging":
        high = max(abs(low), abs(high))
        low = -high
    return [low, high] if high > low else [low - 0.5, high + 0.5] if low else [0.0, 1.0]


def number(value: float) -> str:
    """A number as figures write it: three significant digits, a real minus sign."""
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e5):
        text = f"{value:.2e}"
    else:
        digits = 0 if size == 0 else max(0, 2 - int(np.floor(np.log10(size))))
        text = f"{value:.{digits}f}"
    return text.replace("-", "−")


def top_cells(array: Array, most: int = 5) -> list[tuple[int, ...]]:
    """Indices of the largest finite values by size, largest first."""
    size = np.abs(np.where(np.isfinite(array), array, 0)).ravel()
    some = np.argpartition(-size, min(most, size.size - 1))[:most] if size.size > most else np.arange(size.size)
    some = some[np.argsort(-size[some], kind="stable")]
    return [tuple(int(i) for i in np.unravel_index(index, array.shape)) for index in some]


def _kind(values: Any) -> str:
    shape = getattr(values, "shape", None)
    return f"a {type(values).__name__} of shape {list(shape)}" if shape is not None else f"a {type(values).__name__}"
