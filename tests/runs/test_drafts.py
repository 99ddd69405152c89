"""Drafts change how many runs a generation takes, and no token of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from cutaway.hooked_transformer import HookedTransformer
from cutaway.model.key_values import KeyValueCache
from cutaway.runs.drafts import LONGEST, Drafts, checked
from cutaway.runs.generation import Sampling, stream
from tests.architectures import CAUSAL, network, some_tokens

GREEDY = {"do_sample": False, "verbose": False, "stop_at_eos": False}
every = pytest.mark.parametrize("name", CAUSAL)


def one_by_one(model: HookedTransformer, tokens: torch.Tensor, new: int) -> torch.Tensor:
    """The plain way: a full run for each token."""
    for _ in range(new):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    return tokens


@contextmanager
def runs_counted(model: HookedTransformer) -> Iterator[list[int]]:
    """How many tokens each run of the model begins with."""
    seen, plain = [], model.last_logits

    def counted(tokens: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        seen.append(tokens.shape[1])
        return plain(tokens, *rest, **options)

    model.last_logits = counted
    try:
        yield seen
    finally:
        del model.last_logits


@every
def test_a_text_that_repeats_itself_takes_fewer_runs_and_has_the_same_tokens(name: str) -> None:
    model, prompt = network(name), some_tokens(length=5)[:1]
    wanted = one_by_one(model, prompt, 14)
    with runs_counted(model) as runs:
        assert torch.equal(model.generate(prompt, 14, **GREEDY), wanted)
    ends = wanted[0, 5:].tolist()
    if len(set(ends[-8:])) == 1:  # it says one token again and again
        assert len(runs) < 14 and max(runs) > 1


def test_what_is_right_in_a_draft_is_kept_and_what_is_wrong_forgotten() -> None:
    model, prompt = network("llama"), some_tokens(length=5)[:1]
    told = one_by_one(model, prompt, 6)[0, 5:].tolist()
    other = [(token + 1) % model.cfg.d_vocab for token in told]
    for draft, right in (([other[1], *told[2:]], 0), (told[1:3], 2), ([*told[1:3], other[3], told[4]], 2), (told[1:], 5)):
        kept = KeyValueCache.init_cache(model.cfg, prompt.device, 1)
        with torch.no_grad():
            model.last_logits(prompt, None, kept)
            found = checked(model, torch.tensor([told[:1]]), draft, kept)
        assert found[:5] == told[1:][: right + 1] and len(found) == right + 1
        assert kept.length == 5 + right + 1 and kept.previous_attention_mask.shape == (1, kept.length)


def test_where_rounding_could_decide_a_step_of_its_own_does() -> None:
    model, prompt = network("llama"), some_tokens(length=5)[:1]
    model.unembed.W_U.data[:] = model.unembed.W_U[:, :1]  # all tokens are equally likely
    model.unembed.b_U.data.zero_()
    kept = KeyValueCache.init_cache(model.cfg, prompt.device, 1)
    with torch.no_grad():
        model.last_logits(prompt, None, kept)
        assert checked(model, prompt[:, :1], [0, 0], kept) == [] and kept.length == 5
    assert torch.equal(model.generate(prompt, 8, **GREEDY), one_by_one(model, prompt, 8))


def test_whoever_listens_sees_every_step() -> None:
    model, prompt = network("gpt2"), torch.tensor([[1, 2, 1, 2, 1]])
    seen: list[int] = []
    with model.hooks([("hook_embed", lambda x, hook: seen.append(x.shape[1]))]):
        model.generate(prompt, 9, **GREEDY)
    handle = model.blocks[0].mlp.register_forward_hook(lambda module, x, out: seen.append(out.shape[1]))
    model.generate(prompt, 9, **GREEDY)
    handle.remove()
    assert seen == [5, *[1] * 8] * 2
    model.cache_some({}, lambda name: name == "hook_embed")
    with runs_counted(model) as runs:
        model.generate(prompt, 9, **GREEDY)
    assert runs == [5, *[1] * 8]


def test_no_drafts_for_draws_batches_and_runs_without_kept_keys() -> None:
    model, prompt = network("gpt2"), torch.tensor([[1, 2, 1, 2, 1]])
    cases = ((prompt, Sampling(), True), (prompt.repeat(2, 1), Sampling(do_sample=False), True))
    for tokens, sampling, kept in (*cases, (prompt, Sampling(do_sample=False), False)):
        with runs_counted(model) as runs:
            list(stream(model, tokens, 9, sampling=sampling, use_past_kv_cache=kept))
        assert len(runs) == 9


def test_a_stop_token_ends_a_draft() -> None:
    model, prompt = network("gpt2"), some_tokens(length=5)[:1]
    whole = one_by_one(model, prompt, 14)[0, 5:].tolist()
    for stop in set(whole):
        steps = stream(model, prompt, 14, sampling=Sampling(do_sample=False), stop_tokens=[stop])
        assert [int(step) for step in steps] == whole[: whole.index(stop) + 1]


def test_a_draft_is_what_followed_last_and_more_is_asked_of_the_next_one_after_a_wrong_one() -> None:
    drafts = Drafts()
    assert drafts._draft([1, 2, 3, 9, 1, 2, 4, 5, 6, 7, 8, 1, 2], 99) == [4, 5, 6, 7, 8][:LONGEST]
    assert drafts._draft([1, 2, 3, 1, 2], 1) == [3] and drafts._draft([1, 2, 3, 1, 2], 0) == []
    assert drafts._draft([1, 2, 3], 9) == [] and drafts._draft([1], 9) == []
    model, prompt = network("gpt2"), torch.tensor([[1, 2, 0, 3, 1, 2, 0]])
    kept = KeyValueCache.init_cache(model.cfg, prompt.device, 1)
    with torch.no_grad():
        wrong = (int(model.last_logits(prompt, None, kept).argmax()) + 1) % model.cfg.d_vocab
        repeated = torch.cat([prompt, torch.tensor([[wrong]]), prompt], 1)
        kept = KeyValueCache.init_cache(model.cfg, prompt.device, 1)
        model.last_logits(repeated[:, :-1], None, kept)
        found = drafts.foreseen(model, repeated, kept, 9)
    assert drafts._repeated == (2 if len(found) > 2 else 3)
