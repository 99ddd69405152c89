"""Steering: vectors, what they do to runs, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cutaway.analysis.steering import (
    Steer,
    SteeringVector,
    activation_addition,
    activations,
    contrast_vectors,
    directions,
    remembered_hash,
    steer,
)
from cutaway.analysis.steering_effects import (
    DoseResponse,
    dose_response,
    held_out_accuracy,
    separability,
    similarity,
    steered_texts,
    steering_target,
    text_loss,
)
from cutaway.commands.steering import _rows
from cutaway.errors import CheckpointError, NotFinite, ShapeError, TokenError, UnknownName, WeightsMismatch
from cutaway.hooked_transformer import HookedTransformer
from cutaway.runs.generation import Sampling
from cutaway.runs.hashes import model_hash
from cutaway.runs.results import Labelled
from cutaway.runs.sweep import sweep
from cutaway.tokens import CharTokenizer
from cutaway.weights.canonical import weights_hash
from tests.architectures import network, some_tokens

KINDS = ["gpt2", "llama", "bloom", "no norm, shortformer"]
POSITIVE, NEGATIVE = ["abc", "abd", "bcd", "acdb"], ["efg", "gef", "fgh", "fek"]
QUIET = {"verbose": False, "stop_at_eos": False, "temperature": 0.0}
every = pytest.mark.parametrize("name", KINDS)


def test_the_best_layer_does_not_depend_on_order_or_sign_of_strengths() -> None:
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(3, 4, 5, generator=draw)

    def response(order: list[int], sign: float) -> DoseResponse:
        none = Labelled(torch.zeros(0, 3, 4), ("draw", "layer", "strength"))
        values = Labelled(sign * base.movedim(2, 1)[:, :, order], ("layer", "batch", "strength"))
        clean = Labelled(torch.zeros(5), ("batch",))
        return DoseResponse(values, clean, none, none, tuple(float(one) for one in order))

    found = {response(order, sign).best for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]) for sign in (1.0, -1.0)}
    assert len(found) == 1
    rising = torch.arange(4.0).expand(1, 5, 4)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        for sign, word in ((1.0, "rises at every step"), (-1.0, "falls at every step")):
            none = Labelled(torch.zeros(0, 1, 4), ("draw", "layer", "strength"))
            values = Labelled(sign * rising[..., order], ("layer", "batch", "strength"))
            one = DoseResponse(values, Labelled(torch.zeros(5), ("batch",)), none, none, tuple(float(at) for at in order))
            assert one.monotone() and word in one.summary()


def spoken(name: str = "gpt2", seed: int = 0) -> HookedTransformer:
    model = network(name, seed=seed)
    model.set_tokenizer(CharTokenizer([*"abcdefghijk", " ", "?"], bos_token="?", pad_token="?"))
    return model


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return spoken()


@pytest.fixture(scope="module")
def vectors(model: HookedTransformer) -> dict[int, SteeringVector]:
    return contrast_vectors(model, POSITIVE, NEGATIVE)


# Vectors.


def test_activations_are_those_of_each_prompt_alone(model: HookedTransformer) -> None:
    together = activations(model, POSITIVE, [0, 1], batch=3)
    for index, prompt in enumerate(POSITIVE):
        _, cache = model.run_with_cache(prompt)
        for layer in (0, 1):
            torch.testing.assert_close(together[layer, index], cache["resid_pre", layer][0, -1], rtol=1e-4, atol=1e-5)
    _, cache = model.run_with_cache("abd")
    mean = activations(model, POSITIVE, [1], position="mean")
    torch.testing.assert_close(mean[0, 1], cache["resid_pre", 1][0].mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(activations(model, ["abd"], [1], position=1)[0, 0], cache["resid_pre", 1][0, 1])


@every
def test_the_swapped_pair_gives_the_opposite_vector(name: str) -> None:
    model = spoken(name)
    one, other = activation_addition(model, "abcd", "ef", 1), activation_addition(model, "ef", "abcd", 1)
    assert torch.equal(one.values, -other.values) and one.values.shape == (5, 24)
    assert "padded with ' '" in one.read_at
    back = contrast_vectors(model, NEGATIVE, POSITIVE)
    for layer, vector in contrast_vectors(model, POSITIVE, NEGATIVE).items():
        torch.testing.assert_close(vector.values, -back[layer].values)


def test_a_pair_is_read_where_its_text_says(model: HookedTransformer) -> None:
    _, plus = model.run_with_cache("abcd")
    _, minus = model.run_with_cache("ef  ")
    expected = plus["resid_pre", 1][0] - minus["resid_pre", 1][0]
    torch.testing.assert_close(activation_addition(model, "abcd", "ef", 1).values, expected)


def test_directions_find_a_planted_one() -> None:
    draw = torch.Generator().manual_seed(0)
    planted = torch.zeros(8)
    planted[2] = 1.0
    minus = torch.randn(1, 60, 8, generator=draw)
    plus = torch.randn(1, 60, 8, generator=draw) + 3 * planted
    for method in ("mean", "pca", "probe"):
        found = directions(plus, minus, method)[0]
        assert torch.cosine_similarity(found, planted, dim=0) > 0.9, method
        torch.testing.assert_close(found.norm(), directions(plus, minus)[0].norm())
    assert held_out_accuracy(plus, minus).item() > 0.85
    pairs = torch.randn(1, 30, 8, generator=draw)  # what a pair shares must not tell its halves apart, nor mix them up
    assert 0.45 < held_out_accuracy(pairs + 0.01 * planted, pairs).item() < 0.55
    nothing = held_out_accuracy(minus[:, :30], minus[:, 30:]).item()
    assert 0.2 < nothing < 0.75


def test_a_saved_vector_is_the_vector(model: HookedTransformer, vectors: dict[int, SteeringVector], tmp_path: Path) -> None:
    path = tmp_path / "vector.safetensors"
    vectors[1].save(path)
    loaded = SteeringVector.load(path, model)
    assert torch.equal(loaded.values, vectors[1].values)
    assert {**loaded.__dict__, "values": 0} == {**vectors[1].__dict__, "values": 0}
    tokens = some_tokens(seed=3)
    with steer(model, Steer(vectors[1], 2.0)):
        first = model(tokens)
    with steer(model, Steer(loaded, 2.0)):
        assert torch.equal(model(tokens), first)


def test_a_vector_of_another_model_is_refused(vectors: dict[int, SteeringVector], tmp_path: Path) -> None:
    path, other = tmp_path / "vector.safetensors", spoken(seed=1)
    vectors[1].save(path)
    with pytest.raises(WeightsMismatch, match="another model"):
        SteeringVector.load(path, other)
    with pytest.raises(WeightsMismatch, match="another model"), steer(other, Steer(vectors[1])):
        pass
    (tmp_path / "junk").write_text("junk")
    save_file({"values": torch.zeros(1, 2)}, tmp_path / "torn", {"steering_vector": '{"layer": 1}'})
    save_file({"values": torch.zeros(1, 2)}, tmp_path / "weights")
    for bad in ("junk", "missing", "torn", "weights"):
        with pytest.raises(CheckpointError, match=bad):
            SteeringVector.load(tmp_path / bad)


def test_vectors_and_records_know_a_model_by_one_hash(tmp_path: Path) -> None:
    model = spoken()
    before = model_hash(model)
    vector = activation_addition(model, "ab", "cd", 1)
    assert vector.model_hash == before == model_hash(spoken())
    vector.save(tmp_path / "vector")
    old = replace(vector, model_hash=weights_hash(model.state_dict()))  # as version 0.1 wrote them
    old.check(model)
    model.cfg.model_name = "renamed"
    SteeringVector.load(tmp_path / "vector", model)
    with torch.no_grad():
        model.blocks[0].attn.b_O[0] += 1
    for made_before in (vector, old):
        with pytest.raises(WeightsMismatch, match="another model"):
            made_before.check(model)
    assert remembered_hash(model) == model_hash(model) != before


# Application.


@every
def test_strength_zero_changes_nothing(name: str) -> None:
    model, tokens = spoken(name), some_tokens(seed=3)
    plain = model(tokens)
    for vector in (activation_addition(model, "abcd", "ef", 1), contrast_vectors(model, POSITIVE, NEGATIVE)[1]):
        with steer(model, Steer(vector, 0.0)):
            assert torch.equal(model(tokens), plain)
    assert torch.equal(model(tokens), plain)


def test_steering_there_and_back_is_the_identity(model: HookedTransformer, vectors: dict[int, SteeringVector]) -> None:
    tokens = some_tokens(seed=3)
    _, clean = model.run_with_cache(tokens)
    with steer(model, Steer(vectors[1], 3.0), Steer(vectors[1], -3.0)):
        _, back = model.run_with_cache(tokens)
    with steer(model, Steer(vectors[1], 3.0)):
        _, there = model.run_with_cache(tokens)
    torch.testing.assert_close(back["resid_pre", 1], clean["resid_pre", 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(there["resid_pre", 1], clean["resid_pre", 1] + 3 * vectors[1].values)


def test_projected_out_and_clamped(model: HookedTransformer, vectors: dict[int, SteeringVector]) -> None:
    tokens, vector = some_tokens(seed=3), vectors[1]
    unit = vector.values[0] / vector.norm

    def component(how: Steer) -> Tensor:
        with steer(model, how):
            _, cache = model.run_with_cache(tokens)
        return cache["resid_pre", 1] @ unit

    zero = torch.zeros(3, 9)
    torch.testing.assert_close(component(Steer(vector, how="project_out")), zero, rtol=0, atol=1e-4)
    torch.testing.assert_close(component(Steer(vector, 2.0, how="clamp")), zero + 2 * vector.norm, rtol=1e-4, atol=1e-4)
    partly = component(Steer(vector, 2.0, positions=(2, 5), how="clamp"))
    assert (partly[:, 2:5] - 2 * vector.norm).abs().max() < 1e-3 < (partly[:, 5:] - 2 * vector.norm).abs().min()


@every
@pytest.mark.parametrize("positions", ["all", "prompt", "generated", (2, 7)])
def test_steered_generation_is_a_steered_run_of_the_same_text(name: str, positions: str | tuple[int, int]) -> None:
    model = spoken(name)
    prompt = model.to_tokens("abcd")
    same = {"all": (0, 99), "prompt": (0, 5), "generated": (5, 99)}.get(str(positions), positions)
    for vector in (contrast_vectors(model, POSITIVE, NEGATIVE)[1], activation_addition(model, "gfk", "ab", 1)):
        for kept in (True, False):
            with steer(model, Steer(vector, 4.0, positions)):
                tokens = model.generate(prompt, 6, use_past_kv_cache=kept, **QUIET)
            with steer(model, Steer(vector, 4.0, same)):
                logits = model(tokens)
            assert torch.equal(tokens[:, 5:], logits[:, 4:-1].argmax(-1))


@every
def test_left_padded_batches_are_steered_as_single_prompts(name: str) -> None:
    model, texts = spoken(name), ["abcab", "k", "gfa"]
    for vector in (contrast_vectors(model, POSITIVE, NEGATIVE)[1], activation_addition(model, "gfk", "ab", 1)):
        for positions in ("all", (1, 3), "generated"):
            with steer(model, Steer(vector, 4.0, positions)):
                together = model.generate(texts, 6, **QUIET)
                alone = [model.generate(text, 6, **QUIET) for text in texts]
            assert together == alone


def test_an_edit_of_a_vector_is_the_vector_applied(model: HookedTransformer, vectors: dict[int, SteeringVector]) -> None:
    tokens = some_tokens(seed=3)

    def last(logits: Tensor) -> Tensor:
        return logits[:, -1, 3]

    for vector in (vectors[1], activation_addition(model, "abcd", "ef", 0)):
        swept = sweep(model, tokens, [vector.edit(2.0)], last)
        with steer(model, Steer(vector, 2.0)):
            torch.testing.assert_close(swept.values.data[0], last(model(tokens)), rtol=1e-4, atol=1e-5)


def test_several_layers_at_once(model: HookedTransformer, vectors: dict[int, SteeringVector]) -> None:
    tokens = some_tokens(seed=3)
    with steer(model, Steer(vectors[0], 2.0, layers=[0, 1])):
        both = model(tokens)
    with steer(model, Steer(vectors[0], 2.0), Steer(vectors[0].at(1), 2.0)):
        assert torch.equal(model(tokens), both)


@pytest.mark.parametrize("how", ["project_out", "clamp"])
def test_an_edit_projects_and_clamps_as_a_steer_does(
    model: HookedTransformer, vectors: dict[int, SteeringVector], how: str
) -> None:
    tokens = some_tokens(seed=3)
    swept = sweep(model, tokens, [vectors[1].edit(2.0, positions=[1, 3], how=how)], lambda logits: logits[:, -1, 3])
    with steer(model, Steer(vectors[1], 2.0, [1, 3], how)):
        torch.testing.assert_close(swept.values.data[0], model(tokens)[:, -1, 3], rtol=1e-4, atol=1e-5)


def test_a_generation_leaves_no_prompt_behind(model: HookedTransformer, vectors: dict[int, SteeringVector]) -> None:
    tokens = model.to_tokens("abcd")
    plain = model(tokens)
    with steer(model, Steer(vectors[1], 4.0, "generated")):
        for _ in range(2):
            model.generate(tokens[:, :3], 2, **QUIET)
        assert model.prompt_columns is None and torch.equal(model(tokens), plain)


# Effects.


def test_a_response_is_what_steered_runs_say(model: HookedTransformer, vectors: dict[int, SteeringVector]) -> None:
    prompts, strengths = ["abcab", "k", "ffe"], [0.0, 1.0, 3.0]
    result = dose_response(model, vectors, prompts, steering_target(3, 4), strengths, random=4, shuffled=2)
    for layer, vector in vectors.items():
        for index, strength in enumerate(strengths):
            with steer(model, Steer(vector, strength)):
                logits = [model(prompt)[0, -1] for prompt in prompts]
            expected = torch.stack([row[3] - row[4] for row in logits])
            torch.testing.assert_close(result.values.data[layer, index], expected, rtol=1e-3, atol=1e-4)
    assert torch.allclose(result.values.data[:, 0], result.clean.data, atol=1e-5)
    assert result.random.shape == (4, 2, 3) and result.shuffled.shape == (2, 2, 3)
    assert len(result.summary().splitlines()) == 2
    assert result.figure().to_json() and len(result.to_frame()) == 18


def test_controls_at_the_best_layer_are_those_of_all_layers(
    model: HookedTransformer, vectors: dict[int, SteeringVector], tmp_path: Path
) -> None:
    options: Any = {"random": 4, "shuffled": 2}
    every, best = (
        dose_response(model, vectors, ["abcab", "k"], text_loss, [0.0, 3.0], controls_at=where, **options)
        for where in ("all", "best")
    )
    assert every.best == best.best and best.random.names("layer") == best.shuffled.names("layer") == (best.best,)
    torch.testing.assert_close(best.values.data, every.values.data)
    for kind in ("random", "shuffled"):
        ours, theirs = getattr(best, kind).sel(layer=best.best).data, getattr(every, kind).sel(layer=best.best).data
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [row[:4] for row in _rows(best)] == [row[:4] for row in _rows(every)]
    assert best.beaten() == every.beaten() and f"at layer {best.best} only" in best.summary() and best.figure().to_json()
    assert sorted(best.sweeps) == ["controls", "response"] and not every.sweeps
    with pytest.raises(UnknownName, match="controls_at='none' is not known; there are all and best"):
        dose_response(model, vectors, ["k"], text_loss, [1.0], controls_at="none")


def test_side_effects_are_zero_without_steering(model: HookedTransformer, vectors: dict[int, SteeringVector]) -> None:
    result = dose_response(model, vectors, ["abc"], text_loss, [0.0, 2.0], side_text=["hgf", "abcdefgh"], random=1, shuffled=0)
    assert result.side_loss is not None and result.side_kl is not None
    torch.testing.assert_close(result.side_loss.data[:, 0], torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.side_kl.data[:, 0], torch.zeros(2), rtol=0, atol=1e-5)
    assert (result.side_kl.data[:, 1] > 0.01).all()
    assert "other text" in result.summary()


def test_what_is_said_is_scored(model: HookedTransformer, vectors: dict[int, SteeringVector]) -> None:
    result = steered_texts(
        model,
        vectors[1],
        ["ab", "c"],
        lambda text: text.count("j"),
        [0.0, 5.0],
        max_new_tokens=6,
        sampling=Sampling(temperature=0.0),
    )
    with steer(model, Steer(vectors[1], 5.0)):
        expected = model.generate(["ab", "c"], 6, **QUIET)
    assert result.texts["5"] == [text.removeprefix(prompt) for text, prompt in zip(expected, ["ab", "c"], strict=True)]
    assert result.values.data[1].tolist() == [text.count("j") for text in result.texts["5"]]


def test_separability_and_similarity(model: HookedTransformer, vectors: dict[int, SteeringVector]) -> None:
    result = separability(model, POSITIVE, NEGATIVE)
    assert result.values.shape == (2,) and result.plane.shape == (2, 8, 2)
    assert result.projections.data[:, :4].mean() > 0 > result.projections.data[:, 4:].mean()
    cosines = similarity(vectors).data
    torch.testing.assert_close(cosines, cosines.T)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(2))


# What is refused.


def test_bad_input_is_refused_in_words(model: HookedTransformer, vectors: dict[int, SteeringVector]) -> None:
    with pytest.raises(TokenError, match="no prompts"):
        contrast_vectors(model, [], NEGATIVE)
    with pytest.raises(TokenError, match="no prompts"):
        dose_response(model, vectors, [], text_loss, [1.0])
    with pytest.raises(TokenError, match="no position 9"):
        contrast_vectors(model, POSITIVE, NEGATIVE, position=9)
    with pytest.raises(TokenError, match="'abc' has no position 4; it has 4 tokens"):
        contrast_vectors(model, ["abcd", "abc"], NEGATIVE, position=4)
    with pytest.raises(ShapeError, match=r"as wide as the residual stream.*'z' is not"):
        contrast_vectors(model, POSITIVE, NEGATIVE, site="z")
    with pytest.raises(ShapeError, match="how='subtract'"):
        vectors[1].edit(how="subtract")
    with pytest.raises(ShapeError, match="there is no layer 7"):
        contrast_vectors(model, POSITIVE, NEGATIVE, 7)
    with pytest.raises(ShapeError, match="'pca' needs pairs"):
        contrast_vectors(model, POSITIVE[:3], NEGATIVE, method="pca")
    with pytest.raises(ShapeError, match="method='median'"):
        contrast_vectors(model, POSITIVE, NEGATIVE, method="median")
    with pytest.raises(ShapeError, match="width 5"):
        replace(vectors[1], values=torch.zeros(1, 5)).check(model)
    with pytest.raises(ShapeError, match="strength=nan"):
        Steer(vectors[1], float("nan"))
    with pytest.raises(ShapeError, match="how='subtract'"):
        Steer(vectors[1], how="subtract")
    with pytest.raises(ShapeError, match="positions='some'"):
        Steer(vectors[1], positions="some")
    with pytest.raises(NotFinite, match=r"strength 1e\+39"), steer(model, Steer(vectors[1], 1e39)):
        model(some_tokens(seed=3))
