"""Circuits: a path is the product of its factors, and on data with constant norm scales, what the network computes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from cutaway.analysis.scales import NormScales, norm_scales
from cutaway.analysis.weight_circuits import (
    circuit_by_row,
    key_scores,
    mean_queries,
    ov_circuit,
    panels,
    parse,
    path_circuit,
    qk_circuit,
    source,
)
from cutaway.errors import ConfigError, ShapeError, UnknownName
from cutaway.runs.results import Labelled
from tests.architectures import network, some_tokens


def double(name: str, **changes: Any) -> Any:
    model = network(name, dtype="float64", **changes)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def constant(model: Any, **scale: float) -> NormScales:
    """Norm scales as if measured, each the same everywhere but for `scale`."""
    names = list(norm_scales(model, some_tokens()).values.names("norm"))
    values = [scale.get(name.replace(".", "_"), 1.0) for name in names]
    data = torch.tensor(values, dtype=torch.float64)[:, None, None].expand(-1, 2, 3)
    return NormScales(Labelled(data, ("norm", "batch", "pos"), {"norm": names}))


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(-1, keepdim=True)


def test_a_composed_path_equals_the_product_of_its_factors() -> None:
    model = double("gpt2", n_layers=3)
    scales = constant(model, _0_ln1=2.0)
    scales = NormScales(scales.values)
    norms = {name: model.blocks[int(name[0])].ln1 for name in ("0.ln1", "1.ln1", "2.ln1")}
    expected = model.W_E
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        expected = centred(expected) * norms[f"{layer}.ln1"].w @ model.W_V[layer, head] @ model.W_O[layer, head]
    expected = centred(expected) * model.ln_final.w @ model.W_U
    found = path_circuit(model, "embed → 0.1 → 1.3 → 2.0 → logits", scales=scales)
    assert torch.allclose(found.data, expected, atol=1e-10)
    assert found.shape == (13, 13)
    assert torch.allclose(found.diagonal().data, expected.diagonal(), atol=1e-10)
    assert torch.allclose(found.part([3, "5"], [1]).data, expected[[3, 5]][:, [1]], atol=1e-10)
    assert found.norm() == pytest.approx(float(expected.norm()))
    assert torch.allclose(found.self_attention().data, expected.softmax(-1).diagonal(), atol=1e-10)


def test_scales_divide_and_their_spread_is_told() -> None:
    model = double("folded")
    measured = norm_scales(model, some_tokens())
    plain, scaled = (
        path_circuit(model, "embed → 0.1 → 1.3 → logits"),
        path_circuit(model, "embed → 0.1 → 1.3 → logits", scales=measured),
    )
    by = measured.of("0.ln1") * measured.of("1.ln1") * measured.of("ln_final")
    assert torch.allclose(scaled.data * by, plain.data, atol=1e-10)
    assert set(scaled.spread or {}) == {"0.ln1", "1.ln1", "ln_final"}
    assert "it spreads by" in scaled.summary() and "it spreads by" not in plain.summary()


def test_sums_of_heads_are_sums_of_paths() -> None:
    model = double("attention only")
    whole = path_circuit(model, "embed → 0.0+0.2 → 1.* → logits").data
    parts = sum(path_circuit(model, f"embed → 0.{a} → 1.{b} → logits").data for a in (0, 2) for b in range(4))
    assert torch.allclose(whole, parts, atol=1e-10)


def test_paths_without_norm_are_what_the_network_computes() -> None:
    """With attention fixed to one token and no norms, biases or positions, the logits are a sum of paths."""
    model = double("no norm, shortformer", positional_embedding_type="none")
    for block in model.blocks:
        for name in ("b_Q", "b_K", "b_V", "b_O"):
            getattr(block.attn, name).zero_()
    model.unembed.b_U.zero_()
    tokens = torch.arange(13)[:, None]  # one position: everything attends to itself
    logits = model(tokens)[:, 0]
    routes = ["embed → logits", "embed → 0.* → logits", "embed → 1.* → logits", "embed → 0.* → 1.* → logits"]
    assert torch.allclose(sum(path_circuit(model, route).data for route in routes), logits, atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-j", "solu", "no norm, shortformer", "bloom"])
def test_qk_circuits_give_the_scores_of_the_first_layer(name: str) -> None:
    """At its true norm scale, the circuit of tokens, positions and biases is the score that the network computes."""
    model, tokens = double(name), some_tokens(1, 6)
    _, cache = model.run_with_cache(tokens)
    norm = model.cfg.normalization_type is not None
    turned = model.blocks[0].attn.rotary  # its angles are in float32
    for head in range(4):
        for dest, src in ((5, 2), (3, 3), (4, 0)):
            total = torch.zeros((), dtype=torch.float64)
            for query, key in _sides(name):
                found = qk_circuit(model, f"0.{head}", query=query, key=key, distance=dest - src)
                total = total + found.data[_row(query, tokens, dest), _row(key, tokens, src)] / _scale(
                    cache, norm, query, dest, key, src
                )
            expected = cache["attn_scores", 0][0, head, dest, src]
            if name == "bloom":
                from cutaway.model.positions import alibi_bias

                expected = expected - alibi_bias(4, 6, 6, expected.device)[head, dest, src]
            bias = _bias_terms(model, cache, head, dest, src)
            assert float(total + bias) == pytest.approx(float(expected), abs=1e-9 if turned is None else 1e-5), (head, dest, src)


def _sides(name: str) -> list[tuple[str, str]]:
    parts = ["embed", "pos"] if name in ("gpt2", "solu", "no norm, shortformer") else ["embed"]
    return [(query, key) for query in parts for key in parts]


def _row(side: str, tokens: torch.Tensor, position: int) -> int:
    return int(tokens[0, position]) if side == "embed" else position


def _scale(cache: Any, norm: bool, query: str, dest: int, key: str, src: int) -> torch.Tensor | float:
    if not norm:
        return 1.0
    scale = cache["scale", 0, "ln1"][0, :, 0]
    return scale[dest] * scale[src]


def _bias_terms(model: Any, cache: Any, head: int, dest: int, src: int) -> torch.Tensor:
    """What biases add to the score: everything that is not a product of two weights' parts."""
    attn = model.blocks[0].attn
    q, k = cache["q", 0][0, dest, head], cache["k", 0][0, src].repeat_interleave(4 // cache["k", 0].shape[2], 0)[head]
    norm_bias = getattr(model.blocks[0].ln1, "b", None)
    b_q, b_k = attn.b_Q[head], attn.b_K[head]
    if norm_bias is not None:
        b_q, b_k = b_q + norm_bias @ attn.W_Q[head], b_k + norm_bias @ attn.W_K[head]
    turn = torch.eye(6, dtype=torch.float64)
    if attn.rotary is not None:
        from cutaway.analysis.weight_circuits import _rotation

        turn = _rotation(model, 0, dest - src)
    return (q @ turn @ k - (q - b_q) @ turn @ (k - b_k)) / attn.attn_scale


def test_biases_can_be_asked_for() -> None:
    model = double("folded")
    measured = norm_scales(model, some_tokens())
    found = qk_circuit(model, "1.2", scales=measured, biases=True)
    by = measured.of("1.ln1")
    q, k = (centred(model.W_E) / by @ W[1, 2] + b[1, 2] for W, b in ((model.W_Q, model.b_Q), (model.W_K, model.b_K)))
    assert torch.allclose(found.data, q @ k.T / model.blocks[1].attn.attn_scale, atol=1e-10)


def test_quadrants_are_the_four_circuits() -> None:
    model = double("gpt2")
    whole = qk_circuit(model, "0.1", query="embed+pos", key="embed+pos")
    assert whole.splits == {"y": [13], "x": [13]} and whole.shape == (33, 33)
    for query, rows in (("embed", slice(0, 13)), ("pos", slice(13, 33))):
        for key, columns in (("embed", slice(0, 13)), ("pos", slice(13, 33))):
            part = qk_circuit(model, "0.1", query=query, key=key)
            assert torch.allclose(whole.data[rows, columns], part.data, atol=1e-10)
    assert whole.rows[12:14] == ("12", "[0]")
    assert whole.figure().meta["splits"] == {"x": [13], "y": [13]}


def test_mean_queries_meet_key_components() -> None:
    model, tokens = double("gpt2"), some_tokens(4)
    _, cache = model.run_with_cache(tokens)
    queries = mean_queries(cache, "1.3")
    assert torch.allclose(queries, cache["q", 1][:, :, 3].mean(0))
    found = key_scores(cache, "1.3", key="embed → 0.2")
    keys = path_circuit(model, "embed → 0.2 → 1.3.k").data
    assert torch.allclose(found.data, queries @ keys.T / model.blocks[1].attn.attn_scale, atol=1e-10)
    assert found.shape == (9, 13)
    with pytest.raises(ShapeError, match=r"queries are \[row, 6\]"):
        qk_circuit(model, "1.3", queries=torch.zeros(3, 5))


def test_vectors_of_ones_own() -> None:
    model = double("attention only")
    vectors = torch.randn(2, 24, dtype=torch.float64)
    found = path_circuit(model, "mine → 1.0 → logits", vectors=vectors, labels=["a", "b"])
    assert found.rows == ("a", "b")
    direct = path_circuit(model, "mine → 1.0.v", vectors=vectors)
    assert torch.allclose(direct.data, centred(vectors) * model.blocks[1].ln1.w @ model.W_V[1, 0], atol=1e-10)


def test_rows_may_take_paths_of_their_own() -> None:
    model = double("attention only")
    found = circuit_by_row(model, {"3": "embed → 0.1 → logits", "0": "embed → 0.2 → 1.1 → logits", "7": ""})
    assert torch.allclose(found.data[0], ov_circuit(model, "0.1").data[3])
    assert torch.allclose(found.data[1], path_circuit(model, "embed → 0.2 → 1.1 → logits").data[0])
    assert not bool(found.data[2].any()) and found.rows == ("3", "0", "7")
    assert float(found.part("3").norm()) == pytest.approx(float(found.data[0].norm()))


def test_top_entries_of_any_kind_equal_sorting() -> None:
    found = ov_circuit(double("gpt2"), "1.1")
    flat = found.data.flatten()
    for by, order in (
        ("size", flat.abs().argsort(descending=True)),
        ("largest", flat.argsort(descending=True)),
        ("smallest", flat.argsort()),
    ):
        expected = [(str(int(i) // 13), str(int(i) % 13), float(flat[i])) for i in order[:5]]
        assert [(r, c, pytest.approx(v)) for r, c, v in found.top(5, by=by)] == expected, by
    with pytest.raises(UnknownName, match="not 'biggest'"):
        found.top(by="biggest")


def test_a_large_vocabulary_is_never_squared() -> None:
    model = network("attention only", d_vocab=20_000)
    found = ov_circuit(model, "0.1")
    with pytest.raises(ShapeError, match="20000 × 20000, too large"):
        _ = found.data
    best = found.top(3)
    rows = [int(row) for row, _, _ in best]
    assert best[0][2] == pytest.approx(float(found.part(rows[:1]).data[0, int(best[0][1])]), rel=1e-4)
    assert found.diagonal().data.shape == (20_000,)
    assert found.figure().view == "grid" and len(json.dumps(found.to_json())) < 200_000


def test_copying_scores_and_singular_readings() -> None:
    model = double("attention only")
    for block in model.blocks:
        block.attn.W_V.copy_(torch.eye(24, dtype=torch.float64)[:, :6].expand(4, -1, -1))
        block.attn.W_O.copy_(torch.eye(24, dtype=torch.float64)[:6].expand(4, -1, -1))
    model.unembed.W_U.copy_(centred(model.W_E).T)
    model.ln_final.w.fill_(1)
    model.blocks[0].ln1.w.fill_(1)
    assert ov_circuit(model, "0.0").copying_score() == pytest.approx(1, abs=0.05)
    model.unembed.W_U.neg_()
    assert ov_circuit(model, "0.0").copying_score() == pytest.approx(-1, abs=0.05)
    found = ov_circuit(model, "0.0")
    U, S, Vh = torch.linalg.svd(found.data)
    reading = found.readings(count=2, k=4)
    assert reading[0]["value"] == pytest.approx(float(S[0]))
    assert reading[0]["share"] == pytest.approx(float(S[0] ** 2 / (S**2).sum()))
    label, weight = reading[0]["rows"][0]
    assert abs(weight) == pytest.approx(float(U[:, 0].abs().max())) and abs(U[int(label), 0]) == pytest.approx(abs(weight))
    column, other = reading[0]["columns"][0]
    assert weight * other == pytest.approx(float(U[int(label), 0] * Vh[0, int(column)]))


def test_circuits_draw_and_describe_themselves() -> None:
    model = double("gpt2")
    found = ov_circuit(model, "0.0", vocab=list("abcdefghijklm"))
    assert found.rows == tuple("abcdefghijklm")
    assert found.figure().view == "grid" and len(found.to_frame()) == 169
    assert panels({"one": found, "two": found}, "both").meta["panels"][1]["name"] == "two"
    assert json.loads(json.dumps(found.to_json()))["shape"] == [13, 13]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("embed → 1.0 → 0.1 → logits", ShapeError, "from layer 1 to layer 0, which does not follow"),
        ("embed → 0.1 → 0.2.k", ShapeError, "does not follow"),
        ("embed → 2.0 → logits", UnknownName, "2 layers of 4 heads"),
        ("embed → 0.4 → logits", UnknownName, "2 layers of 4 heads"),
        ("embed → 0.1+1.1 → logits", ShapeError, "heads of different layers"),
        ("embed → zero → logits", UnknownName, "'zero' is no step"),
        ("embed → → logits", UnknownName, "empty step"),
        ("words → 0.1 → logits", UnknownName, "cannot start at 'words'"),
    ],
)
def test_paths_that_are_none_are_refused(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        path_circuit(network("gpt2"), text)


def test_arrows_are_read_and_written() -> None:
    model = network("gpt2")
    assert str(parse("embed->0.1 > 1.2->logits", model.cfg)) == "embed → 0.1 → 1.2 → logits"
    assert str(parse("pos → 0.*", model.cfg)) == "pos → 0.0+0.1+0.2+0.3"


def test_what_weights_cannot_say_is_refused() -> None:
    with pytest.raises(ConfigError, match="normalises queries and keys"):
        qk_circuit(network("gemma"), "0.0")
    with pytest.raises(ConfigError, match="no position embeddings"):
        source(network("llama"), "pos")
    with pytest.raises(ConfigError, match="reach queries and keys only"):
        path_circuit(network("no norm, shortformer"), "pos → 0.1 → logits")
    with pytest.raises(UnknownName, match="'5' is no head"):
        qk_circuit(network("gpt2"), "5")
    with pytest.raises(UnknownName, match="no row 'x'"):
        ov_circuit(network("gpt2"), "0.0").part("x")
