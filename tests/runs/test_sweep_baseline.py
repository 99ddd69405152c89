"""The random baseline: random changes of the same size, the same however they run, and what results say of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import ConfigError, NotFinite
from cutaway.runs import edits, metrics
from cutaway.runs.sweep import Cells, Grid, SweepResult, heads, patterns, residual, scheduling, sweep
from cutaway.runs.sweep.baseline import random_cells
from cutaway.runs.sweep.cells import bind
from cutaway.runs.sweep.planning import plan
from tests.architectures import network, some_tokens
from tests.runs.test_sweep import CACHES, METRICS, MODELS, TOKENS, in_full

LENGTH = TOKENS.shape[1]
MODEL, CACHE = MODELS["gpt2"], CACHES["gpt2"]
VECTOR = torch.linspace(-1, 1, 24)


def cells_of(found: SweepResult, some: Any, seed: int = 0) -> Cells:
    """The baseline's cells, from the edits as they were given; means are to be given as values."""
    task = found.task
    assert task is not None and found.baseline is not None
    given = Cells.of(some, task.model.cfg, task.length)
    settled = bind(replace(task, cells=given))
    return random_cells(given, settled, found.baseline.values.shape[0], seed)


def assert_baseline(found: SweepResult, some: Any, metric: Any, tolerance: float = 1e-5) -> None:
    assert found.baseline is not None and found.task is not None
    values = found.baseline.values.data + found.clean.data
    expected = in_full(found.task.model, found.task.tokens, cells_of(found, some), metric)
    assert torch.equal(values.isnan(), expected.isnan())
    assert (values - expected).nan_to_num().abs().max() <= tolerance * expected.nan_to_num().abs().max().clamp(min=0.1)


GRIDS: dict[str, Any] = {
    "heads": heads(),
    "heads by queries": heads(edits.scale(0.5), "q"),
    "keys at examples": Grid(edits.zero(), "k", ("layer",), where={"examples": [0, 2], "positions": [7, 2, 5]}),
    "stream": residual(edits.add(VECTOR, 3.0)),
    "results": Grid(edits.zero(), "result", ("layer", "head"), where={"positions": [1, 5]}),
    "patterns": patterns(edits.zero(), ("layer", "head", "dest")),
    "pattern columns": Grid(edits.zero(), "pattern", ("layer", "src"), where={"heads": [0, 2], "positions": [8, 3]}),
    "scores": Grid(edits.scale(2.0), "attn_scores", ("layer", "head")),
    "neurons": Grid(edits.zero(), "post", ("layer", "neuron"), {"neuron": [0, 5]}),
    "norm scale": [edits.scale(1.5).at("ln_final.hook_scale")],
    "several": [
        [edits.zero().at(("z", 0), heads=head, positions=[2, 3]), edits.scale(0.5).at(("mlp_out", 1), examples=1)]
        for head in range(3)
    ],
    "patterns and streams": [
        [edits.zero().at(("pattern", 0), heads=1, positions=[7, 4]), edits.add(VECTOR).at(("resid_pre", 1))],
        [edits.zero().at(("pattern", 1), sources=0), edits.zero().at(("attn_out", 0), positions=5)],
    ],
}


@pytest.mark.parametrize("which", GRIDS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "bidirectional"])
def test_random_cells_equal_the_same_edits_in_full_forward_passes(name: str, which: str) -> None:
    for metric in (METRICS["difference"], METRICS["loss by position"]):
        found = sweep(MODELS[name], TOKENS, GRIDS[which], metric, baseline=6)
        assert_baseline(found, GRIDS[which], metric)
        assert found.audit.difference < 1e-5


def test_how_examples_and_cells_are_cut_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = MODELS["llama"], some_tokens(20, LENGTH, seed=4)
    metric = metrics.loss(tokens)
    cells = [
        edits.zero().at(("v", 1), heads=1), edits.add(torch.ones(24)).at("resid_pre1", examples=[0, 19]),
        edits.replace(torch.randn(20, 1, 4, 6)).at(("z", 1)), edits.replace(torch.randn(2, 1, 1, 6)).at("z1", examples=[1, 17]),
        [edits.zero().at("z0", heads=2), edits.zero().at("pattern1", heads=2, positions=[3, 8])],
    ]  # fmt: skip
    whole = sweep(model, tokens, cells, metric, baseline=7)
    assert_baseline(whole, cells, metric)
    monkeypatch.setattr(scheduling, "ROOM", 24 * 9)
    cut = sweep(model, tokens, cells, metric, baseline=7)
    assert whole.baseline is not None and cut.baseline is not None
    torch.testing.assert_close(cut.baseline.values.data, whole.baseline.values.data, rtol=1e-4, atol=1e-5)
    assert whole.audit.difference < 1e-5 and cut.audit.difference < 1e-5 and len(cut.audit.cells) == 4


@pytest.mark.parametrize("where", [{"heads": 2}, {"heads": [0, 3], "positions": [5, 1]}, {"examples": [2], "positions": -1}, {}])
def test_a_random_change_is_as_large_as_the_change_and_points_elsewhere(where: dict[str, Any]) -> None:
    z = CACHE["z", 1]
    own = edits.zero().at("z1", **where).apply(z, MODEL.cfg) - z
    one, other = (edits.random(edits.zero(), seed).at("z1", **where).apply(z, MODEL.cfg) - z for seed in (0, 1))
    torch.testing.assert_close(one.flatten(2).norm(dim=-1), own.flatten(2).norm(dim=-1), rtol=1e-4, atol=1e-6)
    changed = own.flatten(2).norm(dim=-1) > 0
    for another in (own, other, one.roll(1, 1), one.roll(1, 0)):
        cosine = torch.cosine_similarity(one.flatten(2), another.flatten(2), dim=-1)[changed]
        assert (cosine.abs() < 0.999).all()


def test_a_part_of_a_run_is_given_its_own_numbers() -> None:
    z = CACHE["z", 1]
    bound = edits.random(edits.zero()).at("z1", positions=[1, 6, 4], examples=[2, 0]).bind(MODEL.cfg, *TOKENS.shape)
    whole = bound.applied(z)
    later = z[:, 3:].clone()
    bound.write(later, range(3, TOKENS.shape[1]), None)
    torch.testing.assert_close(later, whole[:, 3:])
    local = bound.local(1, 3)
    assert local is not None
    torch.testing.assert_close(local.applied(z[1:3]), whole[1:3])
    again = local.local(1, 2)
    assert again is not None
    torch.testing.assert_close(again.applied(z[2:3]), whole[2:3])


def test_means_of_the_sweeps_own_and_held_values() -> None:
    own = CACHES["gpt2"]
    clean = MODEL.run_with_cache(TOKENS)[1]
    found = sweep(MODEL, TOKENS, heads(edits.mean()), METRICS["difference"], baseline=5)
    assert_baseline(found, heads(edits.mean(clean)), METRICS["difference"])
    held = [[edits.patch(own).at(("resid_pre", 0), positions=3), edits.freeze().at(("z", 1), heads=[1, 2])]]
    both = sweep(MODEL, TOKENS, held, METRICS["difference"], baseline=1)
    given = [[held[0][0], edits.freeze(clean).at(("z", 1), heads=[1, 2])]]
    assert_baseline(both, given, METRICS["difference"])
    assert both.baseline is not None and both.baseline.values.names("cell")[0].count("random") == 1
    nothing = sweep(MODEL, TOKENS, [edits.freeze().at("z1")], METRICS["difference"], baseline=2).baseline
    assert nothing is not None and float(nothing.values.data.abs().max()) == 0
    other = sweep(MODEL, TOKENS, [edits.freeze(own).at("z1")], METRICS["difference"], baseline=2).baseline
    assert other is not None and float(other.values.data.abs().min()) > 0


def test_without_a_baseline_the_bits_are_the_same() -> None:
    plain = sweep(MODEL, TOKENS, residual(edits.patch(CACHE)), METRICS["loss"])
    found = sweep(MODEL, TOKENS, residual(edits.patch(CACHE)), METRICS["loss"], baseline=4)
    assert torch.equal(plain.values.data, found.values.data)
    assert plain.baseline is None and "baseline" not in plain.options and "random" not in plain.summary()


@pytest.mark.parametrize("method", ["exact", "screen", "gradient"])
@pytest.mark.parametrize("metric", [METRICS["difference"], METRICS["loss by position"], lambda logits: logits[:, -1, 3].mean()])
def test_a_result_says_what_random_changes_do(method: str, metric: Any) -> None:
    seen: list[tuple[float, float]] = []
    found = sweep(
        MODEL, TOKENS, heads(), metric, method=method, top=3, baseline=10, seed=4,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    base = found.baseline
    assert base is not None
    if method != "gradient":
        assert len(found.audit.cells) == 4 and found.audit.difference < 1e-5
        assert seen[-1][0] == pytest.approx(seen[-1][1]) and len({total for _, total in seen}) == 1
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert base.values.shape[0] == 10 and len(set(base.values.names("cell"))) == 10  # of 8 cells: two are drawn again
    sizes = sorted(abs(float(one.nanmean())) for one in base.values.data)
    assert base.median == pytest.approx(sizes[4], rel=1e-4)  # the lower of the two in the middle
    assert sizes[8] < base.high < sizes[9]
    assert base.larger == int((found.table(effects=True).abs() > base.high).sum()) and base.cells == 8
    assert f"10 random changes of the same size: median {base.median:.4g}" in found.summary()
    assert f"{base.larger} of 8 edits change more than that" in found.summary()
    written = json.loads(json.dumps(found.to_json()))["baseline"]
    assert written["high"] == base.high and written["values"]["labels"]["cell"][0].startswith("random zero blocks.")
    assert base.figure().to_json()


def test_the_figure_of_one_axis_marks_the_baseline() -> None:
    found = sweep(MODEL, TOKENS, [edits.zero().at("z0"), edits.zero().at("z1")], METRICS["difference"], baseline=3)
    assert found.baseline is not None
    marks = dict(found.figure().meta["references"])
    assert sorted(marks.values()) == [pytest.approx(-found.baseline.high), pytest.approx(found.baseline.high)]


def test_a_resumed_sweep_has_the_same_baseline(tmp_path: Path) -> None:
    def run(folder: Path | None, **more: Any) -> SweepResult:
        return sweep(MODEL, TOKENS, heads(edits.mean()), METRICS["loss"], resume=folder, baseline=5, **more)

    whole = run(None)
    first = run(tmp_path)
    kept = sorted(tmp_path.glob("**/values-*"))
    assert len(kept) == 2
    (of_baseline,) = (path for path in kept if path.parent != tmp_path)
    of_baseline.unlink()
    resumed = run(tmp_path, audit=0)
    written = of_baseline.stat().st_mtime_ns  # this run had to compute the baseline again
    run(tmp_path, audit=0)
    assert of_baseline.stat().st_mtime_ns == written  # and this one had not
    for one in (first, resumed):
        assert one.baseline is not None and whole.baseline is not None
        assert torch.equal(one.values.data, whole.values.data)
        assert torch.equal(one.baseline.values.data, whole.baseline.values.data)
    other = run(tmp_path, seed=1).baseline
    assert other is not None and not torch.equal(other.values.data, first.baseline.values.data)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sweep(MODEL, TOKENS, [edits.function(lambda x: x).at("z0")], METRICS["loss"], baseline=1), ConfigError,
         "'function z0' is a function, .* or baseline=0"),
        (lambda: sweep(MODEL, TOKENS, heads(), METRICS["loss"], baseline=-1), ConfigError, "baseline is at least 0, not -1"),
        (lambda: edits.random(edits.mean()), ConfigError, "'mean' of the run itself; give it the values of another run"),
        (lambda: edits.random(edits.random(edits.zero())), ConfigError, "not 'random zero'"),
        (lambda: edits.random(edits.function(lambda x: x)), ConfigError, "not 'function'"),
        (lambda: sweep(MODEL, TOKENS, [edits.scale(2.0).at("ln_final.hook_scale")], METRICS["loss"], baseline=1), NotFinite,
         "cell 'random scale ln_final.hook_scale'"),
    ],
)  # fmt: skip
def test_what_has_no_random_counterpart_is_refused(call: Any, error: type[Exception], words: str) -> None:
    runs = MODEL.runs
    with pytest.raises(error, match=words):
        call()
    assert error is NotFinite or MODEL.runs == runs


@pytest.mark.parametrize("skip", ["all", "layers"])
def test_a_plan_counts_the_baseline_that_runs(skip: str) -> None:
    grids: list[Any] = [heads(edits.mean()), [edits.mean().at("z0", heads=1), edits.zero().at("resid_pre1", positions=8)]]
    for grid in grids:
        runs = MODEL.runs
        alone, both = (plan(MODEL, TOKENS, grid, METRICS["loss"], skip=skip, measure=False, baseline=n, seed=3) for n in (0, 6))
        assert MODEL.runs == runs
        found = sweep(MODEL, TOKENS, grid, METRICS["loss"], skip=skip, baseline=6, seed=3, audit=0)
        values = edits.mean(MODEL.run_with_cache(TOKENS)[1])
        given = heads(values) if grid is grids[0] else [values.at("z0", heads=1), grid[1]]
        beside = plan(MODEL, TOKENS, cells_of(found, given, 3), METRICS["loss"], skip=skip, measure=False)
        assert both.operations == pytest.approx(alone.operations + beside.operations)
        assert both.full_operations == pytest.approx(alone.full_operations * (1 + 6 / alone.cells))
        assert (both.cells, both.chunks, both.baseline) == (alone.cells, alone.chunks + beside.chunks, 6)
        assert "and 6 random changes in" in both.summary() and "random" not in alone.summary()
    with pytest.raises(ConfigError, match="is a function"):
        plan(MODEL, TOKENS, [edits.function(lambda x: x).at("z0")], METRICS["loss"], measure=False, baseline=1)


def test_random_edits_may_be_swept_themselves() -> None:
    grid = heads(edits.random(edits.patch(CACHE), 7))
    found = sweep(MODEL, TOKENS, grid, METRICS["difference"], baseline=2)
    expected = in_full(MODEL, TOKENS, grid, METRICS["difference"])
    torch.testing.assert_close(found.values.data.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    assert_baseline(found, grid, METRICS["difference"])


def test_lower_precision_has_a_baseline_too() -> None:
    found = sweep(network("gpt2"), TOKENS, heads(), METRICS["difference"], dtype=torch.bfloat16, baseline=4)
    full = sweep(MODEL, TOKENS, heads(), METRICS["difference"], baseline=4)
    assert found.baseline is not None and full.baseline is not None
    assert 1e-4 < found.audit.difference < 0.2
    assert (found.baseline.values.data - full.baseline.values.data).abs().max() < 0.2 * full.values.data.abs().max()
