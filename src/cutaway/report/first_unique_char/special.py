"""Cases with a mechanism of their own: position 1, and answers that are the letter just read."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from cutaway.analysis import attribution
from cutaway.report.first_unique_char.layer0 import drawn
from cutaway.report.first_unique_char.study import LettersStudy
from cutaway.report.parts import Part
from cutaway.report.words import largest, listed, mean_of, num, percent, signed
from cutaway.view import Figure, heat_map, table

STARTS = 5  # sequences of pairs, each starting two letters further on


def position_one(study: LettersStudy) -> Part:
    """Sequences of `?` and one letter."""
    count = len(study.letters)
    tokens = torch.tensor([[study.null, letter] for letter in range(count)], device=study.device)
    logits, cache = study.run(tokens)
    right = (logits[:, 1].argmax(-1) == tokens[:, 1]).float()
    found = attribution.attribute(cache, targets=tokens).values
    added = found.sel(pos=1)
    heads = added.sel(component=study.heads)
    attended = torch.stack([study.pattern(head, cache)[:, 1, 1] for head in study.heads])
    mean = {name: mean_of(added.sel(component=name).data) for name in added.names("component")}
    eye = {head: mean_of(row) for head, row in zip(study.heads, attended, strict=True)}
    early = sum(mean[head] for head in study.names(0))
    late = sum(mean[head] for head in study.names(1))
    best = [
        (letter, *largest(dict(zip(study.heads, heads.data[:, n].tolist(), strict=True)), 1)[0])
        for n, letter in enumerate(study.letters)
    ]
    helped = [letter for letter, head, _ in best if head in study.names(1)]
    summary = (
        f"The model is right for {int(right.sum())} of {count} letters. Their logit gets {signed(early)} from the heads of "
        "layer 0 and "
        f"{signed(late)} from those of layer 1 on average; the heads that attend most from position 1 to itself are "
        + listed(f"{head} ({percent(value)})" for head, value in sorted(eye.items(), key=lambda one: -one[1])[:3])
        + ". "
        + (f"A head of layer 1 adds most for {listed(helped)}." if helped else "For every letter a head of layer 0 adds most.")
    )
    blocks = [
        heat_map(
            heads.data,
            study.letters,
            study.heads,
            x_name="letter at position 1",
            y_name="head",
            value_name="logits",
            title="What each head adds to the right answer at position 1",
        ),
        heat_map(
            attended,
            study.letters,
            study.heads,
            x_name="letter at position 1",
            y_name="head",
            value_name="attention",
            scale="sequential",
            range=(0, 1),
            title="Attention from position 1 to itself",
        ),
    ]
    numbers = {
        "position_1": {
            "right": float(right.mean()),
            "attribution": heads.as_dict(),
            "self_attention": eye,
            "largest": {letter: head for letter, head, _ in best},
        }
    }
    return Part("Position 1", summary, blocks, numbers)


def pairs_from(study: LettersStudy, start: int) -> str:
    """Five letters in pairs, from one letter on: `?ccddeeffgg`."""
    count = len(study.letters)
    return "?" + "".join(study.letters[(start + n) % count] * 2 for n in range(min(5, count)))


def first_instances(study: LettersStudy) -> Part:
    """Answers that are the letter just read: how well, and where their logits come from."""
    where = study.new_answer
    right = (study.guesses == study.labels).float()
    probabilities = (-study.losses).exp()
    texts = [pairs_from(study, start) for start in range(0, min(2 * STARTS, len(study.letters)), 2)]
    tokens = torch.cat([study.encode(text) for text in texts])
    labels = study.answers(tokens)
    logits, cache = study.run(tokens)
    newest = (labels == tokens) & (labels != study.null)
    hits = int(((logits.argmax(-1) == labels) & newest).sum())
    found = attribution.attribute_all_tokens(cache, examples=range(len(texts)), components=study.names(1), vocab=study.vocab)
    blocks: list[str | Figure] = []
    for n, text in enumerate(texts):
        figure = found.figure(n, study.places(tokens[n]), labels[n].tolist())
        one = study.run(tokens[n : n + 1])[1]
        blocks += [
            figure.with_title(f"What layer 1 adds to logits on {text}"),
            drawn(study, tokens[n], one, [0, 1], f"Attention on {text}"),
        ]
    own, total, attends = own_head(study, where)
    unseen = [[letter, *values] for letter, values in _by_letter(study, where).items()]
    numbers = {
        "first_instances": {
            "positions": int(where.sum()),
            "accuracy": mean_of(right, where),
            "mean_probability": mean_of(probabilities, where),
            "responsible_head": own,
            "last_layer": total,
            "attention_of_responsible_to_it": attends,
            "pairs": {"right": hits, "of": int(newest.sum())},
        }
    }
    few = attends < 0.2
    summary = (
        f"At {int(where.sum()):,} positions after the first the answer is the letter just read; "
        f"{percent(mean_of(right, where), 1)} of them are right, with a mean probability of "
        f"{num(mean_of(probabilities, where))} (and {hits} of {int(newest.sum())} in the sequences of pairs below). There the "
        f"responsible head adds {signed(own)} to the answer's logit, and the whole last layer {signed(total)}. That head attends "
        f"to the letter's own position with {'only ' if few else ''}{percent(attends, 1)}"
        f"{', so what it adds comes from other positions.' if few and own > 0 else '.'}"
    )
    if not bool(where.any()):
        summary = (
            "In this data no answer after position 1 is the letter just read; in the sequences of pairs below "
            f"{hits} of {int(newest.sum())} such answers are right."
        )
    columns = [
        "letter",
        "positions",
        "accuracy",
        "probability",
        "responsible head",
        "its attention to the letter",
        "what it adds",
    ]
    blocks.insert(0, table(columns, unseen, title="Answers that are the letter just read"))
    return Part("First instances", summary, blocks, numbers)


def own_head(study: LettersStudy, where: Bool[Tensor, "batch pos"]) -> tuple[float, float, float]:
    """What the answer's responsible head adds, what its layer adds, and that head's attention to the position itself."""
    found = study.correct.values
    head_of = study.responsible.head_of
    added, layer, attended = [], [], []
    for letter, head in head_of.items():
        chosen = where & (study.labels == study.letters.index(letter))
        added.append(found.sel(component=head).data[chosen])
        layer.append(found.sel(component=study.names(1)).data.sum(0)[chosen])
        attended.append(study.pattern(head).diagonal(dim1=1, dim2=2)[chosen])
    return tuple(mean_of(torch.cat(part)) for part in (added, layer, attended))  # type: ignore[return-value]


def _by_letter(study: LettersStudy, where: Tensor) -> dict[str, list[object]]:
    right = (study.guesses == study.labels).float()
    out: dict[str, list[object]] = {}
    for letter, head in study.responsible.head_of.items():
        chosen = where & (study.labels == study.letters.index(letter))
        eye = study.pattern(head).diagonal(dim1=1, dim2=2)
        added = study.correct.values.sel(component=head).data
        out[letter] = [
            int(chosen.sum()),
            mean_of(right, chosen),
            mean_of((-study.losses).exp(), chosen),
            head,
            mean_of(eye, chosen),
            mean_of(added, chosen),
        ]
    return out
