"""Metrics: each against the formula written out, on whole logits; which logits each asks for."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import ShapeError, TokenError
from cutaway.runs import metrics

LOGITS = torch.randn(4, 6, 11, generator=torch.Generator().manual_seed(0))
CLEAN = torch.randn(4, 6, 11, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(2))
RIGHT, WRONG = torch.tensor([1, 2, 3, 4]), torch.tensor([5, 5, 0, 10])
ROWS = torch.arange(4)
LOG = LOGITS.log_softmax(-1)


def test_metrics_of_an_answer() -> None:
    last = LOGITS[:, -1]
    expected = last[ROWS, RIGHT] - last[ROWS, WRONG]
    torch.testing.assert_close(metrics.logit_difference(RIGHT, WRONG)(LOGITS), expected)
    torch.testing.assert_close(metrics.log_probability(RIGHT)(LOGITS), LOG[ROWS, -1, RIGHT])
    torch.testing.assert_close(metrics.probability(RIGHT)(LOGITS), LOG[ROWS, -1, RIGHT].exp())
    order = last.argsort(-1, descending=True)
    assert metrics.rank(RIGHT)(LOGITS).tolist() == [order[i].tolist().index(RIGHT[i]) for i in range(4)]


def test_sets_of_tokens_are_told_apart_by_their_probability() -> None:
    right, wrong = [[1, 2], [3], [0, 4, 5], [6, 6]], [[7], [8, 9], [10], [1, 2]]
    share = LOG[:, -1].exp()
    expected = torch.stack([share[row, list(set(right[row]))].sum() - share[row, wrong[row]].sum() for row in range(4)])
    torch.testing.assert_close(metrics.probability_difference(right, wrong)(LOGITS), expected)
    one = metrics.probability_difference([[1, 2]], [[3]], 2)(LOGITS)
    torch.testing.assert_close(one, LOG[:, 2].exp()[:, [1, 2]].sum(1) - LOG[:, 2, 3].exp())
    with pytest.raises(TokenError, match="example 1 has no wrong tokens"):
        metrics.probability_difference(right, [[1], [], [2], [3]])
    with pytest.raises(TokenError, match="names the right token 99"):
        metrics.probability_difference([[99]], [[1]])(LOGITS)


def test_positions_may_be_one_some_or_each_examples_own() -> None:
    at = LOG[ROWS[:, None], torch.arange(6), RIGHT[:, None]]
    torch.testing.assert_close(metrics.log_probability(RIGHT, 2)(LOGITS), at[:, 2])
    torch.testing.assert_close(metrics.log_probability(RIGHT, [1, -1])(LOGITS), (at[:, 1] + at[:, -1]) / 2)
    own = torch.tensor([0, 5, 3, -2])
    torch.testing.assert_close(metrics.log_probability(RIGHT, own)(LOGITS), at[ROWS, own])
    mask = TOKENS > 3
    torch.testing.assert_close(metrics.log_probability(RIGHT, mask)(LOGITS), (at * mask).sum(1) / mask.sum(1))


def test_losses_and_accuracies() -> None:
    following = -LOG[:, :-1].gather(-1, TOKENS[:, 1:, None])[..., 0]
    torch.testing.assert_close(metrics.loss(TOKENS)(LOGITS), following.mean(1))
    kept = metrics.loss(TOKENS, by_position=True)(LOGITS)
    torch.testing.assert_close(kept[:, :-1], following)
    assert kept[:, -1].isnan().all()
    labels = TOKENS.flip(0).masked_fill(TOKENS == 3, -1)
    own = -LOG.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = (own * (labels >= 0)).sum(1) / (labels >= 0).sum(1)
    torch.testing.assert_close(metrics.loss(TOKENS, labels)(LOGITS), expected)
    right = (LOGITS.argmax(-1)[:, :-1] == TOKENS[:, 1:]).float().mean(1)
    torch.testing.assert_close(metrics.accuracy(TOKENS)(LOGITS), right)
    mask = torch.ones_like(TOKENS)
    mask[1, :3] = 0
    torch.testing.assert_close(metrics.loss(TOKENS, mask=mask)(LOGITS)[1], following[1, 3:].mean())


def test_kl_is_zero_for_the_clean_run_and_else_what_the_formula_says() -> None:
    assert metrics.kl()(CLEAN, CLEAN).abs().max() < 1e-6
    expected = torch.nn.functional.kl_div(LOG[:, -1], CLEAN[:, -1].log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(metrics.kl()(LOGITS, CLEAN), expected)


def test_normalised_metrics_have_corrupted_at_zero_and_clean_at_one() -> None:
    metric = metrics.logit_difference(RIGHT, WRONG)
    clean, corrupted = metric(CLEAN), metric(LOGITS)
    scaled = metrics.normalised(metric, clean=clean, corrupted=corrupted)
    assert scaled(CLEAN).mean() == pytest.approx(1, abs=1e-5)
    assert scaled(LOGITS).mean() == pytest.approx(0, abs=1e-5)
    with pytest.raises(ShapeError, match="there is no scale"):
        metrics.normalised(metric, clean=clean, corrupted=clean)


def test_metrics_say_what_they_read() -> None:
    difference = metrics.logit_difference(RIGHT, WRONG, 2)
    assert difference.columns().tolist() == [0, 1, 2, 3, 4, 5, 10]
    assert difference.wanted(4, 6).nonzero()[:, 1].tolist() == [2, 2, 2, 2]
    assert metrics.loss(TOKENS).columns() is None
    assert not metrics.loss(TOKENS).wanted(4, 6)[:, -1].any()


def test_functions_give_one_number_or_one_for_each_example() -> None:
    assert metrics.as_metric(lambda logits: logits[0, -1, 3])(LOGITS).item() == LOGITS[0, -1, 3].item()
    assert metrics.as_metric(lambda logits: logits[:, -1, 3])(LOGITS).shape == (4,)
    with pytest.raises(ShapeError, match="one number, or one for each of 4 examples"):
        metrics.as_metric(lambda logits: logits[0, :, 3])(LOGITS)
    with pytest.raises(ShapeError, match="not str"):
        metrics.as_metric("loss")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: metrics.logit_difference([[1, 2], [3, 4]], [0, 0]), TokenError, "one token id for each example.*several tokens"),
        (lambda: metrics.logit_difference([1, 2, 3], [0, 0, 0])(LOGITS), ShapeError, "3 answers for 4 examples"),
        (lambda: metrics.log_probability(RIGHT, 6)(LOGITS), ShapeError, "reads position 6, and there are 6"),
        (lambda: metrics.loss(TOKENS, TOKENS[:, :3]), ShapeError, "labels of shape"),
        (lambda: metrics.loss(TOKENS[:2])(LOGITS), ShapeError, "labels of shape"),
        (lambda: metrics.loss(TOKENS, TOKENS + 3)(LOGITS), TokenError, r"the label 1[123], and the vocabulary has the 11 tokens"),
        (lambda: metrics.rank([1, 2, 11, 3])(LOGITS), TokenError, "rank names the answer 11, and .* 0 to 10; are these"),
        (lambda: metrics.probability([-100])(LOGITS), TokenError, "names the answer -100"),
        (lambda: metrics.logit_difference(RIGHT, [5, 5, 0, 50])(LOGITS), TokenError, "names the wrong answer 50"),
        (lambda: metrics.normalised(metrics.rank([11]), clean=0.0, corrupted=1.0)(LOGITS), TokenError, "names the answer 11"),
        (lambda: metrics.logit_difference(" a", " b")(LOGITS), TokenError, r"metric\.of\(model\.tokenizer, prompts\).*token id"),
        (lambda: metrics.log_probability(RIGHT, "end")(LOGITS), TokenError, "the log-probability of words, roles"),
        (lambda: metrics.loss()(LOGITS), TokenError, r"needs the tokens that run, .*metrics\.loss\(tokens\)\(logits\)"),
        (lambda: metrics.as_metric(metrics.loss), ShapeError, r"loss makes a metric when .*; give metrics.loss\(\) instead"),
        (lambda: metrics.as_metric(metrics.kl), ShapeError, r"give metrics.kl\(\) instead"),
        (lambda: metrics.as_metric(metrics.Rank), ShapeError, r"give metrics.Rank\(…\) instead"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()  # type: ignore[operator]
