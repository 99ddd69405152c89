"""One label for each component: what one analysis prints, every other takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import cutaway
from cutaway import metrics
from cutaway.circuits.graph import Graph
from cutaway.errors import UnknownName
from cutaway.hooked_transformer import HookedTransformer
from tests.architectures import network, some_tokens

TOKENS, OTHER = some_tokens(seed=2), some_tokens(seed=1)
METRIC = metrics.logit_difference([1, 2, 3], [4, 5, 6])
KINDS = ["gpt2", "llama", "gemma", "gpt-j", "mixture", "attention only", "no norm, shortformer", "olmo-2"]


def printed_writers(model: HookedTransformer) -> dict[str, list[str]]:
    """Labels of what writes, by the analysis that prints them."""
    layer = model.cfg.n_layers - 1
    normed = model.cfg.use_qk_norm or model.blocks[layer].attn.rotary is not None
    dense = [] if model.cfg.attn_only or model.cfg.is_moe(0) else [0]
    names = {
        "attribute": cutaway.attribute(model, TOKENS).values.names("component"),
        "attribute, neurons": cutaway.attribute(model, TOKENS, neurons=dense or False).values.names("component"),
        "attribute_all_tokens": cutaway.attribute_all_tokens(model, TOKENS).values.names("component"),
        "lens of attention": cutaway.lens(model, TOKENS, of="attn_out").values.names("row"),
        "lens of heads": cutaway.lens(model, TOKENS, of="heads").values.names("row"),
        "path_patch": cutaway.path_patch(model, TOKENS, OTHER, METRIC, audit=0).values.names("sender"),
        "edge_attribution": cutaway.edge_attribution(model, OTHER, TOKENS, METRIC, steps=1).values.names("writer"),
        "composition": cutaway.composition(model).values.names("earlier"),
        "head_scores": cutaway.head_scores(model, TOKENS, kinds=["previous"]).values.names("head"),
        "ablate_heads": cutaway.ablate_heads(model, TOKENS, METRIC, kinds=["zero"], sites=["z"], audit=0).values.names("head"),
    }
    if not normed:
        names["scores_by_key"] = cutaway.scores_by_key(model, f"{layer}.1", TOKENS).names("component")
    if not model.cfg.use_qk_norm:
        found = cutaway.pathways(model, TOKENS, layer=layer).values.names("pair")
        names["pathways"] = [pair.split(", ")[0].removeprefix("Q=") for pair in found]
    return {name: list(some) for name, some in names.items()}


def takers(model: HookedTransformer) -> dict[str, Callable[[list[str]], Any]]:
    """Analyses that take labels of what writes, and what they print of them."""
    cfg, last = model.cfg, model.cfg.n_layers - 1

    def in_stream(labels: list[str]) -> Any:
        """Those that attention of the last layer reads."""
        early = [label for label in labels if not label.startswith(f"{last}.")]
        return [] if cfg.use_qk_norm else cutaway.pathways(model, TOKENS, layer=last, components=early)

    def senders(labels: list[str]) -> Any:
        return cutaway.path_patch(model, TOKENS, OTHER, METRIC, senders=labels, audit=0).values.names("sender")

    def all_tokens(labels: list[str]) -> Any:
        return cutaway.attribute_all_tokens(model, TOKENS, components=labels).values.names("component")

    def scored(labels: list[str]) -> Any:
        found = cutaway.edge_attribution(model, OTHER, TOKENS, METRIC, steps=1, writers=labels).values.names("writer")
        assert sorted(found) == sorted(labels)  # these come in the order in which they run
        return None

    def effects(labels: list[str]) -> Any:
        edges = [(label, "logits") for label in labels]
        found = cutaway.edge_effects(model, OTHER, TOKENS, METRIC, edges=edges, audit=0).values.sel(reader="logits")
        assert all(not found.sel(writer=label).data.isnan() for label in labels)
        return None

    def ablated(labels: list[str]) -> Any:
        labels = [label for label in labels if not (model.cfg.has_post_norms and label.endswith("bias"))]  # refused there
        back = cutaway.ablate(model, TOKENS, METRIC, components=labels, kinds=["zero"], audit=0).values.names("component")
        assert list(back) == labels
        return None

    return {
        "ablate": ablated,
        "edge_attribution": scored,
        "edge_effects": effects,
        "attribute": lambda labels: cutaway.attribute(model, TOKENS, components=labels).values.names("component"),
        "attribute_all_tokens": all_tokens,
        "lens": lambda labels: cutaway.lens(model, TOKENS, of=labels).values.names("row"),
        "path_patch": senders,
        "pathways": in_stream,
        "max_activating_texts": lambda labels: list(cutaway.max_activating_texts(model, labels, TOKENS).most),
    }


@pytest.mark.parametrize("name", KINDS)
def test_every_label_that_an_analysis_prints_is_taken_by_every_other(name: str) -> None:
    model = network(name)
    every = list(dict.fromkeys(label for labels in printed_writers(model).values() for label in labels))
    assert "embed" in every and "bias" in every and "1.3" in every and "0.attn" in every
    for taker, take in takers(model).items():
        back = take(every)
        if isinstance(back, list | tuple) and taker != "pathways":
            assert list(back) == every, f"{taker} prints other labels than it was given"


@pytest.mark.parametrize("name", KINDS)
def test_readers_are_taken_as_they_are_printed(name: str) -> None:
    model = network(name)
    nodes = Graph(model.cfg).readers
    every = [*nodes, *([] if model.cfg.attn_only or model.cfg.is_moe(0) else ["0.mlp.7", "1.mlp.0"])]
    found = cutaway.path_patch(model, TOKENS, OTHER, METRIC, senders=["embed"], receivers=every, audit=0)
    assert found.values.names("receiver") == tuple(every)
    effects = cutaway.edge_effects(model, TOKENS, OTHER, METRIC, edges=[("embed", reader) for reader in every], audit=0)
    assert effects.values.names("reader") == tuple(every)
    circuit = cutaway.Circuit.of(model, [("embed", reader) for reader in nodes])
    assert circuit.pairs() == [("embed", reader) for reader in nodes] and circuit.size == len(nodes)
    assert all(reader == "logits" or "mlp" in reader or cutaway.path_circuit(model, f"embed → {reader}") for reader in every)
    with pytest.raises(UnknownName, match="writes nothing"):
        cutaway.attribute(model, TOKENS, components=["1.2.k"])
    with pytest.raises(UnknownName, match=r"'1.2.q', '1.2.k' or '1.2.v'"):
        cutaway.path_patch(model, TOKENS, OTHER, METRIC, receivers=["1.2"])


def test_a_label_means_one_thing() -> None:
    """A head's part, a layer's part and their sum are the same numbers wherever they are asked for."""
    model = network("gemma").double()
    whole = cutaway.attribute(model, TOKENS, targets=3)
    parts = [f"1.{head}" for head in range(4)]
    some = cutaway.attribute(model, TOKENS, targets=3, components=["1.attn", "1.bias", *parts])
    torch.testing.assert_close(some.select(parts).data, whole.select(parts).data)
    torch.testing.assert_close(some.values.data[1:].sum(0), some.values.data[0])
    shown = cutaway.attribute_all_tokens(model, TOKENS, components=["1.attn", "0.2"], examples=[0, 1, 2])
    torch.testing.assert_close(shown.values.data[0, ..., 3], some.values.data[0])


def test_a_group_of_heads_is_named_where_its_keys_are_patched() -> None:
    model = network("llama")
    found = cutaway.path_patch(model, TOKENS, OTHER, METRIC, senders=["0.1"], receivers=["1.3.k", "1.0.q"], audit=0)
    assert "1.3.k is patched for its whole group, 1.2, 1.3" in found.summary()
    twin = cutaway.path_patch(model, TOKENS, OTHER, METRIC, senders=["0.1"], receivers=["1.2.k"], audit=0)
    torch.testing.assert_close(twin.values.data[0, 0], found.values.data[0, 0])
    assert "group" not in cutaway.path_patch(network("gpt2"), TOKENS, OTHER, METRIC, receivers=["1.3.k"], audit=0).summary()
