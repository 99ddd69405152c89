"""The page of a report: for each question its sentences and pictures of its findings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cutaway.report.findings import Finding
from cutaway.report.sentences import capital, sentence
from cutaway.runs.estimates import Value
from cutaway.tasks.given import Given
from cutaway.view import Figure, Section, bar_chart, line_chart
from cutaway.view import page as whole
from cutaway.view.pages import Fact, Facts

BARS = 40  # bars of one picture; the largest are drawn

INTRO = (
    "Every number was computed from this model on these prompts, and every sentence was written from the numbers. Values come "
    "with 95% intervals over prompts, in brackets, and beside a baseline: what chance, or no effect, would give. Of several "
    "things at once, an interval has to lie outside its baseline after a correction for how many there are. Heads are called "
    "layer.head, MLPs layer.mlp."
)


def title(about: Mapping[str, Any]) -> str:
    """What is reported on."""
    task = about["behaviour"] if about["behaviour"] not in ("", about["model"]) else "its task"
    return f"How {about['model']} {'answers' if task == Given.name else 'does'} {task}"


def subtitle(about: Mapping[str, Any]) -> str:
    """The model and the prompts in a line."""
    shape = about["shape"]
    count = {what: f"{shape[f'n_{what}s']} {what}{'s' * (shape[f'n_{what}s'] != 1)}" for what in ("layer", "head")}
    layers = f"{count['layer']} of {count['head']}"
    what = f"{capital(about['summary'])}. " if about["summary"] else ""
    return (
        f"{what}{layers}{', attention only' if shape['attn_only'] else ''}, d_model {shape['d_model']}; "
        f"{about['prompts']:,} prompts with {about['answers']:,} answers, read as {about['read_out']}"
    )


def html(
    about: Mapping[str, Any], headings: Mapping[str, str], findings: Mapping[str, Sequence[Finding]], left: Sequence[str],
    facts: Sequence[Fact] = (),
) -> str:  # fmt: skip
    """The page, which needs nothing else; `facts` say how it was made."""
    sections = [_section(headings[name], found) for name, found in findings.items()]
    intro: list[Any] = [*([Facts(facts)] if facts else []), INTRO]
    if about.get("taken_for"):
        intro.append(f"{capital(about['taken_for'])}.")
    if about["at_chance"]:
        intro.append("The model does not do this better than chance, so nothing below is a claim about how it does it.")
    if left:
        intro.append(f"Unfinished: {', '.join(left)} were not asked.")
    firsts = (next((one for one in found if one.claims and not one.silent), None) for found in findings.values())
    claims = [one for one in firsts if one is not None]
    if claims:
        shown = [one for found in findings.values() for one in found if not one.silent]
        in_short = dict.fromkeys(map(sentence, [shown[0], *claims]))  # how well it does comes first, whatever it is
        sections.insert(0, Section("In short", [list(in_short)]))
    return whole(title(about), sections, intro=intro, subtitle=subtitle(about)).html()


def _section(heading: str, found: Sequence[Finding]) -> Section:
    blocks: list[Any] = []
    for one in found:
        if not one.silent:
            blocks.append(sentence(one))
        blocks += [*filter(None, [finding_figure(one)]), *one.figures]
    return Section(heading, blocks)


def finding_figure(finding: Finding) -> Figure | None:
    """The picture of a finding: bars of several things, a line along an axis; none of one number or of names."""
    values = {label: value for label, value in finding.values.items() if math.isfinite(value.value)}
    if finding.kind in ("count", "none", "share") or len(values) < 3:
        return None
    scale = 100.0 if finding.unit == "share" else 1.0
    unit = "%" if finding.unit == "share" else finding.unit or "value"
    if finding.kind == "trend":
        series = {"measured": values}
        if isinstance(finding.baseline, Mapping):
            series[finding.against] = {label: finding.baseline[label] for label in values}
        base = finding.baseline.value * scale if isinstance(finding.baseline, Value) else None
        return line_chart(
            {name: [one.value * scale for one in line.values()] for name, line in series.items()}, list(values),
            intervals={name: _bounds(list(line.values()), scale) for name, line in series.items()},
            x_name=finding.axis, y_name=unit, title=capital(finding.what),
            references=None if base is None else {finding.against: base},
        )  # fmt: skip
    order = sorted(values, key=lambda label: -abs(values[label].value))[:BARS]
    kept = [label for label in values if label in order]
    one_base = finding.baseline if isinstance(finding.baseline, Value) and math.isfinite(finding.baseline.value) else None
    more = f" (the {BARS} largest of {len(values)})" if len(values) > BARS else ""
    return bar_chart(
        kept, {"measured": [values[label].value * scale for label in kept]},
        intervals={"measured": _bounds([values[label] for label in kept], scale)}, value_name=unit,
        title=capital(finding.what) + more, references={finding.against: one_base.value * scale} if one_base else None,
    )  # fmt: skip


def _bounds(values: Sequence[Value], scale: float) -> torch.Tensor:
    """Lower and upper bounds, the values themselves where there is no interval."""
    low, high = ([bound if math.isfinite(bound) else one.value for one, bound in zip(values, bounds, strict=True)]
                 for bounds in ([one.low for one in values], [one.high for one in values]))  # fmt: skip
    return torch.tensor([low, high]) * scale
