"""Edges of components that are no nodes of a graph: neurons, whole attentions, biases."""

from __future__ import annotations

import pytest
import torch

from cutaway import ablate, edge_attribution, edge_effects, metrics, path_patch
from cutaway.circuits.graph import Graph
from cutaway.errors import ShapeError, UnknownName
from tests.architectures import network, some_tokens

CLEAN, CORRUPTED = some_tokens(seed=1), some_tokens(seed=2)
METRIC = metrics.logit_difference([1, 2, 3], [4, 5, 6])


@pytest.mark.parametrize("ablation", ["resample", "mean", "mean over positions", "zero"])
@pytest.mark.parametrize("path", ["inputs", "activations"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "solu", "gpt-j"])
def test_scores_of_parts_sum_to_the_score_of_the_whole(name: str, path: str, ablation: str) -> None:
    model = network(name).double()
    every = Graph(model.cfg).readers
    neurons, heads = [f"0.mlp.{one}" for one in range(model.cfg.d_mlp or 0)], [f"1.{one}" for one in range(4)]
    given = {"path": path, "ablation": ablation, "steps": 2}
    nodes = edge_attribution(model, CLEAN, CORRUPTED, METRIC, **given)  # type: ignore[arg-type]
    writers = ["1.attn", *neurons, "0.mlp.bias", *heads, "1.bias"]
    finer = edge_attribution(model, CLEAN, CORRUPTED, METRIC, writers=writers, **given)  # type: ignore[arg-type]
    assert finer.values.names("reader") == every and set(finer.values.names("writer")) == set(writers)

    def scores(found: object, *labels: str) -> torch.Tensor:
        return torch.stack([found.values.sel(writer=label).data for label in labels]).sum(0)  # type: ignore[attr-defined]

    torch.testing.assert_close(scores(finer, *neurons, "0.mlp.bias"), scores(nodes, "0.mlp"), equal_nan=True)
    torch.testing.assert_close(scores(finer, *heads), scores(nodes, *heads), equal_nan=True)
    torch.testing.assert_close(scores(finer, *heads, "1.bias"), scores(finer, "1.attn"), equal_nan=True)
    biases = scores(finer, "0.mlp.bias"), scores(finer, "1.bias")
    assert all(bool(one.nan_to_num(0).any()) == (ablation == "zero") for one in biases)


@pytest.mark.parametrize("name", ["gpt2", "solu", "gpt-j", "bloom", "llama"])
def test_an_edge_of_any_components_is_the_path_between_them(name: str) -> None:
    model = network(name)
    senders, receivers = ["embed", "0.mlp.7", "0.attn", "0.bias"], ["1.2.q", "1.mlp", "1.mlp.3", "logits"]
    paths = path_patch(model, CLEAN, CORRUPTED, METRIC, senders=senders, receivers=receivers)
    edges = [(one, other) for one in senders for other in receivers]
    for found in (
        edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=edges),
        edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=[edge for edge in edges if edge[1] == "logits"], downstream="frozen"),
    ):
        for one, other in edges:
            if other in found.values.names("reader") and not (mine := found.values.sel(writer=one, reader=other).data).isnan():
                path = paths.averages().sel(sender=one, receiver=other).data
                torch.testing.assert_close(mine.float(), path, rtol=1e-3, atol=1e-5)
                assert bool(mine == 0) == bool(path == 0) == (one == "0.bias")  # exactly nothing, of a bias alone
        assert bool(found.unseen[found.values.names("writer").index("0.bias")].any())
    assert paths.audit.difference < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "llama", "solu", "gemma"])
def test_a_neuron_that_reads_a_sender_by_hooks(name: str) -> None:
    """The neuron alone is given what its MLP would read with the sender of the other run."""
    model, neuron = network(name), 3
    _, own = model.run_with_cache(CLEAN)
    _, other = model.run_with_cache(CORRUPTED)
    change = other["hook_embed"] - own["hook_embed"]
    block = model.blocks[1]
    read = block.ln2(own["resid_mid", 1] + change)
    sites = {"hook_pre": block.mlp.pre(read)}
    if model.cfg.gated_mlp:
        sites["hook_pre_linear"] = block.mlp.pre_linear(read)

    def put(x: torch.Tensor, hook: object) -> torch.Tensor:
        x[..., neuron] = sites[str(hook.name).rpartition(".")[2]][..., neuron]  # type: ignore[attr-defined]
        return x

    hooks = [(f"blocks.1.mlp.{site}", put) for site in sites]
    expected = (METRIC(model.run_with_hooks(CLEAN, fwd_hooks=hooks)) - METRIC(model(CLEAN))).detach()
    path = path_patch(model, CLEAN, CORRUPTED, METRIC, senders=["embed"], receivers=["1.mlp.3"])
    torch.testing.assert_close(path.values.data[0, 0], expected, rtol=1e-3, atol=1e-5)
    for downstream in ("recomputed", "frozen"):  # nothing comes after the last MLP but the logits
        edge = edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=[("embed", "1.mlp.3")], downstream=downstream)
        torch.testing.assert_close(edge.each[:, 0, -1].float(), expected, rtol=1e-3, atol=1e-5)
    assert not bool(edge.unseen.any()) and float(expected.abs().max()) > 1e-4


def test_a_bias_is_taken_away() -> None:
    """Ablated by zero, in an edge or everywhere, its own vector is missing; a mean of a constant is the constant."""
    model = network("gpt2")
    _, own = model.run_with_cache(CLEAN)
    without = METRIC(model.unembed(model.ln_final(own["resid_post", 1] - model.blocks[0].attn.b_O))) - METRIC(model(CLEAN))
    edge = edge_effects(model, CLEAN, None, METRIC, edges=[("0.bias", "logits")], ablation="zero")
    mine = edge.values.sel(writer="0.bias", reader="logits").data.float()
    torch.testing.assert_close(mine, without.mean(), rtol=1e-3, atol=1e-5)

    def less(x: torch.Tensor, hook: object) -> torch.Tensor:
        return x - model.blocks[int(str(hook.name).split(".")[1])].attn.b_O  # type: ignore[attr-defined]

    hooked = model.run_with_hooks(CLEAN, fwd_hooks=[(f"blocks.{layer}.hook_attn_out", less) for layer in range(2)])
    found = ablate(model, CLEAN, METRIC, components=["bias", "0.mlp.bias"])
    torch.testing.assert_close(found.values.sel(kind="zero", component="bias").data, METRIC(hooked) - METRIC(model(CLEAN)))
    torch.testing.assert_close(found.values.sel(kind="mean").data, torch.zeros(2, 3), rtol=0, atol=1e-5)
    with pytest.raises(UnknownName, match="where a norm follows what a layer writes"):
        ablate(network("gemma"), CLEAN, METRIC, components=["0.bias"])
    with pytest.raises(UnknownName, match=r"give '0\.bias'"):
        edge_effects(model, CLEAN, None, METRIC, edges=[("bias", "1.mlp")], ablation="zero")
    with pytest.raises(UnknownName, match=r"reads before 1\.mlp\.3 has written"):
        edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=[("1.mlp.3", "1.mlp.4")])
    with pytest.raises(ShapeError, match="given twice"):
        edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=[("0.mlp.3", "logits"), ("0.mlp.3", "logits")])
