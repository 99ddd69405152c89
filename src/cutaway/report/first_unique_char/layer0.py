"""Layer 0: what its heads attend to, and which weights make them do it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cutaway.analysis import heads, score_pathways, weight_circuits
from cutaway.report.first_unique_char.study import LettersStudy
from cutaway.report.parts import Part
from cutaway.report.words import by_head, largest, listed, mean_of, num, percent
from cutaway.view import Figure, Panel, attention_patterns, heat_map, line_chart, small_multiples, table

QUADRANTS = ("Q=token, K=token", "Q=token, K=position", "Q=position, K=token", "Q=position, K=position")


def pairs_of(study: LettersStudy) -> str:
    """Every letter twice in a row: `?aabbccdd…`."""
    return "?" + "".join(letter * 2 for letter in study.letters)


def drawn(study: LettersStudy, tokens: Tensor, cache: object, layers: list[int], title: str) -> Figure:
    """The patterns of one sequence (the only one of its run, or the first)."""
    patterns = torch.cat([cache["pattern", layer][0] for layer in layers])  # type: ignore[index]
    names = [head for layer in layers for head in study.names(layer)]
    return attention_patterns(study.words(tokens), patterns, names, title=title)


def attention(study: LettersStudy) -> Part:
    """Attention patterns: of examples, of pairs of letters, and what they amount to."""
    scores = heads.head_scores(study.cache, study.toks, kinds=["current", "duplicate", "first"])
    mean, even = scores.mean, scores.baseline
    zero = study.names(0)
    same = {head: _same_token(study, head) for head in zero}
    expected = mean_of(1 / torch.arange(1, study.length + 1, dtype=torch.float32))
    seeker, avoider = max(same, key=lambda h: same[h]), min(same, key=lambda h: same[h])
    at_one = {head: float(study.pattern(head)[:, 1, 1].mean()) for head in zero}
    rows = [
        [head, *(mean.sel(kind=kind, head=head).item() for kind in mean.names("kind")), same[head], at_one[head]]
        for head in study.heads
        if head in zero
    ]
    rows.append(["even attention", *even.data.tolist(), _even(study), 0.5])
    text = pairs_of(study)
    tokens = study.encode(text)
    _, cache = study.run(tokens)
    second = _second_of_pairs(study, tokens[0], cache)
    blocks: list[str | Figure] = [
        table(
            [
                "head",
                "to the token itself",
                "to each earlier occurrence",
                "to ?",
                "to all occurrences, from a repeat",
                "position 1 to itself",
            ],
            rows,
            title="Mean attention in layer 0",
        ),
        "A click on a head shows it large; a click on a token shows what it attends to.",
    ]
    for i in study.shown:
        patterns = study.cache["pattern", 0][i]
        blocks.append(
            attention_patterns(study.words(study.toks[i]), patterns, zero, title=f"Layer 0 on {study.text(study.toks[i])}")
        )
    summary = (
        f"From a letter that occurred before, {seeker} puts {percent(same[seeker])} of its attention on occurrences of "
        "that letter "
        f"(its own position included) and {avoider} {percent(same[avoider])}. At position 1 the heads attend to the letter "
        f"itself rather than to ? with {listed(f'{percent(at_one[h])} ({h})' for h in zero)}."
    )
    by_letter = {head: dict(zip(second[0], second[1][i].tolist(), strict=True)) for i, head in enumerate(zero)}
    inner = Part(
        f"Attention on {study.text(tokens[0])}",
        _said_of_pairs(study, by_letter),
        [
            drawn(study, tokens[0], cache, [0], f"Layer 0 on {study.text(tokens[0])}"),
            heat_map(
                second[1],
                second[0],
                zero,
                x_name="letter",
                y_name="head",
                value_name="attention",
                scale="sequential",
                range=(0, 1),
                title="Attention from the second of a pair to both",
            ),
        ],
        {"pairs": {"tokens": study.text(tokens[0]), "attention_to_same": by_letter}},
    )
    numbers = {"attention": {"to_occurrences_from_repeat": same, "position_1_to_itself": at_one, "even": float(expected)}}
    return Part("Attention of layer 0", summary, blocks, numbers, parts=[inner])


def _same_token(study: LettersStudy, head: str) -> float:
    """From positions whose token is repeated: the attention to all of its occurrences so far."""
    same = study.toks[:, :, None] == study.toks[:, None, :]
    return mean_of((study.pattern(head) * same).sum(-1), study.repeated)


def _even(study: LettersStudy) -> float:
    """What even attention would put there."""
    same = (study.toks[:, :, None] == study.toks[:, None, :]).tril().sum(-1)
    return mean_of(same / torch.arange(1, study.length + 1, device=study.device), study.repeated)


def _second_of_pairs(study: LettersStudy, tokens: Tensor, cache: object) -> tuple[list[str], Tensor]:
    """From the second of each pair of letters, the attention to the two, `[head, letter]`."""
    pattern = cache["pattern", 0][0]  # type: ignore[index]
    places = [place for place in range(2, len(tokens)) if tokens[place] == tokens[place - 1]]
    names = [study.vocab[int(tokens[place])] for place in places]
    return names, torch.stack([pattern[:, place, place - 1 : place + 1].sum(-1) for place in places], 1)


def _said_of_pairs(study: LettersStudy, by_letter: dict[str, dict[str, float]]) -> str:
    said = []
    for head, values in by_letter.items():
        high = "".join(letter for letter, value in values.items() if value > 0.5)
        low = "".join(letter for letter, value in values.items() if value < 0.1)
        said.append(
            f"{head} gives more than half of it to the pair for {high or 'no letter'} and less than a tenth for "
            f"{low or 'no letter'}"
        )
    return "Attention from the second letter of each pair: " + "; ".join(said) + "."


def token_scores(study: LettersStudy) -> Part:
    """QK circuits token × token, and the detectors that they show."""
    found, letters = study.detectors, range(len(study.letters))
    raw, soft = {}, {}
    for head in study.names(0):
        circuit = weight_circuits.qk_circuit(study.model, head, scales=study.scales, vocab=study.vocab).part(list(letters), None)
        raw[f"{head}"] = circuit
        soft[f"{head}"] = torch.softmax(circuit.data, -1)
    covered = [letter for letter in study.letters if found.heads("duplicate", letter) and found.heads("anti_duplicate", letter)]
    bare = [letter for letter in study.letters if letter not in covered]
    panels = [Panel(head, values, study.vocab, study.letters) for head, values in soft.items()]
    summary = (
        f"Duplicate detectors (attention to the same letter above {percent(found.above)}) are {by_head(found.duplicate)}; "
        f"anti-duplicate detectors (below {percent(found.below)}) are {by_head(found.anti_duplicate)}. "
        + (
            "Every letter has a detector of each kind."
            if not bare
            else f"Both kinds exist for {len(covered)} of the {len(study.letters)} letters; "
            f"{listed(bare)} lack{'s' if len(bare) == 1 else ''} one."
        )
    )
    blocks: list[str | Figure] = [
        small_multiples(
            panels,
            x_name="key",
            y_name="query",
            value_name="attention",
            scale="sequential",
            range=(0, 1),
            title="Token × token circuits of layer 0, after a softmax over keys",
        ),
        weight_circuits.panels(raw, "The same before the softmax (scores)"),
        "Outlined below: duplicate detectors, which are bright, and anti-duplicate detectors, which are dark.",
        found.figure(),
    ]
    numbers = {
        "detectors": {
            "duplicate": found.duplicate,
            "anti_duplicate": found.anti_duplicate,
            "above": found.above,
            "below": found.below,
            "attention_to_same": found.values.as_dict(),
        }
    }
    lines = [("duplicate detectors", by_head(found.duplicate)), ("anti-duplicate detectors", by_head(found.anti_duplicate))]
    return Part("Layer 0 scores from weights: tokens", summary, blocks, numbers, lines)


def full_scores(study: LettersStudy) -> Part:
    """The whole QK circuit, tokens and positions, and how much each quadrant matters in real runs."""
    rows, blocks, cut = [], [], len(study.vocab)
    first: dict[str, float] = {}
    for head in study.names(0):
        circuit = weight_circuits.qk_circuit(
            study.model, head, query="embed+pos", key="embed+pos", scales=study.scales, vocab=study.vocab
        )
        data = circuit.data.clone()
        data[cut:, cut:] = data[cut:, cut:].tril()  # later positions are never seen
        quarters = [data[:cut, :cut], data[:cut, cut:], data[cut:, :cut], data[cut:, cut:]]
        sizes = [float(part.abs().mean()) for part in quarters[:3]]
        visible = torch.ones_like(quarters[3], dtype=torch.bool).tril()
        sizes.append(mean_of(quarters[3].abs(), visible))
        rows.append([head, *sizes])
        first[head] = float(data[cut + 1, cut + 1]) if study.length > 1 else math.nan
        blocks.append(
            heat_map(
                data,
                circuit.columns,
                circuit.rows,
                x_name="key",
                y_name="query",
                value_name="score",
                splits=circuit.splits,
                title=f"{head}: scores between tokens and [positions]",
            )
        )
    measured = score_pathways.pathways(study.few, layer=0)
    pairs = measured.values.names("pair")
    mean = measured.by_position()
    share = measured.share()
    by_position = {}
    for head in study.names(0):
        chosen = mean.sel(head=head)
        names = dict(zip(pairs, (name.replace("pos_embed", "position").replace("embed", "token") for name in pairs), strict=True))
        series = {names[pair]: chosen.values.sel(pair=pair).data[1:] for pair in pairs}
        by_position[head] = {name: [None, *values.tolist()] for name, values in series.items()}
        bands = {
            names[pair]: torch.stack([chosen.low.sel(pair=pair).data[1:], chosen.high.sel(pair=pair).data[1:]]) for pair in pairs
        }
        blocks.append(
            line_chart(
                series,
                list(range(1, study.length)),
                intervals=bands,
                x_name="position",
                y_name="norm of the scores",
                title=f"{head}: what its scores are made of, by (query, key)",
            )
        )
    blocks.insert(0, table(["head", *QUADRANTS], rows, title="Mean size of the scores in each quadrant, from weights"))
    shares = {
        head: {pair.replace("pos_embed", "position").replace("embed", "token"): value for pair, value in by.items()}
        for head, by in _transposed(share.as_dict()).items()
    }
    main = {head: largest(by, 1)[0] for head, by in shares.items()}
    peak = {
        head: max(
            ((name, place) for name, v in by.items() for place in range(1, study.length)), key=lambda one: by[one[0]][one[1]] or 0
        )
        for head, by in by_position.items()
    }
    summary = (
        "Measured on sequences, the largest part of the scores is "
        + listed(f"{name} for {head} ({percent(value)})" for head, (name, value) in main.items())
        + ". The single largest contribution is at "
        + listed(f"position {place} through {name} for {head}" for head, (name, place) in peak.items())
        + f". From weights, position 1 scores itself {listed(f'{num(first[h])} ({h})' for h in first)}."
    )
    numbers = {
        "qk_quadrants": {row[0]: dict(zip(QUADRANTS, row[1:], strict=True)) for row in rows},
        "pathways": {"share": shares, "by_position": by_position},
        "position_1_score": first,
    }
    return Part("Layer 0 scores: tokens and positions", summary, blocks, numbers)


def _transposed(nested: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Outer and inner keys exchanged."""
    inner = list(next(iter(nested.values())))
    return {key: {outer: values[key] for outer, values in nested.items()} for key in inner}
