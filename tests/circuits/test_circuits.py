"""Edges and circuits at their two ends, beside plain hooks, and where the truth is known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from cutaway import programs
from cutaway.analysis.paths import path_patch
from cutaway.circuits import attribution, effects
from cutaway.circuits.attribution import edge_attribution, largest
from cutaway.circuits.circuit import Circuit, jaccard
from cutaway.circuits.components import written
from cutaway.circuits.effects import edge_effects
from cutaway.circuits.graph import Graph
from cutaway.circuits.measuring import CircuitRunner, run_circuit
from cutaway.circuits.scoring import faithfulness
from cutaway.circuits.searching import find_circuit
from cutaway.circuits.stable_edges import stability
from cutaway.errors import NotExact, ShapeError
from cutaway.programs.compiler import compile_program
from cutaway.runs import metrics
from tests.architectures import ALL, network, some_tokens
from tests.programs.inputs import rows_of

CLEAN, CORRUPTED = some_tokens(seed=1), some_tokens(seed=2)
METRIC = metrics.logit_difference([1, 2, 3], [4, 5, 6])
EVERY = list(ALL)


@pytest.mark.parametrize("name", EVERY)
def test_what_writers_add_sums_to_the_stream(name: str) -> None:
    model = network(name)
    now = written(model, CLEAN)
    _, cache = model.run_with_cache(CLEAN)
    for layer in range(model.cfg.n_layers):
        torch.testing.assert_close(now.stream(layer), cache["resid_pre", layer], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(now.stream(layer + 1), cache["resid_post", layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "ablation"), [*((name, "resample") for name in EVERY), *itertools.product(("llama", "gemma"), ("mean", "zero"))]
)
def test_the_circuit_of_all_edges_is_the_clean_run(name: str, ablation: str) -> None:
    model = network(name)
    every = run_circuit(model, CLEAN, CORRUPTED, Graph(model.cfg).mask, ablation=ablation)
    torch.testing.assert_close(every, model(CLEAN), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", EVERY)
def test_the_empty_circuit_is_the_corrupted_run(name: str) -> None:
    model = network(name)
    none = run_circuit(model, CLEAN, CORRUPTED, torch.zeros_like(Graph(model.cfg).mask))
    torch.testing.assert_close(none, model(CORRUPTED), rtol=1e-3, atol=1e-3)
    assert model.list_hooks() == {}


@pytest.mark.parametrize(
    ("name", "ablation"),
    [*((name, "resample") for name in EVERY), *itertools.product(("llama", "gemma"), ("mean", "mean over positions", "zero"))],
)
def test_an_edge_ablated_by_a_sweep_is_the_circuit_without_it(name: str, ablation: str) -> None:
    model = network(name)
    graph = Graph(model.cfg)
    chosen = [("embed", "0.1.q"), ("0.2", "1.0.k"), ("0.3", "1.2.v"), ("0.1", "logits")]
    chosen += [] if model.cfg.attn_only else [("embed", "0.mlp"), ("0.mlp", "1.3.q"), ("1.0", "1.mlp")]
    chosen = [one for one in chosen if graph.mask[graph.writers.index(one[0]), graph.readers.index(one[1])]]
    found = edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=chosen, ablation=ablation)
    for edge in chosen:
        less = graph.mask.clone()
        less[graph.edge(*edge)] = False
        logits = run_circuit(model, CLEAN, CORRUPTED, less, ablation=ablation)
        expected = (METRIC(logits) - METRIC(model(CLEAN))).double()
        torch.testing.assert_close(found.each[(slice(None), *graph.edge(*edge))], expected, rtol=1e-2, atol=2e-3)
    assert found.audit.difference < 1e-4


@pytest.mark.parametrize("name", ["attention only", "gpt2", "llama"])
def test_edges_into_the_logits_are_paths(name: str) -> None:
    model = network(name)
    effects = edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=[("0.1", "1.2.k"), ("0.3", "logits")])
    for sender, receiver in (("0.1", "1.2.k"), ("0.3", "logits")):
        if model.cfg.kv_heads != model.cfg.n_heads and receiver != "logits":
            continue  # path patching changes the keys that a whole group of heads shares
        path = path_patch(model, CLEAN, CORRUPTED, METRIC, senders=[sender], receivers=[receiver])
        mine = effects.values.sel(writer=sender, reader=receiver).data
        torch.testing.assert_close(mine.float(), path.averages().data[0, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("steady", "said"), [(True, "downstream='recomputed', and report it"), (False, "draws at random")])
def test_a_failed_audit_says_what_to_do(steady: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    each, whole = effects.DirectEffects.each, effects.sweep

    def off(self: Any, *given: Any) -> Any:
        yield from ((writers, reader, changes + 1.0) for writers, reader, changes in each(self, *given))

    def other(*given: Any, **more: Any) -> Any:
        found = whole(*given, **more)
        return found if steady else replace(found, values=replace(found.values, data=found.values.data + torch.rand(())))

    monkeypatch.setattr(effects.DirectEffects, "each", off)
    monkeypatch.setattr(effects, "sweep", other)
    with pytest.raises(NotExact, match=said):
        edge_effects(network("gpt2"), CLEAN, CORRUPTED, METRIC, downstream="frozen")


def test_frozen_effects_pass_through_nothing_else() -> None:
    """By hand: the reader's node reads the change, and what it writes more goes straight to the logits."""
    model = network("gpt2")
    graph, now, other = Graph(model.cfg), written(model, CLEAN), written(model, CORRUPTED)
    found = edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=[("0.1", "0.mlp")], downstream="frozen")
    place = graph.edge("0.1", "0.mlp")
    block = model.blocks[0]
    reads = now.stream(0, mlp=True) + (other.parts - now.parts)[place[0]]
    change = block.mlp(block.ln2(reads)) - now.parts[graph.mlp(0)]
    logits = model.logits_of(now.stream(2) + change)
    torch.testing.assert_close(
        found.each[:, place[0], place[1]].float(), METRIC(logits) - METRIC(model(CLEAN)), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("name", EVERY)
def test_frozen_effects_are_those_of_whole_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All writers of a reader at once, and each edge by itself in a run of its own."""
    model = network(name)
    corrupted = torch.cat([CLEAN[:, :2], CORRUPTED[:, 2:]], 1)
    for metric in (METRIC, metrics.kl([3, -1])):
        at_once = edge_effects(model, CLEAN, corrupted, metric, downstream="frozen")
        with monkeypatch.context() as patched:
            patched.setattr(effects, "by_head_alone", lambda model: False)
            chosen = Graph(model.cfg).mask & (torch.rand(at_once.unseen.shape, generator=torch.Generator().manual_seed(0)) < 0.2)
            apart = edge_effects(model, CLEAN, corrupted, metric, edges=chosen, downstream="frozen")
        torch.testing.assert_close(at_once.each[:, chosen], apart.each[:, chosen], rtol=1e-3, atol=1e-4)


def test_positions_are_ablated_apart() -> None:
    model = network("gpt2")
    edge = [("0.1", "logits")]
    early, last, whole = (
        edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=edge, positions=at).values.sel(writer="0.1", reader="logits").data
        for at in ([0, 1], [-1], None)
    )
    assert abs(float(early)) < 1e-5 and float(last) == pytest.approx(
        float(whole), rel=1e-4
    )  # the logits of the last position are read


# Scores.


def by_hooks(model: Any, edges: list[tuple[str, str]], steps: int) -> dict[tuple[str, str], float]:
    """EAP-IG as its authors define it, with plain hooks on a network whose heads have keys and values of their own."""
    model.set_ungroup_grouped_query_attention(True)
    model.set_use_split_qkv_input(True)
    if not model.cfg.attn_only:
        model.set_use_hook_mlp_in(True)
    with torch.no_grad():
        runs = [model.run_with_cache(tokens)[1] for tokens in (CLEAN, CORRUPTED)]
    start = [run["resid_pre", 0] for run in runs]

    def wrote(run: Any, writer: str) -> torch.Tensor:
        if writer == "embed":
            return run["hook_embed"]
        layer, part = writer.split(".")
        if part == "mlp":
            return run["mlp_out", int(layer)]
        return run["z", int(layer)][:, :, int(part)] @ model.W_O[int(layer), int(part)]

    total = dict.fromkeys(edges, 0.0)
    for step in range(steps):
        grads: dict[str, torch.Tensor] = {}

        def begin(x: torch.Tensor, hook: Any, share: float = step / steps) -> torch.Tensor:
            return (start[1] + share * (start[0] - start[1])).detach().requires_grad_()

        def keep(grad: torch.Tensor, hook: Any, grads: dict[str, torch.Tensor] = grads) -> None:
            grads[hook.name] = grad.clone()

        def is_input(name: str) -> bool:
            return name.endswith(("_input", "mlp_in")) or name == f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"

        with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", begin)], bwd_hooks=[(is_input, keep)]):
            METRIC(model(CORRUPTED)).sum().backward()
        for writer, reader in edges:
            if reader == "logits":
                grad = grads[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
            elif reader.endswith("mlp"):
                grad = grads[f"blocks.{reader[0]}.hook_mlp_in"]
            else:
                grad = grads[f"blocks.{reader[0]}.hook_{reader[-1]}_input"][:, :, int(reader.split(".")[1])]
            total[writer, reader] += (
                float(((wrote(runs[0], writer) - wrote(runs[1], writer)) * grad).sum().detach()) / steps / len(CLEAN)
            )
    return total


@pytest.mark.parametrize("name", ["attention only", "gpt2", "llama", "mixture", "gpt-j", "split inputs"])
def test_scores_are_those_of_plain_hooks(name: str) -> None:
    model = network(name)
    graph = Graph(model.cfg)
    places = graph.mask.nonzero()[torch.randperm(graph.size, generator=torch.Generator().manual_seed(0))[:50]].tolist()
    edges = [(graph.writers[w], graph.readers[r]) for w, r in places if graph.writers[w] != "pos_embed"]
    scores = edge_attribution(model, CLEAN, CORRUPTED, METRIC, steps=3)
    expected = by_hooks(network(name), edges, steps=3)
    for edge, value in expected.items():
        assert float(scores.values.sel(writer=edge[0], reader=edge[1]).data) == pytest.approx(value, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("path", ["inputs", "activations"])
@pytest.mark.parametrize("name", EVERY)
def test_scores_are_finite_and_stand_where_edges_are(name: str, path: str) -> None:
    model = network(name)
    scores = edge_attribution(model, CLEAN, CORRUPTED, METRIC, steps=2, path=path)
    assert torch.equal(scores.values.data.isnan(), ~Graph(model.cfg).mask)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_scores_are_exact_where_the_network_is_linear() -> None:
    model = network("no norm, shortformer")
    effects = edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=[(w, "logits") for w in Graph(model.cfg).writers])
    for path in ("inputs", "activations"):
        scores = edge_attribution(model, CLEAN, CORRUPTED, METRIC, steps=1, path=path)
        own = scores.values.sel(reader="logits").data
        torch.testing.assert_close(-own.double(), effects.values.sel(reader="logits").data, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", ["inputs", "activations"])
def test_more_steps_come_closer_to_the_truth(path: str) -> None:
    """Edges out of the embedding alone: their scores sum to the whole effect of the input, with enough steps."""
    model = network("attention only", n_layers=1)
    truth = (METRIC(model(CLEAN)) - METRIC(model(CORRUPTED))).mean().item()
    off = []
    for steps in (1, 4, 64):
        scores = edge_attribution(model, CLEAN, CORRUPTED, METRIC, steps=steps, path=path)
        off.append(abs(float(scores.values.sel(writer="embed").data.nansum()) - truth))
    assert off[2] < 0.05 * abs(truth) + 0.02 and off[2] < off[0]


@pytest.mark.parametrize("path", ["inputs", "activations"])
@pytest.mark.parametrize("name", EVERY)
def test_a_shared_beginning_changes_no_score(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that differ from a position on, another one in each row: runs begin there, and scores are those of whole runs."""
    model = network(name)
    corrupted = CLEAN.clone()
    for row, place in enumerate((6, 3, 6)):
        corrupted[row, place:] = CORRUPTED[row, place:] + (CORRUPTED[row, place:] == CLEAN[row, place:])
    corrupted %= 13
    shared = edge_attribution(model, CLEAN, corrupted, METRIC, steps=2, path=path)
    monkeypatch.setattr(attribution, "first_differences", lambda *_: torch.zeros(3, dtype=torch.long))
    whole = edge_attribution(model, CLEAN, corrupted, METRIC, steps=2, path=path)
    torch.testing.assert_close(shared.each, whole.each, equal_nan=True, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_counterparts_have_no_part_in_other_ablations(ablation: str) -> None:
    model, late = network("llama"), torch.cat([CLEAN[:, :4], CORRUPTED[:, 4:]], 1)
    given, none = (edge_attribution(model, CLEAN, one, METRIC, ablation=ablation, steps=1) for one in (late, None))
    torch.testing.assert_close(given.each, none.each, equal_nan=True)


def test_batches_change_nothing() -> None:
    model = network("llama")
    whole = edge_attribution(model, CLEAN, CORRUPTED, METRIC, steps=2)
    apart = edge_attribution(model, CLEAN, CORRUPTED, METRIC, steps=2, memory=1)
    torch.testing.assert_close(whole.each, apart.each, equal_nan=True, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.each.mean(0), whole.values.data, equal_nan=True)


# Curves, search, stability.


def test_faithfulness_goes_from_nothing_to_everything() -> None:
    model = network("attention only")
    scores = edge_attribution(model, CLEAN, CORRUPTED, METRIC)
    found = faithfulness(model, CLEAN, CORRUPTED, METRIC, scores, sizes=[0, 5, 20, Graph(model.cfg).size])
    curve = found.values.sel(curve="faithful").data
    assert float(curve[0]) == pytest.approx(0, abs=1e-4) and float(curve[-1]) == pytest.approx(1, abs=1e-4)
    assert float(found.values.sel(curve="without").data[0]) == pytest.approx(1, abs=1e-4)
    assert int(scores.circuit(5).sum()) == 5 and len(scores.top(3)) == 3
    assert "CPR" in found.summary() and found.figure().to_json() and scores.figure().to_json() and scores.summary()


@pytest.mark.parametrize("method", ["greedy", "backward", "both"])
def test_search_finds_a_circuit_that_recovers_what_is_wanted(method: str) -> None:
    compiled = compile_program(programs.find("sort"))
    model = compiled.model
    clean, corrupted = (rows_of(compiled.program, seed) for seed in (0, 1))
    metric = metrics.log_probability(torch.tensor([programs.predict(compiled.program, row)[9] for row in clean.tolist()]))
    runner = CircuitRunner(model, clean, corrupted, metric)
    scores = edge_attribution(model, clean, corrupted, metric, steps=4)
    circuit = find_circuit(runner, scores, target=0.8, method=method)
    assert runner.recovered(circuit.edges) >= 0.8
    assert circuit.size < 40 and circuit.about["recovered"] >= 0.8
    assert torch.equal(runner.graph.connected(circuit.edges), circuit.edges)


@pytest.mark.parametrize("name", ["attention only", "gpt2"])
@pytest.mark.parametrize("metric", [METRIC, metrics.loss(CLEAN)], ids=["a logit difference", "a loss"])
def test_the_most_helpful_edges_come_first_in_signed_order(name: str, metric: Any) -> None:
    model = network(name)
    runner = CircuitRunner(model, CLEAN, CORRUPTED, metric)
    scores = edge_attribution(model, CLEAN, CORRUPTED, metric)
    orders = ("absolute", "signed", "best")
    sizes = {order: find_circuit(runner, scores, target=0.7, method="greedy", order=order) for order in orders}
    assert sizes["best"].size <= min(sizes["absolute"].size, sizes["signed"].size)
    helpful = scores.values.data * (1 if runner.clean.mean() > runner.ablated.mean() else -1)
    few = largest(scores.values.data, 12, runner.sign)
    assert float(helpful[few].min()) >= float(helpful[runner.graph.mask & ~few].max()) and int(few.sum()) == 12
    one = find_circuit(runner, scores, size=12, order="signed")
    assert torch.equal(one.edges, runner.graph.connected(few)) and one.about["sign"] == runner.sign
    either = {order: find_circuit(runner, scores, size=12, order=order).about["recovered"] for order in orders}
    assert either["best"] == max(either.values())


def test_curves_and_stability_take_edges_in_the_order_of_the_circuit() -> None:
    model = network("attention only")
    runner = CircuitRunner(model, CLEAN, CORRUPTED, METRIC)
    scores = edge_attribution(model, CLEAN, CORRUPTED, METRIC)
    circuit = find_circuit(runner, scores, size=9, order="signed")
    found = faithfulness(model, CLEAN, CORRUPTED, METRIC, scores, sizes=[9], signed=True)
    assert float(found.values.sel(curve="faithful").data[0]) == pytest.approx(circuit.about["recovered"], abs=1e-6)
    alike = type(scores)(scores.values, scores.each.mean(0).expand(4, -1, -1), "all prompts alike")
    sure = stability(circuit, alike, draws=5)
    assert sure.halves == (1.0,) * len(sure.halves)
    assert torch.equal(sure.values.data == 1, largest(scores.values.data, circuit.size, runner.sign))


def test_edges_on_no_way_to_the_logits_change_nothing() -> None:
    model = network("gpt2")
    graph = Graph(model.cfg)
    generator = torch.Generator().manual_seed(0)
    some = (torch.rand(graph.mask.shape, generator=generator) < 0.03) & graph.mask
    less = graph.connected(some)
    assert int(less.sum()) < int(some.sum())
    torch.testing.assert_close(
        run_circuit(model, CLEAN, CORRUPTED, less), run_circuit(model, CLEAN, CORRUPTED, some), rtol=1e-4, atol=1e-4
    )


def test_a_planted_circuit_is_stable_and_noise_is_not() -> None:
    compiled = compile_program(programs.find("induction"))
    clean, corrupted = (rows_of(compiled.program, seed) for seed in (0, 1))
    effects = edge_effects(compiled.model, clean, corrupted, metrics.kl(None))
    scores = edge_attribution(compiled.model, clean, corrupted, metrics.loss(clean), steps=2)
    planted = type(scores)(effects.values, effects.each, "exact")
    circuit = Circuit.of(compiled.model, planted.circuit(5))
    sure = stability(circuit, planted, draws=50)
    assert sure.stable and sure.summary().startswith("stable") and min(sure.halves) == 1.0
    assert float(sure.values.data[circuit.edges].min()) > 0.95
    noise = torch.randn(planted.each.shape, generator=torch.Generator().manual_seed(0)).masked_fill(
        planted.each.isnan(), torch.nan
    )
    nothing = stability(circuit, type(scores)(planted.values, noise, "noise"), draws=50)
    assert not nothing.stable and nothing.summary().startswith("UNSTABLE") and nothing.figure().to_json()


def test_circuits_are_stored_and_know_their_model(tmp_path: Any) -> None:
    model = network("gpt2")
    scores = edge_attribution(model, CLEAN, CORRUPTED, METRIC, steps=1)
    circuit = Circuit.of(model, scores.circuit(7), effects=scores.values.data)
    circuit.save(tmp_path / "circuit.json")
    again = Circuit.load(tmp_path / "circuit.json", model)
    assert again.pairs() == circuit.pairs() and jaccard(again.edges, circuit.edges) == 1.0
    assert circuit.nodes() and circuit.figure().to_json() and "7 of" in circuit.summary()
    with pytest.raises(ShapeError, match=r"found in another model"):
        Circuit.load(tmp_path / "circuit.json", network("gpt2", seed=3))
    with pytest.raises(ShapeError, match="writers and"):
        circuit.logits(network("attention only"), CLEAN, CORRUPTED)


def test_the_share_that_is_recovered_has_an_interval() -> None:
    model = network("attention only")
    runner = CircuitRunner(model, CLEAN, CORRUPTED, METRIC)
    values = runner.ablated + 0.5 * (runner.clean - runner.ablated)
    assert runner.share(values) == pytest.approx(0.5)
    low, high = runner.interval(values)
    assert low != low or (low == pytest.approx(0.5, abs=1e-3) and high == pytest.approx(0.5, abs=1e-3))  # NaN: the whole may be 0
