"""Ablation of heads: each number is that of a plain run with a hook; the published toy's figures."""

from __future__ import annotations

import pytest
import torch

from cutaway.analysis.ablation import ablate, ablate_heads
from cutaway.errors import ShapeError, UnknownName
from cutaway.hooked_transformer import HookedTransformer
from cutaway.runs.metrics import logit_difference
from tests.architectures import network, some_tokens


def losses(model: HookedTransformer, tokens: torch.Tensor, labels: torch.Tensor, hooks: list) -> torch.Tensor:
    log_probs = model.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(-1)
    return -log_probs.gather(-1, labels[..., None])[..., 0]


@pytest.mark.parametrize("name", ["attention only", "llama", "split inputs"])
def test_every_number_is_that_of_a_run_with_a_hook(name: str) -> None:
    model, tokens = network(name), some_tokens()
    labels = some_tokens(seed=5)
    found = ablate_heads(model, tokens, labels)
    with torch.no_grad():
        clean = losses(model, tokens, labels, [])
        kept = model.run_with_cache(tokens)[1]
        for kind in ("zero", "mean"):
            for site in ("z", "q", "k", "v"):
                for layer, head in ((0, 1), (1, 3)):
                    full = f"blocks.{layer}.attn.hook_{site}"
                    own = head if kept[full].shape[2] == model.cfg.n_heads else head // 2

                    def hook(x: torch.Tensor, hook: object, own: int = own, kind: str = kind) -> None:
                        x[:, :, own] = 0 if kind == "zero" else x[:, :, own].mean(0)

                    change = losses(model, tokens, labels, [(full, hook)]) - clean
                    mine = found.values.sel(kind=kind, site=site, head=f"{layer}.{head}").data
                    torch.testing.assert_close(mine, change, rtol=1e-4, atol=1e-5)
    assert found.audit.difference < 1e-5


def test_a_single_text_has_means_over_its_positions() -> None:
    model, tokens = network("attention only"), some_tokens()[:1]
    labels = some_tokens(seed=5)[:1]
    found = ablate_heads(model, tokens, labels, kinds=["mean"], sites=["z"], over=("batch", "pos"))

    def hook(x: torch.Tensor, hook: object) -> None:
        x[:, :, 2] = x[:, :, 2].mean((0, 1))

    with torch.no_grad():
        change = losses(model, tokens, labels, [("blocks.0.attn.hook_z", hook)]) - losses(model, tokens, labels, [])
    torch.testing.assert_close(found.values.sel(kind="mean", site="z", head="0.2").data, change, rtol=1e-4, atol=1e-5)
    with pytest.raises(ShapeError, match="over=\\('batch', 'pos'\\)"):
        ablate_heads(model, tokens, labels, kinds=["mean"], sites=["z"], over=("batch",))
    by_itself = ablate_heads(model, tokens, labels, kinds=["mean"], sites=["z"])
    torch.testing.assert_close(by_itself.values.data, found.values.data)


def test_any_component_can_be_ablated() -> None:
    model, tokens = network("llama"), some_tokens()
    labels = some_tokens(seed=5)
    found = ablate(model, tokens, labels, kinds=["zero"], components=["0.mlp", "1.mlp.3", "0.1", "1.attn"])

    def silent(x: torch.Tensor, hook: object) -> torch.Tensor:
        return torch.zeros_like(x)

    def neuron(x: torch.Tensor, hook: object) -> None:
        x[..., 3] = 0

    with torch.no_grad():
        clean = losses(model, tokens, labels, [])
        for name, site, hook in (("0.mlp", "blocks.0.hook_mlp_out", silent), ("1.mlp.3", "blocks.1.mlp.hook_post", neuron)):
            change = losses(model, tokens, labels, [(site, hook)]) - clean
            mine = found.values.sel(kind="zero", component=name).data
            torch.testing.assert_close(mine, change, rtol=1e-4, atol=1e-5, equal_nan=True)
    heads = ablate_heads(model, tokens, labels, kinds=["zero"], sites=["z"])
    assert found.changes()["0.1"] == pytest.approx(heads.increases()["0.1"], abs=1e-6)


def test_all_heads_of_a_layer_leave_only_the_output_bias() -> None:
    model, tokens = network("attention only"), some_tokens()
    found = ablate_heads(model, tokens, kinds=["zero"], sites=["z"])

    def silence(x: torch.Tensor, hook: object) -> torch.Tensor:
        return model.blocks[1].attn.b_O.expand_as(x)

    with torch.no_grad():
        loss = model.run_with_hooks(
            tokens, return_type="loss", loss_per_token=True, fwd_hooks=[("blocks.1.hook_attn_out", silence)]
        )
        clean = model(tokens, return_type="loss", loss_per_token=True)
    torch.testing.assert_close(
        found.layers.sel(kind="zero", site="z", layer="1").data[:, :-1], loss - clean, rtol=1e-4, atol=1e-5
    )
    assert torch.isnan(found.values.data[..., -1]).all()  # nothing follows the last token


def test_a_result_says_what_it_found_and_draws_itself() -> None:
    model, tokens = network("gpt2"), some_tokens()
    found = ablate_heads(model, tokens, logit_difference([1, 2, 3], [4, 5, 6]))
    assert found.values.axes == ("kind", "site", "head", "batch")
    increases = found.increases("mean", "q")
    assert list(increases) == [f"{layer}.{head}" for layer in range(2) for head in range(4)]
    largest = max(increases, key=lambda head: abs(increases[head]))
    line = next(line for line in found.summary().splitlines() if line.startswith("mean ablation of queries"))
    assert line.split(": ")[1].startswith(largest)
    assert found.means("zero", "z").values.shape == (8,)
    assert "mean ablation" in str(found.figure("mean"))
    assert found.to_json()["values"]["axes"] == ["kind", "site", "head", "batch"]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"'men' \(did you mean 'mean'"):
        ablate_heads(network("attention only"), some_tokens(), kinds=["men"])


def test_heads_of_some_layers_are_those_of_all() -> None:
    model, tokens = network("llama"), some_tokens()
    every, some = (ablate_heads(model, tokens, kinds=["zero"], sites=["z"], layers=layers) for layers in (None, [1]))
    assert len(some.sweep.values.data) == len(every.sweep.values.data) // model.cfg.n_layers
    assert some.increases() == pytest.approx({head: one for head, one in every.increases().items() if head[0] == "1"}, abs=1e-5)
    assert some.layer_increases() == pytest.approx({"1": every.layer_increases()["1"]}, abs=1e-5)
