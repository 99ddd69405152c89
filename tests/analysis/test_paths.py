"""Paths: exact against a run in which everything else is frozen by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cutaway.analysis.paths import path_patch
from cutaway.errors import ShapeError, UnknownName
from cutaway.runs import metrics
from tests.architectures import network, some_tokens

TOKENS, SOURCE = some_tokens(seed=2), some_tokens(seed=1)
METRIC = metrics.logit_difference([1, 2, 3], [4, 5, 6])
PLAIN = ["attention only", "no norm, shortformer", "gpt2", "llama", "gpt-j", "gemma", "olmo-2", "bloom"]


def by_hand(model: Any, sender: tuple[int, int | None], receiver: str) -> torch.Tensor:
    """Freeze every head and MLP at the run's own values but the sender, read the receiver, then run with that alone."""
    own, other = (model.run_with_cache(tokens)[1] for tokens in (TOKENS, SOURCE))
    layers, frozen = range(model.cfg.n_layers), []

    def put(value: torch.Tensor) -> Any:
        return lambda x, hook: value.clone()

    for layer in layers:
        z = own["z", layer].clone()
        if sender == (layer, sender[1]) and sender[1] is not None:
            z[:, :, sender[1]] = other["z", layer][:, :, sender[1]]
        frozen.append((f"blocks.{layer}.attn.hook_z", put(z)))
        if not model.cfg.attn_only:
            mlp = other if sender == (layer, None) else own
            frozen.append((f"blocks.{layer}.hook_mlp_out", put(mlp["mlp_out", layer])))
    if receiver == "logits":
        return METRIC(model.run_with_hooks(TOKENS, fwd_hooks=frozen))
    layer, head, which = receiver.split(".")
    site = f"blocks.{layer}.attn.hook_{which}"
    kept: dict[str, torch.Tensor] = {}

    def keep(x: torch.Tensor, hook: Any) -> None:
        kept["x"] = x.clone()

    model.run_with_hooks(TOKENS, fwd_hooks=[*frozen, (site, keep)])
    index = int(head) * kept["x"].shape[2] // model.cfg.n_heads

    def receive(x: torch.Tensor, hook: Any) -> None:
        x[:, :, index] = kept["x"][:, :, index]

    return METRIC(model.run_with_hooks(TOKENS, fwd_hooks=[(site, receive)]))


@pytest.mark.parametrize("name", PLAIN)
def test_a_path_is_what_freezing_everything_else_leaves(name: str) -> None:
    model = network(name)
    senders = ["0.1", "0.3"] + ([] if model.cfg.attn_only else ["0.mlp"])
    receivers = ["1.0.q", "1.2.k", "1.3.v", "logits"]
    found = path_patch(model, TOKENS, SOURCE, METRIC, senders=senders, receivers=receivers)
    clean = METRIC(model(TOKENS))
    for sender in senders:
        place = (0, None) if sender == "0.mlp" else (0, int(sender[-1]))
        for receiver in receivers:
            expected = by_hand(model, place, receiver) - clean
            mine = found.values.sel(sender=sender, receiver=receiver).data
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=2e-5)
    assert found.audit.difference < 1e-5


def test_paths_into_an_mlp_and_at_some_positions() -> None:
    model = network("gpt2")
    found = path_patch(model, TOKENS, SOURCE, METRIC, senders=["0.2", "1.1", "1.mlp"], receivers=["1.mlp"])
    assert found.values.sel(sender="1.mlp").data.isnan().all()
    own, other = (model.run_with_cache(tokens)[1] for tokens in (TOKENS, SOURCE))
    for layer, head in ((0, 2), (1, 1)):
        delta = (other["z", layer] - own["z", layer])[:, :, head] @ model.W_O[layer, head]
        value = model.blocks[1].mlp(model.blocks[1].ln2(own["resid_mid", 1] + delta))
        logits = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook, value=value: value)])
        expected = METRIC(logits) - METRIC(model(TOKENS))
        torch.testing.assert_close(
            found.values.sel(sender=f"{layer}.{head}", receiver="1.mlp").data, expected, rtol=1e-3, atol=1e-5
        )
    last = path_patch(model, TOKENS, SOURCE, METRIC, senders=["0.2"], positions=[8])
    early = path_patch(model, TOKENS, SOURCE, METRIC, senders=["0.2"], positions=[3])
    assert last.averages().data.abs() > 0 and early.averages().data.abs() == 0  # the logits read the last position only
    assert "0.2 → logits" in last.summary() and last.figure().to_json() and found.figure().to_json()


def test_what_is_no_path_is_refused() -> None:
    model = network("gpt2")
    for senders, receivers, error, words in (
        (["0.9"], ["logits"], UnknownName, "no component '0.9' in this network: it has 2 layers of 4 heads"),
        (["head 3"], ["logits"], UnknownName, "no component is called 'head 3'; write a head as"),
        (["0.1"], ["1.2"], UnknownName, "'1.2.q', '1.2.k' or '1.2.v'"),
        (["1.1"], ["0.2.q"], ShapeError, "comes after any of the senders"),
        (["logits"], ["1.2.q"], UnknownName, "writes nothing"),
    ):
        with pytest.raises(error, match=words):
            path_patch(model, TOKENS, SOURCE, METRIC, senders=senders, receivers=receivers)
    with pytest.raises(ShapeError, match="9 tokens in the clean prompt and 4 in the corrupted one"):
        path_patch(model, TOKENS, SOURCE[:, :4], METRIC)


def test_a_map_of_heads_shows_the_layers_of_the_senders_only() -> None:
    model = network("attention only", n_layers=3, n_heads=6, d_head=4)
    senders = [f"{layer}.{head}" for layer in (1, 2) for head in range(6)]
    figure = path_patch(model, TOKENS, SOURCE, METRIC, senders=senders).figure()
    assert figure.view == "grid" and figure.meta["y"] == ["1", "2"] and figure.arrays["p0"].shape == (2, 6)
