"""Path patching: which heads carry the difference of minimal pairs directly to the logits."""

from __future__ import annotations

from cutaway.analysis.paths import path_patch
from cutaway.report.findings import Finding
from cutaway.report.questions import patching
from cutaway.report.study import Study
from cutaway.runs.editing import run
from cutaway.runs.estimates import Value, shares


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
    corrupted = run(study.model, small.corrupted.tokens, metric=metric, mask=small.mask).value
    assert corrupted is not None
    lost = -found.values.sel(receiver="logits").data.double()
    values = shares(found.values.names("sender"), lost, found.clean.data.double() - corrupted.double())
    what, on = "the share of the difference that a head's direct path to the logits carries", f"{len(small.prompts):,} pairs"
    return [Finding("largest", what, values, "share", Value(0.0), "nothing carried", on, two_sided=True)]
