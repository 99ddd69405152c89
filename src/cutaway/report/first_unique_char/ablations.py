"""Ablations: how much the loss rises without a head, a layer's heads, or a head's queries, keys or values."""

from __future__ import annotations

from typing import Any

from cutaway.report.first_unique_char.study import Study
from cutaway.report.parts import Part
from cutaway.report.words import fixed, largest, listed, mean_of, num
from cutaway.runs import metrics
from cutaway.runs.edits import Change, mean, zero
from cutaway.runs.results import Labelled
from cutaway.runs.sweep import Grid, sweep
from cutaway.view import Figure, heat_map, line_chart

METHODS = ("zero", "mean")
ACTIVATIONS = {"q": "queries", "k": "keys", "v": "values"}


def ablations(study: Study) -> Part:
    """Heads and layers, then queries, keys and values; zero, and the mean over examples at each position."""
    heads = {how: _sweep(study, change, "z", ("layer", "head")) for how, change in _changes().items()}
    layers = {how: _sweep(study, change, "z", ("layer",)) for how, change in _changes().items()}
    overall = {how: _by_head(study, found) for how, found in heads.items()}
    top, least = largest(overall["zero"], 6)[0], largest(overall["zero"], len(study.heads))[-1]
    differ = max(study.heads, key=lambda head: abs(overall["zero"][head] - overall["mean"][head]))
    blocks: list[str | Figure] = []
    numbers: dict[str, Any] = {"heads": overall, "heads_by_position": {}, "layers": {}, "layers_by_position": {}}
    for how in METHODS:
        by_head = _positions(study, heads[how])
        by_layer = {str(layer): layers[how].data[layer].mean(0) for layer in range(study.model.cfg.n_layers)}
        numbers["heads_by_position"][how] = by_head
        numbers["layers"][how] = {layer: float(values.mean()) for layer, values in by_layer.items()}
        numbers["layers_by_position"][how] = by_layer
        grid = heads[how].mean("batch", "pos").data
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
            line_chart(
                by_head, x_name="position", y_name="increase in loss", title=f"Without each head, by position ({_words(how)})"
            ),
            line_chart(
                {f"layer {layer}": values for layer, values in by_layer.items()},
                x_name="position",
                y_name="increase in loss",
                title=f"Without all heads of a layer, by position ({_words(how)})",
            ),
        ]
    early, late = _early_and_late(numbers["heads_by_position"]["zero"])
    summary = (
        f"Setting a head's output to zero raises the loss most for {top[0]} ({num(top[1])}) and least for {least[0]} "
        f"({num(least[1])}); its mean "
        f"over examples instead changes most for {differ} ({num(overall['zero'][differ])} to "
        f"{num(overall['mean'][differ])}). Without any head of a "
        "layer it rises by "
        f"{listed(f'{num(value)} (layer {layer})' for layer, value in numbers['layers']['zero'].items())}. At positions 1 and 2 "
        f"{early[0]} matters most ({num(early[1])}), in the second half {late[0]} ({num(late[1])})."
    )
    inner = _qkv(study)
    lines = [("loss without a head", ", ".join(f"{head} +{num(value)}" for head, value in overall["zero"].items()))]
    return Part("Ablations", summary, blocks, {"ablations": numbers}, lines, [inner])


def _changes() -> dict[str, Change]:
    return {"zero": zero(), "mean": mean()}


def _words(how: str) -> str:
    return {"zero": "set to zero", "mean": "set to its mean"}[how]


def _sweep(study: Study, change: Change, site: str, axes: tuple[str, ...]) -> Labelled:
    """How the loss changes for every edit, `[*axes, batch, pos]`."""
    metric = metrics.loss(study.toks, study.labels, by_position=True)
    return sweep(study.model, study.toks, Grid(change, site, axes), metric, audit=0).effects


def _by_head(study: Study, found: Labelled) -> dict[str, float]:
    return dict(zip(study.heads, found.data.mean((-2, -1)).flatten().tolist(), strict=True))


def _positions(study: Study, found: Labelled) -> dict[str, Any]:
    return dict(zip(study.heads, found.data.mean(-2).flatten(0, -2), strict=True))


def _early_and_late(by_head: dict[str, Any]) -> tuple[tuple[str, float], tuple[str, float]]:
    """The head that matters most at positions 1 and 2, and in the second half."""
    early = {head: mean_of(values[1:3]) for head, values in by_head.items()}
    late = {head: mean_of(values[len(values) // 2 :]) for head, values in by_head.items()}
    return tuple(max(one.items(), key=lambda pair: pair[1]) for one in (early, late))  # type: ignore[return-value]


def _qkv(study: Study) -> Part:
    found = {
        how: {which: _by_head(study, _sweep(study, change, which, ("layer", "head"))) for which in ACTIVATIONS}
        for how, change in _changes().items()
    }
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
    values = max(queries.values())
    summary = (
        f"Giving the heads of layer 1 their mean queries raises the loss by at most {num(values)} ("
        + listed(f"{num(value)} for {head}" for head, value in queries.items())
        + "), beside "
        + listed(f"{num(found['mean']['k'][head])} ({head})" for head in study.names(1))
        + f" for mean keys. Mean queries or keys matter least in {calm} (at most {num(small[calm])})."
    )
    return Part("Queries, keys and values", summary, blocks, {"ablations": {"qkv": found}})
