"""Direct logit attribution: what each component adds to logits, by example, position, repeated letter and right answer."""

from __future__ import annotations

import math

import torch

from cutaway.analysis import attribution
from cutaway.report.first_unique_char.study import LettersStudy
from cutaway.report.parts import Part
from cutaway.report.words import by_head, largest, listed, mean_of, share, signed
from cutaway.runs.results import Means
from cutaway.view import Figure, Panel, small_multiples

COMPONENTS_SHOWN = 3  # sequences with every position drawn


def contributions(study: LettersStudy) -> Part:
    """All views of attribution, and who is responsible for which letter."""
    left = float(study.correct.remainder.data.abs().max())
    last = study.names(study.model.cfg.n_layers - 1)
    overall = study.correct.over()
    mean = {name: overall.values.sel(component=name).item() for name in overall.values.names("component")}
    whole = sum(mean.values())
    late = sum(mean[head] for head in last)
    summary = (
        f"The heads of the last layer add {signed(late)} to the mean logit of the right answer, {signed(whole)} in all"
        f"{share(late, whole)}; the largest components are "
        + listed(f"{name} ({signed(value)})" for name, value in largest(mean, 4))
        + f". Components add up to the logits: at most {left:.1e} is left over. Logits are relative to the mean over all answers."
    )
    parts = [_examples(study), _by_position(study), _by_duplicate(study), _by_correct(study)]
    return Part("Direct logit attribution", summary, (), {"attribution": {"overall": mean, "left_over": left}}, parts=parts)


def _examples(study: LettersStudy) -> Part:
    shown, last = study.shown, study.length - 1
    found = attribution.attribute_all_tokens(study.cache, examples=shown, vocab=study.vocab)
    components = found.values.names("component")
    panels = [
        Panel(
            study.text(study.toks[i]),
            found.values.data[:, n, last],
            study.vocab,
            components,
            marks=[(row, int(study.labels[i, last]), "right answer") for row in range(len(components))],
        )
        for n, i in enumerate(shown)
    ]
    blocks: list[str | Figure] = [
        small_multiples(
            panels,
            x_name="logit of",
            y_name="component",
            value_name="logits",
            title=f"At position {last}, all components",
            columns=2,
        )
    ]
    for n in range(min(COMPONENTS_SHOWN, len(shown))):
        tokens = study.toks[shown[n]]
        figure = found.figure(n, study.places(tokens), study.labels[shown[n]].tolist())
        blocks.append(figure.with_title(f"All positions of {study.text(tokens)}: choose a component"))
    size = found.values.data[:, :, last].abs().mean((1, 2))
    values = dict(zip(components, size.tolist(), strict=True))
    times = study.occurrences[shown, last, : study.null]
    heads = [components.index(head) for head in study.names(study.model.cfg.n_layers - 1)]
    moved = found.values.data[heads, :, last, : study.null].sum(0)
    summary = (
        "At the last position the components that move logits most are "
        + listed(f"{name} ({value:.2f} on average)" for name, value in largest(values, 3))
        + f". The last layer changes the logits of repeated letters by {signed(mean_of(moved, times > 1))} and of letters that "
        f"occurred once by {signed(mean_of(moved, times == 1))}."
    )
    return Part("Attribution in examples", summary, blocks)


def _by_position(study: LettersStudy) -> Part:
    means = study.correct.by_position()
    names = means.values.names("component")
    from_one = list(range(1, study.length))
    chart = _lines(means, from_one)
    first = {name: means.values.sel(component=name, pos=1).item() for name in names} if from_one else {}
    later = {name: mean_of(means.values.sel(component=name).data[2:]) for name in study.names(0) + study.names(1)}
    summary = (
        "At position 1 the right answer's logit comes from "
        + listed(f"{name} ({signed(value)})" for name, value in largest(first, 4))
        + "; from position 2 on, on average, from "
        + listed(f"{name} ({signed(value)})" for name, value in largest(later, 3))
        + "."
    )
    numbers = {"attribution": {"by_position": {name: means.values.sel(component=name).data for name in names}}}
    return Part("Attribution to the right answer by position", summary, [chart], numbers)


def _lines(means: Means, places: list[int]) -> Figure:
    from cutaway.view import line_chart

    names = means.values.names("component")
    series = {name: means.values.sel(component=name).data[1:] for name in names}
    bands = {
        name: torch.stack([means.low.sel(component=name).data[1:], means.high.sel(component=name).data[1:]]) for name in names
    }
    return line_chart(
        series,
        places,
        intervals=bands,
        x_name="position",
        y_name="logits",
        title="What each component adds to the right answer's logit",
    )


def _by_duplicate(study: LettersStudy) -> Part:
    last = study.names(1)
    means = study.duplicates.sel(component=last, token=study.letters)
    values = means.values
    lowering = {head: [] for head in last}  # type: dict[str, list[str]]
    margin = {}
    for letter in study.letters:
        by = {head: values.sel(component=head, token=letter).item() for head in last}
        order = sorted(by, key=lambda head: by[head])
        if not math.isnan(by[order[0]]):  # the letter is repeated somewhere
            if by[order[0]] < 0:
                lowering[order[0]].append(letter)
            margin[letter] = by[order[1]] - by[order[0]] if len(order) > 1 else by[order[0]]
    agreed = [letter for letter in margin if letter in lowering[study.responsible.head_of[letter]]]
    closest = min(margin, key=lambda letter: margin[letter]) if margin else None
    summary = (
        f"When a letter is repeated, its own logit is lowered most by these heads: {by_head(lowering)}. "
        + (f"The closest call is {closest}, by {margin[closest]:.2f} logits. " if closest else "")
        + f"The weights name the same head responsible ({by_head(study.responsible.tokens_of)}) for {len(agreed)} of "
        f"{len(margin)} letters."
    )
    figure = means.figure("What the last layer adds to the logit of a repeated letter")
    numbers = {
        "responsible": study.responsible.tokens_of,
        "responsible_by_attribution": lowering,
        "attribution": {"by_duplicate": {head: values.sel(component=head).as_dict() for head in last}},
    }
    return Part(
        "Attribution to repeated letters",
        summary,
        [figure],
        numbers,
        [("responsible heads", by_head(study.responsible.tokens_of))],
    )


def _by_correct(study: LettersStudy) -> Part:
    last = study.names(1)
    means = study.correct.by_target(study.vocab).sel(component=last)
    values = means.values
    raising = {head: [] for head in last}  # type: dict[str, list[str]]
    agreed, known = 0, 0
    for letter in study.letters:
        by = {head: values.sel(component=head, target=letter).item() for head in last}
        top = max(by, key=lambda head: -math.inf if math.isnan(by[head]) else by[head])
        if not math.isnan(by[top]):
            known += 1
            if by[top] > 0:
                raising[top].append(letter)
            agreed += top == study.responsible.head_of[letter]
    null = {head: values.sel(component=head, target=study.vocab[-1]).item() for head in last}
    summary = (
        f"When a letter is the right answer, its logit is raised most by {by_head(raising)}, which is the responsible head for "
        f"{agreed} of {known} letters. The logit of ? as the right answer is changed by "
        + listed(f"{signed(value)} ({head})" for head, value in null.items())
        + "."
    )
    figure = means.figure("What the last layer adds to the logit of the right answer")
    numbers = {"attribution": {"by_correct": {head: values.sel(component=head).as_dict() for head in last}}}
    return Part("Attribution by right answer", summary, [figure], numbers)
