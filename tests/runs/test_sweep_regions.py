"""Regions of a sweep: nothing outside them is looked at, and every position inside them matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.runs import edits, metrics
from cutaway.runs.editing import run
from cutaway.runs.grids import Cells
from cutaway.runs.sweep import residual
from cutaway.runs.sweep.engine import Engine
from cutaway.runs.sweep.options import Sweep
from cutaway.runs.sweep.planning import plan
from cutaway.runs.sweep.scheduling import CLEAN
from tests.architectures import network, some_tokens

BATCH, LENGTH = 3, 9
TOKENS = some_tokens(BATCH, LENGTH, seed=2)
METRIC = metrics.logit_difference(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))
NAMES = ["gpt2", "llama", "gemma", "gpt-j", "olmo-2", "attention only"]
MODELS = {name: network(name).requires_grad_(False) for name in NAMES}
WIDTH = {"hook_resid_pre": 24, "hook_attn_out": 24, "hook_resid_post": 24, "attn.hook_z": 6, "attn.hook_k": 6, "attn.hook_v": 6}


def values_of(model: Any, grid: Any, metric: Any, spoil: Callable[[Any, list[Any]], None] | None = None) -> Tensor:
    """The sweep's values, where `spoil` may change the clean run after it was made."""
    engine = Engine(Sweep(model, TOKENS, None, Cells.of(grid, model.cfg, LENGTH), metric))
    with torch.no_grad():
        one = engine.batch(0)
        one.values(CLEAN)
        if spoil is not None:
            spoil(one.clean, engine.plan.chunks[0][0])
        chunks = engine.plan.chunks[0]
        values = torch.cat([one.values(chunk) for chunk in range(len(chunks))])
        return values[torch.tensor([cell.number for chunk in chunks for cell in chunk]).argsort()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("site", ["resid_pre", "z", "v", "attn_out"])
def test_nan_outside_the_regions_changes_nothing(name: str, site: str) -> None:
    model, half = MODELS[name], edits.scale(0.5)
    cell = half.at((site, 1), positions=5, heads=[1] if site == "z" else [0] if site == "v" else None)

    def spoil(clean: Any, chunk: list[Any]) -> None:
        """No stream before the edit; in its layer only its position (what attention has seen: and its keys' and values' past)."""
        assert [one.layer for one in chunk] == [1]
        clean.resid[0].fill_(torch.nan)
        q, k, v = clean.read[0]
        for x in (q, k, v):
            x.fill_(torch.nan)
        for layer in range(1, model.cfg.n_layers):
            clean.resid[layer][:, :5] = torch.nan  # what is before the edit is read by way of keys and values only
            clean.read[layer][0][:, :5] = torch.nan
        for kept, x in clean.store.items():
            assert kept.startswith("blocks.1.")
            x[:, :5] = torch.nan

    right = values_of(model, [cell], METRIC)
    assert torch.equal(values_of(model, [cell], METRIC, spoil), right)
    assert right.isfinite().all()


@pytest.mark.parametrize("metric", [metrics.loss(TOKENS, by_position=True), METRIC], ids=["all", "last"])
@pytest.mark.parametrize("name", NAMES)
def test_each_position_inside_a_region_matters(name: str, metric: metrics.Metric) -> None:
    """Reached: the metric reads nearly everything. Needed: it reads the last position."""
    model, half = MODELS[name], edits.scale(0.5)
    grid = residual(half, pos=[3], layer=[0])
    planned = plan(model, TOKENS, grid, metric, measure=False)
    regions = {(layer, value): region for _, _, _, layer, value, region in planned.steps()}
    first, cells, places = half.at("resid_pre0", positions=3), [], []
    for (layer, value), region in regions.items():
        for place in region.places.tolist() if value in WIDTH else ():
            if metric is METRIC or place != LENGTH - 1:  # the last token predicts nothing that a loss measures
                vector = torch.linspace(-1, 1, WIDTH[value])
                cells.append([first, edits.add(vector).at(f"blocks.{layer}.{value}", positions=place)])
                places.append((layer, value, place))
    before, *after = values_of(model, [[first], *cells], metric)
    for place, values in zip(places, after, strict=True):
        assert float((values - before).nan_to_num().abs().max()) > 1e-4, place


@pytest.mark.parametrize("name", NAMES)
def test_a_region_begins_where_the_run_differs_from_the_clean_one(name: str) -> None:
    """Behind its first position it may hold tokens that are the clean run's, where leaving them out would cost more."""
    model, first = MODELS[name], edits.scale(0.5).at("resid_pre0", positions=3)
    planned = plan(model, TOKENS, residual(edits.scale(0.5), pos=[3], layer=[0]), metrics.loss(TOKENS), measure=False)
    regions = {(layer, value): region for _, _, _, layer, value, region in planned.steps() if value in WIDTH}
    names = [f"blocks.{layer}.{value}" for layer, value in regions]
    clean = model.run_with_cache(TOKENS, names_filter=names)[1]
    edited = run(model, TOKENS, edits=first, keep=names).cache
    for site, region in zip(names, regions.values(), strict=True):
        apart = (edited[site] - clean[site]).flatten(2).abs().amax(-1)
        assert bool((apart[:, region.first] > 0).all()) and not bool(apart[:, : region.first].any()), site
