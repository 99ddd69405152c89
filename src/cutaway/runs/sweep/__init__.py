"""Sweeps: the same run many times with one thing changed, recomputing only what each change reaches.

    result = sweep(model, tokens, heads(zero()), metrics.loss(tokens))
    result.mean().summary()

Cells become regions (reached ∩ needed), regions a plan (data, whose cost is known before it runs), an executor follows the plan,
metrics are measured, and some cells run again the plain way as an audit. docs/design/sweeps.md says how.
"""

from cutaway.runs.grids import Cells, Grid, heads, heads_by_position, neurons, pairs, patterns, residual
from cutaway.runs.sweep.baseline import Baseline
from cutaway.runs.sweep.options import SweepOptions
from cutaway.runs.sweep.planning import Plan, plan
from cutaway.runs.sweep.result import Audit, SweepResult
from cutaway.runs.sweep.sweeping import sweep

__all__ = [
    "Audit", "Baseline", "Cells", "Grid", "Plan", "SweepOptions", "SweepResult", "heads", "heads_by_position", "neurons",
    "pairs", "patterns", "plan", "residual", "sweep",
]  # fmt: skip
