"""Texts of unequal length: a batch of them, padded on either side, gives each text the numbers that it gets alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cutaway
from cutaway import metrics
from cutaway.hooked_transformer import HookedTransformer
from cutaway.runs import edits
from cutaway.runs.editing import run
from cutaway.runs.sweep.cells import heads
from cutaway.tokens import CharTokenizer
from tests.architectures import ALL, network, some_tokens

TEXTS = ["abcdefga", "ab", "cabca", "h"]
LONG = ["abcdefga", "abca", "cabcad"]  # where an analysis needs several tokens
LETTERS = "abcdefgh"


def model_for(kind: str, side: str) -> HookedTransformer:
    model = network(kind)
    vocabulary = [*LETTERS, "PAD", "BOS", *(f"<{n}>" for n in range(model.cfg.d_vocab - len(LETTERS) - 2))]
    model.set_tokenizer(CharTokenizer(vocabulary, bos_token="BOS", eos_token="PAD", pad_token="PAD"))
    model.default_padding_side = side
    return model.requires_grad_(False)


def padded(model: HookedTransformer, texts: list[str], side: str) -> tuple[Tensor, Tensor]:
    """The texts as tokens, and which are real."""
    rows = [model.to_tokens(text)[0] for text in texts]
    length = max(map(len, rows))
    tokens = torch.full((len(rows), length), model.tokenizer.pad_token_id)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        tokens[i, place], real[i, place] = row, True
    return tokens, real


def logits(model: Any, tokens: Tensor) -> tuple[Tensor, str]:
    return model(tokens), "bp"


def loss_per_token(model: Any, tokens: Tensor) -> tuple[Tensor, str]:
    return model(tokens, return_type="loss", loss_per_token=True), "bn"


def attribute(model: Any, tokens: Tensor) -> tuple[Tensor, str]:
    return cutaway.attribute(model, tokens).values.data.nan_to_num(), "*bt"


def lens(model: Any, tokens: Tensor) -> tuple[Tensor, str]:
    return cutaway.lens(model, tokens).values.data.nan_to_num(), "*bt"


def predict(model: Any, tokens: Tensor) -> tuple[Tensor, str]:
    return cutaway.predict(model, tokens).values.data.nan_to_num(), "bt"


def head_scores(model: Any, tokens: Tensor) -> tuple[Tensor, str]:
    return cutaway.head_scores(model, tokens).values.data.nan_to_num(-7), "*b"


def norm_scales(model: Any, tokens: Tensor) -> tuple[Tensor, str]:
    return cutaway.norm_scales(model, tokens).values.data.nan_to_num(), "*bp"


def swept(make: Callable[[Tensor], Any]) -> Callable[[Any, Tensor], tuple[Tensor, str]]:
    def sweep(model: Any, tokens: Tensor) -> tuple[Tensor, str]:
        return cutaway.sweep(model, tokens, heads(), make(tokens), audit=1).values.data, "*b"

    return sweep


def once(make: Callable[[Tensor], Any]) -> Callable[[Any, Tensor], tuple[Tensor, str]]:
    def one(model: Any, tokens: Tensor) -> tuple[Tensor, str]:
        return run(model, tokens, edits=[edits.scale(0.5).at("resid_pre1")], metric=make(tokens)).value, "b"

    return one


METRICS: dict[str, Callable[[Tensor], Any]] = {
    "loss": lambda tokens: metrics.loss(tokens),
    "accuracy": lambda tokens: metrics.accuracy(tokens),
    "difference": lambda tokens: metrics.logit_difference([1], [2]),
    "last two": lambda tokens: metrics.log_probability([1], [-1, -2]),
    "kl": lambda tokens: metrics.kl(),
    "rank": lambda tokens: metrics.rank([3], None),
    "probability difference": lambda tokens: metrics.probability_difference([[3, 4]], [[5]], None),
}
LAW: dict[str, tuple[Callable[[Any, Tensor], tuple[Tensor, str]], list[str]]] = {
    "logits": (logits, TEXTS), "loss per token": (loss_per_token, TEXTS), "attribute": (attribute, TEXTS),
    "lens": (lens, TEXTS), "predict": (predict, TEXTS), "head_scores": (head_scores, LONG),
    "norm_scales": (norm_scales, TEXTS),
    **{f"sweep, {name}": (swept(make), LONG) for name, make in METRICS.items()},
    **{f"run, {name}": (once(make), LONG) for name, make in METRICS.items()},
}  # fmt: skip


def of_row(found: Tensor, axes: str, row: int, real: Tensor) -> Tensor:
    """What a batch's result says of one row: at its real tokens, or at those that have a next one."""
    at = real[row].nonzero().flatten()
    if axes.endswith("b"):
        return found[..., row]
    part = found[..., row, :] if axes.startswith("*") or axes in ("bt", "bn") else found[row]
    if axes == "bn":
        return part[at[:-1]]
    if axes.endswith("t"):  # a target is the next token
        return part[..., at[:-1]]
    return part[at] if axes == "bp" else part[..., at]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", LAW)
def test_a_text_in_a_batch_gets_the_numbers_that_it_gets_alone(name: str, kind: str, side: str) -> None:
    function, texts = LAW[name]
    model = model_for(kind, side)
    tokens, real = padded(model, texts, side)
    together, axes = function(model, tokens)
    for row, text in enumerate(texts):
        own = model.to_tokens(text)
        alone, _ = function(model, own)
        got = of_row(together, axes, row, real)
        expected = of_row(alone, axes, 0, torch.ones_like(own, dtype=torch.bool))
        assert got.shape == expected.shape
        scale = expected.abs().max().clamp(min=0.1) if expected.numel() else 1
        assert expected.numel() == 0 or (got - expected).abs().max() <= 1e-4 * scale, f"{text}: {got} for {expected}"


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_of_a_batch_counts_real_tokens(side: str) -> None:
    model = model_for("gpt2", side)
    tokens, _ = padded(model, TEXTS, side)
    own = [model(model.to_tokens(text), return_type="loss", loss_per_token=True)[0] for text in TEXTS]
    assert float(model(tokens, return_type="loss")) == pytest.approx(float(torch.cat(own).mean()), rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_steering_vectors_read_the_last_real_token(side: str) -> None:
    model = model_for("gpt2", side)
    vector = cutaway.contrast_vectors(model, TEXTS[:2], TEXTS[2:], [1], position=-1)[1].values[0]
    ends = [model.run_with_cache(model.to_tokens(text))[1]["resid_pre", 1][0, -1] for text in TEXTS]
    assert torch.allclose(vector, (ends[0] + ends[1] - ends[2] - ends[3]) / 2, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_metric_that_would_read_padding_is_refused(side: str) -> None:
    model = model_for("gpt2", side)
    tokens, _ = padded(model, LONG, side)
    with pytest.raises(cutaway.errors.ShapeError, match=r"which is padding; -1 is each row's own last token"):
        cutaway.sweep(model, tokens, heads(), metrics.log_probability([1], 0 if side == "left" else tokens.shape[1] - 1))


def test_generation_goes_on_at_the_end_of_each_text() -> None:
    model = model_for("gpt2", "right")
    left, _ = padded(model, LONG, "left")
    out = model.generate(left, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)
    for row, text in enumerate(LONG):
        own = model.to_tokens(text)
        alone = model.generate(own, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)
        assert out[row, -4:].tolist() == alone[0, -4:].tolist()
    with pytest.raises(cutaway.errors.TokenError, match="pad on the left"):
        model.generate(padded(model, LONG, "right")[0], max_new_tokens=4, verbose=False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_analysis_counts_the_real_targets(side: str) -> None:
    model = model_for("gpt2", side)
    tokens, _ = padded(model, TEXTS, side)
    found = cutaway.predict(model, tokens)
    assert int(found.counted.sum()) == sum(len(model.to_tokens(text)[0]) - 1 for text in TEXTS)


@pytest.mark.parametrize("name", ALL)
def test_one_prompt_with_padding_before_it_is_that_prompt(name: str) -> None:
    model, tokens = network(name), some_tokens(1, 9)
    mask = torch.ones_like(tokens)
    mask[:, :2] = 0
    for padded in (model(tokens, attention_mask=mask), model.run_with_cache(tokens, attention_mask=mask)[0]):
        torch.testing.assert_close(padded[:, 2:], model(tokens[:, 2:]), rtol=1e-4, atol=1e-5)
