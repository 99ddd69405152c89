"""Only a circuit, as edits: the same numbers as the circuit's own run, wherever edits go, with other edits within it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from cutaway.analysis.ablation import ablate_heads
from cutaway.circuits.attribution import edge_attribution
from cutaway.circuits.circuit import Circuit
from cutaway.circuits.measuring import CircuitRunner, run_circuit
from cutaway.circuits.searching import find_circuit
from cutaway.errors import ConfigError, ShapeError
from cutaway.runs import metrics
from cutaway.runs.editing import edited, run
from cutaway.runs.edits import add, patch, zero
from cutaway.runs.sweep import sweep
from tests.architectures import ALL, network, some_tokens

CLEAN, CORRUPTED = some_tokens(seed=1), some_tokens(seed=2)
METRIC = metrics.logit_difference([1, 2, 3], [4, 5, 6])
ABLATIONS = ("resample", "mean", "mean over positions", "zero")


def half(model: Any, seed: int = 0, ablation: str = "resample") -> Circuit:
    """Every second edge, drawn at random."""
    edges = torch.rand(Circuit.of(model, []).edges.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    prompts = {"clean": CLEAN, "corrupted": CORRUPTED, "over": CLEAN}
    return Circuit.of(model, edges, ablation=ablation, prompts=prompts)


def of_circuit(model: Any, circuit: Circuit) -> torch.Tensor:
    return run_circuit(model, CLEAN, CORRUPTED, circuit.edges, ablation=circuit.ablation)


@pytest.mark.parametrize(
    ("name", "ablation"), [*itertools.product(ALL, ("resample",)), *itertools.product(("llama", "gemma"), ABLATIONS[1:])]
)
def test_a_run_with_only_the_circuit_is_the_run_of_the_circuit(name: str, ablation: str) -> None:
    model = network(name)
    circuit = half(model, ablation=ablation)
    done = run(model, CLEAN, edits=[circuit.only()], metric=METRIC)
    torch.testing.assert_close(done.logits, of_circuit(model, circuit), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(done.value, METRIC(done.logits))
    assert model.list_hooks() == {}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_a_search_finds_runs_as_it_was_measured(name: str) -> None:
    model = network(name)
    runner = CircuitRunner(model, CLEAN, CORRUPTED, METRIC)
    found = find_circuit(runner, edge_attribution(model, CLEAN, CORRUPTED, METRIC), size=40)
    value = run(model, CLEAN, edits=found, metric=METRIC).value
    assert value is not None
    assert runner.share(value.double()) == pytest.approx(found.about["recovered"], abs=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "gpt-j", "bloom"])
def test_all_edges_are_the_network_with_whatever_else_is_edited(name: str) -> None:
    """In the circuit of all edges every other edit does what it does without."""
    model = network(name)
    whole = Circuit.of(model, Circuit.of(model, []).graph.mask)
    only = whole.only(CLEAN, CORRUPTED)
    shift = torch.randn(24, generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(CORRUPTED)
    edits = [
        zero().at(("z", 0), heads=2), zero().at(("result", 1), heads=0), zero().at(("pattern", 1), heads=3, positions=[4]),
        patch(cache).at(("q", 1), heads=1), add(shift).at(("resid_pre", 1), positions=[2, 5]), add(shift).at(("attn_out", 0)),
        zero().at(("mlp_out", 0)), add(shift).at(("mlp_in", 1)), add(shift).at("hook_embed"), add(shift).at(("resid_post", 1)),
        zero().at(("post", 0), neurons=[1, 2]), add(shift).at(("attn_out", 1), positions=[8]),
    ]  # fmt: skip
    for edit in edits:
        plain = run(model, CLEAN, edits=[edit]).logits
        for order in ([only, edit], [edit, only]):
            torch.testing.assert_close(run(model, CLEAN, edits=order).logits, plain, rtol=1e-3, atol=2e-3, msg=edit.label)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_edit_travels_along_the_circuits_edges_alone(name: str) -> None:
    model = network(name)
    circuit = Circuit.of(model, [("embed", "0.1.v"), ("0.1", "1.2.v"), ("1.2", "logits")], ablation="zero")
    before = run(model, CLEAN, edits=circuit).logits
    outside, inside = (run(model, CLEAN, edits=[circuit, zero().at(("z", 0), heads=head)]).logits for head in (0, 1))
    torch.testing.assert_close(outside, before)
    assert not torch.allclose(inside, before, atol=1e-3)
    less = Circuit.of(model, [("embed", "0.1.v"), ("1.2", "logits")], ablation="zero")
    torch.testing.assert_close(inside, run(model, CLEAN, edits=less).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "no norm, shortformer"])
def test_a_cell_of_a_sweep_is_the_run(name: str) -> None:
    model = network(name)
    circuit, edit = half(model), zero().at(("z", 0), heads=2)
    found = sweep(model, CLEAN, [circuit, [circuit, edit]], METRIC)
    for row, edits in enumerate(([circuit], [circuit, edit])):
        torch.testing.assert_close(found.values.data[row], run(model, CLEAN, edits=edits, metric=METRIC).value)


def test_analyses_ask_the_circuit() -> None:
    """Ablating each head of the circuit, in batches of few examples, is ablating it by hand."""
    model = network("llama")
    circuit = half(model)
    with edited(model, circuit):
        found = ablate_heads(model, CLEAN, METRIC, kinds=["zero"], sites=["z"], memory=2_000_000)
    base = run(model, CLEAN, edits=circuit, metric=METRIC).value
    by_hand = run(model, CLEAN, edits=[circuit, zero().at(("z", 1), heads=3)], metric=METRIC).value
    assert base is not None and by_hand is not None
    torch.testing.assert_close(found.clean.data, base)
    assert found.increases()["1.3"] == pytest.approx(float((by_hand - base).mean()), abs=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_a_generation_goes_on_within_the_circuit(name: str, ablation: str) -> None:
    model = network(name)
    circuit = half(model, ablation=ablation)
    tokens, source = CLEAN, CORRUPTED
    for _ in range(4):
        last = run_circuit(model, tokens, source, circuit.edges, ablation=ablation)[:, -1].argmax(-1, keepdim=True)
        tokens, source = torch.cat([tokens, last], 1), torch.cat([source, last], 1)
    for kept in (True, False):
        options: dict[str, Any] = {"do_sample": False, "stop_at_eos": False, "verbose": False, "use_past_kv_cache": kept}
        assert torch.equal(model.generate(CLEAN, 4, edits=circuit, **options), tokens)


def test_rows_find_their_counterparts() -> None:
    model = network("gpt2")
    circuit = half(model)
    whole = run(model, CLEAN, edits=circuit).logits
    torch.testing.assert_close(run(model, CLEAN[[2, 0]], edits=circuit).logits, whole[[2, 0]])
    with pytest.raises(ShapeError, match="row 1 of the run is none of the 3 prompts"):
        run(model, torch.cat([CLEAN[:1], CORRUPTED[:1]]), edits=circuit)


def test_a_circuit_comes_back_with_its_prompts(tmp_path: Any) -> None:
    model = network("gpt2")
    circuit = half(model)
    circuit.save(tmp_path / "circuit.json")
    again = Circuit.load(tmp_path / "circuit.json", model)
    torch.testing.assert_close(run(model, CLEAN, edits=again).logits, run(model, CLEAN, edits=circuit).logits)


def test_gradients_pass() -> None:
    model = network("llama")
    with edited(model, half(model)):
        METRIC(model(CLEAN)).sum().backward()
    assert all(bool(one.grad.isfinite().all()) for one in model.parameters() if one.grad is not None)
    assert model.blocks[0].attn.W_O.grad is not None


def test_what_would_do_nothing_is_refused() -> None:
    model = network("llama")
    circuit = half(model)
    with pytest.raises(ConfigError, match=r"'blocks.0.attn.hook_k' has no effect within a circuit"):
        run(model, CLEAN, edits=[circuit, zero().at(("k", 0), heads=0)])
    scale = ("blocks.1.ln1.hook_scale", lambda x, hook: x)
    with pytest.raises(ConfigError, match=r"ln1.hook_scale' has no effect"), model.hooks([scale]):
        run(model, CLEAN, edits=circuit)
    with pytest.raises(ConfigError, match="two circuits"):
        run(model, CLEAN, edits=[circuit, half(model, 1)])
    with pytest.raises(ShapeError, match="another model"):
        run(network("llama", seed=5), CLEAN, edits=circuit)
    bare = Circuit.of(model, circuit.edges)
    with pytest.raises(ShapeError, match="needs prompts and their counterparts"):
        run(model, CLEAN, edits=bare)
    with pytest.raises(ShapeError, match="do not align"):
        bare.only(CLEAN, CORRUPTED[:, :4])
    with pytest.raises(ShapeError, match="means need prompts"):
        bare.only(ablation="mean")
    with pytest.raises(ConfigError, match="did you mean 'zero'"):
        bare.only(ablation="zeros")
    with pytest.raises(ShapeError, match="over prompts of 5 tokens"):
        run(model, CLEAN, edits=bare.only(over=CLEAN[:, :5], ablation="mean"))
