"""Predictions: token by token the same as from plain logits; padding and windows; bad input."""

from __future__ import annotations

import json

import pytest
import torch

from cutaway import CharTokenizer, HookedTransformer
from cutaway.analysis import predictions as room
from cutaway.analysis.predictions import likeliest_tokens, predict
from cutaway.errors import ContextTooLong, ShapeError, TokenError
from tests.analysis.conftest import Published
from tests.architectures import ALL, network, some_tokens


def reader() -> HookedTransformer:
    model = network("gpt2", d_vocab=5)
    model.set_tokenizer(CharTokenizer(list("abc?_"), bos_token="?", pad_token="_"))
    return model


@pytest.mark.parametrize("name", ALL)
def test_every_token_as_from_plain_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = network(name), some_tokens(5)
    with torch.no_grad():
        logits, loss = model(tokens, return_type="both", loss_per_token=True)
    monkeypatch.setattr(room, "ENTRIES", 13 * 7)
    found = predict(model, tokens, batch_size=2)
    assert torch.allclose(found.values.data[:, :-1], loss, atol=1e-5)
    assert torch.equal(found.predicted, logits.argmax(-1))
    probability = logits.softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    assert torch.allclose(found.probability.data[:, :-1], probability, atol=1e-5)
    order = logits[:, :-1].argsort(-1, descending=True)
    rank = (order == tokens[:, 1:, None]).float().argmax(-1)
    assert torch.equal(found.rank.data[:, :-1], rank)
    assert found.loss == pytest.approx(float(loss.mean()), abs=1e-5)
    assert found.accuracy == pytest.approx(float((rank == 0).float().mean()))
    assert found.top_accuracy(3) == pytest.approx(float((rank < 3).float().mean()))


def test_rows_say_it_in_words() -> None:
    model = reader()
    found = predict(model, "abca")
    rows = list(found.rows())
    assert [(row["token"], row["target"]) for row in rows] == [("?", "a"), ("a", "b"), ("b", "c"), ("c", "a")]
    assert all(row["right"] == (row["predicted"] == row["target"]) == (row["rank"] == 0) for row in rows)
    assert len(found.to_frame()) == 4 and len(json.loads(json.dumps(found.to_json()))["tokens"]) == 4
    assert found.figure().view == "tokens" and found.curve().view == "lines"
    assert found.summary().startswith("4 tokens: loss ") and not found.split
    assert predict(model, "a").summary().startswith("1 token: loss ")


def test_padding_is_neither_read_nor_predicted() -> None:
    model = reader()
    for side in ("left", "right"):
        model.default_padding_side = side
        both = predict(model, ["abcabc", "ab"])
        assert int(both.counted[1].sum()) == 2
        alone = predict(model, "ab").values.data[0, :2]
        assert torch.allclose(both.values.data[1][both.counted[1]], alone, atol=1e-5), side


def test_a_long_text_is_read_in_windows_and_each_token_once() -> None:
    model = reader()
    text = "abcacb" * 10
    found = predict(model, text)
    assert found.tokens.shape == (4, 20) and int(found.counted.sum()) == 60
    assert "".join(row["target"] for row in found.rows()) == text
    assert found.windows == 4 and found.split in found.summary() and "4 windows of at most 20 tokens" in found.split
    window = predict(model, text[19:38]).values.data[0]
    assert torch.allclose(found.values.data[1][:19], window[:19], atol=1e-5)


def test_parts_have_intervals() -> None:
    model, tokens = network("gpt2"), some_tokens(6)
    found = predict(model, tokens)
    late = torch.zeros(6, 9, dtype=torch.bool)
    late[:, 4:] = True
    means = found.over(late)
    assert float(means.values.sel(measure="loss").data) == pytest.approx(float(found.values.data[:, 4:-1].mean()), abs=1e-6)
    assert float(means.values.sel(measure="accuracy").data) == pytest.approx(float(found.right[:, 4:-1].float().mean()))
    assert float(means.low.sel(measure="loss").data) < float(means.high.sel(measure="loss").data)


def test_labels_of_a_task(published: Published) -> None:
    found = predict(
        published.model, published.data.toks, targets=published.data.labels, vocab=published.data.vocab, batch_size=500
    )
    assert round(found.loss, 3) == 0.017 and not found.of_next and "answers: loss" in found.summary()
    assert "answer" in found.figure().title and found.figure().meta["texts"][0] == published.data.str_toks[0]
    assert round(float(found.probability.data.mean()), 3) == 0.988
    assert round(float(found.probability.data.min()), 3) == 0.001


def test_likeliest_tokens() -> None:
    model = reader()
    found = likeliest_tokens(model, "abc", position=1, k=2)
    with torch.no_grad():
        probability = model("abc")[0, 1].softmax(-1)
    top = probability.topk(2)
    assert [word for word, _ in found] == [model.to_single_str_token(int(i)) for i in top.indices]
    assert [value for _, value in found] == pytest.approx(top.values.tolist(), abs=1e-6)
    with pytest.raises(ShapeError, match="no position 4; there are 4"):
        likeliest_tokens(model, "abc", position=4)


def test_nothing_to_predict_is_refused() -> None:
    with pytest.raises(TokenError, match="at least two tokens"):
        predict(network("gpt2"), torch.tensor([[3]]))
    with pytest.raises(ContextTooLong):
        predict(network("gpt2"), some_tokens(1, 21))
