"""Where the model fails: the worst of the examples, and sequences that a search made to be hard."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.analysis import attribution, hill_climbing
from cutaway.axes import Tokens
from cutaway.report.first_unique_char.layer0 import drawn
from cutaway.report.first_unique_char.study import LettersStudy
from cutaway.report.parts import Part
from cutaway.report.words import count, fixed, listed, mean_of, num, percent
from cutaway.tasks import FirstUniqueChar
from cutaway.view import Figure, bar_chart, table

WORST = 12
CHAINS = 24
ROUNDS = 12
KINDS = ("? although a letter is unique", "a later unique letter", "a repeated letter", "a letter that did not occur")


def kinds_of(study: LettersStudy, tokens: Tokens, guesses: Tokens) -> Tokens:
    """Which kind of answer each guess would be if wrong: an index into `KINDS`."""
    times = torch.nn.functional.one_hot(tokens, len(study.vocab)).cumsum(1).gather(-1, guesses[..., None])[..., 0]
    kind = torch.where(times > 1, 2, torch.where(times == 1, 1, 3))
    return kind.masked_fill(guesses == study.null, 0)


def features_of(study: LettersStudy, tokens: Tokens) -> dict[str, Float[Tensor, "batch pos"]]:
    """What can be counted at each position of a sequence."""
    times = torch.nn.functional.one_hot(tokens, len(study.vocab)).cumsum(1)[..., : study.null]
    place = torch.arange(tokens.shape[1], device=tokens.device)
    first = _first_places(study, tokens)
    alone = torch.where(times == 1, first[:, None], math.inf).sort(-1).values  # unique letters by position
    labels = study.answers(tokens)
    letter = labels != study.null
    lead = (alone[..., 1] - alone[..., 0] if alone.shape[-1] > 1 else torch.full_like(alone[..., 0], math.nan)).float()
    return {
        "position": place.expand(tokens.shape).float(),
        "different letters so far": (times > 0).sum(-1).float(),
        "letters that are unique": (times == 1).sum(-1).float(),
        "letters that are repeated": (times > 1).sum(-1).float(),
        "most occurrences of one letter": times.amax(-1).float(),
        "the answer is ?": (~letter).float(),
        "the answer was just read": (letter & (labels == tokens)).float(),
        "how long ago the answer was read": torch.where(letter, place - alone[..., 0], math.nan).float(),
        "from the answer to the next unique letter": torch.where(letter & lead.isfinite(), lead, math.nan),
        "the letter just read is a repeat": (times.gather(-1, tokens.clamp(max=study.null - 1)[..., None])[..., 0] > 1).float()
        * (tokens != study.null),
    }


def _first_places(study: LettersStudy, tokens: Tokens) -> Float[Tensor, "batch token"]:
    """Where each letter first stands; infinity for those that do not."""
    places = torch.full((len(tokens), study.null, tokens.shape[1]), math.inf, device=tokens.device)
    here = tokens[:, None, :] == torch.arange(study.null, device=tokens.device)[None, :, None]
    return places.masked_fill(here, 0).add(torch.arange(tokens.shape[1], device=tokens.device)).amin(-1)


def worst(study: LettersStudy) -> Part:
    """The positions with the highest loss, and what kind of mistakes there are."""
    wrong = study.guesses != study.labels
    flat = study.losses.flatten()
    order = flat.argsort(descending=True)[: min(WORST, len(flat))]
    rows = []
    for index in order.tolist():
        example, place = divmod(index, study.length)
        rows.append(_row(study, study.toks[example], place, study.labels[example, place], study.log_probs[example, place]))
    kinds = kinds_of(study, study.toks, study.guesses)
    shares = [int(((kinds == kind) & wrong).sum()) for kind in range(len(KINDS))]
    total = int(wrong.sum())
    top = max(range(len(KINDS)), key=lambda kind: shares[kind])
    share = float(study.losses[wrong].sum() / study.losses.sum()) if total else 0.0
    summary = (
        f"The model makes {count(total, 'mistake')} ({percent(wrong.float().mean(), 2)} of positions), which carry "
        f"{percent(share)} of the loss. "
        + (f"Most often ({shares[top]} times) it answers {KINDS[top]}. " if total else "")
        + f"The worst position has a loss of {fixed(flat[order[0]], 2)}: after {rows[0][0]} the answer is "
        f"{rows[0][2]}, and the model says "
        f"{rows[0][3]} (probability of the answer {num(rows[0][4], 2)})."
    )
    columns = ["sequence up to there", "position", "answer", "given", "probability of the answer", "what was given"]
    example, place = divmod(int(order[0]), study.length)
    blocks: list[str | Figure] = [
        table(columns, rows, title="The positions with the highest loss"),
        *_closer(study, study.toks[example], place),
    ]
    if total:
        blocks.insert(
            1,
            bar_chart(
                KINDS, [float(n) for n in shares], x_name="given instead", value_name="mistakes", title="Kinds of mistakes"
            ),
        )
    numbers = {
        "mistakes_by_kind": dict(zip(KINDS, shares, strict=True)),
        "worst": [_as_numbers(row) for row in rows],
        "loss_in_mistakes": share,
    }
    return Part("The worst examples", summary, blocks, numbers)


def _row(study: LettersStudy, tokens: Tensor, place: int, label: Tensor, log_probs: Tensor) -> list[object]:
    guess = log_probs.argmax()
    kind = "" if guess == label else KINDS[int(kinds_of(study, tokens[None], guess.expand(1, len(tokens)))[0, place])]
    return [
        study.text(tokens[: place + 1]),
        place,
        study.vocab[int(label)],
        study.vocab[int(guess)],
        float(log_probs[label].exp()),
        kind,
    ]


def _as_numbers(row: list[object]) -> dict[str, object]:
    return dict(zip(("tokens", "position", "answer", "given", "probability", "kind"), row, strict=True))


def _closer(study: LettersStudy, tokens: Tensor, place: int) -> list[Figure]:
    """Attention and attribution of one sequence, up to the position that goes wrong."""
    part = tokens[None, : place + 1]
    _, cache = study.run(part)
    found = attribution.attribute_all_tokens(cache, vocab=study.vocab)
    text = study.text(part[0])
    labels = study.answers(part)[0].tolist()
    return [
        found.figure(0, study.places(part[0]), labels).with_title(f"What each component adds on {text}"),
        drawn(study, part[0], cache, [0, 1], f"Attention on {text}"),
    ]


def adversarial(study: LettersStudy) -> Part:
    """A search for sequences that the model gets wrong, and what they have in common."""

    def hardness(tokens: Tokens) -> Float[Tensor, "batch"]:
        losses: Tensor = -study.model(tokens).log_softmax(-1).gather(-1, study.answers(tokens)[..., None])[..., 0]
        return losses.amax(1)

    start = FirstUniqueChar(CHAINS, study.letters, study.length, study.seed + 1).to(study.device).toks
    found = hill_climbing.hill_climb(
        hardness,
        start,
        range(len(study.letters)),
        positions=range(1, study.length),
        rounds=ROUNDS,
        neighbours=256,
        what="loss at the worst position",
        unit="nats",
    )
    with torch.no_grad():
        log_probs = study.model(found.tokens).log_softmax(-1)
    labels = study.answers(found.tokens)
    losses = -log_probs.gather(-1, labels[..., None])[..., 0]
    guesses = log_probs.argmax(-1)
    place = losses.argmax(1)
    failed = (guesses != labels) & (torch.arange(study.length, device=study.device) == place[:, None])
    before = _wrong_at_start(study, start)
    order = found.final.argsort(descending=True).tolist()
    rows = [
        [*_row(study, found.tokens[i], int(place[i]), labels[i, place[i]], log_probs[i, place[i]]), int(found.changes[i])]
        for i in order
    ]
    columns = [
        "sequence up to there",
        "position",
        "answer",
        "given",
        "probability of the answer",
        "what was given",
        "letters changed",
    ]
    common, shared, numbers = _in_common(study, found.tokens, failed, guesses, labels)
    done = int(failed.any(1).sum())
    summary = (
        f"From {count(CHAINS, 'random sequence')}, of which {before} had a mistake, replacing one letter at a time "
        f"({count(found.looked_at, 'sequence')} "
        f"looked at) ends in {done} that the model gets wrong, after {num(found.changes.float().median())} replaced "
        "letters in the median; the highest loss found is "
        f"{num(found.final.max())}. " + shared
    )
    blocks: list[str | Figure] = [
        table(columns, rows[:WORST], title="The hardest sequences found"),
        common,
        found.figure(),
        *_closer(study, found.tokens[order[0]], int(place[order[0]])),
    ]
    numbers = {
        "adversarial": {
            "chains": CHAINS,
            "wrong_at_start": before,
            "wrong_at_end": done,
            "looked_at": found.looked_at,
            "highest_loss": float(found.final.max()),
            "median_changes": float(found.changes.float().median()),
            "sequences": [_as_numbers(row[:-1]) | {"changed": row[-1]} for row in rows],
            "in_common": numbers,
        }
    }
    lines = [
        ("adversarial sequences", f"{done} of {CHAINS} searches end in a mistake, the highest loss is {num(found.final.max())}")
    ]
    return Part("Adversarial sequences", summary, blocks, numbers, lines)


@torch.no_grad()
def _wrong_at_start(study: LettersStudy, start: Tokens) -> int:
    return int((study.model(start).argmax(-1) != study.answers(start)).any(1).sum())


def _in_common(
    study: LettersStudy, tokens: Tokens, failed: Bool[Tensor, "batch pos"], guesses: Tokens, labels: Tokens
) -> tuple[Figure, str, dict[str, object]]:
    """How failures differ from ordinary positions: a table, a sentence, and the numbers."""
    here, ordinary = features_of(study, tokens), features_of(study, study.toks)
    mistakes = study.guesses != study.labels
    places = torch.arange(study.length, device=study.device).expand(failed.shape)[failed]
    rows, distance = [], {}
    for name, values in here.items():
        usual, spread = _by_place(ordinary[name])
        away = mean_of((values[failed] - usual[places]) / spread[places].masked_fill(spread[places] == 0, math.nan))
        rows.append([name, mean_of(values, failed), mean_of(ordinary[name], mistakes), mean_of(usual[places]), away])
        if math.isfinite(away) and name != "position":
            distance[name] = away
    kinds = kinds_of(study, tokens, guesses)[failed]
    share = {name: float((kinds == kind).float().mean()) if len(kinds) else 0.0 for kind, name in enumerate(KINDS)}
    answers = labels[failed].bincount(minlength=len(study.vocab)).tolist()
    by_answer = {name: number for name, number in zip(study.vocab, answers, strict=True) if number}
    figure = table(
        ["mean of", "search", "mistakes", "ordinary", "std away"],
        rows,
        title="What failures have in common",
        note="Search: failures found by it. Mistakes: those in the data. Ordinary: all sequences, at the positions of the "
        "failures found by the search; how far those are away from it is in standard deviations at the same position.",
    )
    numbers: dict[str, object] = {
        "features": {
            row[0]: {"search": row[1], "mistakes": row[2], "ordinary": row[3], "standard_deviations": row[4]} for row in rows
        },
        "kinds": share,
        "answers": by_answer,
    }
    if not len(kinds):
        return figure, "No mistake was found, so there is nothing that failures share.", numbers
    kind = max(share, key=lambda name: share[name])
    top = sorted(distance, key=lambda name: -abs(distance[name]))[:3]
    by = {row[0]: row for row in rows}
    letters = sorted(by_answer, key=lambda name: -by_answer[name])[:3]
    differences = listed(f"{name} ({num(by[name][1], 2)} on average against {num(by[name][3], 2)})" for name in top)
    sentence = (
        f"In {percent(share[kind])} of them the model answers {kind}. "
        + (f"They differ most from ordinary sequences at the same positions in: {differences}. " if top else "")
        + f"The answers missed are mostly {listed(f'{name} ({by_answer[name]})' for name in letters)}."
    )
    return figure, sentence, numbers


def _by_place(values: Float[Tensor, "batch pos"]) -> tuple[Float[Tensor, "pos"], Float[Tensor, "pos"]]:
    """Mean and standard deviation at each position, over the sequences that have the feature."""
    mean = values.nanmean(0)
    return mean, (values - mean).square().nanmean(0).sqrt()
