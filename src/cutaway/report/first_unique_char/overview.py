"""The first page of the report: what was found, in a few sentences, before the evidence."""

from __future__ import annotations

import torch

from cutaway.report.first_unique_char.layer1 import own_logits
from cutaway.report.first_unique_char.study import LettersStudy
from cutaway.report.parts import Block, Part
from cutaway.report.words import by_head, fixed, mean_of, percent, share, signed


def intro(study: LettersStudy) -> list[Block]:
    """What the task is and how to read the page."""
    letters = "".join(study.letters)
    return [
        f"At each position of a sequence of the letters {letters} the model says which letter is the first so far that has "
        "not been "
        "repeated, or ? where there is none. Sequences start with ?.",
        "Every number on this page was computed from this model on this data, and the sentences were written from the numbers. "
        "Heads are called layer.head. Weights were processed first: norms folded, writing weights and the unembedding centred, "
        "value biases folded; none of this changes an answer.",
    ]


def found(study: LettersStudy) -> Part:
    """The mechanism, as far as it was found."""
    detectors, responsible = study.detectors, study.responsible
    duplicate = [letter for letter in study.letters if detectors.heads("duplicate", letter)]
    anti = [letter for letter in study.letters if detectors.heads("anti_duplicate", letter)]
    count = len(study.letters)
    lowers, raises = (mean_of(torch.tensor(list(own_logits(study, name).values()))) for name in ("duplicate", "anti_duplicate"))
    overall = study.correct.over().values
    late = sum(overall.sel(component=head).item() for head in study.names(1))
    whole = float(overall.data.sum())
    performance = (
        f"{percent((study.guesses == study.labels).float().mean(), 2)} of the answers are right, and the loss is "
        f"{fixed(study.losses.mean())}."
    )
    points = [
        performance,
        f"Layer 0. Heads that attend from a letter to the same letter (duplicate detectors): {by_head(detectors.duplicate)}. "
        f"Heads that attend to anything but the same letter (anti-duplicate detectors): {by_head(detectors.anti_duplicate)}. "
        f"Of {count} letters {len(duplicate)} have a detector of the first kind and {len(anti)} of the second.",
        f"Layer 1. Its heads add {signed(late)} to the right answer's mean logit of {signed(whole)}{share(late, whole)}. "
        "The head "
        f"that moves a letter's own logit most, by weights, is responsible for it: {by_head(responsible.tokens_of)}.",
        f"Together. Through its duplicate detectors and then its responsible head a letter changes its own logit by "
        f"{signed(lowers)} on average, and through its anti-duplicate detectors and then all heads of layer 1 by "
        f"{signed(raises)}.",
    ]
    return Part("In short", "", [points])
