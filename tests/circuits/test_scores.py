"""Scores of circuits, beside small implementations of their definitions."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from cutaway.circuits.attribution import edge_attribution
from cutaway.circuits.circuit import Circuit
from cutaway.circuits.graph import Graph
from cutaway.circuits.scoring import faithfulness, recovery, roc_area
from cutaway.errors import ShapeError
from cutaway.runs import metrics
from cutaway.runs.editing import run
from tests.architectures import network, some_tokens

CLEAN, CORRUPTED = some_tokens(seed=1), some_tokens(seed=2)
METRIC = metrics.logit_difference([1, 2, 3], [4, 5, 6])
MIB = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@pytest.mark.parametrize("name", ["attention only", "llama"])
def test_faithfulness_completeness_cpr_and_cmd_are_their_definitions(name: str) -> None:
    """By ordinary runs with the circuit as an edit; areas over MIB's percentages, by trapezoids."""
    model = network(name)
    scores = edge_attribution(model, CLEAN, CORRUPTED, METRIC)
    found = faithfulness(model, CLEAN, CORRUPTED, METRIC, scores, draws=1)
    ranked = sorted(Graph(model.cfg).mask.nonzero().tolist(), key=lambda at: -abs(float(scores.values.data[at[0], at[1]])))
    whole, none = (METRIC(model(tokens)).mean().item() for tokens in (CLEAN, CORRUPTED))

    def share(places: list[list[int]]) -> float:
        edges = torch.zeros_like(Graph(model.cfg).mask)
        for writer, reader in places:
            edges[writer, reader] = True
        circuit = Circuit.of(model, edges, prompts={"clean": CLEAN, "corrupted": CORRUPTED})
        value = run(model, CLEAN, edits=circuit, metric=METRIC).value
        assert value is not None
        return (float(value.mean()) - none) / (whole - none)

    heights = [share(ranked[: int(part * len(ranked))]) for part in MIB]
    for part, height in zip(MIB, heights, strict=True):
        at = found.sizes.index(int(part * len(ranked)))
        assert float(found.values.sel(curve="faithful").data[at]) == pytest.approx(height, abs=1e-3)
        assert float(found.values.sel(curve="without").data[at]) == pytest.approx(share(ranked[found.sizes[at] :]), abs=1e-3)

    def area(values: list[float]) -> float:
        return sum((MIB[i + 1] - MIB[i]) * (values[i] + values[i + 1]) / 2 for i in range(len(MIB) - 1))

    assert found.cpr == pytest.approx(area(heights), abs=1e-3)
    assert found.cmd == pytest.approx(area([abs(1 - height) for height in heights]), abs=1e-3)


def test_areas_of_other_sizes_are_over_their_own_shares() -> None:
    model = network("attention only")
    scores = edge_attribution(model, CLEAN, CORRUPTED, METRIC, steps=1)
    found = faithfulness(model, CLEAN, CORRUPTED, METRIC, scores, sizes=[0, 10, found_all := Graph(model.cfg).size], draws=1)
    low, middle, high = found.values.sel(curve="faithful").data.tolist()
    expected = (10 * (low + middle) + (found_all - 10) * (middle + high)) / 2 / found_all
    assert found.cpr == pytest.approx(expected) and found.smallest(2.0) in (None, *found.sizes)


def test_areas_under_roc_count_pairs() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40,), generator=draw).float()  # with ties
    truth = torch.rand(40, generator=draw) < 0.3
    pairs = list(product(scores[truth].tolist(), scores[~truth].tolist()))
    assert roc_area(scores, truth) == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))
    assert roc_area(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, True, False])) == 1.0
    with pytest.raises(ShapeError, match="true and some"):
        roc_area(torch.tensor([1.0]), torch.tensor([True]))


def test_a_known_circuit_is_recovered_by_size_and_not_by_noise() -> None:
    graph, draw = Graph(network("gpt2").cfg), torch.Generator().manual_seed(0)
    truth = graph.mask & (torch.rand(graph.mask.shape, generator=draw) < 0.1)
    planted = torch.where(truth, -2.0, 0.5).masked_fill(~graph.mask, torch.nan)  # signs do not count
    assert recovery(graph, planted, truth).edges == 1.0
    noise = [recovery(graph, torch.randn(graph.mask.shape, generator=draw), truth).edges for _ in range(40)]
    assert sum(noise) / len(noise) == pytest.approx(0.5, abs=0.05)
