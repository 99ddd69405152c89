"""Results: what an analysis returns. Values with named axes, in words and units, that can show themselves.

Results are frozen dataclasses. The values of single examples are kept, so that a mean comes with an interval (`runs.intervals`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.errors import ConfigError, ShapeError, UnknownName, nearest
from cutaway.runs.intervals import interval_of_mean
from cutaway.view import Figure, Page, bar_chart, line_chart
from cutaway.writing import named

if TYPE_CHECKING:
    from cutaway.runs.provenance import Provenance

SHARES = ("", "share", "probability")  # units of numbers that may be 0 for no and 1 for yes


COMPONENTS = {"component": "", "head": "", "writer": "writer_", "reader": "reader_"}  # axes of components → before their columns


@dataclass(frozen=True, eq=False)
class Labelled:
    """An array whose axes have names, and what it means.

    Args:
        data: the numbers; no gradient flows from here.
        axes: a name for each axis, in the words of `cutaway.axes`.
        labels: for some axes a label for each entry; the others count from 0.
        what: the quantity, in words.
        unit: of the numbers: "logits", "nats", "probability", …; empty for a plain number.

    Raises:
        ShapeError: names or labels do not fit the array.
    """

    data: Tensor
    axes: tuple[str, ...]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    what: str = "value"
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", torch.as_tensor(self.data).detach())
        object.__setattr__(self, "labels", {axis: tuple(map(str, names)) for axis, names in self.labels.items()})
        if len(self.axes) != self.data.ndim:
            raise ShapeError(f"{self.what!r} has shape {tuple(self.data.shape)}, but the axes {self.axes}")
        for axis, names in self.labels.items():
            if len(names) != self.data.shape[self._axis(axis)]:
                size = self.data.shape[self._axis(axis)]
                raise ShapeError(f"{self.what!r} has {size} entries along {axis!r}, but {len(names)} labels")

    def _axis(self, axis: str) -> int:
        if axis not in self.axes:
            raise UnknownName(f"{self.what!r} has no axis {axis!r}{nearest(axis, self.axes)}; there are {', '.join(self.axes)}")
        return self.axes.index(axis)

    def _entry(self, axis: str, which: str | int) -> int:
        size = self.data.shape[self._axis(axis)]
        if isinstance(which, str):
            names = self.labels.get(axis, tuple(map(str, range(size))))
            if which not in names:
                some = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
                raise UnknownName(f"{self.what!r} has no {axis} {which!r}{nearest(which, names)}; there are {some}")
            return names.index(which)
        if not -size <= which < size:
            raise UnknownName(f"{self.what!r} has {size} entries along {axis!r}, 0 to {size - 1}; {which} is outside")
        return which % size

    @property
    def shape(self) -> torch.Size:
        """How long each axis is."""
        return self.data.shape

    def names(self, axis: str) -> tuple[str, ...]:
        """The labels along one axis; its numbers, where it has none."""
        return tuple(self.labels.get(axis, tuple(map(str, range(self.data.shape[self._axis(axis)])))))

    def largest(self, count: int) -> list[tuple[int, float]]:
        """The entries that are largest whatever their sign: their places among all, flattened, and values; NaN is none."""
        flat = self.data.flatten()
        order = flat.abs().nan_to_num(-1).argsort(descending=True, stable=True)[:count].tolist()
        return [(at, float(flat[at])) for at in order if not flat[at].isnan()]

    def sel(self, **which: str | int | Sequence[str | int]) -> Labelled:
        """A part, by labels or numbers: one drops the axis, a list keeps it. `sel(head="1.2", pos=[3, 4])`.

        Raises:
            UnknownName: no such axis, label or entry.
        """
        data, labels, axes = self.data, dict(self.labels), list(self.axes)
        for axis, chosen in which.items():
            at = self._axis(axis)
            one = isinstance(chosen, str | int)
            picks = [self._entry(axis, chosen)] if isinstance(chosen, str | int) else [self._entry(axis, c) for c in chosen]
            data = data.index_select(at, torch.tensor(picks, device=data.device))
            names = self.names(axis)
            labels[axis] = tuple(names[i] for i in picks)
            if one:
                data = data.select(at, 0).unsqueeze(at)  # dropped below, when all axes have been cut
                axes[at] = ""
                del labels[axis]
        kept = [index for index, axis in enumerate(axes) if axis]
        data = data.reshape([data.shape[index] for index in kept])
        return Labelled(data, tuple(axes[index] for index in kept), labels, self.what, self.unit)

    def mean(self, *over: str) -> Labelled:
        """The mean over some axes (all, where none are named); entries that are NaN do not count."""
        return self._reduced(lambda data, at: data.nanmean(at), over)

    def std(self, *over: str) -> Labelled:
        """The standard deviation over some axes (all, where none are named), with one degree of freedom less.

        Entries that are NaN do not count. NaN where there is only one number.
        """

        def spread(data: Tensor, at: list[int]) -> Tensor:
            if bool((missing := data.isnan()).any()):
                apart = (data - data.nanmean(at, keepdim=True)).square().nansum(at)
                return (apart / ((~missing).sum(at) - 1).clamp(min=0)).sqrt()
            mean = data.mean(at, keepdim=True)  # of one number, `Tensor.std` warns
            few = math.prod(data.shape[axis] for axis in at) < 2
            return mean.squeeze(at).fill_(math.nan) if few else data.std(at)

        return self._reduced(spread, over)

    def _reduced(self, how: Any, over: tuple[str, ...]) -> Labelled:
        gone = over or self.axes
        at = [self._axis(axis) for axis in gone]
        data = self.data if self.data.is_floating_point() else self.data.float()
        rest = tuple(axis for axis in self.axes if axis not in gone)
        labels = {axis: names for axis, names in self.labels.items() if axis in rest}
        return Labelled(how(data, at) if at else data, rest, labels, self.what, self.unit)

    def means(self, over: str = "batch") -> Means:
        """The mean over examples, with an interval."""
        at = self._axis(over)
        data = self.data.movedim(at, 0)
        rest = tuple(axis for axis in self.axes if axis != over)
        labels = {axis: names for axis, names in self.labels.items() if axis in rest}
        interval = interval_of_mean(data, shares=None if self.unit in SHARES else False)
        parts = [data.nanmean(0), interval[0], interval[1]]
        mean, low, high = (Labelled(part, rest, labels, self.what, self.unit) for part in parts)
        count = (~data.isnan()).sum(0)
        return Means(mean, low, high, Labelled(count, rest, labels, "examples"))

    def item(self) -> float:
        """The one number there is."""
        return float(self.data.item())

    def as_dict(self, digits: int | None = None) -> dict[str, Any]:
        """Nested dictionaries, label → … → number; an axis without labels becomes a list. NaN becomes None."""

        def walk(data: Any, axes: tuple[str, ...]) -> Any:
            if not axes:
                return _plain(data, digits)
            if axes[0] in self.labels:
                return {name: walk(part, axes[1:]) for name, part in zip(self.labels[axes[0]], data, strict=True)}
            return [walk(part, axes[1:]) for part in data]

        nested = walk(self.data.tolist(), self.axes)
        return nested if isinstance(nested, dict) else {self.what: nested}

    def to_frame(self) -> Any:
        """A pandas frame with one row per number: a column for each axis, and `value`.

        Components ("0.3", "0.mlp") also get columns for their layer and the index of their head: `layer` and `head_index`, or, of
        the ends of edges, `writer_layer` and so on; empty where there is none.
        """
        import pandas as pd

        index = pd.MultiIndex.from_product(
            [self.labels.get(axis, range(size)) for axis, size in zip(self.axes, self.shape, strict=True)] or [range(1)],
            names=list(self.axes) or ["index"],
        )
        frame = pd.Series(self.data.cpu().numpy().reshape(-1), index=index, name="value").reset_index()
        for axis, before in COMPONENTS.items():
            if axis in self.labels and f"{before}layer" not in self.axes:
                parts = frame[axis].str.extract(r"^(\d+)\.(\d+)?")
                for number, name in enumerate(("layer", "head_index")):
                    frame.insert(frame.columns.get_loc(axis) + 1 + number, f"{before}{name}", parts[number].astype("Int64"))
        return frame

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain lists and strings; NaN becomes None."""
        return {
            "what": self.what,
            "unit": self.unit,
            "axes": list(self.axes),
            "labels": {axis: list(names) for axis, names in self.labels.items()},
            "values": plain(self.data),
        }

    def _repr_html_(self) -> str:
        """The first rows, as a table."""
        from html import escape

        return f"<p>{escape(repr(self))}</p>{self.to_frame().head(20).to_html(index=False)}"

    def __repr__(self) -> str:
        shape = ", ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.shape, strict=True))
        return f"<Labelled {self.what}{f' ({self.unit})' if self.unit else ''}: {shape or float(self.data)}>"


class Result(ABC):
    """What every analysis returns, by way of a frozen dataclass: its main numbers are called `values`."""

    values: Labelled
    provenance: ClassVar[Provenance | None] = None  # what computed it: each result's own, set by `runs.provenance`

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__repr__ = Result.__repr__  # type: ignore[method-assign]  # a dataclass would print every number

    def __repr__(self) -> str:
        values = repr(self.values)[1:-1].removeprefix("Labelled ")
        return f"<{type(self).__name__} {values}; .summary(), .figure(), .to_frame(), .save(path)>"

    def _repr_html_(self) -> str:
        """The summary, and the figure under it."""
        from html import escape

        html = f'<pre style="white-space:pre-wrap">{escape(self.summary())}</pre>'
        try:
            return html + self.figure()._repr_html_()
        except ShapeError:  # one number, or too many: the summary stands for itself
            return html

    def save(self, path: str | Path, *, replace: bool = False) -> Path:
        """Write it to a file, `.cutaway`, that `cutaway.load` reads, without its model; or, to `.html`, its page.

        A name without an ending gets `.cutaway`. Returns where it is.

        Raises:
            ConfigError: the file's name is that of something else.
            NotWritten: the folder or the disk does not take it.
            AlreadyThere: the file exists, and `replace` is off.
        """
        ending = Path(path).suffix.lower()
        if ending in (".html", ".htm"):
            return self.page().save(path, replace=replace)
        if ending not in ("", ".cutaway"):
            raise ConfigError(
                f"a result is saved as .cutaway or as its page, .html, not {ending}; its numbers are .to_frame().to_csv(…), "
                "its figure .figure().save('figure.png')"
            )
        from cutaway.runs.result_files import save_result

        return save_result(self, named(path, ".cutaway"), replace=replace)

    def page(self, title: str = "", figures: Sequence[tuple[str, Figure]] | None = None) -> Page:
        """A page: model, hash, date, call, prompts, metric, what the summary says, audit and baseline, then the figures.

        Args:
            title: of the page. By default what the numbers are.
            figures: headings and figures. By default the one that `figure()` draws.
        """
        from cutaway.runs.provenance import page_of

        return page_of(self, title, figures)

    def plotly(self) -> Any:
        """The figure as one of Plotly (extra `plots`): bars, lines and heat maps.

        Raises:
            PackageNeeded: Plotly is not installed.
            ConfigError: a figure that Plotly has no kind for.
        """
        return self.figure().plotly()

    def to_frame(self) -> Any:
        """The main numbers as a pandas frame, one row per number."""
        return self.values.to_frame()

    @abstractmethod
    def figure(self) -> Figure:
        """The result drawn."""

    @abstractmethod
    def summary(self) -> str:
        """A few lines of text that say what the numbers show."""

    def to_json(self) -> dict[str, Any]:
        """Every field as plain lists, numbers and strings, ready for `json.dumps`."""
        assert dataclasses.is_dataclass(self)
        return {part.name: plain(getattr(self, part.name)) for part in dataclasses.fields(self) if part.repr}

    def __str__(self) -> str:
        return self.summary()


@dataclass(frozen=True, eq=False)
class Means(Result):
    """Means over examples, with 95% intervals, and how many numbers each mean is of."""

    values: Labelled
    low: Labelled
    high: Labelled
    count: Labelled

    @property
    def mean(self) -> Labelled:
        """The means themselves: another name for `values`."""
        return self.values

    def sel(self, **which: str | int | Sequence[str | int]) -> Means:
        """A part, as `Labelled.sel` takes it."""
        counted = {axis: part for axis, part in which.items() if axis in self.count.axes}  # one count may serve all rows
        return Means(self.values.sel(**which), self.low.sel(**which), self.high.sel(**which), self.count.sel(**counted))

    def figure(self, title: str = "", *, lines: bool | None = None) -> Figure:
        """Lines over the last axis where it has no labels (positions), else bars; a series for each other entry."""
        if self.values.data.ndim == 0:
            raise ShapeError("one number is no figure; print its summary()")
        *others, last = self.values.axes
        as_lines = lines if lines is not None else last not in self.values.labels
        flat, low, high = (one.data.reshape(-1, one.shape[-1]) for one in (self.values, self.low, self.high))
        names = _joined([self.values.names(axis) for axis in others]) or [self.values.what]
        series = dict(zip(names, flat, strict=True))
        bounds = {name: torch.stack(pair) for name, *pair in zip(names, low, high, strict=True)}
        label = f"{self.values.what}{f' ({self.values.unit})' if self.values.unit else ''}"
        if as_lines:
            return line_chart(series, intervals=bounds, x_name=last, y_name=label, title=title or label)
        groups = self.values.names(last)
        return bar_chart(groups, series, intervals=bounds, x_name=last, value_name=label, title=title or label)

    def summary(self) -> str:
        """The largest means, with their intervals."""
        low, high = (one.data.flatten() for one in (self.low, self.high))
        names = _joined([self.values.names(axis) for axis in self.values.axes]) or [""]
        unit = f" {self.values.unit}" if self.values.unit else ""
        lines = [f"{self.values.what}: means over examples, with 95% intervals"]
        lines += [f"{names[i]}: {value:.3g} [{float(low[i]):.3g}, {float(high[i]):.3g}]{unit}".strip()
                  for i, value in self.values.largest(8)]  # fmt: skip
        return "\n".join(lines)

    def to_frame(self) -> Any:
        """Mean, `low` and `high` of each entry."""
        frame = self.values.to_frame()
        return frame.assign(low=self.low.data.flatten().cpu().numpy(), high=self.high.data.flatten().cpu().numpy())


def grouped(
    values: Labelled,
    groups: Int[Tensor, "batch pos"],
    names: Sequence[str],
    *,
    where: Bool[Tensor, "batch pos"] | None = None,
    axis: str = "group",
    intervals: bool = True,
) -> Means:
    """Means over the positions of each group: of a label, a token, a class.

    Args:
        values: with `batch` and `pos` as its last axes.
        groups: for each position the number of its group, an index into `names`; negative for none.
        where: which positions count at all.
        axis: what to call the new axis.

    Raises:
        ShapeError: groups do not fit the values, or point outside the names.
    """
    if values.axes[-2:] != ("batch", "pos") or tuple(groups.shape) != tuple(values.shape[-2:]):
        raise ShapeError(f"groups of shape {tuple(groups.shape)} do not fit {values!r}, whose last axes must be batch, pos")
    groups = groups.to(values.data.device)
    if groups.numel() and int(groups.max()) >= len(names):
        raise ShapeError(f"groups go up to {int(groups.max())}, but there are {len(names)} names")
    counted = groups >= 0 if where is None else (groups >= 0) & where.to(groups.device)
    data = values.data if values.data.is_floating_point() else values.data.float()
    index = groups.clamp(min=0).expand(data.shape)
    sums = data.new_zeros(*data.shape[:-1], len(names)).scatter_add(-1, index, data.masked_fill(~counted, 0))
    counts = data.new_zeros(groups.shape[0], len(names)).scatter_add(-1, groups.clamp(min=0), counted.to(data.dtype))
    mean = sums.sum(-2) / counts.sum(0)
    if intervals:
        by_example = sums.movedim(-2, 0)
        spread = counts.reshape(len(counts), *[1] * (by_example.ndim - 2), -1).expand_as(by_example)
        bounds = interval_of_mean(by_example, spread)
    else:
        bounds = torch.full((2, *mean.shape), math.nan, dtype=mean.dtype, device=mean.device)
    axes = (*values.axes[:-2], axis)
    labels = {name: found for name, found in values.labels.items() if name in axes} | {axis: tuple(names)}
    middle, low, high = (Labelled(part, axes, labels, values.what, values.unit) for part in (mean, bounds[0], bounds[1]))
    return Means(middle, low, high, Labelled(counts.sum(0), (axis,), {axis: tuple(names)}, "positions"))


def mean_of(values: Tensor, where: Tensor | None = None) -> float:
    """The mean of the chosen numbers that are finite; NaN where there are none."""
    chosen = values if where is None else values[where]
    chosen = chosen[chosen.isfinite()].float()
    return float(chosen.mean()) if chosen.numel() else math.nan


def plain(value: Any) -> Any:
    """Any field of a result as lists, numbers and strings; NaN becomes None."""
    if isinstance(value, Labelled | Result):
        return value.to_json()
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    return _plain(value) if value is None or isinstance(value, bool | int | float | str) else str(value)


def _plain(value: Any, digits: int | None = None) -> Any:
    if isinstance(value, list):
        return [_plain(one, digits) for one in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else round(value, digits)
    return value


def _joined(names: Sequence[Sequence[str]]) -> list[str]:
    """Every combination, as one label each."""
    return [" · ".join(place) for place in itertools.product(*names)] if names else []


def names_of_entries(values: Labelled) -> list[str]:
    """A label for every number, the last axis fastest."""
    return _joined([values.names(axis) for axis in values.axes]) or [""]


def layers_by_heads(values: Labelled) -> Tensor | None:
    """One number for each head (`0.0`, `0.1`, …) as `[layer, head]`; NaN for heads that are absent; None: other labels too."""
    if values.data.ndim != 1:
        return None
    heads = [_HEAD.fullmatch(name) for name in values.names(values.axes[0])]
    if len(heads) < 12 or not all(heads):
        return None
    places = [(int(one[1]), int(one[2])) for one in heads if one]
    grid = torch.full((1 + max(at for at, _ in places), 1 + max(at for _, at in places)), math.nan)
    for (layer, head), value in zip(places, values.data.tolist(), strict=True):
        grid[layer, head] = value
    return grid


_HEAD = re.compile(r"(\d+)\.(\d+)")
