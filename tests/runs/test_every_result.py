"""A contract: whatever result the front door gives is short, shown, framed, saved, compared and drawn in the same way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cutaway
from cutaway.analysis.steering_effects import text_loss
from cutaway.errors import AlreadyThere, ConfigError, CutawayError, ShapeError, WeightsMismatch
from cutaway.prompts import Prompts
from cutaway.runs.edits import zero
from cutaway.runs.results import Result
from cutaway.view import Figure
from tests.runs.test_provenance import analyses

TEXTS = ["the king said to the queen", "a king and a queen of the"]


NOTHING = torch.zeros(2, 4, dtype=torch.long)


class Given:
    """What the analyses run on: a language model with pairs of prompts, and a model of a task."""

    def __init__(self, device: str = "cpu") -> None:
        self.model = cutaway.HookedTransformer.from_pretrained("attn-only-2l", device=device)
        self.task = cutaway.HookedTransformer.from_pretrained("first-unique-char", device=device)
        answered = {"answers": " the", "wrong": " a"}
        self.pair = Prompts.of_texts(self.model, TEXTS[:1], corrupted=["the queen said to the king"], **answered)
        kings = [f"{front} king of my man was dead. The" for front in ("The", "A", "His", "Our")]
        lords = [text.replace("king", "lord") for text in kings]
        self.pairs = Prompts.of_texts(self.model, kings, corrupted=lords, answers=" king", wrong=" lord")
        self.vector = cutaway.contrast_vectors(self.model, TEXTS[:1], TEXTS[1:], [1])
        self.scores = cutaway.edge_attribution(self.model, self.pairs, steps=1)


CALLS: dict[str, Callable[[Given], Any]] = {
    "sweep": lambda of: cutaway.sweep(of.model, of.pair, cutaway.grids.heads(zero())),
    "difference": lambda of: cutaway.difference(cutaway.attribute(of.model, TEXTS), cutaway.attribute(of.model, TEXTS[:1])),
    "ablate": lambda of: cutaway.ablate(of.model, TEXTS, kinds=["zero"]),
    "ablate_heads": lambda of: cutaway.ablate_heads(of.model, TEXTS, kinds=["zero"], sites=["z"], baseline=2),
    "attribute": lambda of: cutaway.attribute(of.model, TEXTS),
    "attribute_all_tokens": lambda of: cutaway.attribute_all_tokens(of.task, of.task.to_tokens("?abca")),
    "composition": lambda of: cutaway.composition(of.task, draws=4),
    "copying": lambda of: cutaway.copying(of.task, draws=2),
    "head_scores": lambda of: cutaway.head_scores(of.model, TEXTS),
    "on_random_repeats": lambda of: cutaway.on_random_repeats(of.task, length=4, examples=2),
    "hill_climb": lambda of: cutaway.hill_climb(lambda rows: rows.float().sum(1), NOTHING, [0, 1, 2], rounds=2),
    "lens": lambda of: cutaway.lens(of.model, TEXTS),
    "max_activating_texts": lambda of: cutaway.max_activating_texts(of.model, ["0.1"], TEXTS),
    "patch": lambda of: cutaway.patch(of.model, of.pair, kinds=["resid_pre", "z"]),
    "path_patch": lambda of: cutaway.path_patch(of.model, of.pair),
    "predict": lambda of: cutaway.predict(of.model, TEXTS),
    "norm_scales": lambda of: cutaway.norm_scales(of.task, of.task.to_tokens(["?abca", "?bcab"])),
    "pathways": lambda of: cutaway.pathways(of.task, of.task.to_tokens("?abca")),
    "dose_response": lambda of: cutaway.dose_response(of.model, of.vector, TEXTS, text_loss, [0, 1], random=2, shuffled=0),
    "separability": lambda of: cutaway.separability(of.model, TEXTS * 2, TEXTS[::-1] * 2, [0, 1], folds=2),
    "steered_texts": lambda of: cutaway.steered_texts(of.model, of.vector[1], TEXTS[:1], len, [0, 1], max_new_tokens=2),
    "duplicate_detectors": lambda of: cutaway.duplicate_detectors(of.task),
    "responsible_heads": lambda of: cutaway.responsible_heads(of.task),
    "ov_circuit": lambda of: cutaway.ov_circuit(of.task, "0.1"),
    "path_circuit": lambda of: cutaway.path_circuit(of.task, "embed -> 0.1 -> logits"),
    "qk_circuit": lambda of: cutaway.qk_circuit(of.task, "0.1"),
    "edge_attribution": lambda of: of.scores,
    "edge_effects": lambda of: cutaway.edge_effects(of.model, of.pair, edges=[("embed", "0.1.q"), ("0.1", "logits")]),
    "circuit_for": lambda of: cutaway.circuit_for(of.model, of.pairs, size=20, checks=1),
    "faithfulness": lambda of: cutaway.faithfulness(of.model, of.pairs, None, None, of.scores, sizes=[1, 20], draws=1),
    "stability": lambda of: cutaway.stability(_circuit(of), of.scores, draws=4, halvings=2),
}  # fmt: skip


def _circuit(of: Given) -> Any:
    return cutaway.find_circuit(cutaway.CircuitRunner(of.model, of.pairs, None, None), of.scores, size=20, checks=1)


@pytest.fixture(scope="module")
def given() -> Given:
    return Given()


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return {}


@pytest.fixture(params=sorted(CALLS))
def result(request: pytest.FixtureRequest, given: Given, results: dict[str, Any]) -> Result:
    """Each result, computed once."""
    if request.param not in results:
        results[request.param] = CALLS[request.param](given)
    found: Result = results[request.param]
    return found


def test_no_result_is_left_out() -> None:
    assert CALLS.keys() == analyses().keys()


def drawn(found: Result) -> Figure | None:
    """Its figure; None where it is one number."""
    try:
        return found.figure()
    except ShapeError as error:
        assert "one number" in str(error)
        return None


def test_it_is_short_and_shown_in_a_notebook(result: Result) -> None:
    assert len(repr(result)) < 300 and type(result).__name__ in repr(result)
    html = result._repr_html_()
    assert html.startswith("<pre") and ("<iframe" in html) == (drawn(result) is not None)


def test_it_is_a_frame_and_json(result: Result) -> None:
    frame = result.to_frame()
    assert len(frame) and {"value", "loss"} & set(frame.columns)  # predictions have a column for each quantity
    for axis in {"component", "head", "writer", "reader"} & set(frame.columns):
        layer = frame["layer" if axis in ("component", "head") else f"{axis}_layer"]
        dotted = {str(label): number for label, number in zip(frame[axis], layer, strict=True) if re.match(r"\d+\.", str(label))}
        assert all(label.startswith(f"{number}.") for label, number in dotted.items())
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))


def test_it_comes_back_from_its_file(result: Result, tmp_path: Path) -> None:
    path = result.save(tmp_path / "x.cutaway")
    again = cutaway.load(path)
    assert type(again) is type(result) and again.summary() == result.summary()
    torch.testing.assert_close(again.values.data, result.values.data.cpu(), equal_nan=True)
    assert again.values.labels == result.values.labels and again.to_frame().equals(result.to_frame())
    one, other = drawn(result), drawn(again)
    assert (one is None) == (other is None) and (one is None or other is None or one.text == other.text)
    with pytest.raises(AlreadyThere):
        result.save(path)
    with pytest.raises(ConfigError, match=r"not \.csv; its numbers are \.to_frame"):
        result.save(tmp_path / "x.csv")
    page = result.save(tmp_path / "x.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and ("text/cutaway" in page) == (one is not None)


def test_it_is_compared_with_another(result: Result) -> None:
    found = cutaway.difference(result, result)
    assert float(found.values.data.nan_to_num(0).abs().max()) == 0
    assert found.summary() and found.overlay().view == "bars"
    if found.values.data.ndim:
        assert found.figure()


def test_plotly_draws_it_too(result: Result) -> None:
    pytest.importorskip("plotly")
    figure = drawn(result)
    if figure is not None:
        assert len(figure.plotly().data), figure.view


class Wrapped(torch.nn.Module):
    """Somebody else's module around one of ours: it passes everything on, and has no weights of its own."""

    def __init__(self, old: torch.nn.Module) -> None:
        super().__init__()
        self.old = old

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.old(*args, **kwargs)


@pytest.mark.parametrize("place", ["blocks.1.attn", "blocks.1"])
def test_where_somebody_elses_module_stands_it_is_done_or_the_place_is_named(place: str) -> None:
    of = Given()
    for model in (of.model, of.task):
        front, _, last = place.rpartition(".")
        setattr(model.get_submodule(front), last, Wrapped(model.get_submodule(place)))
        model.setup()
    named = 0
    for name in sorted(CALLS.keys() - {"hill_climb", "difference"}):
        try:
            CALLS[name](of)
        except WeightsMismatch:  # a vector of the model as it was
            assert "steer" in name or name == "dose_response"
        except CutawayError as error:
            assert place in str(error), f"{name}: {error}"
            named += 1
    assert named > 9
    reads = [lambda: of.task.W_Q, lambda: of.task.accumulated_bias(2), lambda: cutaway.ov_circuit(of.task, "1.0")]
    reads += [lambda: cutaway.qk_circuit(of.task, "1.0", key="embed"), lambda: cutaway.copying(of.task, draws=2)]
    for read in reads:
        with pytest.raises(ConfigError, match=f"{place} is a Wrapped, which has no "):
            read()
