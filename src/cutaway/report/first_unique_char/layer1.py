"""Layer 1: what its heads attend to, read by component, and what layers 0 and 1 write to the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cutaway.analysis import weight_circuits
from cutaway.analysis.weight_circuits import WeightCircuit
from cutaway.report.first_unique_char.layer0 import drawn
from cutaway.report.first_unique_char.study import LettersStudy
from cutaway.report.parts import Part
from cutaway.report.words import by_head, listed, mean_of, num, percent, signed
from cutaway.view import Figure, Panel, heat_map, small_multiples, table

WAYS = {
    "duplicate": "duplicate, responsible head",
    "anti_duplicate": "anti-duplicate, all heads",
    "anti_duplicate_responsible": "anti-, responsible head",
    "anti_duplicate_other": "anti-, other heads",
}
"""The full circuits in words: through which detectors, and through which heads of layer 1."""


def scores(study: LettersStudy) -> Part:
    """QK circuits of layer 1 with mean queries, by embedding and by position, and the pattern that shows them."""
    own, other, moved = _by_component(study)
    summary = (
        "With their mean queries, the heads of layer 1 score the letters that they are responsible for "
        + listed(f"{signed(own[h] - other[h])} ({h})" for h in own)
        + " relative to other letters, as far as the key holds the letter itself. What a duplicate detector of the "
        "letter moved into the key is worth " + listed(f"{signed(value)} ({h})" for h, value in moved.items()) + " instead."
    )
    text = "?" + (letters := "".join(study.letters[:4])) + letters
    tokens = study.encode(text)
    _, cache = study.run(tokens)
    on_text = Part(
        f"Attention on {study.text(tokens[0])}",
        _said_of_text(study, tokens[0], cache, len(letters)),
        [drawn(study, tokens[0], cache, [1], f"Layer 1 on {study.text(tokens[0])}")],
    )
    numbers = {
        "layer_1_scores": {"responsible_letters": own, "other_letters": other, "responsible_after_duplicate_detector": moved}
    }
    return Part("Layer 1 scores", summary, (), numbers, parts=[_by_embedding(study), on_text, _by_position(study)])


def _by_component(study: LettersStudy) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Mean scores of a head's own letters and of the others by embedding; and the difference by way of duplicate detectors."""
    own, other, moved = {}, {}, {}
    tokens_of = study.responsible.tokens_of
    for head in study.names(1):
        mine = [study.letters.index(letter) for letter in tokens_of[head]]
        rest = [token for token in range(len(study.letters)) if token not in mine]
        direct = weight_circuits.key_scores(study.cache, head, key="embed", scales=study.scales, vocab=study.vocab).data[1:]
        own[head], other[head] = mean_of(direct[:, mine]), mean_of(direct[:, rest])
        differences = []
        for letter in tokens_of[head]:
            for via in study.detectors.heads("duplicate", letter):
                by = weight_circuits.key_scores(
                    study.cache, head, key=f"embed → {via}", scales=study.scales, vocab=study.vocab
                ).data[1:]
                differences.append(by[:, study.letters.index(letter)].mean() - by[:, rest].mean())
        moved[head] = float(torch.stack(differences).mean()) if differences else math.nan
    return own, other, moved


def _grid(study: LettersStudy, start: str) -> tuple[Figure, dict[str, dict[str, WeightCircuit]]]:
    """Scores of mean queries with each component of the keys: a column of panels for each head of layer 1."""
    panels, found = [], {head: {} for head in study.names(1)}  # type: list[Panel], dict[str, dict[str, WeightCircuit]]
    what = "token" if start == "embed" else "position"
    for via in ["", *study.names(0)]:
        for head in study.names(1):
            key = f"{start} → {via}" if via else start
            circuit = weight_circuits.key_scores(study.cache, head, key=key, scales=study.scales, vocab=study.vocab)
            data = circuit.data.tril() if start == "pos" else circuit.data
            panels.append(Panel(f"Q={head}, K={via or what}", data, circuit.columns, circuit.rows))
            found[head][via or "direct"] = circuit
    figure = small_multiples(
        panels,
        x_name=f"key: {what}",
        y_name="query position",
        value_name="score",
        columns=len(study.names(1)),
        title=f"Scores of mean queries with each component of the keys, by {what}",
    )
    return figure, found


def _by_embedding(study: LettersStudy) -> Part:
    figure, found = _grid(study, "embed")
    size = {head: {via: float(circuit.data[1:].abs().mean()) for via, circuit in by.items()} for head, by in found.items()}
    top = {head: max((via for via in by if via != "direct"), key=lambda via: by[via]) for head, by in size.items()}
    signs = []
    for head in study.names(1):
        for letter in study.responsible.tokens_of[head]:
            for via in study.detectors.heads("duplicate", letter):
                column = found[head][via].data[1:, study.letters.index(letter)].mean()
                rest = found[head][via].data[1:, : study.null].mean()
                signs.append(bool(column > rest))
    summary = (
        "Of the heads of layer 0, the one whose output moves scores most is "
        + listed(f"{via} for {head}" for head, via in top.items())
        + f". A letter moved by its duplicate detector raises the score of its responsible head above the "
        f"mean letter's in {sum(signs)} of "
        f"{len(signs)} cases."
    )
    return Part("By embedding", summary, [figure], {"layer_1_scores": {"size_by_embedding": size}})


def _by_position(study: LettersStudy) -> Part:
    figure, found = _grid(study, "pos")
    direct = (
        weight_circuits.key_scores(study.cache, head, scales=study.scales, vocab=study.vocab).data[1:] for head in study.names(1)
    )
    embedding = mean_of(torch.stack([scores.abs().mean() for scores in direct]))
    triangle = torch.ones(study.length, study.length, dtype=torch.bool, device=study.device).tril()
    size = {head: {via: mean_of(c.data.abs(), triangle) for via, c in by.items()} for head, by in found.items()}
    slopes = {head: {via: _slope(c.data) for via, c in by.items()} for head, by in found.items()}
    kind = _kinds(study)
    rows = [[head, via, kind.get((head, via), ""), size[head][via], slopes[head][via]] for head in size for via in size[head]]
    whole = mean_of(torch.tensor([value for by in size.values() for value in by.values()]))
    falling = [slopes[h][v] for (h, v), k in kind.items() if k.startswith("duplicate")]
    rising = [slopes[h][v] for (h, v), k in kind.items() if k.startswith("anti")]
    summary = (
        f"Scores by position have a mean size of {num(whole)}, beside {num(embedding)} by embedding. Per position further "
        "on, the score of "
        f"what duplicate detectors move changes by {signed(mean_of(torch.tensor(falling)), 3)} on average, and of what "
        f"anti-duplicate detectors move by {signed(mean_of(torch.tensor(rising)), 3)}."
    )
    blocks = [
        figure,
        table(
            ["head", "key component", "mostly, for its letters", "mean size", "change per position"],
            rows,
            title="Scores by position of the key",
        ),
    ]
    return Part("By position", summary, blocks, {"layer_1_scores": {"size_by_position": size, "slope_by_position": slopes}})


def _kinds(study: LettersStudy) -> dict[tuple[str, str], str]:
    """What each head of layer 0 mostly is for the letters of each head of layer 1."""
    out = {}
    for head, letters in study.responsible.tokens_of.items():
        for via in study.names(0):
            counts = {
                kind: sum(via in study.detectors.heads(kind, letter) for letter in letters)
                for kind in ("duplicate", "anti_duplicate")
            }
            best = max(counts, key=lambda kind: counts[kind])
            if counts[best]:
                out[head, via] = f"{best.replace('_', '-')} detector ({counts[best]} of {len(letters)})"
    return out


def _slope(scores: Tensor) -> float:
    """The mean change of a score from one visible key to the next, over queries (position 0 left out)."""
    slopes = [
        (row[1 : query + 1] * (x := torch.arange(query, dtype=row.dtype, device=row.device) - (query - 1) / 2)).sum()
        / x.square().sum()
        for query, row in enumerate(scores)
        if query >= 4
    ]
    return float(torch.stack(slopes).mean()) if slopes else math.nan


def _said_of_text(study: LettersStudy, tokens: Tensor, cache: object, half: int) -> str:
    said = []
    query = len(tokens) - 1
    for head in study.names(1):
        pattern = cache["pattern", 1][0, int(head.split(".")[1]), query]  # type: ignore[index]
        own = set(study.responsible.tokens_of[head])
        places = range(1, len(tokens))
        good = sum(float(pattern[place]) for place in places if (study.vocab[int(tokens[place])] in own) == (place > half))
        best = int(pattern.argmax())
        said.append(f"{percent(good)} for {head} (which looks most at {study.vocab[int(tokens[best])]} at {best})")
    return (
        "From the last position, the attention to first instances of letters outside a head's own set and to second instances "
        f"of letters inside it is {listed(said)}."
    )


# What is written to the logits.


def first_outputs(study: LettersStudy) -> Part:
    """OV circuits of layer 0, straight to the logits."""
    found = {head: study.path("embed", head, "logits") for head in study.names(0)}
    letters = range(len(study.letters))
    diagonal = {head: circuit.diagonal().data[: len(study.letters)] for head, circuit in found.items()}
    off = {head: _off(circuit.data[: len(study.letters), : len(study.letters)], letters) for head, circuit in found.items()}
    most = {head: float(values.max()) for head, values in diagonal.items()}
    top = max(most, key=lambda head: most[head])
    half = most[top] / 2
    raised = {head: [study.letters[i] for i in letters if float(values[i]) > half] for head, values in diagonal.items()}
    missed = [letter for letter in study.letters if not any(letter in own for own in raised.values())]
    summary = (
        "A letter that is attended to changes its own logit by "
        + listed(f"{signed(mean_of(diagonal[h]))} ({h}; other letters {signed(off[h])})" for h in found)
        + f" on average. By more than half of the largest value ({num(most[top])}) it is raised for "
        f"{by_head(raised)}; {f'no head does so for {listed(missed)}' if missed else 'some head does so for every letter'}."
    )
    numbers = {
        "layer_0_outputs": {
            "diagonal": {h: dict(zip(study.letters, v.tolist(), strict=True)) for h, v in diagonal.items()},
            "raised": raised,
        }
    }
    return Part(
        "What layer 0 writes to the logits",
        summary,
        [weight_circuits.panels(found, "OV circuits of layer 0, straight to the logits")],
        numbers,
    )


def _off(values: Tensor, own: Sequence[int]) -> float:
    """The mean of rows of letters but for each letter's own column."""
    mask = torch.ones_like(values, dtype=torch.bool)
    mask[torch.arange(len(values)), torch.tensor(own, dtype=torch.long)] = False
    return mean_of(values, mask)


def own_logits(study: LettersStudy, name: str) -> dict[str, float]:
    """What a full circuit does to the logit of each letter that has detectors for it."""
    kind = "duplicate" if name == "duplicate" else "anti_duplicate"
    circuit = study.full_circuits[name]
    values = circuit.data[:, : len(study.letters)].diagonal().tolist()
    return {letter: value for letter, value in zip(circuit.rows, values, strict=True) if study.detectors.heads(kind, letter)}


def outputs(study: LettersStudy) -> Part:
    """OV circuits of layer 1, alone and after each head of layer 0, and their diagonals."""
    grid: dict[str, WeightCircuit] = {head: study.path("embed", head, "logits") for head in study.names(1)}
    for via in study.names(0):
        grid |= {f"{via} → {head}": study.path("embed", via, head, "logits") for head in study.names(1)}
    panels = [Panel(name, circuit.data, circuit.columns, circuit.rows) for name, circuit in grid.items()]
    picture = small_multiples(
        panels,
        x_name="output logit",
        y_name="input token",
        value_name="logits",
        columns=len(study.names(1)),
        title="OV circuits of layer 1, alone and after each head of layer 0",
    )
    answer = study.responsible
    strength = answer.strength
    gap = {}
    for letter in answer.head_of:
        values = strength.sel(token=letter).data.sort(descending=True).values
        gap[letter] = float(values[0] / values[1]) if len(values) > 1 else math.inf
    weakest = min(gap, key=lambda letter: gap[letter])
    dup, anti, foreign = _diagonals(study)
    summary = (
        f"By the size of their diagonals, the responsible heads are {by_head(answer.tokens_of)}; theirs is "
        f"{num(gap[weakest])} times "
        f"({weakest}) to {num(max(gap.values()))} times the next head's. Through the responsible head, a letter moved by "
        f"its duplicate detectors changes its own logit by {signed(dup)} on average, moved by its anti-duplicate detectors by "
        f"{signed(anti)}; anti-duplicate detectors through the other heads add {signed(foreign)}."
    )
    blocks = [
        picture,
        answer.figure(),
        heat_map(
            strength.data,
            strength.names("token"),
            strength.names("head"),
            x_name="token",
            y_name="head",
            value_name="norm of the diagonal",
            title="Strength of each head for each token",
            scale="sequential",
            marks=[(strength.names("head").index(h), n, "responsible") for n, h in enumerate(answer.head_of.values())],
        ),
    ]
    numbers = {
        "layer_1_outputs": {
            "strength": strength.as_dict(),
            "diagonals": answer.values.as_dict(),
            "own_logit": {"duplicate_responsible": dup, "anti_duplicate_responsible": anti, "anti_duplicate_other": foreign},
        }
    }
    return Part("What layer 1 writes to the logits", summary, blocks, numbers)


def _diagonals(study: LettersStudy) -> tuple[float, float, float]:
    """Mean effects on own logits: duplicate, anti-duplicate detectors through the responsible head; the latter through others."""
    values = study.responsible.values
    dup, anti, foreign = [], [], []
    for letter, head in study.responsible.head_of.items():
        for via in study.detectors.heads("duplicate", letter):
            dup.append(values.sel(head=head, token=letter, via=via).item())
        for via in study.detectors.heads("anti_duplicate", letter):
            anti.append(values.sel(head=head, token=letter, via=via).item())
            foreign += [values.sel(head=one, token=letter, via=via).item() for one in study.names(1) if one != head]
    return tuple(mean_of(torch.tensor(part)) for part in (dup, anti, foreign))  # type: ignore[return-value]


def full(study: LettersStudy) -> Part:
    """The full duplicate and anti-duplicate circuits."""
    found, count = study.full_circuits, len(study.letters)
    facts: dict[str, dict[str, Any]] = {}
    for name, circuit in found.items():
        data = circuit.data
        facts[name] = {
            "own_logit": (own := own_logits(study, name)),
            "own_logit_mean": mean_of(torch.tensor(list(own.values()))),
            "other_letters_mean": _off(data[:, :count][there := [study.letters.index(letter) for letter in own]], there),
            "null_mean": mean_of(data[there, study.null]),
        }
    lowered, raised = facts["duplicate"]["own_logit"], facts["anti_duplicate"]["own_logit"]
    below, above = sum(value < 0 for value in lowered.values()), sum(value > 0 for value in raised.values())
    parts = facts["anti_duplicate_responsible"]["own_logit_mean"], facts["anti_duplicate_other"]["own_logit_mean"]
    summary = (
        f"Through its duplicate detectors and its responsible head, a letter lowers its own logit for {below} of {len(lowered)} "
        "letters "
        f"({signed(facts['duplicate']['own_logit_mean'])} on average; other letters "
        f"{signed(facts['duplicate']['other_letters_mean'])}, ? "
        f"{signed(facts['duplicate']['null_mean'])}). Through its anti-duplicate detectors it raises it for {above} of "
        f"{len(raised)} "
        f"({signed(facts['anti_duplicate']['own_logit_mean'])}), of which {signed(parts[0])} through the responsible head and "
        f"{signed(parts[1])} through the others."
    )
    return Part(
        "Full duplicate and anti-duplicate circuits",
        summary,
        [
            weight_circuits.panels(
                {WAYS[name]: one for name, one in found.items()}, "Each letter by way of its own detectors and heads"
            )
        ],
        {"full_circuits": facts},
    )
