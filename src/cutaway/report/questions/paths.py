"""Path patching: which heads carry the difference of minimal pairs directly to the logits."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from cutaway.analysis.paths import path_patch
from cutaway.report.findings import Finding
from cutaway.report.questions import patching
from cutaway.report.study import Study
from cutaway.runs.answer_metrics import AnswerMetric
from cutaway.runs.editing import run
from cutaway.runs.estimates import Value
from cutaway.runs.intervals import interval_of_ratio


def lacks(study: Study) -> str:
    """Pairs, as for patching."""
    if study.model.cfg.attention_dir == "bidirectional" and not bool(study.prompts.mask.all()):
        return "prompts of unequal lengths in a network that sees all positions"
    return patching.lacks(study)


def passes(study: Study) -> float:
    """A part of a pass for each head: only the end of the network runs again."""
    part = len(patching.some(study).prompts) / len(study.prompts)
    return part * 0.1 * len(study.heads)


def ask(study: Study) -> list[Finding]:
    """What each head's direct path destroys when it carries the corrupted run's activation."""
    small = patching.some(study)
    metric = patching.metric(small)
    found = path_patch(study.model, small.prompts.tokens, small.corrupted.tokens, metric, seed=study.seed)
    corrupted = corrupted_value(study, small, metric)
    lost = -found.values.sel(receiver="logits").data.double()
    span = (found.clean.data.double() - corrupted)[:, None].expand_as(lost.T)
    low, high = interval_of_ratio(lost.T, span)
    names = found.values.names("sender")
    means, bounds = (lost.mean(1) / span.mean()).tolist(), zip(low.tolist(), high.tolist(), strict=True)
    values = {name: Value(one, *two) for name, one, two in zip(names, means, bounds, strict=True)}
    what, on = "the share of the difference that a head's direct path to the logits carries", f"{len(small.prompts):,} pairs"
    return [Finding("largest", what, values, "share", Value(0.0), "nothing carried", on, two_sided=True)]


def corrupted_value(study: Study, small: Study, metric: AnswerMetric) -> Float[Tensor, "batch"]:
    """The metric of the corrupted run, by example."""
    value = run(study.model, small.corrupted.tokens, metric=metric, mask=small.mask).value
    assert value is not None
    return value.double()
