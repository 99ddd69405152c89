"""Findings and their sentences: number, interval, baseline; planted nulls claim nothing, planted effects do."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cutaway.report.findings import KINDS, Finding, none, without_claims
from cutaway.report.sentences import GRAMMAR, sentence
from cutaway.runs.estimates import Value, mean, means, number_text, ratio, spread


def test_every_kind_has_a_sentence():
    assert set(GRAMMAR) == set(KINDS)


def test_intervals_of_means_are_narrower_with_more_examples():
    draw = torch.Generator().manual_seed(0)
    few, many = (mean(torch.randn(n, generator=draw) + 2) for n in (10, 1000))
    assert few.low < 2 < few.high and many.low < 2 < many.high
    assert many.high - many.low < (few.high - few.low) / 4


def test_a_mean_over_answers_weighs_examples_by_their_answers():
    found = ratio(torch.tensor([3.0, 0.0, 1.0]), torch.tensor([3, 1, 2]))
    assert found.value == pytest.approx(4 / 6) and found.low < found.value < found.high
    assert math.isnan(ratio(torch.zeros(2), torch.zeros(2)).value)


def test_many_nulls_at_once_claim_nothing_nearly_always_and_an_effect_is_found():
    claimed, names = 0, list(map(str, range(60)))
    for seed in range(20):
        each = torch.randn(60, 40, generator=torch.Generator().manual_seed(seed))
        null = Finding("largest", "x", means(names, each), baseline=Value(0.0), against="nothing", two_sided=True)
        claimed += bool(null.claims)
        each[7] += 2
        assert Finding("largest", "x", means(names, each), baseline=Value(0.0), against="nothing").claims[0] == "7"
    assert claimed <= 4  # 5% of 20 is 1; intervals of 40 examples are a little narrow so far out


def test_a_margin_has_to_be_passed():
    values = {"a": Value(0.5, 0.45, 0.55)}
    assert Finding("share", "x", values, "share", Value(0.4), "b").claims == ["a"]
    assert Finding("share", "x", values, "share", Value(0.4), "b", margin=0.1).claims == []


def test_spread_of_draws():
    found = spread(torch.linspace(0, 1, 101))
    assert found.value == pytest.approx(0.5) and found.low == pytest.approx(0.025) and found.high == pytest.approx(0.975)


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (
            Finding("largest", "attention to it", {"0.1": Value(0.6, 0.5, 0.7), "0.2": Value(0.1, 0.05, 0.15)}, "share",
                    Value(0.1), "even attention"),
            "Attention to it is largest for 0.1 (60.0% [50.0%, 70.0%]); even attention 10.0%; 1 of 2 lies outside the baseline.",
        ),
        (
            Finding("largest", "attention to it", {"0.1": Value(0.1, 0.05, 0.15)}, "share", Value(0.1), "even attention"),
            "Attention to it: none of 1 lies outside the baseline; the largest is 0.1 (10.0% [5.0%, 15.0%]), "
            "even attention 10.0%.",
        ),
        (
            Finding("share", "the share right", {"all": Value(0.5, 0.4, 0.6)}, "share", Value(0.5), "a coin"),
            "The share right is 50.0% [40.0%, 60.0%] (a coin 50.0%, which is not told apart from it).",
        ),
        (
            Finding("comparison", "accuracy", {"a": Value(0.9, 0.8, 0.95), "b": Value(0.5, 0.4, 0.6)}, "share"),
            "Accuracy is 90.0% [80.0%, 95.0%] for a, against 50.0% [40.0%, 60.0%] for b; their intervals do not meet.",
        ),
        (
            Finding("comparison", "the spread", {"a": Value(0.9), "b": Value(0.5)}, "share"),
            "The spread is 90.0% for a, against 50.0% for b.",
        ),
        (
            Finding("comparison", "accuracy by class", {"the answer is ?": Value(0.9, 0.8, 0.95), "x": Value(0.7),
                    "it was read before": Value(0.5, 0.4, 0.6)}, "share"),
            "Accuracy by class ranges from 50.0% [40.0%, 60.0%] for “it was read before” to 90.0% [80.0%, 95.0%] for "
            "“the answer is ?”, the lowest and the highest of 3; their intervals do not meet.",
        ),
        (
            Finding("trend", "it", {"0": Value(0.1, 0.0, 0.2), "1": Value(3.5, 3.0, 4.0)}, "nats", Value(0.5), "noise",
                    axis="layers"),
            "It goes from 0 (0.1 nats [0, 0.2]) to 1 (3.5 nats [3, 4]) along layers; outside the baseline first at 1 "
            "(noise 0.5 nats).",
        ),
        (Finding("count", "tokens", {"a": Value(1.0), "b": Value(1.0)}, total=5), "Tokens: 2 of 5 (a and b)."),
        (Finding("count", "tokens", {}, total=5), "Tokens: none of 5."),
        (none("the circuit", "there are no pairs"), "The circuit was not measured: there are no pairs."),
    ],
)  # fmt: skip
def test_sentences(finding: Finding, words: str):
    assert sentence(finding) == words
    assert json.loads(json.dumps(finding.to_json(), allow_nan=False))["kind"] == finding.kind


def test_without_a_baseline_nothing_is_claimed():
    found = without_claims(Finding("largest", "x", {"a": Value(9.0, 8.0, 10.0)}, "", Value(0.0), "zero"))
    assert not found.claims and "nothing is claimed" in sentence(found)


def test_numbers():
    assert [number_text(x, "") for x in (1234.0, 0.0005, -2.5, math.nan)] == ["1,234", "0.0005", "−2.5", "no value"]
    assert Value(0.5).text("share") == "50.0%"
