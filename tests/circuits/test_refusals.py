"""What makes no sense is refused in a sentence, from Python and from the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway.circuits.attribution import edge_attribution
from cutaway.circuits.circuit import Circuit
from cutaway.circuits.effects import edge_effects
from cutaway.circuits.finding import recovery_text
from cutaway.circuits.graph import Graph
from cutaway.circuits.measuring import CircuitRunner, run_circuit
from cutaway.circuits.scoring import faithfulness
from cutaway.circuits.searching import find_circuit
from cutaway.cli import app
from cutaway.errors import ConfigError, ShapeError, TokenError, UnknownName
from cutaway.hooked_transformer import HookedTransformer
from cutaway.runs import metrics
from cutaway.runs.editing import run
from cutaway.runs.edits import zero
from cutaway.runs.sweep import sweep
from tests.architectures import network, some_tokens

CLEAN, CORRUPTED = some_tokens(seed=1), some_tokens(seed=2)
METRIC = metrics.logit_difference([1, 2, 3], [4, 5, 6])


@pytest.fixture(scope="module")
def words() -> Any:
    """A model with a tokenizer."""
    return HookedTransformer.from_pretrained("attn-only-2l")


def test_pairs_that_align_only_as_they_are_padded(words: Any) -> None:
    """Both batches are padded to one shape; within each pair the lengths differ."""
    short, long = "The king was dead.", "The man of day was good."
    metric = metrics.logit_difference([5, 6], [7, 8])
    clean, corrupted = words.to_tokens([short, long]), words.to_tokens([long, short])
    assert clean.shape == corrupted.shape
    circuit = Circuit.of(words, [("embed", "logits")])
    asked: list[Callable[[Any, Any], Any]] = [
        lambda one, other: edge_attribution(words, one, other, metric),
        lambda one, other: edge_effects(words, one, other, metric),
        lambda one, other: CircuitRunner(words, one, other, metric),
        lambda one, other: run_circuit(words, one, other, circuit.edges),
    ]
    for ask in asked:
        for pair in ((clean, corrupted), ([short, long], [long, short])):
            with pytest.raises(ShapeError, match="pair 0 has 6 tokens in the clean prompt and 8"):
                ask(*pair)
    with pytest.raises(ShapeError, match="pair 0 has 6 tokens"):
        run(words, clean, edits=circuit.only(clean, corrupted))


def test_metrics_without_a_gradient() -> None:
    model = network("gpt2")
    for metric in (
        metrics.accuracy(CLEAN),
        metrics.rank([1, 2, 3]),
        metrics.normalised(metrics.rank([1, 2, 3]), clean=1.0, corrupted=0.0),
    ):
        with pytest.raises(ShapeError, match="no gradient"):
            edge_attribution(model, CLEAN, CORRUPTED, metric)
        with pytest.raises(ShapeError, match="no gradient"):
            sweep(model, CLEAN, [zero().at(("z", 0), heads=1)], metric, method="gradient")
    with pytest.raises(ShapeError, match="no gradient at the clean run"):
        edge_attribution(model, CLEAN, CORRUPTED, metrics.kl())


def test_functions_are_metrics_where_everything_is_recomputed() -> None:
    model, edge = network("gpt2"), [("0.1", "1.2.v")]
    by_function = edge_effects(model, CLEAN, CORRUPTED, lambda logits: logits[:, -1, 1], edges=edge)
    by_metric = edge_effects(model, CLEAN, CORRUPTED, lambda logits: logits[:, -1, 1] - 0 * logits[:, -1, 2], edges=edge)
    torch.testing.assert_close(by_function.each, by_metric.each, equal_nan=True)
    asked: list[Callable[[Any], Any]] = [
        lambda metric: edge_attribution(model, CLEAN, CORRUPTED, metric),
        lambda metric: CircuitRunner(model, CLEAN, CORRUPTED, metric),
        lambda metric: edge_effects(model, CLEAN, CORRUPTED, metric, edges=edge, downstream="frozen"),
    ]
    for ask in asked:
        with pytest.raises(ShapeError, match="is a function of whole logits"):
            ask(lambda logits: logits[:, -1, 1])


def test_numbers_that_are_none() -> None:
    model = network("gpt2")
    scores = edge_attribution(model, CLEAN, CORRUPTED, METRIC, steps=1)
    runner = CircuitRunner(model, CLEAN, CORRUPTED, METRIC)
    with pytest.raises(ConfigError, match="steps is at least 1, not 0"):
        edge_attribution(model, CLEAN, CORRUPTED, METRIC, steps=0)
    with pytest.raises(ConfigError, match="-1"):
        scores.circuit(-1)
    with pytest.raises(ConfigError, match="-1"):
        find_circuit(runner, scores, size=-1)
    with pytest.raises(ConfigError, match="order='largest' is not known; there are best, absolute, signed"):
        find_circuit(runner, scores, order="largest")
    with pytest.raises(ConfigError, match="checks is at least 0, not -1"):
        find_circuit(runner, scores, checks=-1)
    with pytest.raises(ShapeError, match="the size of a circuit is at least 0"):
        faithfulness(model, CLEAN, CORRUPTED, METRIC, scores, sizes=[-3])
    for target in (1.5, float("nan")):
        with pytest.raises(ConfigError, match="target is a finite number from 0 to 1"):
            find_circuit(runner, scores, target=target)


def test_positions_and_edges_outside() -> None:
    model = network("gpt2")
    far = metrics.logit_difference([1, 2, 3], [4, 5, 6], 99)
    with pytest.raises(ShapeError, match="reads position 99, and there are"):
        edge_attribution(model, CLEAN, CORRUPTED, far)
    with pytest.raises(ShapeError, match="reads position 99, and there are"):
        CircuitRunner(model, CLEAN, CORRUPTED, far)
    with pytest.raises(ShapeError, match="there is no position 9"):
        edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=[("embed", "logits")], positions=[9])
    with pytest.raises(UnknownName, match="reads before"):
        edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=[("1.0", "0.1.q")])
    with pytest.raises(UnknownName, match=r"no component '0.9' in this network"):
        edge_effects(model, CLEAN, CORRUPTED, METRIC, edges=[("0.9", "logits")])


def test_circuits_and_scores_of_another_model(tmp_path: Path) -> None:
    model, other, larger = network("gpt2"), network("gpt2", seed=3), network("attention only")
    circuit = Circuit.of(model, [("embed", "logits")], prompts={"clean": CLEAN, "corrupted": CORRUPTED})
    circuit.save(tmp_path / "circuit.json")
    for one, words in ((other, "found in another model"), (larger, "writers and")):
        asked: list[Callable[[Any], Any]] = [
            lambda one: circuit.logits(one, CLEAN, CORRUPTED), lambda one: run(one, CLEAN, edits=circuit), circuit.figure,
        ]  # fmt: skip
        for ask in asked:
            with pytest.raises(ShapeError, match=words):
                ask(one)
    with pytest.raises(ShapeError, match="found in another model"):
        Circuit.load(tmp_path / "circuit.json", other)
    with pytest.raises(ShapeError, match="of another model"):
        edge_effects(larger, CLEAN, CORRUPTED, METRIC, edges=circuit.edges)
    with pytest.raises(ShapeError, match="of another model"):
        scores = edge_attribution(larger, CLEAN, CORRUPTED, METRIC, steps=1)
        find_circuit(CircuitRunner(model, CLEAN, CORRUPTED, METRIC), scores, size=3)


def test_answers_of_several_tokens(words: Any) -> None:
    texts = ["The king was dead.", "The lord was dead."], ["The love was dead.", "The time was dead."]
    with pytest.raises(TokenError, match=r"' unbelievable thing' is \d tokens, not one"):
        edge_attribution(words, *texts, metrics.logit_difference([" unbelievable thing"] * 2, [" king"] * 2))
    with pytest.raises(TokenError, match="an answer of several tokens has no one logit"):
        metrics.logit_difference([[1, 2], [3, 4]], [[5, 6], [7, 8]])


def test_what_says_nothing() -> None:
    model = network("gpt2")
    scores = edge_attribution(model, CLEAN, CORRUPTED, METRIC, steps=1)
    with pytest.raises(ShapeError, match="nothing to recover"):
        faithfulness(model, CLEAN, CLEAN, METRIC, scores)
    with pytest.raises(ShapeError, match="resampling needs corrupted prompts"):
        run_circuit(model, CLEAN, None, Graph(model.cfg).mask)
    with pytest.raises(ShapeError, match="in the clean prompt and 5 in the corrupted one"):
        edge_attribution(model, CLEAN, CORRUPTED[:, :5], METRIC)
    with pytest.raises(ConfigError, match="path='outputs'"):
        edge_attribution(model, CLEAN, CORRUPTED, METRIC, path="outputs")
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        run_circuit(model, CLEAN, CORRUPTED, Graph(model.cfg).mask, ablation="meen")
    with pytest.raises(ShapeError, match="do not reach over"):
        edge_effects(model, CLEAN, None, METRIC, edges=[("embed", "logits")], ablation="mean", over=CLEAN[:, :3])


def test_what_recovers_without_an_interval_says_so() -> None:
    shares = {"clean": 2.3, "ablated": -3.9, "recovered": 0.9, "random": 0.0, "shuffled": -0.001}
    few = recovery_text(478, 123211, "logit difference", "resample", (math.nan, math.nan), **shares)
    assert "(no interval: the prompts are too few, or too unlike)" in few and "nan" not in few and "-0%" not in few
    assert "(95% interval 80% to 95%)" in recovery_text(478, 123211, "loss", "zero", (0.8, 0.95), **shares)


class Wrapped(torch.nn.Module):
    def __init__(self, old: torch.nn.Module):
        super().__init__()
        self.old = old

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.old(*args, **kwargs)


@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_edges_of_somebody_elses_module_are_not_known(part: str) -> None:
    model = network("gpt2")
    setattr(model.blocks[1], part, Wrapped(getattr(model.blocks[1], part)))
    model.setup()
    for ask in (edge_attribution, edge_effects, CircuitRunner):
        with pytest.raises(ConfigError, match=f"blocks.1.{part} is a Wrapped, not this network's own"):
            ask(model, CLEAN, CORRUPTED, METRIC)


PAIR = {"clean": "The king was dead. The", "corrupted": "The man was dead. The", "answer": " king", "wrong": " man"}


@pytest.mark.parametrize(
    ("pair", "more", "words"),
    [
        ({"corrupted": "The man of day was dead. The"}, [], "prompt 0 has 7 tokens and its counterpart 9"),
        ({"answer": " unbelievable thing"}, [], "tokens, not one"),
        ({"answer": [" king", " lord"]}, [], "a pair needs texts"),
        ({"corrupted": PAIR["clean"]}, [], "there is nothing to recover"),
        ({}, ["--metric", "accuracy"], "'accuracy' is not known"),
        ({}, ["--steps", "0"], "greater than or equal to 1"),
        ({}, ["--size", "-1"], "greater than or equal to 0"),
        ({}, ["--checks", "0"], "greater than or equal to 1"),
        ({}, ["--target", "nan"], "a finite number from 0 to 1"),
        ({}, ["--ablation", "meen"], "did you mean 'mean'"),
    ],
)
def test_the_command_refuses_in_a_sentence(pair: dict[str, Any], more: list[str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text((json.dumps(PAIR | pair) + "\n") * 4, encoding="utf-8")
    done = CliRunner().invoke(app, ["circuit", "find", "attn-only-2l", "--pairs", str(path), *more])
    assert done.exit_code == 2 and words in " ".join(done.output.replace("│", "").split())
