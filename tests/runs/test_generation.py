"""Generation: what is drawn, what stops it, and that every shortcut gives what a full run gives."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from cutaway.errors import ConfigError, ContextTooLong, TokenError
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model.hook_points import HookPoint
from cutaway.runs.generation import Sampling, sample_logits, stream
from cutaway.tokens import CharTokenizer
from tests.architectures import CAUSAL, network, some_tokens

every = pytest.mark.parametrize("name", CAUSAL)
QUIET = {"verbose": False, "stop_at_eos": False}


def spoken(name: str = "gpt2") -> HookedTransformer:
    model = network(name)
    model.set_tokenizer(CharTokenizer([*"abcdefghijk", "?", "."], bos_token="?", eos_token=".", pad_token="?"))
    return model


@every
def test_the_likeliest_tokens_with_and_without_kept_keys(name: str) -> None:
    model, prompt = network(name), some_tokens(length=5)
    tokens = prompt
    for _ in range(10):  # the plain way: a full run for each token
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    for kept in (True, False):
        assert torch.equal(model.generate(prompt, 10, temperature=0.0, use_past_kv_cache=kept, **QUIET), tokens)
    assert torch.equal(model.generate(prompt, 10, do_sample=False, **QUIET), tokens)


@every
def test_left_padded_rows_get_what_they_get_alone(name: str) -> None:
    model = spoken(name)
    texts = ["abcab", "k", "gfa"]
    together = model.generate(texts, 8, temperature=0.0, **QUIET)
    assert together == [model.generate(text, 8, temperature=0.0, **QUIET) for text in texts]


def test_hooks_fire_at_every_step_and_know_where_they_are() -> None:
    model, prompt, seen = network("llama"), some_tokens(length=5), []

    def note(x: Tensor, hook: HookPoint) -> None:
        seen.append((hook.name, model.current.start, x.shape))

    with model.hooks([(site, note) for site in ("hook_tokens", "hook_embed", "blocks.1.attn.hook_pattern")]):
        model.generate(prompt, 3, **QUIET)
    assert seen == [
        call
        for start, new in ((0, 5), (5, 1), (6, 1))
        for call in (
            ("hook_tokens", start, (3, new)),
            ("hook_embed", start, (3, new, 24)),
            ("blocks.1.attn.hook_pattern", start, (3, 4, new, start + new)),
        )
    ]


def test_an_edit_while_generating_is_the_edit_of_a_full_run() -> None:
    model, prompt = network("gpt2"), some_tokens(length=5)

    def push(x: Tensor, hook: HookPoint) -> None:
        x += torch.linspace(-9, 9, x.shape[-1])

    edit = ("blocks.1.hook_resid_pre", push)
    with model.hooks([edit]):
        tokens = model.generate(prompt, 6, temperature=0.0, **QUIET)
        full = model(tokens)
    assert torch.equal(tokens[:, 5:], full[:, 4:-1].argmax(-1))
    assert not torch.equal(tokens, model.generate(prompt, 6, temperature=0.0, **QUIET))


def test_a_row_stops_at_a_stop_token() -> None:
    model, prompt = network("gpt2"), some_tokens(batch=6, length=4)
    free = model.generate(prompt, 10, temperature=0.0, **QUIET)
    stop = int(free[0, 6])
    out = model.generate(prompt, 10, temperature=0.0, eos_token_id=stop, verbose=False)
    for row, whole in zip(out, free, strict=True):
        new = whole[4:].tolist()
        end = new.index(stop) + 1 if stop in new else len(new)
        assert row[4 : 4 + end].tolist() == new[:end]
        assert set(row[4 + end :].tolist()) <= {stop}
    one = model.generate(prompt[:1], 10, temperature=0.0, eos_token_id=[stop], verbose=False)
    assert one.shape[1] == 5 + free[0, 4:].tolist().index(stop) and one[0, -1] == stop


def test_what_comes_back() -> None:
    model = spoken()
    text = model.generate("abc", 4, temperature=0.0, **QUIET)
    assert isinstance(text, str) and text.startswith("abc")
    tokens = model.generate("abc", 4, temperature=0.0, return_type="tokens", **QUIET)
    assert tokens.shape == (1, 8) and model.to_string(tokens[0, 1:]).replace("?", "").replace(".", "") == text
    assert torch.equal(model.generate(model.to_tokens("abc"), 4, temperature=0.0, **QUIET), tokens)
    assert isinstance(model.generate(["abc"], 4, **QUIET), list)
    assert model.generate("abc", 4, return_type="embeds", **QUIET).shape == (1, 8, 24)
    with pytest.raises(ConfigError, match="did you mean 'tokens'"):
        model.generate("abc", 4, return_type="token")


def test_streaming_gives_the_same_tokens_one_by_one() -> None:
    model, prompt = network("gpt2"), some_tokens(length=5)
    steps = list(stream(model, prompt, 6, sampling=Sampling(temperature=0.0)))
    assert torch.equal(torch.stack(steps, 1), model.generate(prompt, 6, temperature=0.0, **QUIET)[:, 5:])


def test_sampling_follows_the_distribution() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    for options, kept in (({}, 4), ({"top_k": 2}, 2), ({"top_p": 0.7}, 2), ({"temperature": 0.5}, 4)):
        draws = Counter(sample_logits(logits.expand(20000, -1), **options).tolist())
        p = (logits / options.get("temperature", 1.0))[:kept].softmax(-1)
        for token in range(4):
            assert draws[token] / 20000 == pytest.approx(p[token].item() if token < kept else 0, abs=0.015)


def test_a_frequency_penalty_counts_what_was_said() -> None:
    logits = torch.zeros(2, 3)
    tokens = torch.tensor([[0, 0, 1], [2, 2, 2]])
    torch.manual_seed(0)
    draws = sample_logits(logits, freq_penalty=50.0, tokens=tokens)
    assert draws[0] == 2 and draws[1] in (0, 1)
    assert torch.equal(logits, torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="tokens="):
        sample_logits(logits, freq_penalty=1.0)


def test_bad_input_is_refused_in_words() -> None:
    model, prompt = network("gpt2"), some_tokens(length=5)
    with pytest.raises(ContextTooLong, match=r"25 tokens.*20"):
        model.generate(prompt, 20, **QUIET)
    with pytest.raises(TokenError, match="stop_at_eos"):
        model.generate(prompt, 2, verbose=False)
    for stop in (99, []):
        with pytest.raises(TokenError, match="can never be drawn"):
            model.generate(prompt, 2, eos_token_id=stop, verbose=False)
    for options in ({"top_k": 0}, {"top_k": True}, {"top_p": 0.0}, {"temperature": -1.0}, {"freq_penalty": math.nan}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            model.generate(prompt, 2, **options, **QUIET)


def test_a_frequency_penalty_counts_real_tokens_only() -> None:
    logits, tokens = torch.zeros(2, 5), torch.tensor([[3, 3, 1], [2, 1, 1]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    drawn = [sample_logits(logits, freq_penalty=1000.0, tokens=tokens, mask=mask) for _ in range(200)]
    assert {int(one[0]) for one in drawn} == {0, 2, 3, 4} and {int(one[1]) for one in drawn} == {0, 3, 4}
