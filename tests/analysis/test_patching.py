"""Patching: the dialect's functions against loops of hooks; the whole experiment in both directions."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch

from cutaway.analysis import patching
from cutaway.errors import ShapeError, UnknownName
from cutaway.runs import metrics
from tests.architectures import network, some_tokens

CLEAN, CORRUPTED = some_tokens(seed=1), some_tokens(seed=2)
RIGHT, WRONG = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])


def metric(logits: torch.Tensor) -> torch.Tensor:
    last = logits[:, -1]
    return (last.gather(-1, RIGHT[:, None]) - last.gather(-1, WRONG[:, None])).mean()


def loop(model: Any, cache: Any, name: str, setter: Any, indices: Any) -> torch.Tensor:
    """One run with a hook for each index."""
    values = []
    for index in indices:
        site = f"blocks.{index[0]}.{name}"

        def hook(x: torch.Tensor, hook: Any, index: Any = index, site: str = site) -> torch.Tensor:
            return setter(x, index, cache[site])

        values.append(metric(model.run_with_hooks(CORRUPTED, fwd_hooks=[(site, hook)])).item())
    return torch.tensor(values)


FUNCTIONS = [
    ("get_act_patch_resid_pre", "hook_resid_pre", "layer_pos_patch_setter", (2, 9)),
    ("get_act_patch_resid_mid", "hook_resid_mid", "layer_pos_patch_setter", (2, 9)),
    ("get_act_patch_attn_out", "hook_attn_out", "layer_pos_patch_setter", (2, 9)),
    ("get_act_patch_mlp_out", "hook_mlp_out", "layer_pos_patch_setter", (2, 9)),
    *((f"get_act_patch_attn_head_{word}_by_pos", f"attn.hook_{site}", "layer_pos_head_vector_patch_setter", (2, 9, "heads"))
      for word, site in (("out", "z"), ("q", "q"), ("k", "k"), ("v", "v"))),
    *((f"get_act_patch_attn_head_{word}_all_pos", f"attn.hook_{site}", "layer_head_vector_patch_setter", (2, "heads"))
      for word, site in (("out", "z"), ("q", "q"), ("k", "k"), ("v", "v"))),
    ("get_act_patch_attn_head_pattern_by_pos", "attn.hook_pattern", "layer_head_pos_pattern_patch_setter", (2, 4, 9)),
    ("get_act_patch_attn_head_pattern_dest_src_pos", "attn.hook_pattern", "layer_head_dest_src_pos_pattern_patch_setter",
     (2, 4, 9, 9)),
    ("get_act_patch_attn_head_pattern_all_pos", "attn.hook_pattern", "layer_head_pattern_patch_setter", (2, 4)),
]  # fmt: skip


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize(("name", "site", "setter", "shape"), FUNCTIONS)
def test_each_function_is_a_loop_of_hooks(architecture: str, name: str, site: str, setter: str, shape: Any) -> None:
    model = network(architecture)
    cache = model.run_with_cache(CLEAN)[1]
    heads = model.cfg.kv_heads if site in ("attn.hook_k", "attn.hook_v") else model.cfg.n_heads
    shape = tuple(heads if size == "heads" else size for size in shape)
    found = getattr(patching, name)(model, CORRUPTED, cache, metric)
    assert found.shape == shape
    picked = list(itertools.product(*map(range, shape)))[:: 1 if len(shape) < 4 else 11]
    expected = loop(model, cache, site, getattr(patching, setter), picked)
    torch.testing.assert_close(torch.stack([found[index] for index in picked]), expected, rtol=1e-4, atol=1e-4)


def test_any_setter_and_a_frame_of_indices() -> None:
    model = network("gpt2")
    cache = model.run_with_cache(CLEAN)[1]
    frame = patching.make_df_from_ranges([2, 9], ["layer", "pos"]).iloc[[3, 12, 17]]

    def from_the_next(x: torch.Tensor, index: Any, clean: torch.Tensor) -> torch.Tensor:
        x[:, index[1]] = clean[:, (index[1] + 1) % 9]
        return x

    for setter in (from_the_next, patching.layer_pos_patch_setter):
        found, same = patching.generic_activation_patch(
            model, CORRUPTED, cache, metric, setter, "resid_pre", index_df=frame, return_index_df=True
        )
        assert same is frame and found.shape == (3,)
        expected = loop(model, cache, "hook_resid_pre", setter, frame.to_numpy().tolist())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    _, made = patching.get_act_patch_attn_out(model, CORRUPTED, cache, metric, return_index_df=True)
    assert list(made.columns) == ["layer", "pos"] and len(made) == 18
    assert patching.get_act_patch_attn_out(model, CORRUPTED, cache, metric, index_df=frame).shape == (3,)


def test_every_stacks_the_single_functions() -> None:
    model = network("llama")
    cache = model.run_with_cache(CLEAN)[1]
    blocks = patching.get_act_patch_block_every(model, CORRUPTED, cache, metric)
    assert torch.equal(blocks[1], patching.get_act_patch_attn_out(model, CORRUPTED, cache, metric))
    heads = patching.get_act_patch_attn_head_all_pos_every(model, CORRUPTED, cache, metric)
    assert heads.shape == (5, 2, 4) and (heads[2, :, 2:] == 0).all()
    by_pos = patching.get_act_patch_attn_head_by_pos_every(model, CORRUPTED, cache, metric)
    assert by_pos.shape == (5, 2, 9, 4)
    pattern = patching.get_act_patch_attn_head_pattern_by_pos(model, CORRUPTED, cache, metric)
    assert torch.equal(by_pos[4], pattern.transpose(1, 2))


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_whole_experiment(direction: str) -> None:
    model = network("gpt2")
    difference = metrics.logit_difference(RIGHT, WRONG)
    found = patching.patch(model, CLEAN, CORRUPTED, difference, direction=direction)
    clean, corrupted = (difference(model(tokens)).mean().item() for tokens in (CLEAN, CORRUPTED))
    assert (found.clean, found.corrupted) == (pytest.approx(clean, rel=1e-5), pytest.approx(corrupted, rel=1e-5))
    source, target = (CLEAN, CORRUPTED) if direction == "denoising" else (CORRUPTED, CLEAN)
    cache = model.run_with_cache(source)[1]

    def hook(x: torch.Tensor, hook: Any) -> None:
        x[:, 8] = cache["resid_pre", 1][:, 8]

    patched = difference(model.run_with_hooks(target, fwd_hooks=[("blocks.1.hook_resid_pre", hook)])).mean().item()
    assert float(found.values.data[1, 8]) == pytest.approx((patched - corrupted) / (clean - corrupted), abs=1e-4)
    assert list(found.sweeps) == ["resid_pre", "attn_out", "mlp_out", "z"]
    assert found.audit.difference < 1e-5
    assert direction in found.summary() and found.figure("z").to_json()


def test_prompts_of_different_lengths_are_refused() -> None:
    model = network("gpt2")
    longer = torch.cat([CLEAN[:, :5], CLEAN[:, 4:]], 1)
    with pytest.raises(ShapeError, match=r"pair 0 has 9 tokens .* 10 .*differ from position 5 on"):
        patching.patch(model, CLEAN, longer, metrics.logit_difference(RIGHT, WRONG))
    with pytest.raises(ShapeError, match="of 10 positions and the corrupted tokens of 9"):
        patching.get_act_patch_resid_pre(model, CORRUPTED, model.run_with_cache(longer)[1], metric)
    with pytest.raises(UnknownName, match=r"no kind of patch is called 'rezid_pre' \(did you mean 'resid_pre'"):
        patching.patch(model, CLEAN, CORRUPTED, metrics.logit_difference(RIGHT, WRONG), kinds=["rezid_pre"])
    found = patching.patch(model, CLEAN, CORRUPTED, metrics.logit_difference(RIGHT, WRONG), kinds=["resid_pre", "z"])
    for read in (found.normalised, found.intervals, found.figure):
        for kind, near in {"zz": " (did you mean 'z'?)", "mlp_out": "", "resid_pe": " (did you mean 'resid_pre'?)"}.items():
            with pytest.raises(UnknownName, match=re.escape(f"is called {kind!r}{near}; there are resid_pre, z")):
                read(kind)
    with pytest.raises(UnknownName, match="has none of mlp_out to patch; it has resid_pre, attn_out, z"):
        lacking = network("attention only")
        patching.patch(lacking, CLEAN, CORRUPTED, metrics.logit_difference(RIGHT, WRONG), kinds=["mlp_out"])
    with pytest.raises(ShapeError, match="clean and corrupted prompts are the same"):
        patching.patch(model, CLEAN, CLEAN, metrics.logit_difference(RIGHT, WRONG))
