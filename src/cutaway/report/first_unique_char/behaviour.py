"""What the model does: how well, on which positions, and sequence by sequence; and what its norms divide by."""

from __future__ import annotations

import torch

from cutaway.model.frozen_norms import norms_of
from cutaway.report.first_unique_char.study import LettersStudy
from cutaway.report.parts import Part
from cutaway.report.words import count, fixed, listed, mean_of, num, percent
from cutaway.view import Figure, Panel, line_chart, small_multiples, table

TABLES = 3  # sequences whose last position gets a table


def performance(study: LettersStudy) -> Part:
    """Loss, accuracy and probabilities, overall and by position."""
    probabilities = (-study.losses).exp()
    right = (study.guesses == study.labels).float()
    loss, accuracy = float(study.losses.mean()), float(right.mean())
    mean, least = float(probabilities.mean()), float(probabilities.min())
    wrong, whole = int((right == 0).sum()), right.numel()
    by_position = study.losses.mean(0)
    hardest = int(by_position.argmax())
    sequences = float(right.all(1).float().mean())
    kinds = {
        "the answer is ?": study.labels == study.null,
        "the answer is the letter just read": study.new_answer,
        "the answer is an earlier letter": (study.labels != study.null) & (study.labels != study.toks),
    }
    rows = [
        [name, int(where.sum()), mean_of(right, where), mean_of(study.losses, where), mean_of(probabilities, where)]
        for name, where in kinds.items()
    ]
    summary = (
        f"The loss is {fixed(loss)} and {percent(accuracy, 2)} of {count(whole, 'position')} are answered correctly "
        f"({count(wrong, 'mistake')}; {percent(sequences, 1)} of the sequences have none). The right answer gets a probability "
        f"of {fixed(mean)} on average and {num(least)} at the least; position {hardest} is the hardest, with a mean loss of "
        f"{fixed(by_position[hardest])}."
    )
    numbers = {
        "loss": loss,
        "accuracy": accuracy,
        "mean_correct_probability": mean,
        "min_correct_probability": least,
        "mistakes": wrong,
        "positions": whole,
        "sequences_without_mistake": sequences,
        "by_position": {"loss": by_position, "accuracy": right.mean(0), "mean_correct_probability": probabilities.mean(0)},
        "by_kind": {name: {"positions": n, "accuracy": a, "loss": l} for name, n, a, l, _ in rows},
    }
    figures = [
        line_chart({"loss": by_position}, x_name="position", y_name="loss (nats)", title="Loss by position"),
        line_chart({"accuracy": right.mean(0)}, x_name="position", y_name="accuracy", title="Accuracy by position"),
        table(["where", "positions", "accuracy", "loss", "probability"], rows, title="By kind of answer"),
    ]
    lines = [
        ("loss", fixed(loss)),
        ("accuracy", f"{percent(accuracy, 2)} ({count(wrong, 'mistake')} at {count(whole, 'position')})"),
        ("probability of the answer", f"mean {fixed(mean)}, smallest {fixed(least)}"),
    ]
    return Part("How well it does", summary, figures, numbers, lines)


def examples(study: LettersStudy) -> Part:
    """The answers to single sequences, and what the last position knows of each token."""
    shown = study.shown
    probabilities = study.log_probs[shown].exp()
    least = [float((-study.losses[i]).exp().min()) for i in shown]
    right = int((study.guesses[shown] == study.labels[shown]).sum())
    panels = [
        Panel(
            study.text(study.toks[i]),
            probabilities[n].T,
            study.places(study.toks[i]),
            study.vocab,
            marks=[(token, place, "right answer") for place, token in enumerate(study.labels[i].tolist())],
        )
        for n, i in enumerate(shown)
    ]
    maps = small_multiples(
        panels,
        x_name="token read",
        y_name="answer",
        value_name="probability",
        title="Probability of each answer",
        scale="sequential",
        range=(0, 1),
    )
    last = study.length - 1
    repeated, absent, unique = _last_logits(study)
    summary = (
        f"The model answers {right} of the {len(shown) * study.length} positions of the {count(len(shown), 'sequence')} shown "
        f"correctly; its least certain answer has a probability of {num(min(least))}. At the last position of all sequences, "
        f"letters that occurred more than once have a mean logit of {num(repeated)}, letters that occurred once {num(unique)}, "
        f"and letters that did not occur {num(absent)}."
    )
    numbers = {
        "examples": [
            {"tokens": study.text(study.toks[i]), "answers": study.text(study.labels[i]), "given": study.text(study.guesses[i])}
            for i in shown
        ],
        "last_logits": {"repeated": repeated, "once": unique, "absent": absent},
    }
    tables = [_occurrences(study, i, last) for i in shown[:TABLES]]
    return Part(
        "Examples",
        summary,
        ["Columns are the tokens read, rows the possible answers; the right one is outlined.", maps, *tables],
        numbers,
    )


def _last_logits(study: LettersStudy) -> tuple[float, float, float]:
    """The mean logit at the last position of letters that came more than once, never, and once."""
    logits, times = study.logits[:, -1, : study.null], study.occurrences[:, -1, : study.null]
    return mean_of(logits, times > 1), mean_of(logits, times == 0), mean_of(logits, times == 1)


def _occurrences(study: LettersStudy, example: int, position: int) -> Figure:
    logits = study.logits[example, position]
    answer = int(study.labels[example, position])
    rows = []
    for token, name in enumerate(study.vocab):
        times = int(study.occurrences[example, position, token])
        rows.append([name, times, times > 1, float(logits[token]), "right answer" if token == answer else ""])
    given = study.vocab[int(study.guesses[example, position])]
    title = f"Logits of {study.text(study.toks[example])} at position {position}"
    note = f"The right answer is {study.vocab[answer]}; the model answers {given}."
    return table(["token", "occurrences", "repeated", "logit", ""], rows, title=title, note=note)


def norms(study: LettersStudy) -> Part:
    """What each norm divides by, and how far that is from a constant."""
    scales = study.scales
    names = list(norms_of(study.model.cfg))
    mean, spread = ({name: of(name) for name in names} for of in (scales.of, scales.spread_of))
    widest = max(names, key=lambda name: spread[name] / mean[name])
    by_mean, by_std = scales.values.mean("batch"), scales.std_by_position()
    first = float(by_mean.sel(norm=names[-1], pos=0).item())
    rows = [[name, mean[name], spread[name], spread[name] / mean[name]] for name in names]
    numbers = {
        "norm_scales": {
            name: {
                "mean": mean[name],
                "std": spread[name],
                "mean_by_position": by_mean.sel(norm=name).data,
                "std_by_position": by_std.sel(norm=name).data,
            }
            for name in names
        }
    }
    summary = (
        "Circuits read from weights take each norm for a division by its mean scale: "
        f"{listed(f'{num(mean[name])} before {name}' for name in names)}. "
        f"The scale of {widest} varies most, by {percent(spread[widest] / mean[widest])} of its mean over all positions "
        f"(at position 0 that of {names[-1]} is {num(first)}), so that is how far such circuits may be off; attributions "
        "use each "
        "position's own scale and are exact."
    )
    bars = line_chart(
        {name: by_std.sel(norm=name).data for name in names},
        x_name="position",
        y_name="standard deviation of the scale",
        title="How far scales spread over sequences",
    )
    overall = table(["norm", "mean scale", "standard deviation", "relative"], rows, title="Over all positions")
    return Part("Norm scales", summary, [scales.figure(), bars, overall], numbers)


def rounded(values: torch.Tensor, digits: int = 3) -> list[str]:
    """Numbers as labels of cells."""
    return [num(value, digits) for value in values.tolist()]
