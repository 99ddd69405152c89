"""Ablations: how much the loss rises without a head, a layer's heads, or a head's queries, keys or values."""

from __future__ import annotations

from typing import Any

import torch

from cutaway.analysis import ablation
from cutaway.report.first_unique_char.study import LettersStudy
from cutaway.report.parts import Part
from cutaway.report.words import fixed, listed, mean_of, signed
from cutaway.view import Figure, heat_map

METHODS = ablation.KINDS
ACTIVATIONS = {"q": "queries", "k": "keys", "v": "values"}


def effects(study: LettersStudy) -> Part:
    """Heads and layers, then queries, keys and values; zero, and the mean over examples at each position."""
    found = ablation.ablate_heads(study.model, study.toks, study.labels)
    overall = {how: found.increases(how) for how in METHODS}
    order = sorted(overall["zero"].items(), key=lambda one: -one[1])
    top, least = order[0], order[-1]
    differ = max(study.heads, key=lambda head: abs(overall["zero"][head] - overall["mean"][head]))
    blocks: list[str | Figure] = []
    numbers: dict[str, Any] = {"heads": overall, "heads_by_position": {}, "layers": {}, "layers_by_position": {}}
    for how in METHODS:
        single, layers = found.by_position(how), found.layers.sel(kind=how, site="z").means("batch")
        by_head = {head: single.values.sel(head=head).data for head in study.heads}
        by_layer = {layer: layers.values.sel(layer=layer).data for layer in layers.values.names("layer")}
        numbers["heads_by_position"][how] = by_head
        numbers["layers"][how] = found.layer_increases(how)
        numbers["layers_by_position"][how] = by_layer
        grid = torch.tensor(list(overall[how].values())).view(study.model.cfg.n_layers, -1)
        names = [[str(n) for n in range(size)] for size in grid.shape]
        blocks += [
            heat_map(
                grid,
                names[1],
                names[0],
                x_name="head",
                y_name="layer",
                value_name="loss (nats)",
                title=f"Increase in loss without each head ({_words(how)})",
                text=[[fixed(x, 2) for x in row] for row in grid.tolist()],
            ),
            single.figure(f"Without each head, by position ({_words(how)})", lines=True),
            layers.figure(f"Without all heads of a layer, by position ({_words(how)})", lines=True),
        ]
    early, late = _early_and_late(numbers["heads_by_position"]["zero"])
    summary = (
        f"Setting a head's output to zero changes the loss most for {top[0]} ({signed(top[1])}) and least for {least[0]} "
        f"({signed(least[1])}); with its mean over examples instead the largest difference is that of {differ} "
        f"({signed(overall['zero'][differ])} to {signed(overall['mean'][differ])}). Without any head of a layer it changes by "
        f"{listed(f'{signed(value)} (layer {layer})' for layer, value in numbers['layers']['zero'].items())}. At positions "
        "1 and 2 "
        f"{early[0]} matters most ({signed(early[1])}), in the second half {late[0]} ({signed(late[1])}). "
        f"Of the {len(METHODS) * (len(ACTIVATIONS) + 1) * (len(study.heads) + study.model.cfg.n_layers)} ablations "
        f"{len(found.audit.cells)} were run again as plain forward passes, and differ by at most "
        f"{found.audit.difference:.0e} of their size."
    )
    inner = _qkv(study, found)
    lines = [("loss without a head", ", ".join(f"{head} {signed(value)}" for head, value in overall["zero"].items()))]
    return Part("Ablations", summary, blocks, {"ablations": numbers}, lines, [inner])


def _words(how: str) -> str:
    return {"zero": "set to zero", "mean": "set to its mean"}[how]


def _early_and_late(by_head: dict[str, Any]) -> tuple[tuple[str, float], tuple[str, float]]:
    """The head that matters most at positions 1 and 2, and in the second half."""
    early = {head: mean_of(values[1:3]) for head, values in by_head.items()}
    late = {head: mean_of(values[len(values) // 2 :]) for head, values in by_head.items()}
    return tuple(max(one.items(), key=lambda pair: pair[1]) for one in (early, late))  # type: ignore[return-value]


def _qkv(study: LettersStudy, ablated: ablation.HeadAblation) -> Part:
    found = {how: {which: ablated.increases(how, which) for which in ACTIVATIONS} for how in METHODS}
    blocks = []
    for how, by in found.items():
        grid = [list(values.values()) for values in by.values()]
        blocks.append(
            heat_map(
                grid,
                study.heads,
                list(ACTIVATIONS.values()),
                x_name="head",
                y_name="activation",
                value_name="loss (nats)",
                title=f"Increase in loss without queries, keys or values ({_words(how)})",
                text=[[fixed(x, 2) for x in row] for row in grid],
            )
        )
    queries = {head: found["mean"]["q"][head] for head in study.names(1)}
    small = {head: max(found["mean"]["q"][head], found["mean"]["k"][head]) for head in study.heads}
    calm = min(small, key=lambda head: small[head])
    summary = (
        "Giving the heads of layer 1 their mean queries changes the loss by "
        + listed(f"{signed(value)} ({head})" for head, value in queries.items())
        + ", giving them their mean keys by "
        + listed(f"{signed(found['mean']['k'][head])} ({head})" for head in study.names(1))
        + f". Mean queries or keys matter least in {calm} (at most {signed(small[calm])})."
    )
    return Part("Queries, keys and values", summary, blocks, {"ablations": {"qkv": found}})
