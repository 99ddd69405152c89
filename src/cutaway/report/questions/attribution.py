"""Direct logit attribution: what each component adds to the right answers' lead, over all answers, by class and by answer."""

from __future__ import annotations

from dataclasses import replace

import torch

from cutaway.analysis.answer_numbers import attributions
from cutaway.analysis.attribution import added_to
from cutaway.analysis.token_roles import FEW
from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value
from cutaway.runs.random_numbers import cycle

FEWEST = 8  # answers of one kind, for it to be compared


def lacks(study: Study) -> str:
    """Answers that are everything or nothing have no lead."""
    return "" if bool(study.contrast.any()) else "no answer has a right token and another one"


def ask(study: Study) -> list[Finding]:
    """Components against the same directions dealt to other prompts; the main ones by class and by answer."""
    names, added = added_to(study.cache, study.places, study.contrast)
    order = cycle(added.shape[1], study.seed)  # no prompt keeps its own answers
    _, dealt = added_to(study.cache, study.places, study.contrast[order])
    values = {name: study.over(row, shares=False) for name, row in zip(names, added, strict=True)}
    base = {name: study.over(row, shares=False) for name, row in zip(names, dealt, strict=True)}
    versus = "the wrong ones" if bool(study.paired.all()) else "the others"
    what = f"what a component adds to the mean logit of right answers over {versus}"
    against = "answers dealt to other prompts"
    found = [Finding("largest", what, values, "logits", base, against, study.on, two_sided=True)]
    top = max(names, key=lambda name: abs(values[name].value))
    row = added[names.index(top)]
    rows, at = study.places
    classes = study.behaviour.classes(study.prompts)
    here = {name: where[rows, at] for name, where in classes.items()}
    by_class = {name: study.over(row, where, shares=False) for name, where in here.items() if int(where.sum()) >= FEWEST}
    if len(by_class) > 1:
        found.append(Finding("comparison", f"what {top} adds, by class of answer", by_class, "logits", on=study.on))
    found += _by_answer(study, names, added)
    if study.single and study.by_token:
        sources = study.behaviour.sources(study.prompts[:FEW])
        found[0] = replace(found[0], numbers=attributions(study, study.cache, classes, sources, study.roles))
    return found


def _by_answer(study: Study, names: list[str], added: torch.Tensor) -> list[Finding]:
    """For each answer that is often right, the component that adds most to it."""
    single = study.right.sum(1) == 1
    label = study.right.long().argmax(1)
    often = [token for token in label[single].unique().tolist() if int((single & (label == token)).sum()) >= FEWEST]
    if not 2 <= len(often) <= 40:
        return []
    leaders: dict[str, dict[str, Value]] = {}
    for token in often:
        each = added[:, single & (label == token)].mean(1)
        leaders.setdefault(names[int(each.argmax())], {})[study.answer_word(token)] = Value(float(each.max()))
    order = sorted(leaders, key=lambda name: -len(leaders[name]))[:4]
    what = "answers to which {} adds most"
    return [Finding("count", what.format(name), leaders[name], total=len(often), on=study.on) for name in order]
