"""Values from another run: of another model, from before the weights changed, or of padding, they are refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import cutaway
from cutaway import metrics
from cutaway.errors import ConfigError, CutawayError, NotFinite, ShapeError, StaleCache, TokenError
from cutaway.model.key_values import KeyValueCache
from cutaway.runs import edits
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.editing import run
from cutaway.runs.grids import heads, residual
from cutaway.runs.sweep import sweep
from tests.architectures import network, some_tokens
from tests.test_unequal_texts import LONG, model_for, padded

TOKENS = some_tokens()
METRIC = metrics.loss(TOKENS)
FROM: dict[str, Callable[[Any], edits.Change]] = {
    "patch": edits.patch, "freeze": edits.freeze, "mean": edits.mean, "resample": edits.resample,
    "random": lambda cache: edits.random(edits.patch(cache)),
}  # fmt: skip
WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "run": lambda model, edit: run(model, TOKENS, edits=[edit], metric=METRIC),
    "sweep": lambda model, edit: sweep(model, TOKENS, [edit], METRIC, audit=0),
    "run_with_cache": lambda model, edit: model.run_with_cache(TOKENS, edits=[edit]),
    "generate": lambda model, edit: model.generate(TOKENS, 1, edits=[edit], stop_at_eos=False, verbose=False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", FROM)
def test_values_of_another_model_are_refused(change: str, way: str) -> None:
    model, other = network("gpt2"), network("gpt2", seed=1)
    _, cache = other.run_with_cache(TOKENS)
    with pytest.raises(ConfigError, match="of another model; if that is meant"):
        WAYS[way](model, FROM[change](cache).at(("z", 0)))
    meant = FROM["patch"](dict(cache.cache_dict)).at(("z", 0))
    assert run(model, TOKENS, edits=[meant], metric=METRIC).value is not None
    with pytest.raises(ConfigError, match="kept by another model"):
        ActivationCache(cache.cache_dict, model)


REWRITES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda model: model.blocks[1].attn.W_O.mul_(2),
    "through data": lambda model: model.blocks[0].mlp.W_in.data.mul_(1.5),
    "one head through data": lambda model: model.blocks[0].attn.W_V.data[1].zero_(),
    "new data": lambda model: setattr(model.blocks[0].attn.W_Q, "data", torch.ones_like(model.blocks[0].attn.W_Q)),
    "through NumPy": lambda model: model.blocks[1].mlp.W_out.numpy().__imul__(2),
    "a new parameter": lambda model: setattr(model.unembed, "W_U", torch.nn.Parameter(torch.ones_like(model.W_U))),
    "another block": lambda model: model.blocks.__setitem__(0, network("gpt2", seed=1).blocks[0]),
    "a state dict": lambda model: model.load_state_dict(network("gpt2", seed=1).state_dict()),
}


@pytest.mark.parametrize("how", REWRITES)
def test_what_was_kept_before_the_weights_changed_is_refused(how: str) -> None:
    model = network("gpt2").requires_grad_(False)
    _, cache = model.run_with_cache(TOKENS)
    kept = KeyValueCache.init_cache(model.cfg, batch_size=3)
    model(TOKENS[:, :4], past_kv_cache=kept)
    questions: dict[str, Callable[[], Any]] = {
        "edit": lambda: run(model, TOKENS, edits=[edits.patch(cache).at(("z", 0))]),
        "sweep": lambda: sweep(model, TOKENS, [edits.patch(cache).at(("z", 0))], METRIC, audit=0),
        "lens": lambda: cutaway.lens(cache), "attribute": lambda: cutaway.attribute(cache, TOKENS),
        "cache": lambda: cache.logit_attrs(cache.decompose_resid(), TOKENS),
        "keys and values": lambda: model(TOKENS[:, 4:], past_kv_cache=kept),
    }  # fmt: skip
    for ask in questions.values():
        if ask is not questions["keys and values"]:
            ask()
    REWRITES[how](model)
    for question, ask in questions.items():
        with pytest.raises(StaleCache, match=r"rewritten since|were rewritten"):
            pytest.fail(f"{question}: {ask()}")


def test_a_cache_of_a_changed_configuration_is_refused() -> None:
    model = network("gpt2")
    _, cache = model.run_with_cache(TOKENS)
    model.cfg.eps = 1.0
    for ask in (lambda: cutaway.lens(cache), lambda: cache.logit_attrs(cache.decompose_resid(), TOKENS)):
        with pytest.raises(ConfigError, match="configuration was changed"):
            ask()


def test_a_copy_of_kept_keys_is_of_the_same_model() -> None:
    model, other = network("llama").requires_grad_(False), network("llama", seed=1).requires_grad_(False)
    kept = KeyValueCache.init_cache(model.cfg, batch_size=3)
    model(TOKENS[:, :4], past_kv_cache=kept)
    again = copy.deepcopy(kept)
    torch.testing.assert_close(model(TOKENS[:, 4:], past_kv_cache=again), model(TOKENS)[:, 4:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="another model"):
        other(TOKENS[:, 4:], past_kv_cache=copy.deepcopy(kept))


def test_weights_are_looked_at_without_changing_them() -> None:
    model = network("gpt2")
    state = model.weights_state()
    model(TOKENS)
    model.to("cpu")
    assert model.weights_state() == state and network("gpt2").weights_state() != state


@pytest.mark.parametrize("side", ["left", "right"])
def test_values_of_padding_go_to_no_token(side: str) -> None:
    model = model_for("gpt2", side)
    clean, _ = padded(model, ["abcde", "abc"], side)
    other, _ = padded(model, ["abc", "abcde"], side)
    _, cache = model.run_with_cache(other)
    metric = metrics.logit_difference([1], [2])
    for change in (edits.patch(cache), edits.resample(model.run_with_cache(clean)[1])):
        for ask in (lambda one: sweep(model, clean, [one], metric), lambda one: run(model, clean, edits=[one])):
            with pytest.raises(ShapeError, match="activation of padding at column"):
                ask(change.at(("z", 0)))
    there = {"left": [3, 4, 5], "right": [0, 1, 2]}[side]
    run(model, clean, edits=[edits.patch(cache).at(("z", 0), positions=there)])
    with pytest.raises(ShapeError, match="activation of padding"):
        sweep(model, clean, residual(edits.patch(cache)), metric)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_edit_that_would_change_nothing_in_a_row_is_refused(side: str) -> None:
    model = model_for("gpt2", side)
    tokens, _ = padded(model, LONG, side)
    at = 0 if side == "left" else tokens.shape[1] - 1
    metric = metrics.logit_difference([1], [2])
    for where in ({"positions": at}, {"positions": [at]}):
        edit = edits.zero().at(("z", 0), **where)
        for ask in (lambda one: sweep(model, tokens, [one], metric), lambda one: run(model, tokens, edits=one)):
            with pytest.raises(ShapeError, match="would change nothing in row 1"):
                ask(edit)
    assert sweep(model, tokens, residual(edits.zero(), pos=[at]), metric).values.data.isfinite().all()  # a grid goes over columns
    with pytest.raises(ShapeError, match="5 tokens of its own"):
        run(model, tokens, edits=edits.zero().at(("z", 0), positions=-6))


@pytest.mark.parametrize("where", [-1, torch.tensor(-1)])
def test_functions_of_logits_that_pick_padding_are_refused(where: Any) -> None:
    model = model_for("gpt2", "right")
    tokens, real = padded(model, LONG, "right")
    for metric in (
        lambda logits: logits[:, where, 1],
        lambda logits: logits[:, -1].softmax(-1)[:, 1],
        lambda logits: logits[1, -1, 2],
    ):
        for ask in (lambda one: sweep(model, tokens, heads(), one), lambda one: run(model, tokens, metric=one)):
            with pytest.raises(ShapeError, match="rows have padding"):
                ask(metric)
    ends, rows = real.sum(1) - 1, torch.arange(3)
    own = run(model, tokens, metric=lambda logits: logits[rows, ends, 1]).value
    assert own is not None
    for row, text in enumerate(LONG):
        assert float(own[row]) == pytest.approx(float(model(model.to_tokens(text))[0, -1, 1]), abs=1e-4)
    with pytest.warns(UserWarning, match="looks at padding, too"):
        run(model, tokens, metric=lambda logits: logits[..., 1].mean(1))


def test_a_slice_of_one_column_is_of_tokens_only() -> None:
    model = model_for("gpt2", "right")
    tokens, _ = padded(model, LONG, "right")
    _, cache = model.run_with_cache(tokens)
    questions: list[Callable[[], Any]] = [
        lambda: model.run_with_cache(tokens, pos_slice=-1), lambda: cache.accumulated_resid(pos_slice=-1),
        lambda: cache.decompose_resid(pos_slice=8), lambda: cache.stack_head_results(pos_slice=-1),
    ]  # fmt: skip
    for ask in questions:
        with pytest.raises(ShapeError, match="is a column, and it is padding in row 1"):
            ask()
    assert cache.accumulated_resid(pos_slice=0).shape[1] == 3
    assert model.run_with_cache(tokens[:1], pos_slice=-1)[1]["resid_post", 0].shape[1] == 1


MASKS = {
    "additive": torch.full((3, 9), -1e9),
    "half": torch.full((3, 9), 0.5),
    "nothing": torch.zeros(3, 9),
    "nan": torch.full((3, 9), math.nan),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_means_are_masks(kind: str) -> None:
    model = network("gpt2")
    _, cache = model.run_with_cache(TOKENS)
    for given in (None, cache):
        with pytest.raises(TokenError, match="attention_mask"):
            edits.mean(given, over=("pos",), mask=MASKS[kind])
    with pytest.raises((ShapeError, TypeError)):  # (the checker of types looks into the values, and meets the error first)
        sweep(model, TOKENS, [edits.mean(cache, mask=torch.ones(3, 8)).at(("z", 0))], METRIC)


BAD: list[Any] = [[0, 0], [True, False], "12", [5.9], [], [-1, 3], {0, 1}, {0: 1}, 2.0, math.nan, [9], torch.tensor([[0, 1]])]


@pytest.mark.parametrize("given", BAD, ids=str)
@pytest.mark.parametrize("axis", ["head", "layer", "pos", "heads", "positions"])
def test_places_of_grids_and_edits_are_whole_numbers_each_once(axis: str, given: Any) -> None:
    model = network("gpt2")
    given = (
        [-1, model.cfg.n_layers - 1 if axis == "layer" else 8 if axis in ("pos", "positions") else 3]
        if given == [-1, 3]
        else given
    )
    grids = {"head": heads, "layer": heads, "pos": lambda **only: residual(edits.zero(), **only)}
    with pytest.raises((CutawayError, TypeError)):  # some are ruled out by the annotations, in tests
        if axis in grids:
            sweep(model, TOKENS, grids[axis](**{axis: given}), METRIC)
        else:
            sweep(model, TOKENS, [edits.Edit(("z", 0), edits.zero(), **{axis: given})], METRIC)


OTHER, ANSWER, GPT2 = TOKENS.flip(0), metrics.log_probability([1]), network("gpt2")
Z, NOTHING = torch.randn(3, 9, 4, 6), torch.full_like(TOKENS, -1)
NUMBERS: dict[str, Callable[[], Any]] = {
    "scale by nan": lambda: edits.scale(math.nan),
    "add inf": lambda: edits.add(torch.ones(3), math.inf),
    "a vector of nan": lambda: edits.add(torch.full((24,), math.nan)),
    "a vector of bools": lambda: edits.add(torch.ones(24).bool()),
    "replace by nothing": lambda: sweep(GPT2, TOKENS, [edits.replace(math.nan).at(("z", 0))], METRIC, audit=0),
    "a direction of length 0": lambda: edits.project_out(torch.zeros(24)),
    "instead of nan": lambda: edits.project_out(torch.ones(24), math.nan),
    "a mean over an axis twice": lambda: edits.mean(over=("batch", "batch")),
    "an order that leaves one": lambda: edits.resample(Z, order=torch.tensor([1, 0, 2])),
    "an order of two": lambda: edits.resample(Z, order=torch.tensor([1, 0])),
    "an order of floats": lambda: edits.resample(Z, order=torch.tensor([1.0, 2.0, 0.0])),
    "labels that count nothing": lambda: run(GPT2, TOKENS, metric=metrics.loss(TOKENS, NOTHING)),
    "a sweep that counts nothing": lambda: sweep(GPT2, TOKENS, heads(), metrics.accuracy(TOKENS, NOTHING)),
    "a set of answers": lambda: metrics.log_probability({1}),
    "a set as targets": lambda: cutaway.lens(GPT2, TOKENS, targets={1}),
    "no positions": lambda: cutaway.attribute(GPT2, TOKENS, positions=[]),
    "a component twice": lambda: cutaway.attribute(GPT2, TOKENS, components=["0.1", "0.01"]),
    "no components": lambda: cutaway.pathways(GPT2, TOKENS, layer=1, components=[]),
    "a sender twice": lambda: cutaway.path_patch(GPT2, TOKENS, OTHER, ANSWER, senders=["0.1"] * 2),
    "an edge twice": lambda: cutaway.edge_effects(GPT2, TOKENS, OTHER, ANSWER, edges=[("embed", "0.0.v")] * 2),
    "no edges": lambda: cutaway.edge_effects(GPT2, TOKENS, OTHER, ANSWER, edges=[]),
    "the same prompts": lambda: cutaway.edge_attribution(GPT2, TOKENS, TOKENS, ANSWER),
    "Q twice": lambda: cutaway.composition(GPT2, "QQ"),
    "a layer twice": lambda: cutaway.contrast_vectors(model_for("gpt2", "left"), ["abc"], ["abd"], [1, -1]),
    "no layers": lambda: cutaway.separability(model_for("gpt2", "left"), ["abc"] * 2, ["abd"] * 2, []),
    "prompts that are the same": lambda: cutaway.contrast_vectors(model_for("gpt2", "left"), ["abc"], ["abc"]),
    "sets that are the same": lambda: cutaway.contrast_vectors(model_for("gpt2", "left"), ["abc", "abd"], ["abd", "abc"]),
    "a pair that is the same": lambda: cutaway.activation_addition(model_for("gpt2", "left"), "abc", "abc", 1),
}  # fmt: skip


@pytest.mark.parametrize("what", NUMBERS)
def test_what_means_nothing_is_refused(what: str) -> None:
    with pytest.raises(CutawayError) as caught:
        NUMBERS[what]()
    assert len(str(caught.value)) > 20 and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda: edits.scale(True), lambda: edits.replace(True)])
def test_bools_are_no_numbers(change: Callable[[], Any]) -> None:
    with pytest.raises((CutawayError, TypeError)):
        change()


def broken(place: str) -> Any:
    model = network("gpt2").requires_grad_(False)
    {"logits": model.unembed.b_U, "stream": model.blocks[0].mlp.b_out}[place].data[0] = math.nan
    return model


UNDEFINED: dict[str, Callable[[Any], Any]] = {
    "predict": lambda model: cutaway.predict(model, TOKENS), "lens": lambda model: cutaway.lens(model, TOKENS),
    "likeliest_tokens": lambda model: cutaway.likeliest_tokens(model, TOKENS),
    "accuracy": lambda model: run(model, TOKENS, metric=metrics.accuracy(TOKENS)),
    "rank": lambda model: run(model, TOKENS, metric=metrics.rank([1])),
    "sweep of accuracy": lambda model: sweep(model, TOKENS, heads(), metrics.accuracy(TOKENS), audit=0),
    "sweep of ranks": lambda model: sweep(model, TOKENS, heads(), metrics.rank([1]), audit=0),
    "sweep of losses": lambda model: sweep(model, TOKENS, heads(), METRIC, audit=0),
    "generate": lambda model: model.generate(TOKENS, 1, do_sample=False, stop_at_eos=False, verbose=False),
}  # fmt: skip


@pytest.mark.parametrize("place", ["logits", "stream"])
@pytest.mark.parametrize("what", UNDEFINED)
def test_of_logits_that_are_nan_nothing_is_said(what: str, place: str) -> None:
    with pytest.raises(NotFinite):
        UNDEFINED[what](broken(place))


@pytest.mark.parametrize("what", ["attribute", "norm_scales", "pathways"])
def test_of_a_stream_of_nan_nothing_is_said(what: str) -> None:
    options = {"layer": 1} if what == "pathways" else {}
    with pytest.raises(NotFinite, match="holds NaN"):
        getattr(cutaway, what)(broken("stream"), TOKENS, **options)
