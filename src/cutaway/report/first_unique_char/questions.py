"""The questions that the published analysis left open, answered with numbers as far as these building blocks reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.analysis import attribution, head_decomposition
from cutaway.analysis.shared import scale_of
from cutaway.model.frozen_norms import frozen_norm
from cutaway.report.first_unique_char.study import FEW, LettersStudy
from cutaway.report.parts import Part
from cutaway.report.words import correlation, largest, listed, mean_of, num, percent, signed, slope
from cutaway.view import Figure, bar_chart, line_chart, table

SOURCES = ("?", "the letter itself", "first instances", "repeats")


def answers(study: LettersStudy) -> Part:
    """All five."""
    parts = [_new_letters(study), _null(study), _not_first(study), _precision(study), _positions(study)]
    summary = "Each of these was left open by the published analysis of such a model; the answers below are measured on this one."
    return Part("Open questions", summary, (), {}, parts=parts)


# 1. Letters just read.


def _new_letters(study: LettersStudy) -> Part:
    """How is a letter predicted that was just read for the first time?"""
    title = "How are letters predicted that were just read for the first time?"
    few = study.toks[:FEW]
    where = study.new_answer[:FEW]
    logits = attribution.attribute_all_tokens(study.few, examples=range(len(few)), vocab=study.vocab)
    values, components = logits.values.data, logits.values.names("component")
    own = values.gather(-1, study.labels[:FEW].expand(len(values), *few.shape)[..., None])[..., 0]
    times = study.occurrences[:FEW]
    means = {}
    for name, chosen in {"repeated letters": times > 1, "letters that did not occur": times == 0, "?": None}.items():
        if chosen is None:
            means[name] = values[..., study.null]
        else:
            mask = chosen[..., : study.null]
            means[name] = (values[..., : study.null] * mask).sum(-1) / mask.sum(-1)  # NaN where there is none
    by_component = {name: {"the answer": mean_of(own[i], where)} for i, name in enumerate(components)}
    for kind, data in means.items():
        for i, name in enumerate(components):
            by_component[name][kind] = mean_of(data[i], where)
    if not bool(where.any()):
        return Part(title, "In this data no answer is a letter that was just read (but for position 1).")
    sources, via = _sources(study, where)
    ahead = _sources_of_lead(study, where)
    total = {kind: sum(by[kind] for by in by_component.values()) for kind in ("the answer", *means)}
    gap = {name: by["the answer"] - by["letters that did not occur"] for name, by in by_component.items()}
    summary = (
        f"Where the answer was just read, its logit is {signed(total['the answer'])}, repeated letters have "
        f"{signed(total['repeated letters'])}, "
        f"letters that did not occur {signed(total['letters that did not occur'])} and ? {signed(total['?'])}. Over "
        "letters that did not occur its lead is largest "
        f"through {listed(f'{name} ({signed(value)})' for name, value in largest(gap, 3))}. "
        "What its responsible head adds to it comes from "
        f"{listed(f'{name} ({signed(value)})' for name, value in largest(sources, 4))}. "
        "The lead over letters that did not occur comes, in all of layer 1, from "
        + listed(f"{name} ({signed(value)})" for name, value in largest({k: sum(v.values()) for k, v in ahead.items()}, 2))
        + "."
    )
    rows = [[name, *by.values(), gap[name]] for name, by in by_component.items()]
    kinds = ["the answer", *means]
    blocks = [
        table(
            ["component", *kinds, "answer − did not occur"], rows, title="Where the answer was just read: mean effect on logits"
        ),
        bar_chart(
            list(sources),
            {"effect on the answer": list(sources.values())},
            x_name="where the responsible head looks",
            value_name="logits",
            title="Sources of what the responsible head adds to the answer",
        ),
        bar_chart(
            list(via),
            {"effect on the answer": list(via.values())},
            x_name="what it moves from there",
            value_name="logits",
            title="What the responsible head adds to the answer, by component of the values",
        ),
        table(
            ["where layer 1 looks", *study.names(1)],
            [[kind, *by.values()] for kind, by in ahead.items()],
            title="Lead of the answer over letters that did not occur, by head and source",
        ),
    ]
    numbers = {
        "questions": {
            "new_letters": {"logits": total, "by_component": by_component, "sources": sources, "values": via, "lead": ahead}
        }
    }
    return Part(title, summary, blocks, numbers)


def _sources(study: LettersStudy, where: Bool[Tensor, "batch pos"]) -> tuple[dict[str, float], dict[str, float]]:
    """What the responsible head adds to the answer, by the kind of source, and by component of the values."""
    masks = _source_kinds(study)
    by_source: dict[str, list[Tensor]] = {kind: [] for kind in SOURCES}
    by_value: dict[str, list[Tensor]] = {}
    for head, letters in study.responsible.tokens_of.items():
        if not letters:
            continue
        mine = torch.tensor([study.letters.index(letter) for letter in letters], device=study.device)
        chosen = where & torch.isin(study.labels[: len(where)], mine)
        split = head_decomposition.logits_by_source(study.few, head, study.labels[: len(where)].masked_fill(~chosen, -1))
        for kind, mask in masks.items():
            by_source[kind].append(head_decomposition.summed(split, mask).data.sum(0)[chosen])
        for name in split.names("component"):
            by_value.setdefault(name, []).append(split.sel(component=name).data.sum(-1)[chosen])
    return tuple({name: mean_of(torch.cat(found)) for name, found in by.items()} for by in (by_source, by_value))  # type: ignore[return-value]


def _sources_of_lead(study: LettersStudy, where: Bool[Tensor, "batch pos"]) -> dict[str, dict[str, float]]:
    """The answer's logit less the mean of letters that did not occur: what each head adds to it, by the kind of source."""
    absent = study.occurrences[:FEW] == 0
    absent[..., study.null] = False
    weights = torch.nn.functional.one_hot(study.labels[:FEW], len(study.vocab)) - absent / absent.sum(-1, keepdim=True).clamp(
        min=1
    )
    chosen = where & absent.any(-1)
    splits = {head: head_decomposition.logits_by_source(study.few, head, weights) for head in study.names(1)}
    return {
        kind: {head: mean_of(head_decomposition.summed(split, mask).data.sum(0), chosen) for head, split in splits.items()}
        for kind, mask in _source_kinds(study).items()
    }


def _source_kinds(study: LettersStudy) -> dict[str, Bool[Tensor, "batch dest src"]]:
    tokens = study.toks[:FEW]
    batch, length = tokens.shape
    src = torch.arange(length, device=study.device)
    null = (src == 0).expand(batch, length, length)
    own = (src[:, None] == src[None]).expand(batch, length, length) & ~null
    again = study.repeated[:FEW, None, :].expand(batch, length, length)
    return {"?": null, "the letter itself": own, "first instances": ~null & ~own & ~again, "repeats": ~own & again}


# 2. The null character.


def _null(study: LettersStudy) -> Part:
    """How is `?` predicted where no letter is unique?"""
    where = (study.labels == study.null) & (torch.arange(study.length, device=study.device) > 0)
    title = "How is ? predicted where every letter is repeated?"
    if not bool(where.any()):
        return Part(title, "In this data some letter is always unique.")
    rest = (study.labels != study.null) & (torch.arange(study.length, device=study.device) > 0)
    found = attribution.attribute(study.cache, targets=torch.full_like(study.toks, study.null))
    names = found.values.names("component")
    there, away = ({name: mean_of(found.values.sel(component=name).data, chosen) for name in names} for chosen in (where, rest))
    letters = study.logits[..., : study.null]
    best = letters.amax(-1)
    margin = (study.logits[..., study.null] - best)[where]
    right = mean_of((study.guesses == study.null).float(), where)
    circuits = {name: circuit.data for name, circuit in study.full_circuits.items()}
    count = len(study.letters)
    off = ~torch.eye(count, dtype=torch.bool, device=study.device)
    through = {name: (mean_of(data[:, study.null]), mean_of(data[:, :count], off)) for name, data in circuits.items()}
    constant = there["bias"] + there["pos_embed"]
    varies = {name: there[name] - away[name] for name in names}
    summary = (
        f"Where no letter is unique, {percent(right, 1)} of the answers are ?; its logit is {signed(sum(there.values()))} "
        "(elsewhere "
        f"{signed(sum(away.values()))}), ahead of the best letter by {num(mean_of(margin))}. Biases and positions give it "
        f"{signed(constant)} whatever is read; the components that make the difference are "
        + listed(f"{name} ({signed(value)})" for name, value in largest(varies, 3))
        + f". A duplicate circuit gives ? {signed(through['duplicate'][0])} and the other letters "
        f"{signed(through['duplicate'][1])}; "
        "the anti-duplicate circuit through heads that are not responsible gives it "
        f"{signed(through['anti_duplicate_other'][0])} "
        f"(other letters {signed(through['anti_duplicate_other'][1])})."
    )
    rows = [[name, there[name], away[name], varies[name]] for name in names]
    ways = [
        [name.replace("anti_d", "anti-d").replace("_", ", "), null, other, null - other]
        for name, (null, other) in through.items()
    ]
    blocks = [
        table(["component", "answer is ?", "answer is a letter", "difference"], rows, title="Mean effect on the logit of ?"),
        table(["full circuit", "logit of ?", "logit of other letters", "difference"], ways, title="What full circuits do to ?"),
    ]
    numbers = {
        "questions": {
            "null": {
                "accuracy": right,
                "margin": mean_of(margin),
                "attribution": there,
                "attribution_elsewhere": away,
                "bias_and_position": constant,
                "circuits": {name: {"null": a, "other_letters": b} for name, (a, b) in through.items()},
            }
        }
    }
    return Part(title, summary, blocks, numbers)


# 3. First instances.


def _not_first(study: LettersStudy) -> Part:
    """Why do heads not attend to first instances of the letters that they are responsible for?"""
    tokens, again = study.toks[:FEW], study.repeated[:FEW]
    src = torch.arange(tokens.shape[1], device=study.device)
    seen = (src[None, :] <= src[:, None]) & (src[None, :] > 0)
    rows, parts, whole = [], {}, {}
    for head, letters in study.responsible.tokens_of.items():
        pattern = study.pattern(head, study.few)
        split = _centred(head_decomposition.scores_by_key(study.few, head), src)
        for letter in letters:
            here = (tokens == study.letters.index(letter))[:, None, :] & seen
            once, twice = here & ~again[:, None, :], here & again[:, None, :]
            first, second = head_decomposition.over_pairs(split, once).data, head_decomposition.over_pairs(split, twice).data
            by = dict(zip(split.names("component"), (second - first).tolist(), strict=True))
            parts[letter], whole[letter] = by, float((second - first).sum())
            looks = mean_of(pattern, once), mean_of(pattern, twice)
            rows.append([letter, head, *looks, whole[letter], *by.values()])
    if not rows:
        return Part("Why do heads of layer 1 pass over first instances?", "No head is responsible for any letter.", [])
    names = list(next(iter(parts.values())))
    mean = {name: mean_of(torch.tensor([by[name] for by in parts.values()])) for name in names}
    ratio = {row[0]: row[3] / row[2] if row[2] else math.nan for row in rows}
    least = min((row[0] for row in rows if math.isfinite(ratio[row[0]])), key=lambda letter: ratio[letter], default=rows[0][0])
    shares = _shares(study)
    summary = (
        "Attention to a repeat of a letter is "
        + f"{num(mean_of(torch.tensor(list(ratio.values()))))} times that to its first instance on average (least for "
        f"{least}, {num(ratio[least])} times). "
        f"The scores of repeats differ from those of first instances by "
        f"{signed(mean_of(torch.tensor(list(whole.values()))))} on average, through "
        + listed(f"{name} ({signed(value)})" for name, value in largest(mean, 3))
        + f". A letter's duplicate detectors put {percent(shares['first'][0])} of their attention on the letter and "
        f"{percent(shares['first'][1])} on ? at its first instance, and {percent(shares['repeat'][0])} and "
        f"{percent(shares['repeat'][1])} at repeats." + _said_of_gap(study, parts, whole)
    )
    order = ["letter", "head", "to first", "to repeats", "score", *names]
    blocks = [
        table(
            order,
            rows,
            title="Repeats against first instances: attention and scores",
            note="Score: that of repeats less that of first instances; the last columns split it by component of the key.",
        ),
        bar_chart(
            list(mean),
            {"difference": list(mean.values())},
            x_name="component of the keys",
            value_name="score",
            title="What raises the scores of repeats over first instances (mean over letters)",
        ),
    ]
    numbers = {
        "questions": {
            "first_instances_passed_over": {
                "attention": {row[0]: {"first": row[2], "repeat": row[3]} for row in rows},
                "score_difference": whole,
                "by_component": parts,
                "detector_attention": {k: {"letter": a, "null": b} for k, (a, b) in shares.items()},
            }
        }
    }
    return Part("Why do heads of layer 1 pass over first instances?", summary, blocks, numbers)


def _said_of_gap(study: LettersStudy, parts: dict[str, dict[str, float]], whole: dict[str, float]) -> str:
    """The letter of which the largest component accounts for least."""
    weakest = min(parts, key=lambda letter: max(parts[letter].values()) / whole[letter] if whole[letter] > 0 else math.inf)
    name, value = largest(parts[weakest], 1)[0]
    return (
        f" The difference is most divided for {weakest} ({study.responsible.head_of[weakest]}), where its largest component, "
        f"{name}, gives {signed(value)} of {signed(whole[weakest])}."
    )


def _centred(split: head_decomposition.Split, src: Tensor) -> head_decomposition.Split:
    """Scores relative to the mean over the keys that each query sees."""
    seen = (src[None, :] <= src[:, None]).to(split.data.dtype)
    mean = (split.data * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    return head_decomposition.Split((split.data - mean) * seen, split.axes, split.labels, split.what, split.unit)


def _shares(study: LettersStudy) -> dict[str, tuple[float, float]]:
    """Attention of duplicate detectors to the letter itself and to `?`: from first instances, and from repeats."""
    tokens = study.toks[:FEW]
    same = tokens[:, :, None] == tokens[:, None, :]
    own: dict[str, list[Tensor]] = {"first": [], "repeat": []}
    null: dict[str, list[Tensor]] = {"first": [], "repeat": []}
    past = torch.arange(tokens.shape[1], device=study.device) > 1
    for letter in study.letters:
        for head in study.detectors.heads("duplicate", letter):
            pattern = study.pattern(head, study.few)
            here = (tokens == study.letters.index(letter)) & past
            for kind, chosen in (("first", here & ~study.repeated[:FEW]), ("repeat", here & study.repeated[:FEW])):
                own[kind].append((pattern * same).sum(-1)[chosen])
                null[kind].append(pattern[..., 0][chosen])
    return {
        kind: tuple(mean_of(torch.cat(found)) if found else math.nan for found in (own[kind], null[kind]))  # type: ignore[misc]
        for kind in own
    }


# 4. Position as a quantity.


@dataclass(frozen=True)
class Order:
    """Unique letters at the last position: where each stands, its logit, and the signal that reaches the end."""

    place: Float[Tensor, "letter"]
    logit: Float[Tensor, "letter"]
    signal: Float[Tensor, "letter"]


def _precision(study: LettersStudy) -> Part:
    """How precisely is the position of a unique letter known?"""
    last = study.length - 1
    found, pairs = _unique_letters(study)
    places = list(range(1, last + 1))
    by_place = {
        "logit": torch.tensor([mean_of(found.logit, found.place == place) for place in places]),
        "signal": torch.tensor([mean_of(found.signal, found.place == place) for place in places]),
    }
    older = correlation(found.place, found.logit), correlation(found.signal, found.logit), correlation(found.place, found.signal)
    gaps = sorted(pairs)
    accuracy = {gap: pairs[gap][0] / pairs[gap][1] for gap in gaps}
    steep = slope(found.place, found.logit)
    noise = (
        float((found.logit - found.logit.mean() - steep * (found.place - found.place.mean())).std())
        if len(found.place) > 2
        else math.nan
    )
    near = listed(f"{percent(accuracy[gap], 1)} at a distance of {gap}" for gap in gaps[:3])
    summary = (
        f"At the last position a unique letter's logit changes by {signed(steep)} for each position further on (correlation "
        f"{num(older[0], 2)}), and "
        f"scatters by {num(noise)} around that line. Of two unique letters the earlier one has the higher logit in {near}. "
        "The weight with which anti-duplicate detectors carry a letter to the end has a correlation of "
        f"{num(older[2], 2)} with its position and of {num(older[1], 2)} with its logit."
    )
    blocks: list[str | Figure] = [
        line_chart(
            {"mean logit": by_place["logit"]},
            places,
            x_name="position of the unique letter",
            y_name="logit at the last position",
            title="A unique letter's logit by where it stands",
        ),
        line_chart(
            {"anti-duplicate signal": by_place["signal"]},
            places,
            x_name="position of the unique letter",
            y_name="weight that reaches the end",
            title="Anti-duplicate signal by where the letter stands",
        ),
    ]
    if gaps:
        blocks.append(
            line_chart(
                {"earlier letter higher": [accuracy[gap] for gap in gaps]},
                gaps,
                x_name="distance of two unique letters",
                y_name="share of pairs",
                title="How often logits have the right order",
                references={"chance": 0.5},
            )
        )
    numbers = {
        "questions": {
            "position": {
                "slope": steep,
                "scatter": noise,
                "correlation": {"position_logit": older[0], "signal_logit": older[1], "position_signal": older[2]},
                "logit_by_position": [None, *by_place["logit"].tolist()],
                "signal_by_position": [None, *by_place["signal"].tolist()],
                "order_right_by_distance": {str(gap): accuracy[gap] for gap in gaps},
            }
        }
    }
    return Part("How precisely is a letter's position known?", summary, blocks, numbers)


def _unique_letters(study: LettersStudy) -> tuple[Order, dict[int, tuple[int, int]]]:
    """All unique letters at the last position, and for each distance of two how often the earlier is ahead, of how many."""
    alone = study.occurrences[:, -1, : study.null] == 1
    here = study.toks[:, None, :] == torch.arange(study.null, device=study.device)[None, :, None]
    place = here.int().argmax(-1)
    logits = study.logits[:, -1, : study.null]
    example, letter = alone.nonzero(as_tuple=True)
    found = Order(place[alone].float(), logits[alone], _signal(study)[example, letter, place[alone]])
    pairs: dict[int, tuple[int, int]] = {}
    both = alone[:, :, None] & alone[:, None, :]
    apart = place[:, None, :] - place[:, :, None]
    ahead = logits[:, :, None] > logits[:, None, :]
    for gap in range(1, study.length - 1):
        chosen = both & (apart == gap)
        if bool(chosen.any()):
            pairs[gap] = int((ahead & chosen).sum()), int(chosen.sum())
    return found, pairs


def _signal(study: LettersStudy) -> Float[Tensor, "batch letter src"]:
    """The weight with which each letter's anti-duplicate detectors, and then layer 1, carry a source to the last position."""
    last = sum(study.pattern(head)[:, -1] for head in study.names(1))
    carried = {head: torch.einsum("bm,bms->bs", last, study.pattern(head)) for head in study.names(0)}
    nothing = torch.zeros_like(next(iter(carried.values())))
    return torch.stack(
        [sum((carried[head] for head in study.detectors.heads("anti_duplicate", letter)), nothing) for letter in study.letters], 1
    )


# 5. Positions in layer 1.


def _positions(study: LettersStudy) -> Part:
    """What do positions do in layer 1? Take their part out of keys and of values, and see."""
    parts = _position_parts(study)
    base = float(study.losses[:FEW].mean())
    rows, rise = [], {}
    for name, part in parts.items():
        rise[name] = {which: _loss_without(study, part, which) - base for which in ("keys", "values")}
        rows.append([name, rise[name]["keys"], rise[name]["values"]])
    whole, embedding = rise["all of position"], rise["all of tokens"]
    one = max((name for name in rise if not name.startswith("all")), key=lambda name: rise[name]["keys"])
    summary = (
        f"Held at its mean over positions, the part of layer 1's keys that comes from positions (directly or through layer 0) "
        f"changes the loss by {signed(whole['keys'])}, and the part that comes from tokens by {signed(embedding['keys'])}; "
        "the largest "
        f"single part is that of {one} "
        f"({signed(rise[one]['keys'])}). In the values of layer 1 it is {signed(whole['values'])} for positions and "
        f"{signed(embedding['values'])} for tokens."
    )
    blocks = [
        table(
            ["part held at its mean", "in the keys of layer 1", "in the values of layer 1"], rows, title="Increase in loss (nats)"
        )
    ]
    return Part("What do positions do in layer 1?", summary, blocks, {"questions": {"layer_1_positions": rise}})


def _position_parts(study: LettersStudy) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """Parts of the input of layer 1 that come from positions, and that of tokens."""
    cache = study.few
    written, labels = head_decomposition.outputs_by_component(cache, 0)
    token, place = written[labels.index("embed")], written[labels.index("pos_embed")]
    parts = {"position, directly": cache["hook_pos_embed"]}
    parts |= {f"position, through {head}": place[n] for n, head in enumerate(study.names(0))}
    parts["all of position"] = cache["hook_pos_embed"] + place.sum(0)
    parts["all of tokens"] = cache["hook_embed"] + token.sum(0)
    return parts


@torch.no_grad()
def _loss_without(study: LettersStudy, part: Float[Tensor, "batch pos d_model"], which: str) -> float:
    """The loss when a part of the stream reaches the keys (or values) of layer 1 only by its mean over positions and examples."""
    model, attn = study.model, study.model.blocks[1].attn
    normed = frozen_norm(model, "1.ln1", scale_of(study.few, "blocks.1.ln1.hook_scale"))(part)
    weights = attn.W_K if which == "keys" else attn.W_V
    given = torch.einsum("bpm,hme->bphe", normed, weights)
    change = given.mean((0, 1), keepdim=True) - given

    def instead(x: Tensor, hook: object) -> Tensor:
        return x + change

    logits = model.run_with_hooks(study.toks[:FEW], fwd_hooks=[(f"blocks.1.attn.hook_{which[0]}", instead)])
    loss = -logits.log_softmax(-1).gather(-1, study.labels[:FEW, :, None])
    return float(loss.mean())
