"""The first page of the report: what was found, in a few sentences, before the evidence."""

from __future__ import annotations

from cutaway.report.first_unique_char.study import Study
from cutaway.report.parts import Block, Part
from cutaway.report.words import by_head, mean_of, percent, signed


def intro(study: Study) -> list[Block]:
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


def found(study: Study) -> Part:
    """The mechanism, as far as it was found."""
    detectors, responsible = study.detectors, study.responsible
    duplicate = [letter for letter in study.letters if detectors.heads("duplicate", letter)]
    anti = [letter for letter in study.letters if detectors.heads("anti_duplicate", letter)]
    full = study.full_circuits
    count = len(study.letters)
    lowers = mean_of(full["duplicate"].data[:, :count].diagonal())
    raises = mean_of(full["anti_duplicate"].data[:, :count].diagonal())
    overall = study.correct.over().values
    late = sum(overall.sel(component=head).item() for head in study.names(1))
    whole = float(overall.data.sum())
    points = [
        "Layer 0 marks repeats. Heads that attend from a letter to the same letter (duplicate detectors): "
        f"{by_head(detectors.duplicate)}. "
        f"Heads that attend to everything else (anti-duplicate detectors): {by_head(detectors.anti_duplicate)}. "
        f"Of {count} letters {len(duplicate)} have a detector of the first kind and {len(anti)} of the second.",
        f"Layer 1 turns the marks into logits: {percent(late / whole)} of the right answer's mean logit comes from its "
        "heads. Each letter has one head "
        f"that is responsible for it: {by_head(responsible.tokens_of)}.",
        f"A letter that its duplicate detectors moved changes its own logit by {signed(lowers)} on average through its "
        "responsible head; one that its "
        f"anti-duplicate detectors moved by {signed(raises)} through all heads of layer 1.",
    ]
    return Part("In short", "", [points])
