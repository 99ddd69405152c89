"""Builders: lists, NumPy and torch alike; what does not fit is refused in the caller's words."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cutaway import view
from cutaway.errors import ShapeError
from cutaway.view.arrays import number

RNG = np.random.default_rng(0)
SQUARE = RNG.random((2, 3, 3)).astype(np.float32)
ABC = ["a", "b", "c"]


@pytest.mark.parametrize(
    "values",
    [SQUARE, SQUARE.tolist(), torch.tensor(SQUARE), torch.tensor(SQUARE, requires_grad=True), list(torch.tensor(SQUARE))],
)
def test_lists_arrays_and_tensors_make_the_same_figure(values: object) -> None:
    figure = view.attention_patterns(ABC, values)
    np.testing.assert_allclose(figure.arrays["patterns"], SQUARE, rtol=1e-6)
    assert str(figure) == str(view.attention_patterns(ABC, SQUARE))


def test_half_precision_and_whole_numbers_are_taken() -> None:
    assert view.heat_map(torch.ones(2, 2, dtype=torch.bfloat16)).arrays["p0"].dtype == np.float32
    assert view.heat_map(torch.arange(4).reshape(2, 2)).arrays["p0"].tolist() == [[0, 1], [2, 3]]
    assert view.heat_map([[True, False]]).arrays["p0"].tolist() == [[1, 0]]


def test_one_text_in_a_batch_is_taken_several_are_not() -> None:
    assert view.attention_patterns(ABC, SQUARE[None]).arrays["patterns"].shape == (2, 3, 3)
    with pytest.raises(ShapeError, match="batch of 2"):
        view.attention_patterns(ABC, np.stack([SQUARE, SQUARE]))


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "tokens that are too few": (lambda: view.attention_patterns(["a", "b"], SQUARE), "tokens has 2 labels, but the array has 3"),
    "a string for tokens": (lambda: view.attention_patterns("abc", SQUARE), "one string, 'abc'; give a list"),
    "keys without labels": (lambda: view.attention_patterns(ABC, np.ones((2, 3, 5))), "give src_tokens for the 5 keys"),
    "head names": (lambda: view.attention_patterns(ABC, SQUARE, ["x"]), "head_names has 1 labels, but the array has 2"),
    "dimensions": (lambda: view.heat_map(np.ones(3)), r"must have 2 dimensions; its shape is \[3\]"),
    "nothing": (lambda: view.heat_map(np.ones((0, 3))), r"empty \(shape \[0, 3\]\)"),
    "an empty list": (lambda: view.colored_tokens([], []), "is empty"),
    "ragged rows": (lambda: view.heat_map([[1, 2], [3]]), "must be an array of numbers; this is a list"),
    "words": (lambda: view.heat_map([["a", "b"]]), "must be an array of numbers"),
    "no panels": (lambda: view.small_multiples({}), "panels is empty"),
    "a mark outside": (lambda: view.heat_map(np.eye(2), marks=[(0, 2)]), r"mark \(0, 2\) is outside the 2 × 2"),
    "a scale": (lambda: view.heat_map(np.eye(2), scale="jet"), "'jet' is not known; there are diverging"),
    "a range": (lambda: view.heat_map(np.eye(2), range=(1, 1)), "two finite numbers, the smaller one first"),
    "cell text": (lambda: view.heat_map(np.eye(2), text=[["a", "b"]]), "text has 1 rows, but values has 2"),
    "too many cells": (lambda: view.heat_map(np.ones((2, 5000))), "choose the rows and columns"),
    "no series": (lambda: view.line_chart({}), "series is empty"),
    "lines of two lengths": (lambda: view.line_chart({"a": [1], "b": [1, 2]}), "a 1, b 2"),
    "x": (lambda: view.line_chart({"a": [1, 2]}, [1, 2, 3]), "x has 3 points, but the series have 2"),
    "an unknown interval": (lambda: view.line_chart({"a": [1]}, intervals={"b": [[0], [1]]}), "for b, but the series are a"),
    "an interval's shape": (lambda: view.line_chart({"a": [1]}, intervals={"a": [[0, 1]]}), r"must be \[2, 1\]"),
    "groups": (lambda: view.bar_chart(["x"], [1, 2]), "groups has 1 labels"),
    "a row": (lambda: view.table(["a", "b"], [[1]]), r"row 0 has 1 cells, but there are 2 columns \(a, b\)"),
    "components": (lambda: view.attribution(np.ones((2, 3)), ["x"]), "components has 1 labels"),
    "a total": (lambda: view.attribution(np.ones((2, 3)), ["x", "y"], total=[1, 2]), r"total must be \[3, 1\]"),
    "right answers": (lambda: view.attribution(np.ones((1, 2, 2)), ["x"], correct=[0, 2]), "must name one of 2"),
    "no edges": (lambda: view.circuit_layers([], []), "at least one edge"),
    "edges and numbers": (lambda: view.circuit_layers([("embed", "logits")], [1.0, 2.0]), "2 numbers for 1 edges"),
    "no component": (lambda: view.circuit_layers([("L0H1", "logits")], [1.0]), "'L0H1' is no component of a circuit"),
    "kinds": (lambda: view.head_types({}), "at least one kind"),
    "kinds of two shapes": (lambda: view.head_types({"a": np.eye(2), "b": np.eye(3)}), r"a \[2, 2\], b \[3, 3\]"),
    "texts": (lambda: view.text_neuron_activations([ABC], []), "1 texts, but 0 arrays"),
    "neurons": (lambda: view.topk_tokens([ABC, ABC], [np.ones((3, 1, 2)), np.ones((3, 1, 4))]), r"\[1, 2\], \[1, 4\]"),
    "log-probabilities": (lambda: view.token_log_probs(ABC, np.ones((5, 4)), ABC, [0, 1, 2]), "row i predicts token i \\+ 1"),
    "token ids": (lambda: view.token_log_probs(ABC, np.ones((3, 2)), ABC, [0, 1, 2]), "from 0 to 2, but log_probs has 2 columns"),
    "factors": (lambda: view.vocabulary_circuit(np.ones((3, 2)), np.ones((4, 3)), ABC), "must share their inner axis"),
    "columns without labels": (lambda: view.vocabulary_circuit(np.ones((3, 2)), None, ABC), "give column_labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name: str) -> None:
    build, message = BAD[name]
    with pytest.raises(ShapeError, match=message):
        build()


def test_all_values_alike_or_not_finite_still_have_a_scale() -> None:
    for values in (np.zeros((2, 2)), np.full((2, 2), 7.0), np.full((2, 2), np.nan), np.full((2, 2), np.inf)):
        for scale in ("diverging", "sequential"):
            low, high = view.heat_map(values, scale=scale).meta["range"]
            assert low < high


def test_a_diverging_scale_is_even_around_zero_and_a_common_one_spans_all() -> None:
    figure = view.small_multiples({"a": [[1.0, -3.0]], "b": [[2.0, 0.5]]})
    assert figure.meta["range"] == [-3, 3]
    assert [panel["range"] for panel in figure.meta["panels"]] == [[-3, 3], [-2, 2]]
    assert view.heat_map([[1, 5]], scale="sequential").meta["range"] == [1, 5]
    assert view.heat_map([[1, 5]], range=(0, 9)).meta["range"] == [0, 9]


def test_a_large_circuit_shows_the_rows_and_columns_that_matter() -> None:
    values = np.zeros((700, 600))
    values[650, 3], values[5, 599] = 9, -8
    figure = view.circuit(values, top=4)
    rows, columns = figure.meta["panels"][0]["y"], figure.meta["panels"][0]["x"]
    assert {"650", "5"} <= set(rows)
    assert {"3", "599"} <= set(columns)
    shown = figure.arrays["p0"]
    assert shown[rows.index("650"), columns.index("3")] == 9
    assert "700 × 600" in figure.title


def test_a_vocabulary_circuit_keeps_the_ends_of_every_row() -> None:
    left, right = RNG.normal(size=(2500, 4)), RNG.normal(size=(4, 30))
    figure = view.vocabulary_circuit(left, right, range(2500), range(30), k=5)
    full = (left @ right).astype(np.float32)
    order = np.argsort(full, axis=1)
    np.testing.assert_array_equal(figure.arrays["index"][0], order[:, ::-1][:, :5])
    np.testing.assert_array_equal(figure.arrays["index"][1], order[:, :5])
    np.testing.assert_allclose(figure.arrays["value"][1], np.sort(full, axis=1)[:, :5], rtol=1e-4, atol=1e-4)
    assert figure.arrays["order"][0] == np.abs(full).max(1).argmax()


def test_log_probabilities_say_what_was_expected() -> None:
    probabilities = np.array([[0.1, 0.7, 0.2], [0.6, 0.1, 0.3], [0.3, 0.3, 0.4]])
    figure = view.token_log_probs(["x", "y", "x"], np.log(probabilities), ["x", "y", "z"], [0, 1, 0], k=2)
    np.testing.assert_allclose(np.exp(figure.arrays["own"][1:]), [0.7, 0.6], rtol=1e-5)
    assert figure.arrays["rank"][1:].tolist() == [0, 0]
    words = figure.meta["words"]
    assert [[words[i] for i in row] for row in figure.meta["top"]] == [["y", "z"], ["x", "z"]]
    assert view.token_log_probs(["x"], np.log(probabilities[:1]), ABC, [0]).meta["top"] == []


def test_top_samples_are_the_best_ones_in_order() -> None:
    texts = [["a"] * 2, ["b"] * 3, ["c"] * 2]
    figure = view.top_samples(texts, [[[0, 1], [5, 0]], [[3, 0, 0], [0, 0, 0]], [[2, 0], [9, 9]]], k=2)
    shown = figure.meta["texts"]
    assert [[shown[i][0] for i in row] for row in figure.meta["order"]] == [["b", "c"], ["c", "a"]]


def test_kinds_of_heads_need_to_pass_the_threshold() -> None:
    figure = view.head_types({"previous": [[0.9, 0.1]], "induction": [[0.5, 0.39]]})
    assert figure.arrays["best"].tolist() == [[0, -1]]
    assert "layer 0: P ·" in figure.text


def test_attribution_says_what_is_left_over() -> None:
    figure = view.attribution([[[1.0, 2.0]], [[3.0, 4.0]]], ["a", "b"], total=[[4.0, 6.5]])
    assert "largest left over by the sum: 0.500" in figure.text


def test_numbers_are_written_with_three_digits() -> None:
    assert [number(v) for v in (0.0, 1.0, -0.12345, 1234.5, 1e-4, float("nan"), float("-inf"))] == [
        "0", "1.00", "−0.123", "1234", "1.00e−04", "NaN", "−∞",
    ]  # fmt: skip


def test_text_for_terminals_names_the_largest_cells() -> None:
    text = str(view.heat_map([[0, 0], [0, -7]], ["u", "v"], ["r", "s"], x_name="token", y_name="layer", title="Scores"))
    assert text.startswith("Scores\n")
    assert re.search(r"layer s, token v: −7\.00", text)


def test_scores_with_a_causal_mask_are_drawn_like_patterns() -> None:
    scores = RNG.normal(size=(2, 4, 4)).astype(np.float32)
    above = ~np.tri(4, dtype=bool)
    for hidden in (-np.inf, -1e5, np.finfo(np.float32).min):
        figure = view.attention_patterns(list("abcd"), np.where(above, hidden, scores), scale="diverging")
        np.testing.assert_array_equal(figure.arrays["patterns"], np.where(above, 0, scores))
        assert max(figure.meta["range"]) < 5
    one = np.where(above, -np.inf, scores)
    one[0, 0, 3] = 2.0  # no mask: somebody looks ahead
    assert np.isneginf(view.attention_patterns(list("abcd"), one).arrays["patterns"]).any()


def test_dots_without_lines() -> None:
    assert view.line_chart({"a": range(100)}).meta["points"] is False
    assert view.line_chart({"a": range(100)}, lines=False).meta["points"] is True
