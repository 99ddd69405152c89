"""Sweeps: every cell equals its edit run alone in a full forward pass; bit for bit where only layers are skipped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cutaway.errors import CheckpointError, ChunkDamaged, ConfigError, NotExact, NotFinite, ShapeError, TokenError, UnknownName
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model.sites import get_act_name
from cutaway.runs import edits, metrics
from cutaway.runs.sweep import (
    Cells,
    Grid,
    SweepResult,
    heads,
    heads_by_position,
    neurons,
    pairs,
    patterns,
    residual,
    scheduling,
    sweep,
)
from cutaway.runs.sweep import engine as sweep_engine
from cutaway.runs.sweep.engine import Engine
from cutaway.runs.sweep.options import Sweep
from cutaway.runs.sweep.planning import plan
from tests.architectures import ALL, flop_counter, network, some_tokens

BATCH, LENGTH = 3, 9
MODELS = {name: network(name) for name in ALL}
TOKENS, CLEAN = some_tokens(BATCH, LENGTH, seed=2), some_tokens(BATCH, LENGTH, seed=1)
CACHES = {name: model.run_with_cache(CLEAN)[1] for name, model in MODELS.items()}
CACHED = {name: set(cache.cache_dict) for name, cache in CACHES.items()}
RIGHT, WRONG = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])


def in_full(model: HookedTransformer, tokens: Tensor, some: Any, metric: Any) -> Tensor:
    """The metric of full forward passes, one for each cell."""
    values = []
    with torch.no_grad():
        clean = model(tokens)
        for one in Cells.of(some, model.cfg, tokens.shape[1]).edits:
            bounds = [edit.bind(model.cfg, *tokens.shape) for edit in one]
            hooks = [(bound.site, lambda x, hook, bound=bound: bound.applied(x)) for bound in bounds]
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
            values.append(metric(logits, clean) if getattr(metric, "compares", False) else metric(logits))
    return torch.stack(values)


def assert_same(found: SweepResult, expected: Tensor, tolerance: float = 1e-5) -> None:
    values = found.values.data.reshape(expected.shape)
    assert torch.equal(values.isnan(), expected.isnan())
    scale = expected[~expected.isnan()].abs().max().clamp(min=0.1)  # divergences are near 0, their logits are not
    difference = (values - expected).nan_to_num().abs().max()
    assert difference <= tolerance * scale, f"{difference / scale:.1e}"


def change_for(name: str, kind: str, width: int) -> edits.Change:
    vector = torch.linspace(-1, 1, width)
    made: dict[str, Any] = {
        "zero": edits.zero(), "patch": edits.patch(CACHES[name]), "mean": edits.mean(), "add": edits.add(vector, 0.7),
        "scale": edits.scale(1.5), "project": edits.project_out(vector + 0.1), "resample": edits.resample(CACHES[name], 3),
        "reference": edits.mean(CACHES[name], ("batch", "pos")),
    }  # fmt: skip
    return made[kind]


METRICS = {
    "difference": metrics.logit_difference(RIGHT, WRONG),
    "own positions": metrics.log_probability(RIGHT, torch.tensor([2, 8, 5])),
    "loss": metrics.loss(TOKENS),
    "loss by position": metrics.loss(TOKENS, by_position=True),
    "probability in the middle": metrics.probability(RIGHT, positions=4),
    "kl": metrics.kl([3, -1]),
    "accuracy": metrics.accuracy(TOKENS),
}
GRIDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # axes → sites that have them
    "layer pos": (("layer", "pos"), ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")),
    "layer head": (("layer", "head"), ("z", "q", "k", "v", "result", "rot_q", "rot_k")),
    "layer pos head": (("layer", "pos", "head"), ("z", "q", "k", "v", "result")),
    "pattern": (("layer", "head"), ("pattern",)),
    "pattern dest": (("layer", "head", "dest"), ("pattern",)),
    "pattern dest src": (("layer", "head", "dest", "src"), ("pattern",)),
    "layer": (("layer",), ("z", "k", "mlp_in", "resid_mid", "pattern", "attn_scores", "pre", "post")),
    "neuron": (("layer", "neuron"), ("post", "pre")),
}
WIDTH = {"z": 6, "q": 6, "k": 6, "v": 6, "rot_q": 6, "rot_k": 6, "pattern": LENGTH, "attn_scores": LENGTH}


@st.composite
def questions(draw: Any, name: str) -> tuple[dict[str, Any], str]:
    """A grid that this architecture can have, as the arguments that make it, and a metric."""
    model = MODELS[name]
    axes, sites = GRIDS[draw(st.sampled_from(sorted(GRIDS)))]
    there = [site for site in sites if all(get_act_name(site, layer) in model.hook_dict for layer in range(2))]
    if not there:
        axes, there = GRIDS["layer pos"][0], ["resid_pre"]
    site = draw(st.sampled_from(there))
    width = WIDTH.get(site, 24 if site not in ("pre", "post") else int(model.cfg.d_mlp or 0))
    kinds = ["zero", "mean", "scale"]
    if {get_act_name(site, 0), get_act_name(site, 1)} <= CACHED[name]:
        kinds += ["patch", "resample", "reference"]
    if "neuron" not in axes and "src" not in axes and site not in ("pattern", "attn_scores"):
        kinds += ["add", "project"]
    change = (draw(st.sampled_from(kinds)), width)
    only = {axis: sorted(draw(st.sets(st.integers(0, top - 1), min_size=1, max_size=3)))
            for axis, top in (("pos", LENGTH), ("dest", LENGTH), ("src", LENGTH), ("neuron", 8), ("head", 4))
            if axis in axes and not (axis == "head" and site in ("k", "v", "rot_k"))}  # fmt: skip
    where: dict[str, Any] = {}
    if draw(st.booleans()):
        where["examples"] = sorted(draw(st.sets(st.integers(0, BATCH - 1), min_size=1)))
    made = {"change": change, "site": site, "axes": axes, "only": only, "where": where}
    return made, draw(st.sampled_from(sorted(METRICS)))


@pytest.mark.parametrize("name", ALL)
def test_every_cell_equals_its_edit_in_a_full_forward_pass(name: str) -> None:
    @settings(max_examples=10, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
    @given(question=questions(name))
    def law(question: tuple[dict[str, Any], str]) -> None:
        made, metric = question
        grid = Grid(**(made | {"change": change_for(name, *made["change"])}))
        found = sweep(MODELS[name], TOKENS, grid, METRICS[metric])
        assert_same(found, in_full(MODELS[name], TOKENS, grid, METRICS[metric]))
        assert found.audit.difference <= (1e-5 if metric != "kl" else 1e-2)

    law()


@pytest.mark.parametrize("name", ALL)
def test_skipping_only_layers_gives_the_bits_of_a_full_forward_pass(name: str) -> None:
    model = MODELS[name]
    for grid in (heads(edits.zero()), residual(edits.patch(CACHES[name]), pos=[2, 8]), heads(edits.patch(CACHES[name]), "k")):
        metric = metrics.loss(TOKENS, by_position=True)
        found = sweep(model, TOKENS, grid, metric, skip="layers", audit=0)
        expected = in_full(model, TOKENS, grid, metric)
        assert torch.equal(found.values.data.nan_to_num().reshape(expected.shape), expected.nan_to_num())


@pytest.mark.parametrize("name", ["gpt2", "llama", "no norm, shortformer", "bloom", "olmo-2", "gemma"])
def test_cells_of_several_edits(name: str) -> None:
    model = MODELS[name]
    singles = [edits.zero().at(("z", layer), heads=head) for layer in (0, 1) for head in (0, 3)]
    held = [
        [edits.patch(CACHES[name]).at(("resid_pre", 0), positions=3), edits.freeze(CACHES[name]).at(("z", 1), heads=[1, 2])],
        [edits.scale(2.0).at(("k", 1), positions=[4, 6]), edits.add(torch.ones(24)).at(("attn_out", 0), positions=5)],
        [edits.zero().at(("pattern", 1), heads=1, positions=[5, 7]), edits.zero().at(("attn_out", 0), examples=1)],
        [edits.zero().at(("pattern", 0), heads=1), edits.zero().at(("pattern", 1), sources=0)],
        [edits.scale(2.0).at(("result", 1), heads=[0, 2], positions=[1, 5])],
        [edits.scale(2.0).at(("result", 0), heads=[0, 2], examples=[0, 2])],
    ]
    for metric in (METRICS["difference"], METRICS["loss"]):
        cells = [*pairs(singles), *held]
        assert_same(sweep(model, TOKENS, cells, metric, audit=0), in_full(model, TOKENS, cells, metric))


def test_a_single_edit_is_a_sweep_of_one_cell() -> None:
    edit = edits.zero().at(("z", 0), heads=1)
    one, listed = (sweep(MODELS["gpt2"], TOKENS, given, METRICS["loss"]).values for given in (edit, [edit]))
    assert one.axes[0] == "cell" and len(one.data) == 1 and torch.equal(one.data, listed.data)


def test_freezing_holds_the_clean_runs_own_values() -> None:
    model = MODELS["gpt2"]
    clean = model.run_with_cache(TOKENS)[1]
    upstream = edits.zero().at(("z", 0), heads=2, positions=4)
    for site in (("attn_out", 1), ("scale", None), ("z", 1)):
        site = "ln_final.hook_scale" if site[1] is None else site
        own = sweep(model, TOKENS, [[upstream, edits.freeze().at(site)]], METRICS["difference"])
        given_ = in_full(model, TOKENS, [[upstream, edits.freeze(clean).at(site)]], METRICS["difference"])
        assert_same(own, given_)
        assert not torch.allclose(own.values.data, sweep(model, TOKENS, [upstream], METRICS["difference"]).values.data)


def test_functions_as_metrics_see_what_they_pick() -> None:
    model = MODELS["gpt2"]
    grid = residual(edits.patch(CACHES["gpt2"]))
    functions = [
        lambda logits: (logits[:, -1, 3] - logits[:, -1, 4]).mean(),
        lambda logits: logits[:, 4].gather(-1, RIGHT[:, None])[:, 0],
        lambda logits: logits.log_softmax(-1)[:, 2:5].mean(),
    ]
    for function in functions:
        found = sweep(model, TOKENS, grid, function)
        expected = in_full(model, TOKENS, grid, metrics.as_metric(function))
        assert_same(found, expected)


def test_a_function_that_changes_its_mind_is_given_what_it_asks_for() -> None:
    model, seen = MODELS["gpt2"], []

    def moody(logits: Tensor) -> Tensor:
        seen.append(1)
        return logits[:, -1, 3].mean() if len(seen) == 1 else logits[:, 2, 3].mean()

    found = sweep(model, TOKENS, residual(edits.patch(CACHES["gpt2"]), layer=[1]), moody, audit=0)
    expected = in_full(model, TOKENS, residual(edits.patch(CACHES["gpt2"]), layer=[1]), lambda logits: logits[:, 2, 3].mean())
    assert_same(found, expected)


def test_undeclared_functions_run_alone_at_full_length() -> None:
    model = MODELS["gpt2"]
    shapes = []

    def across(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x.flip(1).roll(1, 0)  # reads across positions and examples

    cells = [edits.function(across).at(("resid_pre", 1)), edits.zero().at(("z", 0), heads=1), edits.zero().at(("z", 1), heads=1)]
    engine = Engine(Sweep(model, TOKENS, None, Cells.of(cells, model.cfg, LENGTH), METRICS["loss"]))
    assert [[cell.number for cell in chunk] for chunk in engine.plan.chunks[0]] == [[1, 2], [0]]
    assert engine.plan.cells[0].way == "alone"
    found = sweep(model, TOKENS, cells, METRICS["loss"], memory=10**9, audit=3)
    assert found.audit.examples == BATCH and len(found.audit.cells) == 3
    assert set(shapes) == {(BATCH, LENGTH, 24)}
    assert torch.equal(found.values.data[:1], in_full(model, TOKENS, cells[:1], METRICS["loss"]))
    assert_same(found, in_full(model, TOKENS, cells, METRICS["loss"]))


@pytest.mark.parametrize("room", [9 * 24, 30 * 24, 100 * 24])
def test_batches_and_chunks_do_not_matter(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "ROOM", room)
    model, tokens = MODELS["llama"], some_tokens(20, LENGTH, seed=4)
    metric = metrics.loss(tokens, by_position=True)
    cells = [
        edits.mean().at(("z", 0), heads=1),
        edits.zero().at(("v", 1)),
        edits.add(torch.ones(24)).at("resid_pre1", examples=[0, 19]),
    ]
    cells.append(edits.mean(over=("pos",)).at(("attn_out", 0), positions=[3, 5]))
    cells.append(edits.replace(torch.randn(20, 1, 4, 6)).at(("z", 1)))
    cells.append(edits.replace(torch.randn(2, 1, 1, 6)).at(("z", 1), examples=[1, 17], heads=2))
    found = sweep(model, tokens, cells, metric)
    assert_same(found, in_full(model, tokens, cells, metric))
    batches = scheduling.schedule(Sweep(model, tokens, None, Cells.of(cells, model.cfg, LENGTH), metric)).batches
    assert len(batches) == {9 * 24: 3, 30 * 24: 3, 100 * 24: 2}[room]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "bloom", "no norm, shortformer", "bidirectional"])
def test_padded_rows(name: str) -> None:
    model = MODELS[name]
    mask = torch.ones_like(TOKENS)
    mask[0, :3], mask[2, :1] = 0, 0
    grid = Grid(edits.patch(CACHES[name]), "resid_pre", ("layer", "pos"), {"pos": [2, 4, 8]})
    for some in (grid, heads(edits.scale(0.5), "k"), heads(edits.zero(), "pattern"), heads(edits.zero())):
        found = sweep(model, TOKENS, some, METRICS["difference"], mask=mask)
        with torch.no_grad():
            for number, one in enumerate(Cells.of(some, model.cfg, LENGTH).edits):
                bound = one[0].bind(model.cfg, BATCH, LENGTH)
                hook = (bound.site, lambda x, hook, bound=bound: bound.applied(x))
                logits = model.run_with_hooks(TOKENS, attention_mask=mask, fwd_hooks=[hook])
                own = found.values.data.reshape(-1, BATCH)[number]
                torch.testing.assert_close(own, METRICS["difference"](logits), rtol=1e-4, atol=1e-4)


def test_where_an_edit_changes_nothing_nothing_runs() -> None:
    model = MODELS["gpt2"]
    own = model.run_with_cache(TOKENS, names_filter=lambda name: name.endswith("resid_pre"))[1]
    changed = TOKENS.clone()
    changed[1, 5] = (changed[1, 5] + 1) % 13
    other = model.run_with_cache(changed, names_filter=lambda name: name.endswith("resid_pre"))[1]
    passed: list[int] = []
    found = sweep(model, TOKENS, residual(edits.patch(own)), METRICS["difference"])
    assert torch.equal(found.values.data, found.clean.data.expand_as(found.values.data))
    task = Sweep(model, TOKENS, None, Cells.of([edits.patch(other).at("resid_pre0")], model.cfg, LENGTH), METRICS["loss"])
    engine = Engine(task)
    norm = model.blocks[1].ln1
    handle = norm.register_forward_pre_hook(lambda module, args: passed.append(args[0].shape[1]))
    with torch.no_grad():
        engine.run()
    handle.remove()
    assert passed == [LENGTH, LENGTH - 5]  # the clean run; then one example, from the position that differs


def test_hooks_of_others_stay_part_of_the_network() -> None:
    model = network("gpt2")
    model.add_hook("blocks.1.hook_attn_out", lambda x, hook: x * 0.5)
    found = sweep(model, TOKENS, heads(edits.zero()), METRICS["difference"])
    assert_same(found, in_full(model, TOKENS, heads(edits.zero()), METRICS["difference"]))
    assert found.audit.difference < 1e-6


def test_nothing_stays_attached_and_no_input_changes() -> None:
    model = network("gpt2")
    cache = model.run_with_cache(CLEAN)[1]
    before = {name: tensor.clone() for name, tensor in cache.items()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held = [[edits.patch(cache).at(("z", 0), heads=1), edits.freeze().at(("z", 1))]]
    sweep(model, TOKENS, residual(edits.patch(cache)), METRICS["loss"])
    sweep(model, TOKENS, held, METRICS["loss"])
    with pytest.raises(ZeroDivisionError):
        sweep(model, TOKENS, [edits.function(lambda x: 1 / 0).at("z0")], METRICS["loss"])
    assert model.list_hooks() == {}
    assert all(torch.equal(tensor, cache[name]) for name, tensor in before.items())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


# Gradients, screens, cheaper precision.


@pytest.mark.parametrize("name", ["gpt2", "llama", "attention only"])
@pytest.mark.parametrize("site", ["resid_pre", "z", "q", "k", "v", "pattern", "attn_out"])
def test_gradients_agree_with_small_edits(name: str, site: str) -> None:
    model = MODELS[name]
    axes = ("layer", "head") if site in ("z", "q", "k", "v", "pattern") else ("layer", "pos")
    grid = Grid(edits.scale(1.002), site, axes)
    estimated = sweep(model, TOKENS, grid, METRICS["difference"], method="gradient").effects.data
    exact = sweep(model, TOKENS, grid, METRICS["difference"], audit=0).effects.data
    assert (estimated - exact).abs().max() < 0.05 * exact.abs().max()
    assert "estimates to first order" in sweep(model, TOKENS, grid, METRICS["difference"], method="gradient").summary()


def test_estimates_do_not_depend_on_how_examples_are_split_and_leave_the_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, grid = MODELS["gpt2"], residual(edits.patch(CACHES["gpt2"]))
    held = next(model.parameters())
    held.requires_grad_(False)
    try:
        before = [parameter.requires_grad for parameter in model.parameters()]
        whole = sweep(model, TOKENS, grid, METRICS["difference"], method="gradient").values.data
        monkeypatch.setattr("cutaway.runs.sweep.gradient.GRAPH", 1)
        split = sweep(model, TOKENS, grid, METRICS["difference"], method="gradient").values.data
        assert [parameter.requires_grad for parameter in model.parameters()] == before
    finally:
        held.requires_grad_(True)
    torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_screen_computes_the_top_cells_exactly() -> None:
    model, grid = MODELS["gpt2"], residual(edits.patch(CACHES["gpt2"]))
    estimated = sweep(model, TOKENS, grid, METRICS["difference"], method="gradient")
    exact = sweep(model, TOKENS, grid, METRICS["difference"]).table().flatten()
    screened = sweep(model, TOKENS, grid, METRICS["difference"], method="screen", top=4)
    top = estimated.table(effects=True).flatten().abs().argsort(descending=True)[:4]
    assert sorted(top.tolist()) == list(screened.exact)
    mine = screened.table().flatten()
    torch.testing.assert_close(mine[top], exact[top], rtol=1e-4, atol=1e-5)
    others = torch.ones(18, dtype=torch.bool).index_fill(0, top, False)
    torch.testing.assert_close(mine[others], estimated.table().flatten()[others])
    assert "4 cells computed exactly" in screened.summary()
    with pytest.raises(UnknownName, match="did you mean 'screen'"):
        sweep(model, TOKENS, grid, METRICS["difference"], method="scren")


@pytest.mark.parametrize("site", ["z", "pattern"])
@pytest.mark.parametrize("over", [("batch",), ("pos",), ("batch", "pos")])
def test_the_audit_takes_its_own_means(site: str, over: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model, grid = MODELS["gpt2"], heads(edits.mean(over=over), site)
    found = sweep(model, TOKENS, grid, METRICS["difference"], audit=8)
    assert found.audit.examples == BATCH and found.audit.difference < 1e-5
    right = Engine._means
    monkeypatch.setattr(Engine, "_means", lambda self: {site: mean[:1] * 1.1 for site, mean in (right(self) or {}).items()})
    with pytest.raises(NotExact, match="8 of 8"):
        sweep(model, TOKENS, grid, METRICS["difference"], audit=8)


def test_lower_precision_is_audited_in_full_precision() -> None:
    found = sweep(MODELS["gpt2"], TOKENS, heads(), METRICS["difference"], dtype=torch.bfloat16)
    assert 1e-4 < found.audit.difference < 0.2
    assert next(MODELS["gpt2"].parameters()).dtype == torch.float32


@pytest.mark.parametrize("metric", ["difference", "loss by position", "kl"])
def test_a_planted_fault_stops_the_sweep(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, grid = MODELS["gpt2"], heads(edits.zero())
    right = sweep(model, TOKENS, grid, METRICS[metric], audit=3)
    assert right.audit.difference < 1e-4
    run_chunk = sweep_engine.run_chunk

    def faulty(*given: Any) -> Any:
        off = torch.linspace(-0.02, 0.02, model.cfg.d_model)
        return [(cell, replace(one, data=one.data + off)) for cell, one in run_chunk(*given)]

    monkeypatch.setattr(sweep_engine, "run_chunk", faulty)
    with pytest.raises(NotExact, match=r"3 of 3 audited cells .* 'zero blocks\.\d\.attn\.hook_z head \d' by"):
        sweep(model, TOKENS, grid, METRICS[metric], audit=3)
    unchecked = sweep(model, TOKENS, grid, METRICS[metric], audit=0)
    assert "nothing was checked" in unchecked.summary() and unchecked.audit.difference != unchecked.audit.difference


def test_a_metric_that_draws_at_random_is_named_as_the_cause() -> None:
    with pytest.raises(NotExact, match="gives another number each time: the metric or an edit draws at random"):
        sweep(MODELS["gpt2"], TOKENS, heads(edits.zero()), lambda logits: logits.mean() + torch.rand(()), audit=3)


# Plans.


def test_a_plan_counts_what_edits_reach() -> None:
    model = network("gpt2", n_layers=4)
    early = plan(model, TOKENS, residual(edits.zero(), layer=[0], pos=[0]), METRICS["difference"], measure=False)
    late = plan(model, TOKENS, residual(edits.zero(), layer=[3], pos=[0]), METRICS["difference"], measure=False)
    end = plan(model, TOKENS, residual(edits.zero(), layer=[0], pos=[8]), METRICS["difference"], measure=False)
    whole = plan(model, TOKENS, residual(edits.zero(), layer=[0], pos=[0]), METRICS["loss"], measure=False)
    assert late.operations < early.operations < whole.operations
    assert end.operations < early.operations < 2 * early.full_operations  # the clean run and the cell
    alone = plan(model, TOKENS, heads(edits.zero()), METRICS["difference"], skip="layers", measure=False)
    assert alone.ways == {"join": 0, "packed": 0, "alone": 16} and alone.saved < 3
    assert plan(model, TOKENS, heads(edits.zero()), METRICS["difference"]).seconds > 0
    assert "16 cells (16 join)" in plan(model, TOKENS, heads(edits.zero()), METRICS["difference"]).summary()


@pytest.mark.parametrize("name", ["gpt2", "llama", "attention only", "bloom", "gemma", "gpt-j", "mixture", "bidirectional"])
def test_a_plan_counts_what_torch_counts(name: str) -> None:
    more = {"gemma": {"attn_types": ["local", "global", "local"]}, "mixture": {"rotary_layers": [True, False, True]}}
    model = network(name, n_layers=3, **more.get(name, {})).requires_grad_(False)
    half = edits.scale(0.5)
    grids = [heads(half), residual(half), heads(half, "q"), residual(half, "attn_out"), heads(half, "pattern"),
             heads_by_position(half, pos=[2, 8]), heads(half, "result"), Grid(half, "attn_scores", ("layer",)),
             Grid(half, "k", ("layer", "head"), {"head": [0]}, {"examples": [0, 2], "positions": [1, 5]}),
             patterns(half, ("layer", "head", "dest"), dest=[2, 8], head=[1])]  # fmt: skip
    joined = [one for grid in grids for one in grid.cells(model.cfg, LENGTH).edits]
    packed = [[half.at(("z", layer), heads=head), half.at(("attn_out", layer))] for layer in range(3) for head in (0, 3)]
    alone = [edits.function(lambda x: 2 * x).at(("z", layer)) for layer in range(3)]
    for metric in ("difference", "loss"):
        for cells in (joined, packed, alone):
            planned = plan(model, TOKENS, cells, METRICS[metric], measure=False)
            with torch.no_grad(), flop_counter() as counter:
                sweep(model, TOKENS, cells, METRICS[metric], audit=0)
            assert counter.get_total_flops() == planned.operations


def test_a_plan_is_data() -> None:
    model = MODELS["gpt2"]
    planned = plan(model, TOKENS, residual(edits.zero(), layer=[0], pos=[6]), METRICS["difference"], measure=False)
    found = {(layer, name): region.places.tolist() for _, _, _, layer, name, region in planned.steps()}
    assert found[0, "hook_resid_pre"] == found[0, "attn.hook_v"] == [6, 7, 8] and found[0, "attn.hook_z"] == [6, 7, 8]
    assert found[1, "hook_resid_pre"] == [6, 7, 8] and found[1, "hook_resid_mid"] == found[1, "hook_resid_post"] == [8]


def test_a_plan_runs_nothing() -> None:
    model = network("gpt2")
    runs = model.runs
    plan(model, TOKENS, heads(edits.zero()), lambda logits: 1 / 0)
    assert model.runs == runs


# What a result says.


def test_a_result_names_its_axes_and_draws_itself() -> None:
    model = MODELS["gpt2"]
    grid = sweep(model, TOKENS, heads_by_position(edits.zero(), pos=[1, 5]), METRICS["loss by position"])
    assert grid.values.axes == ("layer", "pos", "head", "batch", "position")
    assert grid.values.names("pos") == ("1", "5")
    assert grid.table().shape == (2, 2, 4)
    flat = sweep(model, TOKENS, residual(edits.zero()), METRICS["difference"])
    assert flat.mean().values.shape == (2, 9)
    assert (flat.mean().low.data <= flat.mean().values.data).all()
    name, change = flat.top(1)[0]
    layer, pos = int(name.split()[1]), int(name.split()[3])
    assert change == pytest.approx(float(flat.effects.data.mean(-1)[layer, pos]))
    assert name in flat.summary() and "largest relative difference" in flat.summary()
    for result in (grid, flat, sweep(model, TOKENS, [edits.zero().at("z0")], METRICS["difference"])):
        assert result.figure().to_json()
    assert len(neurons(neuron=[1]).cells(model.cfg, LENGTH).edits) == 2
    assert patterns(edits.zero(), ("layer", "head", "dest"), dest=[1]).cells(model.cfg, LENGTH).shape == (2, 4, 1)


def test_progress_ends_at_the_whole() -> None:
    seen: list[tuple[float, float]] = []
    sweep(
        MODELS["gpt2"], TOKENS, residual(edits.zero()), METRICS["loss"], progress=lambda done, total: seen.append((done, total))
    )
    assert seen and seen[-1][0] == pytest.approx(seen[-1][1])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: sweep(m, TOKENS, [], METRICS["loss"]), ShapeError, "no edit to sweep over"),
        (lambda m: sweep(m, TOKENS, [[]], METRICS["loss"]), ShapeError, "a cell is an edit or several"),
        (lambda m: sweep(m, TOKENS, heads(heads=[1]), METRICS["loss"]), ShapeError, "not over 'heads' .did you mean 'head'"),
        (lambda m: sweep(m, TOKENS, residual(edits.zero(), head=[1]), METRICS["loss"]), ShapeError, "over layer, pos, and not"),
        (lambda m: sweep(m, TOKENS, heads(), METRICS["loss"], memory=100), ConfigError, "too small for one cell"),
        (lambda m: sweep(m, TOKENS, heads(), METRICS["loss"], skip="some"), ConfigError, "'all' and 'layers'"),
        (lambda m: sweep(m, TOKENS, heads(), METRICS["loss"], audit=-1), ConfigError, "audit is at least 0, not -1"),
        (lambda m: sweep(m, TOKENS, heads(), METRICS["loss"], method="screen", top=-2), ConfigError, "top is at least 0, not -2"),
        (lambda m: sweep(m, TOKENS[:2], heads(), METRICS["loss"]), ShapeError, "labels of shape"),
        (lambda m: sweep(m, TOKENS, Grid(edits.zero(), "z", ("layer", "row")), METRICS["loss"]), ShapeError, "no axis 'row'"),
        (lambda m: sweep(m, TOKENS, heads(), metrics.loss), ShapeError, "makes a metric when it is called"),
        (lambda m: sweep(m, TOKENS, heads(), metrics.loss(TOKENS, TOKENS + 1)), TokenError, "the label 13, and .* the 13 tokens"),
        (lambda m: sweep(m, TOKENS, heads(), metrics.rank([99])), TokenError, "names the answer 99"),
        (lambda m: sweep(m, TOKENS, heads(), METRICS["kl"], method="gradient"), ShapeError, "no gradient at the clean run"),
        (
            lambda m: sweep(m, TOKENS, heads(edits.replace(torch.nan), head=[2]), METRICS["difference"]),
            NotFinite, "cell 'replace blocks.0.attn.hook_z head 2' and 1 more",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(MODELS["gpt2"])


# Interruptions.

KILLED = """
import sys, time
from cutaway.runs import edits, metrics
from cutaway.runs.sweep import residual, scheduling, sweep
from tests.architectures import network, some_tokens

scheduling.ROOM = 24 * 40
model, tokens = network("gpt2"), some_tokens(3, 9, seed=2)
cache = model.run_with_cache(some_tokens(3, 9, seed=1))[1]

def slowly(done, total):
    print(done / total, flush=True)
    time.sleep(0.05)

sweep(model, tokens, residual(edits.patch(cache)), metrics.loss(tokens), resume=sys.argv[1], progress=slowly)
"""


def test_a_killed_sweep_goes_on_and_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "ROOM", 24 * 40)
    grid, environment = residual(edits.patch(CACHES["gpt2"])), os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        while float(killed.stdout.readline()) < 0.4:
            pass
        killed.send_signal(signal.SIGKILL)
    whole = sweep(MODELS["gpt2"], TOKENS, grid, METRICS["loss"], resume=tmp_path / "whole").values.data
    done, every = (len(list((tmp_path / name).glob("values-*"))) for name in ("killed", "whole"))
    assert 0 < done < every
    resumed = sweep(MODELS["gpt2"], TOKENS, grid, METRICS["loss"], resume=tmp_path / "killed").values.data
    assert torch.equal(resumed, whole)


def test_a_chunk_that_is_damaged_or_of_another_place_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "ROOM", 24 * 40)
    model = MODELS["gpt2"]
    whole = sweep(model, TOKENS, residual(edits.zero()), METRICS["loss"], resume=tmp_path / "a").values.data
    sweep(model, CLEAN, residual(edits.zero()), METRICS["loss"], resume=tmp_path / "b")
    paths = sorted((tmp_path / "a").glob("values-*"))
    assert len(paths) > 3
    flipped = bytearray(paths[0].read_bytes())
    flipped[-2] ^= 1
    paths[0].write_bytes(flipped)
    paths[1].write_bytes(paths[1].read_bytes()[:-5])
    paths[2].write_bytes((tmp_path / "b" / paths[2].name).read_bytes())
    paths[3].write_bytes(paths[-1].read_bytes())
    with pytest.warns(ChunkDamaged) as said:
        again = sweep(model, TOKENS, residual(edits.zero()), METRICS["loss"], resume=tmp_path / "a").values.data
    assert torch.equal(again, whole) and len([one for one in said if one.category is ChunkDamaged]) == 4
    assert all("computed again" in str(one.message) for one in said)
    sweep(model, TOKENS, residual(edits.zero()), METRICS["loss"], resume=tmp_path / "a")  # mended: no warning


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    model = MODELS["gpt2"]
    sweep(model, TOKENS, heads(), METRICS["loss"], resume=tmp_path)
    kept = (tmp_path / "plan.json").read_text()
    with pytest.raises(CheckpointError, match="other tokens"):
        sweep(model, CLEAN, heads(), METRICS["loss"], resume=tmp_path)
    with pytest.raises(CheckpointError, match="other edits and metric"):
        sweep(model, TOKENS, heads(edits.scale(2.0)), METRICS["loss"], resume=tmp_path)
    for written, words in (("{", "it is not JSON"), ("[]", "plan of a sweep")):
        (tmp_path / "plan.json").write_text(written)
        with pytest.raises(CheckpointError, match=words):
            sweep(model, TOKENS, heads(), METRICS["loss"], resume=tmp_path)
    (tmp_path / "plan.json").write_text(kept)
    with pytest.raises(CheckpointError, match="other model"):
        sweep(network("gpt2", seed=5), TOKENS, heads(), METRICS["loss"], resume=tmp_path)
