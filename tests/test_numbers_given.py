"""Indices and options from outside: what is no whole number, comes twice, is outside or empty is refused, everywhere."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway import metrics
from cutaway.errors import ContextTooLong, CutawayError, ShapeError, UnknownName
from cutaway.numbers_given import at_least, index, indices, some_of
from cutaway.runs import measures
from cutaway.runs.editing import run
from cutaway.runs.sweep import heads
from cutaway.tokens import CharTokenizer
from tests.architectures import network, some_tokens

TOKENS, OTHER = some_tokens(seed=2), some_tokens(seed=1)
METRIC = metrics.logit_difference([1, 2, 3], [4, 5, 6])


def test_whole_numbers_of_every_kind_are_read() -> None:
    assert indices(range(3), 5, "head") == [0, 1, 2] and indices(-1, 5, "head") == [4] and index(np.int64(2), 5, "head") == 2
    assert indices(torch.tensor([3, 0]), 5, "head") == [3, 0] and indices(np.array([1, -1]), 5, "head") == [1, 4]
    assert indices(torch.tensor(3), 5, "head") == [3] and indices((4,), 5, "head") == [4] and at_least(0, 0, "draws") == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (True, "whole number, not True"), ([True, False], "mask of bools"), (torch.tensor([True, False]), "mask of bools"),
        (np.array([True]), "mask of bools"), (5.9, "not 5.9"), ([1.0], "not 1.0"),
        (torch.tensor([1.5]), "not tensor"),
        ("12", "not '12'"), (["1"], "not '1'"), (None, "not None"), ([[0, 1]], "whole number"),
        ([0, 0], "head 0 is given twice"),
        ([4, -1], "head 4 is given twice"), ([], "empty list of heads"), (5, "no head 5; there are 5, 0 to 4"),
        ([-6], "no head -6"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_indices_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        indices(given, 5, "head")


def test_words_are_taken_once() -> None:
    assert some_of("z", ("z", "q"), "site") == ["z"] and some_of(["q", "z"], ("z", "q"), "site") == ["q", "z"]
    for given, error in ((["x"], UnknownName), ([], ShapeError), (["z", "z"], ShapeError)):
        with pytest.raises(error):
            some_of(given, ("z", "q"), "site")


MODEL, SPINNING = network("gpt2"), network("llama")
PLACES = {"bools": [True, False], "a bool": True, "a float": torch.tensor(5.9), "twice": [1, 1], "none": [], "outside": [9]}
BY_POSITION: dict[str, Callable[[Any], Any]] = {
    "logit_difference": lambda at: metrics.logit_difference([1], [2], at),
    "log_probability": lambda at: metrics.log_probability([1], at),
    "kl": lambda at: metrics.kl(at), "rank": lambda at: metrics.rank([1], at),
    "loss": lambda at: metrics.loss(TOKENS, positions=at), "accuracy": lambda at: metrics.accuracy(TOKENS, positions=at),
}  # fmt: skip


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("name", BY_POSITION)
@pytest.mark.parametrize("padded", [False, True])
def test_positions_of_a_metric_are_whole_numbers_each_once(name: str, at: str, padded: bool) -> None:
    model, tokens = (spoken(), ["abcdef", "abc", "ab"]) if padded else (MODEL, TOKENS)
    metric = BY_POSITION[name](PLACES[at])
    if padded and name in ("loss", "accuracy"):
        metric = getattr(metrics, name)(model.to_tokens(tokens), positions=PLACES[at])
    with pytest.raises(ShapeError):
        run(model, tokens, metric=metric)


@pytest.mark.parametrize("at", [[5.9], "12", ["1"], None, torch.tensor([1.5, 2, 3])])
def test_positions_that_the_annotations_rule_out_are_refused_too(at: Any) -> None:
    with pytest.raises((ShapeError, TypeError)):
        measures._columns(at, 3, 7)


def test_labels_and_masks_of_a_loss_are_what_they_should_be() -> None:
    with pytest.raises(CutawayError, match="labels are token ids"):
        metrics.loss(TOKENS, torch.full(TOKENS.shape, 1.7))
    with pytest.raises(CutawayError, match="attention_mask is 1 where"):
        metrics.loss(TOKENS, mask=torch.full(TOKENS.shape, 0.5))
    for mask in (torch.full(TOKENS.shape, 0.5), torch.zeros(TOKENS.shape), torch.ones(1, 2)):
        for call in (run, lambda *given, **more: cutaway.sweep(*given, heads(), **more)):
            with pytest.raises(CutawayError, match="attention_mask"):
                call(MODEL, TOKENS, metric=metrics.loss(TOKENS), mask=mask)


REFUSED: dict[str, Callable[[], Any]] = {
    "attribute_all_tokens, an example twice": lambda: cutaway.attribute_all_tokens(MODEL, TOKENS, examples=[0, 0]),
    "attribute_all_tokens, bools": lambda: cutaway.attribute_all_tokens(MODEL, TOKENS, positions=[True, False]),
    "attribute_all_tokens, nothing": lambda: cutaway.attribute_all_tokens(MODEL, TOKENS, positions=[]),
    "attribute, layers as bools": lambda: cutaway.attribute(MODEL, TOKENS, neurons=[True]),
    "attribute, bools as targets": lambda: cutaway.attribute(MODEL, TOKENS, targets=torch.ones(3, 9, dtype=torch.bool)),
    "attribute, a float as target": lambda: cutaway.attribute(MODEL, TOKENS, targets=torch.tensor(2.0)),
    "lens, no tokens kept": lambda: cutaway.lens(MODEL, TOKENS, k=0),
    "pathways, layer True": lambda: cutaway.pathways(MODEL, TOKENS, layer=True),
    "outputs_by_component, layer 2": lambda: cutaway.outputs_by_component(MODEL, 2, TOKENS),
    "path_patch, a position twice": lambda: cutaway.path_patch(MODEL, TOKENS, OTHER, METRIC, positions=[3, 3]),
    "path_patch, a position outside": lambda: cutaway.path_patch(MODEL, TOKENS, OTHER, METRIC, positions=[9]),
    "patch, kl": lambda: cutaway.patch(MODEL, TOKENS, OTHER, metrics.kl()),
    "patch, no kinds": lambda: cutaway.patch(MODEL, TOKENS, OTHER, METRIC, kinds=[]),
    "patch, a kind twice": lambda: cutaway.patch(MODEL, TOKENS, OTHER, METRIC, kinds=["z", "z"]),
    "edge_attribution, no steps": lambda: cutaway.edge_attribution(MODEL, TOKENS, OTHER, METRIC, steps=0),
    "ablate_heads, no sites": lambda: cutaway.ablate_heads(MODEL, TOKENS, METRIC, sites=[]),
    "composition, no draws": lambda: cutaway.composition(MODEL, draws=0),
    "copying, no draws": lambda: cutaway.copying(MODEL, draws=0),
    "head_scores, batches of nothing": lambda: cutaway.head_scores(MODEL, TOKENS, batch_size=0),
    "head_scores, no kinds": lambda: cutaway.head_scores(MODEL, TOKENS, kinds=[]),
    "random_repeats, no examples": lambda: cutaway.random_repeats(MODEL, examples=0),
    "max_activating_texts, none kept": lambda: cutaway.max_activating_texts(MODEL, ["0.1"], TOKENS, k=0),
    "predict, batches of nothing": lambda: cutaway.predict(MODEL, TOKENS, batch_size=0),
    "likeliest_tokens, a position outside": lambda: cutaway.likeliest_tokens(MODEL, TOKENS, position=9),
    "likeliest_tokens, an example outside": lambda: cutaway.likeliest_tokens(MODEL, TOKENS, example=3),
    "likeliest_tokens, position True": lambda: cutaway.likeliest_tokens(MODEL, TOKENS, position=True),
    "responsible_heads, layer True": lambda: cutaway.responsible_heads(MODEL, layer=True),
    "responsible_heads, no tokens": lambda: cutaway.responsible_heads(MODEL, tokens=[]),
    "duplicate_detectors, a bool as a token": lambda: cutaway.duplicate_detectors(MODEL, tokens=[True]),
    "duplicate_detectors, layer 5": lambda: cutaway.duplicate_detectors(MODEL, layer=5),
    "qk_circuit, a bool as a distance": lambda: cutaway.qk_circuit(SPINNING, "0.0", distance=True),
    "logit_difference, an answer that is the wrong one": lambda: metrics.logit_difference([1, 2, 3], [4, 2, 6]),
    "logit_difference, one for all that is wrong once": lambda: metrics.logit_difference([1, 2, 3], 3),
    "probability_difference, a token of both sets": lambda: metrics.probability_difference([[1, 2]], [[3], [2]]),
    "probability_difference, a bool": lambda: metrics.probability_difference([[True]], [[3]]),
    "hill_climb, a position twice": lambda: cutaway.hill_climb(lambda x: x.sum(-1).float(), TOKENS, [1, 2], positions=[0, 0]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_options_that_mean_nothing_are_refused_in_one_sentence(what: str) -> None:
    with pytest.raises(CutawayError) as caught:
        REFUSED[what]()
    assert len(str(caught.value)) > 20 and "\n" not in str(caught.value)


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function of the front door and of its modules."""
    for name in cutaway.__all__:
        value = getattr(cutaway, name)
        there = {f"{name}.{inner}": getattr(value, inner) for inner in getattr(value, "__all__", ())} or {name: value}
        yield from ((called, each) for called, each in there.items() if inspect.isfunction(each))


INDICES = {"layer", "position", "example", "distance"}  # read by `index` where the network and the texts are known; above
OPTIONS = [
    (name, option.name)
    for name, function in functions()
    for option in inspect.signature(function).parameters.values()
    if option.annotation in ("int", "int | None", "float", "float | int") and option.default is not option.empty
    if option.name not in INDICES
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_number_of_the_front_door_is_read_strictly_before_any_work(name: str, option: str) -> None:
    function = dict(functions())[name]
    options = inspect.signature(function).parameters
    needed = {each.name: None for each in options.values() if each.default is each.empty}
    for bad in (True, "3", [], math.nan, *([-2, 2.5] if options[option].annotation.startswith("int") else [])):
        with pytest.raises(CutawayError, match=rf"^{option} is "):
            function(**needed | {option: bad})


def spoken(**given: Any) -> Any:
    model = network("gpt2", **given)
    model.set_tokenizer(CharTokenizer(list("abcdefghijk?_"), bos_token="?", pad_token="_"))
    return model


@pytest.mark.parametrize("analysis", ["patch", "path_patch", "edge_attribution"])
def test_pairs_align_by_the_tokens_of_each_row(analysis: str) -> None:
    """Texts of 5 and 3 letters beside texts of 3 and 5 have one padded shape, and do not pair up."""
    model, call = spoken(), getattr(cutaway, analysis)
    metric = metrics.logit_difference([1, 2], [3, 4])
    with pytest.raises(ShapeError, match="pair 0"):
        call(model, ["abcde", "abc"], ["abc", "abcde"], metric)
    for clean, corrupted in (
        (["abcde", "abc"], ["abcde"]),
        (torch.ones(2, 3, dtype=torch.long), torch.ones(2, 4, dtype=torch.long)),
    ):
        with pytest.raises(ShapeError):
            call(model, clean, corrupted, metric)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "no norm, shortformer"])
def test_left_padding_moves_no_path(name: str) -> None:
    model = network(name)
    model.set_tokenizer(CharTokenizer(list("abcdefghijk?_"), bos_token="?", pad_token="_"))
    model.default_padding_side = "left"
    clean, corrupted = ["abcdefg", "kab"], ["abxdefg".replace("x", "h"), "kcb"]
    receivers = ["1.0.q", "1.2.k", "1.3.v", "logits"]
    both = cutaway.path_patch(model, clean, corrupted, metrics.logit_difference([1, 2], [3, 4]), receivers=receivers)
    assert both.audit.difference < 1e-4
    for row in range(2):
        metric = metrics.logit_difference([1 + row], [3 + row])
        alone = cutaway.path_patch(model, clean[row], corrupted[row], metric, receivers=receivers)
        torch.testing.assert_close(both.values.data[..., row], alone.values.data[..., 0], rtol=1e-3, atol=1e-5, equal_nan=True)
    together = (
        cutaway.patch(model, clean, corrupted, metrics.logit_difference([1, 2], [3, 4]), kinds=["z"]).sweeps["z"].values.data
    )
    one = cutaway.patch(model, clean[1], corrupted[1], metrics.logit_difference([2], [4]), kinds=["z"]).sweeps["z"].values.data
    torch.testing.assert_close(together[..., 1], one[..., 0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_left_padding_moves_no_edge(name: str) -> None:
    model = network(name)
    model.set_tokenizer(CharTokenizer(list("abcdefghijk?_"), bos_token="?", pad_token="_"))
    model.default_padding_side = "left"
    clean, corrupted = ["abcdefg", "kab"], ["abhdefg", "kcb"]
    both = cutaway.edge_attribution(model, clean, corrupted, metrics.logit_difference([1, 2], [3, 4]), steps=2)
    found = both.circuit(12)
    logits = cutaway.run_circuit(model, clean, corrupted, found)
    for row in range(2):
        metric = metrics.logit_difference([1 + row], [3 + row])
        alone = cutaway.edge_attribution(model, clean[row], corrupted[row], metric, steps=2)
        torch.testing.assert_close(both.each[row], alone.each[0], rtol=1e-3, atol=1e-5, equal_nan=True)
        own = cutaway.run_circuit(model, clean[row], corrupted[row], found)
        torch.testing.assert_close(logits[row, -1], own[0, -1], rtol=1e-3, atol=1e-4)


LONG = "abcdefghij" * 3  # the context has 20 positions
CUT: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda model: cutaway.attribute(model, LONG),
    "lens": lambda model: cutaway.lens(model, LONG),
    "head_scores": lambda model: cutaway.head_scores(model, LONG),
    "patch": lambda model: cutaway.patch(model, LONG, LONG[::-1], METRIC),
    "path_patch": lambda model: cutaway.path_patch(model, LONG, LONG[::-1], METRIC),
    "ablate_heads": lambda model: cutaway.ablate_heads(model, LONG),
    "norm_scales": lambda model: cutaway.norm_scales(model, LONG),
    "activation_addition": lambda model: cutaway.activation_addition(model, LONG, LONG + "k", 1),
    "contrast_vectors": lambda model: cutaway.contrast_vectors(model, [LONG + "a"], [LONG + "b"]),
    "a list of texts": lambda model: cutaway.predict(model, [LONG, "abc"]),
}


@pytest.mark.parametrize("what", CUT)
def test_long_texts_are_refused_and_not_cut(what: str) -> None:
    with pytest.raises(ContextTooLong, match="20 positions"):
        CUT[what](spoken())
    assert cutaway.predict(spoken(), LONG).windows == 2  # what reads token by token reads windows
