"""Neurons, heads, directions: the extremes equal those of a full sort, whatever the batches; padding and windows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from cutaway import CharTokenizer
from cutaway.analysis.neurons import max_activating_texts
from cutaway.errors import ShapeError, UnknownName, UnknownSite
from tests.architectures import network, some_tokens


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_extremes_equal_a_full_sort(batch_size: int) -> None:
    model, tokens = network("gpt2").requires_grad_(False), some_tokens(20)
    direction = torch.randn(24, generator=torch.Generator().manual_seed(0))
    found = max_activating_texts(
        model, ["1.mlp.5", "0.2", ("resid_post0", direction)], tokens, k=6, around=2, batch_size=batch_size
    )
    _, cache = model.run_with_cache(tokens)
    plain = {
        "1.mlp.5": cache["post", 1][..., 5],
        "0.2": (cache["z", 0][:, :, 2] @ model.W_O[0, 2]).norm(dim=-1),
        "blocks.0.hook_resid_post": cache["resid_post", 0] @ direction,
    }
    assert list(found.most) == list(plain)
    for name, values in plain.items():
        for sign, snippets in ((1, found.most[name]), (-1, found.least[name])):
            best = (values * sign).amax(1).sort(descending=True).values[:6] * sign
            assert [one.value for one in snippets] == pytest.approx(best.tolist(), abs=1e-4)
            assert len({one.example for one in snippets}) == 6, "at most one of each example"
            for one in snippets:
                low = max(0, one.position - 2)
                words = [str(t) for t in tokens[one.example, low : one.position + 3].tolist()]
                assert one.value == pytest.approx(float(values[one.example, one.position]), abs=1e-4)
                assert list(one.words) == words and one.words[one.at] == str(int(tokens[one.example, one.position]))
                near = values[one.example, low : one.position + 3].tolist()
                assert list(one.activations) == pytest.approx(near, abs=1e-4)
        row = found.values.sel(feature=name)
        facts = [values.mean(), values.std(unbiased=False), values.min(), values.max(), (values > 0).float().mean()]
        assert row.data.tolist() == pytest.approx([float(fact) for fact in facts], abs=1e-4)
        for token in tokens.unique().tolist():
            mean = found.by_token.sel(feature=name).data[token]
            assert float(mean) == pytest.approx(float(values[tokens == token].mean()), abs=1e-4)
    assert found.examples == 20 and found.positions == 180 and int(found.counts.sum()) == 180


def test_top_tokens_are_the_highest_means() -> None:
    model, tokens = network("gpt2"), some_tokens(20)
    found = max_activating_texts(model, ["0.mlp.3"], tokens)
    row = found.by_token.sel(feature="0.mlp.3").data
    assert [mean for _, mean, _ in found.top_tokens("0.mlp.3", 4)] == pytest.approx(row.sort(descending=True).values[:4].tolist())
    lowest = found.top_tokens("0.mlp.3", 2, least=True)
    assert lowest[0][1] == pytest.approx(float(row.min()))
    often = int(found.counts.max())
    assert [count for _, _, count in found.top_tokens("0.mlp.3", 9, at_least=often)] == [often] * int(
        (found.counts == often).sum()
    )


def test_text_streams_and_padding_is_not_read() -> None:
    model = network("gpt2", d_vocab=5)
    model.set_tokenizer(CharTokenizer(list("abc?_"), bos_token="?", pad_token="_"))

    def texts() -> Iterator[str]:
        yield from ["abcabc", "ab", "c", "abcacb" * 8]

    found = max_activating_texts(model, ["0.mlp.3"], texts(), batch_size=2)
    assert found.positions == 7 + 3 + 2 + 48 + 3 and found.examples == 3 + 3, "the long text became three windows"
    assert int(found.counts[4]) == 0
    alone = [one.value for text in texts() for one in max_activating_texts(model, ["0.mlp.3"], text).most["0.mlp.3"]]
    assert [one.value for one in found.most["0.mlp.3"]] == pytest.approx(sorted(alone, reverse=True), abs=1e-5)
    pad = model.W_E[4].detach()
    found = max_activating_texts(model, [("hook_embed", pad)], texts(), batch_size=4)
    assert len(found.most["hook_embed"]) == 6
    assert max(one.value for one in found.most["hook_embed"]) < float(pad @ pad), "what looks for padding finds none"


def test_results_draw_and_describe_themselves() -> None:
    model, tokens = network("gpt2"), some_tokens()
    found = max_activating_texts(model, ["0.mlp.3", "1.0"], tokens)
    assert found.figure().view and found.token_figure("1.0").view == "bars"
    assert "0.mlp.3: mean" in found.summary() and "⟦" in found.summary()
    assert len(found.to_frame()) == 2 * 2 * 3
    assert set(json.loads(json.dumps(found.to_json()))["most"]) == {"0.mlp.3", "1.0"}
    assert not any(point.fwd_hooks for point in model.hook_points())


def test_what_is_no_feature_is_refused() -> None:
    model, tokens = network("gpt2"), some_tokens()
    with pytest.raises(UnknownName, match=r"no component is called .neuron 3.; write"):
        max_activating_texts(model, ["neuron 3"], tokens)
    with pytest.raises(UnknownName, match="30 neurons"):
        max_activating_texts(model, ["0.mlp.30"], tokens)
    with pytest.raises(UnknownName, match="2 layers of 4 heads"):
        max_activating_texts(model, ["2.0"], tokens)
    with pytest.raises(UnknownName, match="attention only"):
        max_activating_texts(network("attention only"), ["0.mlp.1"], tokens)
    with pytest.raises(UnknownName, match="mixture"):
        max_activating_texts(network("mixture"), ["0.mlp.1"], tokens)
    with pytest.raises(UnknownSite):
        max_activating_texts(model, [("resid_pst0", torch.zeros(24))], tokens)
    with pytest.raises(ShapeError, match="a direction is a vector"):
        max_activating_texts(model, [("pattern0", torch.zeros(24))], tokens)
    with pytest.raises(ShapeError, match="at least one feature"):
        max_activating_texts(model, [], tokens)
    with pytest.raises(ShapeError, match="nothing to read"):
        max_activating_texts(model, ["0.1"], [])
