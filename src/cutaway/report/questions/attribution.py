"""Direct logit attribution: what each component adds to the right answers' lead, over all answers, by class and by answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from cutaway.analysis import attribution
from cutaway.analysis.class_attribution import by_class
from cutaway.analysis.token_roles import FEW
from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs.estimates import Value
from cutaway.runs.random_numbers import cycle
from cutaway.runs.results import mean_of

FEWEST = 8  # answers of one kind, for it to be compared
ROOM = 10**8  # numbers of an attribution to all tokens


def lacks(study: Study) -> str:
    """Answers that are everything or nothing have no lead."""
    return "" if bool(study.contrast.any()) else "no answer has a right token and another one"


def ask(study: Study) -> list[Finding]:
    """Components against the same directions dealt to other prompts; the main ones by class and by answer."""
    names, added = study.attributed()
    _, dealt = study.attributed(cycle(added.shape[1], study.seed))  # no prompt keeps its own answers
    values = {name: study.over(row, shares=False) for name, row in zip(names, added, strict=True)}
    base = {name: study.over(row, shares=False) for name, row in zip(names, dealt, strict=True)}
    versus = "the wrong ones" if bool(study.paired.all()) else "the others"
    what = f"what a component adds to the mean logit of right answers over {versus}"
    against = "answers dealt to other prompts"
    found = [Finding("largest", what, values, "logits", base, against, study.on, two_sided=True)]
    top = max(names, key=lambda name: abs(values[name].value))
    row = added[names.index(top)]
    rows, at = study.places
    classes = {name: where[rows, at] for name, where in study.behaviour.classes(study.prompts).items()}
    by_class = {name: study.over(row, where, shares=False) for name, where in classes.items() if int(where.sum()) >= FEWEST}
    if len(by_class) > 1:
        found.append(Finding("comparison", f"what {top} adds, by class of answer", by_class, "logits", on=study.on))
    found += _by_answer(study, names, added)
    found[0] = replace(found[0], numbers=_numbers(study) if study.single and study.by_token else {})
    return found


def _numbers(study: Study) -> dict[str, Any]:
    """What components add to the right answer's logit: by position and by answer; where vocabularies are one, by class, too."""
    labels, cfg = study.prompts.labels, study.model.cfg
    right = attribution.attribute(study.cache, targets=labels)
    mean, by_position = right.over().values.as_dict(), right.by_position().values
    tree: dict[str, Any] = {
        "overall": mean, "left_over": float(right.remainder.data.nan_to_num(0).abs().max()),
        "by_position": {name: by_position.sel(component=name).data for name in mean},
        "by_correct": right.by_target(study.answer_words).values.as_dict(),
    }  # fmt: skip
    if cfg.d_vocab != cfg.d_vocab_out:
        return {"attribution": tree}
    tokens = study.prompts.tokens.masked_fill(~study.prompts.mask, -1)
    repeated = study.occurrences.gather(-1, study.prompts.tokens[..., None])[..., 0] > 1
    own = attribution.attribute(study.cache, targets=tokens).by_class(tokens, study.words, where=repeated, axis="token").values
    content = [study.words[token] for token in study.content]
    tree["by_duplicate"] = own.sel(token=content).as_dict()
    lowest = own.sel(component=study.last_heads, token=content).data.nan_to_num(torch.inf)
    lowering: dict[str, list[str]] = {head: [] for head in study.last_heads}
    for word, values in zip(content, lowest.T, strict=True):
        if float(values.min()) < 0:
            lowering[study.last_heads[int(values.argmin())]].append(word)
    by_class = _by_class(study, right) if len(mean) * labels.numel() * cfg.d_vocab < ROOM else {}
    others = {study.words[token]: _of_answer(study, token) for token in study.right.any(0).nonzero().flatten().tolist()
              if token not in study.content}  # fmt: skip
    return {"attribution": tree, "responsible_by_attribution": lowering, "by_class": by_class, "by_other_answer": others}


def _by_class(study: Study, right: attribution.Attribution) -> dict[str, Any]:
    """For each class of answers, what components add to kinds of tokens, and what responsible heads add from where."""
    few = study.prompts[:FEW]
    classes = {name: where for name, where in study.behaviour.classes(study.prompts).items() if bool(where.any())}
    return by_class(right, study.cache, study.prompts.labels, study.occurrences, classes, study.behaviour.sources(few),
                    study.content, study.words, study.roles)  # fmt: skip


def _of_answer(study: Study, token: int) -> dict[str, Any]:
    """An answer that is no content ("none"): what components add to its logit where it is right and elsewhere; its lead."""
    rows, at = study.places
    there, varied = study.right[:, token], study.varied[rows, at]
    added = attribution.attribute(study.cache, targets=torch.full_like(study.prompts.tokens, token)).values
    grids = {"attribution": there & varied, "attribution_elsewhere": ~there & varied}
    trees = {name: {component: mean_of(added.sel(component=component).data[rows, at], where)
                    for component in added.names("component")} for name, where in grids.items()}  # fmt: skip
    lead = study.logits[:, token] - study.logits[:, study.content].amax(1)
    return {**trees, "accuracy": mean_of(study.correct.float(), there & varied), "margin": mean_of(lead, there & varied)}


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
