"""Steering: a direction between two answers, added to held-out prompts, beside random directions of the same length."""

from __future__ import annotations

import torch

from cutaway.report.findings import Finding, none
from cutaway.report.study import Study
from cutaway.runs import edits
from cutaway.runs.editing import run
from cutaway.runs.estimates import mean, spread
from cutaway.runs.places import Places

FEWEST, DRAWS, SHOWN = 16, 8, 24


def classes(study: Study) -> list[int]:
    """The two commonest answers, where both are common enough."""
    label = study.right.long().argmax(1)[study.right.sum(1) == 1]
    count = label.bincount(minlength=2)
    return [token for token in count.argsort(descending=True)[:2].tolist() if int(count[token]) >= FEWEST]


def lacks(study: Study) -> str:
    """Two answers that are each right often enough."""
    if study.above:
        return "answers are sets"
    return "" if len(classes(study)) == 2 else f"no two answers are right {FEWEST} times each"


def passes(study: Study) -> float:
    """A pass for each layer that is tried and each random direction, on a few prompts."""
    return (DRAWS + 1) * len(tried(study)) * SHOWN / max(len(study.prompts), 1)


def tried(study: Study) -> list[int]:
    """All layers, or of a deep model every few."""
    layers = list(range(study.model.cfg.n_layers))
    return layers if len(layers) <= 12 else layers[:: len(layers) // 6]


def ask(study: Study) -> list[Finding]:
    """How far the direction moves the logit of one answer over the other, by layer."""
    one, other = classes(study)
    label = torch.where(study.right.sum(1) == 1, study.right.long().argmax(1), -1)
    rows, at = study.places
    half = torch.rand(len(study.prompts), generator=torch.Generator().manual_seed(study.seed)) < 0.5
    tested = ((label == one) & half[rows]).nonzero().flatten()[:SHOWN]
    fit = [(label == token) & ~half[rows] for token in (other, one)]
    if not len(tested) or not all(bool(mask.any()) for mask in fit):
        return [none("steering", "too few prompts to hold some out")]
    prompts = study.prompts[rows[tested].tolist()]
    where, count = at[tested], torch.arange(len(tested))
    values, base = {}, {}
    generator = torch.Generator().manual_seed(study.seed)

    def shift(layer: int, vector: torch.Tensor) -> torch.Tensor:
        made = edits.add(vector).at(("resid_post", layer), positions=Places(each=tuple((p,) for p in where.tolist())))
        logits = run(study.model, prompts.tokens, edits=[made], mask=prompts.mask.long()).logits[count, where]
        return logits[:, other] - logits[:, one]

    still = shift(0, torch.zeros(study.model.cfg.d_model))
    for layer in tried(study):
        stream = study.cache[study.streams[layer + 1]][rows, at]
        vector = stream[fit[0]].mean(0) - stream[fit[1]].mean(0)
        values[str(layer)] = mean(shift(layer, vector) - still, shares=False)
        noise = [torch.randn(vector.shape, generator=generator) for _ in range(DRAWS)]
        base[str(layer)] = spread(torch.stack([(shift(layer, n / n.norm() * vector.norm()) - still).mean() for n in noise]))
    what = f"how far a direction between means moves {study.answer_word(one)!r} towards {study.answer_word(other)!r}"
    on = f"{len(tested)} answers that the direction was not made from"
    return [Finding("trend", what, values, "logits", base, "random directions", on, axis="layers")]
