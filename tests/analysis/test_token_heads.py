"""Which head handles which token: the published findings, and the pathways into scores."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cutaway.analysis.scales import norm_scales
from cutaway.analysis.score_pathways import components_into, pathways, sites_into
from cutaway.analysis.token_heads import duplicate_detectors, full_circuits, responsible_heads
from cutaway.analysis.weight_circuits import path_circuit
from cutaway.errors import ConfigError, ShapeError, UnknownName
from cutaway.tokens import CharTokenizer
from tests.analysis.conftest import Published
from tests.architectures import ALL, network, some_tokens


def as_text(found: dict[str, list[str]]) -> str:
    return ", ".join(f"{head}: {''.join(tokens)}" for head, tokens in found.items() if tokens)


def test_the_published_detectors_and_responsible_heads(published: Published) -> None:
    scales = norm_scales(published.cache)
    vocab = published.data.vocab
    found = duplicate_detectors(published.model, scales=scales, tokens=vocab[:-1], vocab=vocab)
    assert as_text(found.duplicate) == "0.1: bcdefghij, 0.2: abg"
    assert as_text(found.anti_duplicate) == "0.0: abcdgi, 0.1: a, 0.2: cefhj"
    answer = responsible_heads(published.model, scales=scales, tokens=vocab[:-1], vocab=vocab)
    assert as_text(answer.tokens_of) == "1.0: ac, 1.1: defj, 1.2: bghi"
    assert "0.1: bcdefghij" in found.summary() and "1.2: bghi" in answer.summary()
    assert json.loads(json.dumps(found.to_json()))["duplicate"]["0.2"] == ["a", "b", "g"]
    marks = found.figure().meta["panels"][0]["marks"]
    assert len(marks) == 9 + 3 + 6 + 1 + 5
    assert answer.figure().view == "grid"


def test_full_circuits_equal_the_products(published: Published) -> None:
    model, vocab = published.model, published.data.vocab
    scales = norm_scales(published.cache)
    found = duplicate_detectors(model, scales=scales, tokens=vocab[:-1], vocab=vocab)
    answer = responsible_heads(model, scales=scales, tokens=vocab[:-1], vocab=vocab)
    circuits = full_circuits(model, found, answer, scales=scales, vocab=vocab)
    OV = model.W_V @ model.W_O
    by = scales.of("0.ln1") * scales.of("1.ln1") * scales.of("ln_final")
    for row, token in enumerate(vocab[:-1]):
        last = int(answer.head_of[token][-1])
        ways = {
            kind: OV[0, [int(head[-1]) for head in found.heads(kind, token)]].sum(0) for kind in ("duplicate", "anti_duplicate")
        }
        expected = {
            "duplicate": ways["duplicate"] @ OV[1, last],
            "anti_duplicate": ways["anti_duplicate"] @ OV[1].sum(0),
            "anti_duplicate_responsible": ways["anti_duplicate"] @ OV[1, last],
            "anti_duplicate_other": ways["anti_duplicate"] @ (OV[1].sum(0) - OV[1, last]),
        }
        for name, matrix in expected.items():
            logits = model.W_E[row] @ matrix @ model.W_U / by
            assert torch.allclose(circuits[name].data[row], logits, atol=2e-3), (name, token)
    own = torch.arange(10)
    assert bool((circuits["duplicate"].data[own, own] < 0).all()), "a duplicate lowers its own logit"
    assert bool((circuits["anti_duplicate"].data[own, own] > 0).all())


@pytest.mark.parametrize("above", [0.05, 0.1, 0.2])
def test_thresholds_decide(above: float) -> None:
    model = network("attention only")
    found = duplicate_detectors(model, above=above, below=0.01)
    values = found.values
    for row, head in enumerate(values.names("head")):
        assert found.duplicate[head] == [
            t for t, v in zip(values.names("token"), values.data[row].tolist(), strict=True) if v > above
        ]
    with pytest.raises(UnknownName, match=r"no kind of detector is called 'duplicates' \(did you mean 'duplicate'\?\)"):
        found.of("duplicates")
    none = duplicate_detectors(model, above=2.0, below=-1.0)
    assert none.summary().endswith("anti-duplicate detectors (below -1): none")
    circuits = full_circuits(model, none, responsible_heads(model))
    assert not bool(circuits["duplicate"].data.any()) and circuits["duplicate"].shape == (13, 13)


def test_detectors_may_compare_all_tokens_or_some() -> None:
    model = network("attention only")
    every, some = duplicate_detectors(model, layer=1), duplicate_detectors(model, layer=1, tokens=["3", 5])
    assert every.values.shape == (4, 13) and some.values.names("token") == ("3", "5")
    assert bool((some.values.data >= every.values.data[:, [3, 5]]).all()), "fewer tokens compete"


def test_responsibility_is_the_largest_diagonal() -> None:
    model = network("gpt2")
    found = responsible_heads(model, tokens=[2, 4])
    for column, via in enumerate(found.values.names("via")):
        for row, head in enumerate(found.values.names("head")):
            route = ["embed", *([] if via == "direct" else [via]), head, "logits"]
            expected = path_circuit(model, " → ".join(route)).diagonal().data[[2, 4]]
            assert torch.allclose(found.values.data[row, :, column], expected)
    assert responsible_heads(model, layer=0).values.names("via") == ("direct",)


def test_detectors_and_responsible_heads_must_meet() -> None:
    model = network("gpt2")
    with pytest.raises(ShapeError, match="no token in common"):
        full_circuits(model, duplicate_detectors(model, tokens=[1]), responsible_heads(model, tokens=[2]))
    for ask in (duplicate_detectors, responsible_heads):
        with pytest.raises(UnknownName, match="there is no token 'seven'; there are 13, such as 0, 1, 2"):
            ask(model, tokens=["seven"])
        with pytest.raises(ShapeError, match="there is no layer 2; there are 2"):
            ask(model, layer=2)


# Pathways.


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("gemma", "olmo-2")])
@pytest.mark.parametrize("layer", [0, 1])
def test_pairs_of_components_sum_to_the_scores(name: str, layer: int) -> None:
    model, tokens = network(name, dtype="float64"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    found = pathways(cache, layer=layer, biases=True)
    scores = cache["attn_scores", layer]
    if name == "bloom":
        from cutaway.model.positions import alibi_bias

        scores = scores - alibi_bias(4, 9, 9, scores.device)
    expected = scores.masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), 0).norm(dim=-1).transpose(0, 1)
    assert torch.allclose(found.total.data, expected, atol=1e-8)
    assert found.share().data.sum(0) == pytest.approx(torch.ones(4), abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_components_sum_to_the_normalised_input(name: str) -> None:
    model, tokens = network(name, dtype="float64"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    parts, labels = components_into(cache, 1)
    assert len(parts) == len(labels)
    block = model.blocks[1]
    expected = block.ln1(cache["resid_pre", 1])
    own = getattr(block.ln1, "b", None)
    assert torch.allclose(parts.sum(0), expected if own is None else expected - own, atol=1e-9)
    assert set(sites_into(model, 1)) <= set(cache.keys())


def test_pathways_equal_the_loop() -> None:
    model, tokens = network("gpt2", dtype="float64"), some_tokens(2, 5)
    found = pathways(model, tokens, components=["embed", "pos_embed"])
    assert found.values.names("pair") == (
        "Q=embed, K=embed", "Q=embed, K=pos_embed", "Q=pos_embed, K=embed", "Q=pos_embed, K=pos_embed",
    )  # fmt: skip
    _, cache = model.run_with_cache(tokens)
    parts, _ = components_into(cache, 0)
    for pair, (a, b) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        for head in range(4):
            q, k = parts[a] @ model.W_Q[0, head], parts[b] @ model.W_K[0, head]
            scores = (q @ k.transpose(1, 2) / 6**0.5).tril()
            assert torch.allclose(found.values.data[pair, head], scores.norm(dim=-1), atol=1e-10)
    every = pathways(model, tokens, components=["embed"], causal=False)
    assert bool((every.values.data[0, :, :, :-1] >= found.values.data[0, :, :, :-1]).all())
    assert every.figure().view == "grid" and every.figure("0.1").view == "lines"
    assert every.by_position().values.axes == ("pair", "head", "pos")


def test_pathways_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="normalises queries and keys"):
        pathways(network("gemma"), some_tokens())
    with pytest.raises(UnknownName, match="no component is called 'mlp'"):
        pathways(network("gpt2"), some_tokens(), components=["mlp"])
    with pytest.raises(ShapeError, match="no layer 2; there are 2"):
        pathways(network("gpt2"), some_tokens(), layer=2)


def test_norm_scales_leave_padding_out() -> None:
    model = network("gpt2")
    model.set_tokenizer(CharTokenizer(list("abcdefghijk?_"), bos_token="?", pad_token="_"))
    texts = ["abcdefgh", "kab", "fj"]
    both, alone = norm_scales(model, texts), [norm_scales(model, text) for text in texts]
    for norm in ("0.ln1", "ln_final"):
        each = torch.cat([one.values.sel(norm=norm).data[0] for one in alone])
        assert math.isclose(both.of(norm), float(each.mean()), rel_tol=1e-4)
        assert math.isclose(both.spread_of(norm), float(each.std()), rel_tol=1e-4)
    spread = both.std_by_position().data
    assert bool(spread[:, :4].isfinite().all()) and bool(spread[:, 4:].isnan().all())
    assert "nan" not in both.summary() and both.figure().to_json()


def test_norm_scales_are_those_of_the_run(published: Published) -> None:
    scales = norm_scales(published.cache)
    assert scales.values.names("norm") == ("0.ln1", "1.ln1", "ln_final")
    resid = published.cache["resid_post", 1]
    expected = (resid.var(-1, unbiased=False) + published.model.cfg.eps).sqrt()
    assert torch.allclose(scales.values.sel(norm="ln_final").data, expected, rtol=1e-4)
    assert scales.of("ln_final") == pytest.approx(float(expected.mean()), rel=1e-4)
    assert scales.spread_of("ln_final") == pytest.approx(float(expected.std()), rel=1e-3)
    assert scales.by_position().values.shape == (3, 20) and scales.std_by_position().shape == (3, 20)
    assert scales.figure().view == "lines" and "ln_final: " in scales.summary()
    with pytest.raises(ShapeError, match="no norms"):
        norm_scales(network("no norm, shortformer"), some_tokens())
