"""What each norm divides by, and how constant that is: circuits read from weights take it for a constant."""

from __future__ import annotations

from cutaway.analysis.scales import norm_scales
from cutaway.model.frozen_norms import norms_of
from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value


def lacks(study: Study) -> str:
    """A network without norms has nothing to divide by."""
    return "" if norms_of(study.model.cfg) else "the network has no norms"


def ask(study: Study) -> list[Finding]:
    """The spread of each norm's scale, relative to its mean."""
    scales = norm_scales(study.cache)
    names = scales.values.names("norm")
    spread = {name: Value(scales.spread_of(name) / scales.of(name)) for name in names}
    what = "the spread of what a norm divides by, relative to its mean"
    figures = [] if study.large else [scales.figure()]
    mean, std = scales.values.mean("batch"), scales.std_by_position()
    of = {name: {"mean": scales.of(name), "std": scales.spread_of(name), "mean_by_position": mean.sel(norm=name).data,
                 "std_by_position": std.sel(norm=name).data} for name in (() if study.large else names)}  # fmt: skip
    return [Finding("comparison", what, spread, "share", on=study.on, figures=figures, numbers={"norm_scales": of})]
