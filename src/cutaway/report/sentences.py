"""One grammar: six kinds of finding to English. Each sentence gives number, interval and baseline, and says where nothing is.

A sentence claims an effect only where the finding does: outside its baseline. Otherwise it says that the value lies inside it,
or that nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cutaway.report.findings import Finding
from cutaway.runs.estimates import Value, number_text

MOST = 3  # labels that a sentence names


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def named(label: str) -> str:
    """A label as a sentence takes it: one of several words in quotes, since classes of answers are clauses."""
    return f"“{label}”" if " " in label else label


def capital(text: str, *, closed: bool = False) -> str:
    """The same with a capital first; `closed`: an addition behind a comma is closed by another."""
    return text[:1].upper() + text[1:] + "," * (closed and ", " in text and not text.endswith(")"))


def _base(finding: Finding, label: str) -> str:
    """`even attention 12.0%`; empty where there is no baseline."""
    base = finding.baseline_of(label)
    if base is None or not math.isfinite(base.value):
        return ""
    return f"{finding.against} {base.text(finding.unit)}"


def _measured(finding: Finding, label: str) -> str:
    return f"{named(label)} ({finding.values[label].text(finding.unit)})"


def _no_baseline(finding: Finding, text: str) -> str:
    return f"{text}; there is no baseline to hold it against, so nothing is claimed."


def largest(finding: Finding) -> str:
    """Which of several is largest, and how many stand out."""
    known = [label for label, value in finding.values.items() if math.isfinite(value.value)]
    if not known:
        return f"{capital(finding.what)}: no value."
    order = sorted(known, key=lambda label: -abs(finding.values[label].value))
    claims, top = finding.claims, order[0]
    if finding.baseline is None:
        return _no_baseline(finding, f"{capital(finding.what)}: largest {_measured(finding, top)}, of {len(known)}")
    if not claims:
        none_of = f"{capital(finding.what)}: none of {len(known)} lies {_beyond(finding)}outside the baseline"
        return f"{none_of}; the largest is {_measured(finding, top)}, {_base(finding, top)}."
    shown = listed([_measured(finding, label) for label in claims[:MOST]])
    lie = f"lie{'s' * (len(claims) == 1)} {_beyond(finding)}outside the baseline"
    more = f"; {len(claims)} of {len(known)} {lie}" if len(known) > 1 else ""
    return f"{capital(finding.what, closed=True)} is largest for {shown}; {_base(finding, claims[0])}{more}."


def _beyond(finding: Finding) -> str:
    return f"{number_text(finding.margin, finding.unit)} or more " if finding.margin else ""


def _not_above(finding: Finding, label: str) -> str:
    """A value that does not lie above its baseline: below it, or not told apart."""
    base = finding.baseline_of(label)
    low = math.nan if base is None else base.low if math.isfinite(base.low) else base.value
    return ", and it lies below that" if finding.values[label].below(low) else ", which is not told apart from it"


def share(finding: Finding) -> str:
    """Each value beside its baseline."""
    parts = []
    for label in finding.values:
        base, whose = _base(finding, label), "" if len(finding.values) == 1 else f" for {named(label)}"
        inside = "" if finding.stands_out(label) or not base else _not_above(finding, label)
        parts.append(f"{finding.values[label].text(finding.unit)}{whose}" + (f" ({base}{inside})" if base else ""))
    text = f"{capital(finding.what, closed=True)} is {listed(parts)}"
    return f"{text}." if finding.baseline is not None else _no_baseline(finding, text)


def comparison(finding: Finding) -> str:
    """Two or more beside each other, and whether the extremes are told apart."""
    known = {label: value for label, value in finding.values.items() if math.isfinite(value.value)}
    if len(known) < 2:
        return f"{capital(finding.what)}: nothing to compare but {listed([_measured(finding, one) for one in known])}."
    high, *_, low = sorted(known, key=lambda label: -known[label].value)
    apart = known[high].low > known[low].high
    end = "; their intervals do not meet" if apart else "; their intervals meet, so no difference is claimed"
    if not (math.isfinite(known[high].low) and math.isfinite(known[low].high)):  # of a number that is no mean over prompts
        end = ""
    base = _base(finding, high)
    most, least = (f"{known[label].text(finding.unit)} for {named(label)}" for label in (high, low))
    span = f"ranges from {least} to {most}, the lowest and the highest of {len(known)}"
    ends = span if len(known) > 2 else f"is {most}, against {least}"
    return f"{capital(finding.what, closed=True)} {ends}{end}{f'; {base}' if base else ''}."


def trend(finding: Finding) -> str:
    """From the first to the last, the peak, and where it leaves its baseline."""
    known = [label for label, value in finding.values.items() if math.isfinite(value.value)]
    if not known:
        return f"{capital(finding.what)}: no value."
    peak = max(known, key=lambda label: finding.values[label].value)
    ends = f"goes from {_measured(finding, known[0])} to {_measured(finding, known[-1])} along {finding.axis}"
    ends += "" if peak in (known[0], known[-1]) else f", with its peak at {_measured(finding, peak)}"
    if finding.baseline is None:
        return _no_baseline(finding, f"{capital(finding.what)} {ends}")
    out = [label for label in known if finding.stands_out(label)]
    first = f"outside the baseline first at {out[0]}" if out else "nowhere outside the baseline"
    return f"{capital(finding.what)} {ends}; {first} ({_base(finding, out[0] if out else peak)})."


def count(finding: Finding) -> str:
    """How many of how many, and which."""
    names = [named(label) for label in finding.values]
    which = f" ({listed(names[:12])}{' and others' if len(names) > 12 else ''})" if 0 < len(names) < finding.total else ""
    base = finding.baseline if isinstance(finding.baseline, Value) else None
    text = f"{capital(finding.what)}: {f'{len(names):,}' if names else 'none'} of {finding.total:,}{which}"
    if base is None:
        return f"{text}."
    inside = "" if len(names) > (base.high if math.isfinite(base.high) else base.value) else ", which is not told apart from it"
    return f"{text}; {finding.against} {base.text('')}{inside}."


def none(finding: Finding) -> str:
    """Why nothing was measured."""
    return f"{capital(finding.what)} was not measured: {finding.reason}."


GRAMMAR: dict[str, Callable[[Finding], str]] = {
    "largest": largest, "share": share, "comparison": comparison, "trend": trend, "count": count, "none": none,
}  # fmt: skip


def sentence(finding: Finding) -> str:
    """A finding in English."""
    return GRAMMAR[finding.kind](finding)
