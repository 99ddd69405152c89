"""The block as data: it names every site, resumes at each of them to the same bits, and costs what Torch counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cutaway.model import sites
from cutaway.model.positions import Stream
from cutaway.model.steps import ATTN_OUT, BEFORE, LAST, MLP_OUT, PATTERN, RESULT, TOKENWISE, Z, program
from tests.architectures import ALL, flop_counter, network, some_tokens

MODELS = {name: network(name) for name in ALL}


def stream_of(name: str) -> tuple[Tensor, Stream]:
    """The residual stream before the blocks, and what travels beside it."""
    model, tokens = MODELS[name], some_tokens()
    with torch.no_grad():
        return model.embed_tokens(tokens, model.prepare(tokens))


@pytest.mark.parametrize("name", ALL)
def test_the_program_names_every_site_of_the_block_once(name: str) -> None:
    model = MODELS[name]
    for layer, block in enumerate(model.blocks):
        named = [one for step in block.program.steps for one in (*step.writes, *step.passes) if "hook_" in one]
        there = [full.split(".", 2)[2] for full in sites.site_names(model.cfg) if full.startswith(f"blocks.{layer}.")]
        assert sorted(named) == sorted(there)


@pytest.mark.parametrize("name", ALL)
def test_a_block_resumes_at_any_value_to_the_same_bits(name: str) -> None:
    resid, stream = stream_of(name)
    for block in MODELS[name].blocks:
        steps = block.program.steps
        names = [BEFORE, *(one for step in steps for one in step.writes)]
        with torch.no_grad():
            values = dict(zip(names, block.program.between((BEFORE,), tuple(names))(block, stream, resid), strict=True))
            for at in range(1, len(steps)):
                done = {one for step in steps[:at] for one in (*step.writes, BEFORE)}
                live = [one for one in names if one in done and any(one in step.reads for step in steps[at:])]
                again = block.compute(LAST, {one: values[one] for one in live}, stream)
                assert torch.equal(again, values[LAST]), f"resumed before {steps[at].writes}"
        resid = values[LAST]


@pytest.mark.parametrize("name", ALL)
def test_detours_lead_from_the_pattern_and_from_results_to_what_the_steps_write(name: str) -> None:
    model, tokens = MODELS[name], some_tokens()
    wanted = [f"blocks.0.{site}" for site in (PATTERN, Z, RESULT, ATTN_OUT, "attn.hook_v", LAST)]
    _, cache = model.run_with_cache(tokens, names_filter=wanted)
    resid, stream = stream_of(name)
    kept = {site.removeprefix("blocks.0."): cache[site] for site in wanted}
    block = model.blocks[0]
    z = block.compute(Z, {PATTERN: kept[PATTERN], "attn.hook_v": kept["attn.hook_v"]}, stream)
    assert torch.allclose(z, kept[Z], atol=1e-5)
    assert torch.allclose(block.compute(ATTN_OUT, {RESULT: kept[RESULT]}, stream), kept[ATTN_OUT], atol=1e-4)
    assert torch.allclose(block.compute(LAST, {BEFORE: resid, Z: z}, stream), kept[LAST], atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_a_step_that_works_token_by_token_does(name: str) -> None:
    model, (resid, stream) = MODELS[name], stream_of(name)
    for block in model.blocks:
        names = tuple(one for step in block.program.steps for one in step.writes)
        other = resid.clone()
        other[:, 4] += 1.0
        with torch.no_grad():
            before, after = (dict(zip(names, block.program.between((BEFORE,), names)(block, stream, x), strict=True))
                             for x in (resid, other))  # fmt: skip
        reached = {BEFORE}
        for step in block.program.steps:
            tokenwise = all(spread is TOKENWISE for one, spread in zip(step.reads, step.spread, strict=True) if one in reached)
            if not tokenwise:
                break
            reached |= set(step.writes)
            for one in step.writes:
                moved = (before[one] != after[one]).flatten(2).any(-1).any(0)
                assert moved.nonzero().flatten().tolist() == [4], one
        resid = before[LAST]


@pytest.mark.parametrize("name", ALL)
def test_a_blocks_cost_is_what_torch_counts(name: str) -> None:
    model, (resid, stream) = MODELS[name].requires_grad_(False), stream_of(name)
    tokens, pairs = resid.shape[0] * resid.shape[1], resid.shape[0] * resid.shape[1] ** 2
    for layer, block in enumerate(model.blocks):
        with torch.no_grad(), flop_counter() as counter:
            after = block(resid, stream=stream)
        steps = program(model.cfg, layer).steps
        assert counter.get_total_flops() == sum(sum(step.cost) * (pairs if Z in step.writes else tokens) for step in steps)
        resid = after


def test_what_is_added_to_the_stream_sums_to_it() -> None:
    for name, model in MODELS.items():
        resid, stream = stream_of(name)
        added = tuple(one for step in model.blocks[0].program.to_stream() for one in step.writes)
        assert set(added) <= {ATTN_OUT, MLP_OUT}
        with torch.no_grad():
            *parts, after = model.blocks[0].program.between((BEFORE,), (*added, LAST))(model.blocks[0], stream, resid)
        assert torch.allclose(resid + sum(parts), after, atol=1e-5)


def test_modules_that_somebody_replaced_or_listens_to_are_called() -> None:
    model, tokens = network("gpt2"), some_tokens()
    before = model(tokens)
    seen: list[str] = []
    handle = model.blocks[0].attn.register_forward_hook(lambda module, inputs, out: seen.append("attention"))
    assert torch.equal(model(tokens), before) and seen == ["attention"]
    handle.remove()

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    doubled = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: 2 * x)])
    model.blocks[1].mlp = Doubled(model.blocks[1].mlp)
    assert torch.allclose(model(tokens), doubled, atol=1e-5)
