"""Groups of prompts that look alike: a sweep in groups is the sweep of all rows together, and costs what its plan says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway import metrics
from cutaway.runs import edits
from cutaway.runs.grids import Grid, heads, residual
from cutaway.runs.places import own
from cutaway.runs.sweep import planning, sweep, sweeping
from cutaway.runs.sweep.layouts import parts_of
from cutaway.runs.sweep.options import task_of
from tests.architectures import flop_counter
from tests.test_unequal_texts import model_for
from tests.test_unequal_texts import padded as padded_rows

TEXTS = ["abcdefga", "abca", "cabcad", "bcab", "habcdefa"]
OTHERS = ["abcdefgh", "abcd", "cabhad", "bdab", "hebcdefb"]


def padded(model: Any, texts: list[str], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and 1 where they are real."""
    tokens, real = padded_rows(model, texts, side)
    return tokens, real.long()


def grids(cache: Any) -> dict[str, Grid | list[Any]]:
    put = edits.patch(cache)
    return {
        "stream": residual(put, layer=[0, 1]),
        "roles": [put.at(("resid_pre", layer), positions=own(at)) for layer in range(2) for at in (1, -1)],
        "heads": heads(put),
        "pattern": Grid(put, "pattern", ("layer", "head")),
        "keys at roles": [put.at(("k", 1), heads=0, positions=own(-2)), edits.zero().at(("z", 0), positions=own(1, -1))],
        "vectors": [edits.add(torch.ones(24)).at(("resid_post", layer), positions=own(-2)) for layer in range(2)],
        "two": [[put.at(("z", 0), heads=1, positions=own(-1)), put.at(("mlp_out", 1), positions=own(-1))]],
        "some": [put.at(("z", 0), examples=[1, 2, 4])],
        "elsewhere": residual(put, "attn_out", layer=[1], pos=[7]),  # a column that the shorter rows do not have
    }


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bidirectional"])
def test_groups_are_all_rows_together(kind: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_for(kind, side)
    tokens, real = padded(model, TEXTS, side)
    _, cache = model.run_with_cache(padded(model, OTHERS, side)[0], attention_mask=real)
    for metric in (metrics.log_probability([1] * len(TEXTS)), metrics.loss(by_position=True), metrics.kl()):
        for name, cells in grids(cache).items():
            if kind == "bidirectional" and metric.name == "loss":
                continue  # the next token is no secret there
            found = sweep(model, tokens, cells, metric, mask=real, audit=3)
            groups = len(parts_of(task_of(model, tokens, cells, metric, mask=real)))
            assert 2 <= groups <= 5, name
            with monkeypatch.context() as patched:
                patched.setattr(sweeping, "parts_of", lambda task: [])
                whole = sweep(model, tokens, cells, metric, mask=real, audit=0)
            torch.testing.assert_close(found.values.data, whole.values.data, rtol=1e-4, atol=1e-5, equal_nan=True)
            torch.testing.assert_close(found.clean.data, whole.clean.data, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_plan_of_groups_counts_what_torch_counts() -> None:
    model = model_for("llama", "right")
    tokens, real = padded(model, TEXTS, "right")
    metric = metrics.log_probability([1] * len(TEXTS))
    for cells in ([edits.scale(0.5).at(("resid_pre", 1), positions=own(at)) for at in (1, -1)], heads(edits.scale(0.5))):
        planned = planning.plan(model, tokens, cells, metric, mask=real, measure=False)
        with torch.no_grad(), flop_counter() as counter:
            sweep(model, tokens, cells, metric, mask=real, audit=0)
        assert counter.get_total_flops() == planned.operations
        assert planned.cells == sum(planned.ways.values()) and planned.batches == len(planned.parts) == 3
        numbers = {cell.number for _, _, cell, *_ in planned.steps()}
        assert numbers == set(range(planned.cells)) and {batch for batch, *_ in planned.steps()} == set(range(3))


def test_what_is_the_same_in_each_row_is_no_edit_in_groups() -> None:
    """Patching from prompts that differ late costs nothing at roles before: what roles of all rows together hide."""
    model = model_for("gpt2", "right")
    tokens, real = padded(model, TEXTS, "right")
    _, cache = model.run_with_cache(padded(model, OTHERS, "right")[0], attention_mask=real)
    metric, put = metrics.log_probability([1] * len(TEXTS)), edits.patch(cache)
    early, late = ([put.at(("resid_pre", 0), positions=own(at))] for at in (1, -1))
    with torch.no_grad():
        costs = []
        for cells in (early, late):
            with flop_counter() as counter:
                sweep(model, tokens, cells, metric, mask=real, audit=0)
            costs.append(counter.get_total_flops())
    clean = planning.plan(model, tokens, [put.at(("z", 1), positions=own(0))], metric, mask=real, measure=False)
    assert costs[0] < costs[1] and costs[0] <= clean.operations


def test_a_resumed_sweep_in_groups_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_for("gpt2", "right")
    tokens, real = padded(model, TEXTS, "right")
    _, cache = model.run_with_cache(padded(model, OTHERS, "right")[0], attention_mask=real)
    metric = metrics.log_probability([1] * len(TEXTS))
    cells = heads(edits.patch(cache))
    once = sweep(model, tokens, cells, metric, mask=real, resume=tmp_path)
    files = sorted(tmp_path.rglob("values-*"))
    assert len(files) >= 3
    files[-1].unlink()
    again = sweep(model, tokens, cells, metric, mask=real, resume=tmp_path)
    plain = sweep(model, tokens, cells, metric, mask=real)
    assert torch.equal(once.values.data, again.values.data) and torch.equal(once.values.data, plain.values.data)
