"""Unchanged means unchanged: a patch from a run with the same beginning is no edit there, and nothing else passes for one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.analysis import patching
from cutaway.errors import ConfigError, ShapeError, StaleCache
from cutaway.model.origins import Kept
from cutaway.runs import edits, metrics
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.grids import Cells
from cutaway.runs.sweep import Grid, heads, patterns, residual, sweep
from cutaway.runs.sweep import engine as sweep_engine
from cutaway.runs.sweep.cells import bind
from cutaway.runs.sweep.engine import Engine
from cutaway.runs.sweep.options import Sweep
from cutaway.runs.sweep.planning import plan
from tests.architectures import ALL, flop_counter, network, some_tokens

BATCH, LENGTH, SAME = 3, 9, 6
TOKENS = some_tokens(BATCH, LENGTH, seed=2)
OTHER = torch.cat([TOKENS[:, :SAME], (TOKENS[:, SAME:] + 1) % 13], 1)  # the last three tokens differ
OTHER[0, SAME] = TOKENS[0, SAME]  # in the first row, the last two
METRIC = metrics.logit_difference(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))
MODELS = {name: network(name) for name in ALL}
CAUSAL = [name for name in ALL if name != "bidirectional"]


def starts(model: Any, grid: Any, tokens: Tensor = TOKENS, mask: Tensor | None = None) -> list[int]:
    """The first position that each cell is said to change."""
    return [cell.start for cell in bind(Sweep(model, tokens, mask, Cells.of(grid, model.cfg, tokens.shape[1]), METRIC))]


def without_origin(cache: Any) -> dict[str, Tensor]:
    return dict(cache.cache_dict)


GRIDS: dict[str, Callable[[Any], Any]] = {
    "residual": lambda cache: residual(edits.patch(cache)),
    "heads": lambda cache: heads(edits.patch(cache)),
    "keys by position": lambda cache: Grid(edits.patch(cache), "k", ("layer", "head", "pos"), {"head": [0]}),
    "patterns": lambda cache: patterns(edits.patch(cache)),
    "pattern rows": lambda cache: patterns(edits.patch(cache), ("layer", "head", "dest"), head=[1]),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_an_unfiltered_cache_changes_only_what_may_differ_and_to_the_same_numbers(name: str) -> None:
    model = MODELS[name]
    cache = model.run_with_cache(OTHER)[1]  # with patterns, so by the explicit path, which rounds differently
    for kind, made in GRIDS.items():
        found = sweep(model, TOKENS, made(cache), METRIC)
        plain = sweep(model, TOKENS, made(without_origin(cache)), METRIC, audit=0)
        scale = plain.values.data.abs().max()
        assert (found.values.data - plain.values.data).abs().max() <= 1e-5 * scale, kind
        before = found.effects.data
        for axis in ("pos", "dest"):
            if axis in found.values.axes:  # no position that is the same counts as an edit: not by one bit
                same = before.movedim(found.values.axes.index(axis), 0)[:SAME]
                assert torch.equal(same, torch.zeros_like(same)), kind
        assert min(starts(model, made(cache))) >= SAME


def test_without_causal_attention_nothing_is_known() -> None:
    model = MODELS["bidirectional"]
    cache = model.run_with_cache(OTHER)[1]
    assert set(starts(model, residual(edits.patch(cache)))) == {0}
    sweep(model, TOKENS, residual(edits.patch(cache)), METRIC)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "bloom", "gpt-j", "mixture"])
@pytest.mark.parametrize("kind", list(GRIDS))
def test_a_plan_counts_what_torch_counts_where_prompts_begin_alike(name: str, kind: str) -> None:
    model = MODELS[name].requires_grad_(False)
    grid = GRIDS[kind](model.run_with_cache(OTHER)[1])
    task = Sweep(model, TOKENS, None, Cells.of(grid, model.cfg, LENGTH), METRIC)
    with torch.no_grad(), flop_counter() as counter:
        Engine(task).run()
    planned = plan(model, TOKENS, grid, METRIC, measure=False)
    if "pattern" not in kind:  # patterns are computed when they are looked at
        assert counter.get_total_flops() == planned.operations
    from_nowhere = GRIDS[kind](without_origin(model.run_with_cache(OTHER)[1]))
    assert planned.operations < plan(model, TOKENS, from_nowhere, METRIC, measure=False).operations


# What must not pass for unchanged.


def other_tokens(model: Any) -> Any:
    return model.run_with_cache(some_tokens(BATCH, LENGTH, seed=9))[1]


def rewritten_weights(model: Any) -> Any:
    cache = model.run_with_cache(TOKENS)[1]
    with torch.no_grad():
        model.blocks[0].attn.W_V.mul_(1.1)
    return cache


def written_behind_the_counter(model: Any) -> Any:
    cache = model.run_with_cache(TOKENS)[1]
    model.blocks[0].attn.W_V.data.mul_(1.1)
    return cache


def another_model(model: Any) -> Any:
    return network("gpt2", seed=3).run_with_cache(TOKENS)[1]


def with_a_hook(model: Any) -> Any:
    with model.hooks([("blocks.0.hook_attn_out", lambda x, hook: x * 1.1)]):
        return model.run_with_cache(TOKENS)[1]


def with_a_hook_of_torch(model: Any) -> Any:
    handle = model.blocks[0].register_forward_hook(lambda module, given, out: out * 1.1)
    cache = model.run_with_cache(TOKENS)[1]
    handle.remove()
    return cache


def with_an_edit(model: Any) -> Any:
    return model.run_with_cache(TOKENS, edits=edits.scale(1.1).at("attn_out0"))[1]


def with_an_entry_replaced(model: Any) -> Any:
    cache = model.run_with_cache(TOKENS)[1]
    for layer in (0, 1):
        cache.cache_dict[f"blocks.{layer}.hook_resid_pre"] = cache["resid_pre", layer] * 1.1
    return cache


def with_an_entry_written_into(model: Any) -> Any:
    cache = model.run_with_cache(TOKENS)[1]
    for layer in (0, 1):
        cache["resid_pre", layer][:, 2:4] *= 1.1
    return cache


def with_an_entry_written_into_unseen(model: Any) -> Any:
    cache = model.run_with_cache(TOKENS)[1]
    for layer in (0, 1):
        cache["resid_pre", layer].numpy()[:, 2:4] *= 1.1
    return cache


def with_other_padding(model: Any) -> Any:
    mask = torch.ones_like(TOKENS)
    mask[:, :2] = 0
    return model.run_with_cache(TOKENS, attention_mask=mask)[1]


def with_a_run_inside(model: Any) -> Any:
    calls: list[int] = []

    class Again:
        reads = True

        def __call__(self, x: Tensor, hook: Any) -> None:
            calls.append(1)
            if len(calls) == 1:
                model(some_tokens(BATCH, LENGTH, seed=9))

    with model.hooks([("blocks.1.hook_resid_mid", Again())]):
        return model.run_with_cache(TOKENS)[1]


def other_rows(model: Any) -> Any:
    return model.run_with_cache(TOKENS)[1].apply_slice_to_batch_dim([1, 2, 0])


@pytest.mark.parametrize(
    "made",
    [
        other_tokens, with_a_hook, with_a_hook_of_torch, with_an_edit, with_an_entry_replaced, with_an_entry_written_into,
        with_an_entry_written_into_unseen, with_a_run_inside, other_rows,
    ],
)  # fmt: skip
def test_nothing_else_passes_for_unchanged(made: Callable[[Any], Any]) -> None:
    model = network("gpt2")
    cache = made(model)
    grid = residual(edits.patch(cache))
    found = sweep(model, TOKENS, grid, METRIC, audit=18)  # every cell, against full passes with the same edit
    plain = sweep(model, TOKENS, residual(edits.patch(without_origin(cache))), METRIC, audit=0)
    assert (found.effects.data - plain.effects.data).abs().max() <= 1e-5 * plain.values.data.abs().max()
    assert float(found.effects.data.abs().max()) > 1e-3


@pytest.mark.parametrize("made", [rewritten_weights, written_behind_the_counter, another_model, with_other_padding])
def test_values_of_another_run_are_refused_or_come_without_an_origin(made: Callable[[Any], Any]) -> None:
    model = network("gpt2")
    cache = made(model)
    with pytest.raises((StaleCache, ConfigError, ShapeError), match=r"takes its values from a run|an activation of padding"):
        sweep(model, TOKENS, residual(edits.patch(cache)), METRIC)
    found, plain = (
        sweep(model, TOKENS, residual(edits.patch(values)), METRIC, audit=18)
        for values in (dict(cache.cache_dict), without_origin(cache))
    )
    assert torch.equal(found.values.data, plain.values.data) and float(found.effects.data.abs().max()) > 1e-3


# What is still known.


@pytest.mark.parametrize(
    "made",
    [
        lambda cache: cache,
        lambda cache: cache.cache_dict,
        lambda cache: cache.to("cpu"),
        lambda cache: ActivationCache(cache.cache_dict, cache.model),
        lambda cache: cache.apply_slice_to_batch_dim(slice(None)),
    ],
)
def test_what_is_made_from_a_cache_keeps_its_origin(made: Callable[[Any], Any]) -> None:
    model = MODELS["gpt2"]
    grid = residual(edits.patch(made(model.run_with_cache(OTHER)[1])))
    assert starts(model, grid)[:LENGTH] == [LENGTH] * SAME + [6, 7, 8]


def test_a_cache_of_one_prompt() -> None:
    model = MODELS["gpt2"]
    for cache in (
        model.run_with_cache(OTHER[:1])[1].remove_batch_dim(),
        model.run_with_cache(OTHER[:1], remove_batch_dim=True)[1],
        model.run_with_cache(OTHER)[1].apply_slice_to_batch_dim(0),
    ):
        assert starts(model, residual(edits.patch(cache)), TOKENS[:1])[:LENGTH] == [LENGTH] * 7 + [7, 8]
    shifted = model.run_with_cache(OTHER)[1].apply_slice_to_batch_dim([2, 0, 1])
    moved = [OTHER[[2, 0, 1]][row].ne(TOKENS[row]).long().argmax().item() for row in range(BATCH)]
    assert min(starts(model, residual(edits.patch(shifted)))) == min(moved)


def test_resampling_and_means_over_prompts_of_one_template() -> None:
    model = MODELS["llama"]
    tokens = TOKENS.clone()
    tokens[:, :4] = tokens[:1, :4]
    cache = model.run_with_cache(tokens)[1]
    for change in (edits.resample(cache), edits.mean(cache), edits.mean()):
        assert min(starts(model, heads(change), tokens)) == 4
        found = sweep(model, tokens, heads(change), METRIC, audit=8)
        assert found.audit.difference < 1e-5
    assert min(starts(model, heads(edits.mean(cache, ("batch", "pos"))), tokens)) == 0


def test_padding_counts() -> None:
    model = MODELS["gpt2"]
    mask = torch.ones_like(TOKENS)
    mask[1, :2] = 0
    cache = model.run_with_cache(OTHER, attention_mask=mask)[1]
    assert min(starts(model, residual(edits.patch(cache)), mask=mask)) == SAME
    assert min(starts(model, residual(edits.patch(cache)))) == 0
    found = sweep(model, TOKENS, residual(edits.patch(cache)), METRIC, mask=mask, audit=18)
    assert found.audit.difference < 1e-5


def test_copies_know_nothing_and_can_be_pickled() -> None:
    cache = MODELS["gpt2"].run_with_cache(OTHER)[1]
    assert isinstance(cache.cache_dict, Kept) and cache.cache_dict.origin_of("hook_embed") is not None
    for one in (pickle.loads(pickle.dumps(cache.cache_dict)), copy.copy(cache.cache_dict), copy.deepcopy(cache.cache_dict)):
        assert type(one) is dict and one.keys() == cache.cache_dict.keys()
    del cache.cache_dict["hook_embed"]
    assert cache.cache_dict.origin_of("hook_embed") is None


def test_the_dialects_patching_leaves_the_same_beginning_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["gpt2"]
    cache = model.run_with_cache(OTHER)[1]
    ran: list[int] = []
    run_chunk = sweep_engine.run_chunk

    def counted(*given: Any) -> Any:
        out = run_chunk(*given)
        ran.extend(cell.number for cell, _ in out)
        return out

    monkeypatch.setattr(sweep_engine, "run_chunk", counted)

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 3].mean()

    found = patching.get_act_patch_resid_pre(model, TOKENS, cache, metric)
    assert sorted(ran) == [6, 7, 8, 15, 16, 17]  # two layers of nine positions
    assert torch.equal(found[:, :SAME], found[:1, :1].expand(2, SAME))
    every = patching.get_act_patch_attn_head_all_pos_every(model, TOKENS, cache, metric)
    plain = patching.get_act_patch_attn_head_all_pos_every(model, TOKENS, without_origin(cache), metric)
    torch.testing.assert_close(every, plain, rtol=1e-5, atol=1e-6)


# Prompts that share a beginning.


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "bloom", "olmo-2"])
def test_a_shared_beginning_runs_once_to_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, mask = MODELS[name].requires_grad_(False), torch.ones_like(TOKENS)
    tokens = TOKENS.clone()
    tokens[:, :5] = tokens[:1, :5]
    mask[:, :2] = 0
    grids: list[Any] = [residual(edits.scale(0.5)), heads(edits.mean()), heads(edits.zero(), "k")]
    grids.append([[edits.zero().at("z0", heads=1), edits.freeze().at("attn_out1")], [edits.function(lambda x: 2 * x).at("z1")]])
    for grid in grids:
        for padding in (None, mask) if grid is grids[0] else (mask,):
            monkeypatch.setattr("cutaway.runs.sweep.clean.WORTH_SHARING", 1)
            found = sweep(model, tokens, grid, METRIC, mask=padding, audit=2)
            planned = plan(model, tokens, grid, METRIC, mask=padding, measure=False)
            task = Sweep(model, tokens, padding, Cells.of(grid, model.cfg, LENGTH), METRIC)
            with torch.no_grad(), flop_counter() as counter:
                Engine(task).run()
            assert counter.get_total_flops() == planned.operations
            monkeypatch.setattr("cutaway.runs.sweep.clean.WORTH_SHARING", 10**9)
            apart = sweep(model, tokens, grid, METRIC, mask=padding, audit=0)
            scale = apart.values.data.abs().max()
            assert (found.values.data - apart.values.data).abs().max() <= 1e-5 * scale
            assert (found.clean.data - apart.clean.data).abs().max() <= 1e-5 * scale
            assert planned.operations < plan(model, tokens, grid, METRIC, mask=padding, measure=False).operations


def test_only_plain_passes_have_the_bits_of_plain_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutaway.runs.sweep.clean.WORTH_SHARING", 1)
    model, tokens = MODELS["gpt2"], TOKENS.clone()
    tokens[:, :5] = tokens[:1, :5]
    found = sweep(model, tokens, heads(edits.zero()), METRIC, skip="layers")
    with torch.no_grad():  # logits of the position that is read: some kernels round by the number of rows
        stream = model(tokens, stop_at_layer=model.cfg.n_layers)
        assert torch.equal(found.clean.data, METRIC(model.logits_of(stream[:, -1:])))
