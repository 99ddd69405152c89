"""Edges of what a model takes and gives: encodings, masks, precisions, losses of unequal texts, ends of generations."""

from __future__ import annotations

import json
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway import loading
from cutaway.errors import CheckpointError, ConfigError, NotFinite, ShapeError, StaleCache, TokenError
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model.hook_points import HookPoint
from cutaway.model.key_values import KeyValueCache
from cutaway.tokens import CharTokenizer
from tests.architectures import ALL, network, some_tokens

every = pytest.mark.parametrize("name", list(ALL))
WORDS = CharTokenizer(["<s>", "</s>", "<pad>", *"abcdefghij"], bos_token="<s>", eos_token="</s>", pad_token="<pad>")
GREEDY: dict[str, Any] = {"do_sample": False, "verbose": False}


def speaking(name: str = "gpt2", side: str = "right") -> HookedTransformer:
    model = network(name)
    model.set_tokenizer(WORDS, default_padding_side=side)
    return model


# What a tokenizer gives.


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", [dict, UserDict])
@every
def test_an_encoding_is_run_as_tokens_with_its_mask(name: str, kind: Any, side: str) -> None:
    model = speaking(name, side)
    texts = ["abcab", "ja"]
    tokens, mask = model.to_tokens(texts), torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0] if side == "right" else [0, 0, 0, 1, 1, 1]])
    for encoding in (kind(input_ids=tokens, attention_mask=mask), kind(input_ids=tokens.tolist(), attention_mask=mask.tolist())):
        torch.testing.assert_close(model(encoding, return_type="loss"), model(texts, return_type="loss"))
        torch.testing.assert_close(model(encoding)[mask.bool()], model(texts)[mask.bool()])
        assert torch.equal(model.to_tokens(encoding), tokens)
        assert model.to_str_tokens(encoding) == [["<s>", *text] for text in texts]
        _, cache = model.run_with_cache(encoding)
        torch.testing.assert_close(cache["resid_post", -1], model.run_with_cache(texts)[1]["resid_post", -1])
    ragged = kind(input_ids=[row[real.bool()].tolist() for row, real in zip(tokens, mask, strict=True)])
    torch.testing.assert_close(model(ragged, return_type="loss"), model(texts, return_type="loss"))


def test_a_dictionary_without_tokens_is_refused() -> None:
    with pytest.raises(TokenError, match="needs 'input_ids', and this one has text"):
        speaking()({"text": "ab"})


# Masks.


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.zeros(2, 4), "row 0 without a token"),
        (torch.tensor([[0.0, 0, 0, 0], [0, 0, -1e9, -1e9]]), "additive mask, pass"),
        (torch.full((2, 4), 0.5), "goes from 0.5 to 0.5"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask: Tensor, said: str) -> None:
    model, tokens = network("gpt2"), some_tokens(2, 4)
    for run in (model, lambda *given, **named: model.run_with_cache(*given, **named)):
        with pytest.raises(TokenError, match=said):
            run(tokens, attention_mask=mask)
    with pytest.raises(ShapeError, match="shape of the tokens"):
        model(tokens, attention_mask=torch.ones(2, 3))
    assert torch.equal(model(tokens, attention_mask=torch.ones(2, 4)), model(tokens, attention_mask=torch.ones(2, 4).bool()))


# Losses.


@pytest.mark.parametrize("side", ["right", "left"])
@every
def test_the_loss_of_unequal_texts_counts_no_padding(name: str, side: str) -> None:
    model = speaking(name, side)
    texts = ["abcdefgh", "ij", "ca"]
    alone = [model(text, return_type="loss", loss_per_token=True)[0] for text in texts]
    expected = torch.cat(alone).mean()
    torch.testing.assert_close(model(texts, return_type="loss"), expected)
    tokens = model.to_tokens(texts)
    torch.testing.assert_close(model(tokens, return_type="loss"), expected)
    torch.testing.assert_close(model.loss_fn(model(tokens), tokens), expected)
    each = model(texts, return_type="loss", loss_per_token=True)
    for row, mine in zip(each, alone, strict=True):
        own = row[: len(mine)] if side == "right" else row[-len(mine) :]
        torch.testing.assert_close(own, mine, rtol=1e-4, atol=1e-4)
        assert row.abs().sum() == own.abs().sum()


def test_tokens_that_all_rows_end_with_are_no_padding() -> None:
    words = CharTokenizer(["<s>", "</s>", *"abcdefghijk"], bos_token="<s>", eos_token="</s>", pad_token="</s>")
    model = network("gpt2")
    model.set_tokenizer(words)
    rows = [[0, 2, 3, 4, 1], [0, 5, 1, 1, 1]]  # each ends with one EOS, the second is padded with two more
    own = [torch.tensor(row[:length]) for row, length in zip(rows, (5, 3), strict=True)]
    losses = [model(tokens, return_type="loss", loss_per_token=True)[0] for tokens in own]
    torch.testing.assert_close(model(torch.tensor(rows), return_type="loss"), torch.cat(losses).mean())


# Text.


def test_a_text_that_begins_with_bos_gets_no_second_one() -> None:
    model = speaking()
    assert torch.equal(model.to_tokens("<s>ab"), model.to_tokens("ab"))
    assert model.to_str_tokens("<s>ab") == ["<s>", "a", "b"] == model.to_str_tokens("ab")
    assert model.to_str_tokens("<s>ab", prepend_bos=False) == ["<s>", "a", "b"]
    assert model.to_tokens(["<s>ab", "ab"]).tolist() == [[0, 3, 4]] * 2


def test_only_a_run_checks_the_length() -> None:
    model = speaking()
    long = "ab" * 40
    assert model.to_tokens(long, truncate=False).shape == (1, 81)
    assert model.to_tokens(long).shape == (1, 20)


class Chatting(CharTokenizer):
    """A tokenizer with a chat template."""

    chat_template = "turns"

    def apply_chat_template(self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        return "<s>" + "".join(f"{message['content']}</s>" for message in messages) + "j" * add_generation_prompt


def test_messages_are_rendered_by_the_chat_template() -> None:
    model = network("gpt2")
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
    with pytest.raises(TokenError, match="with a chat template, and this one has none"):
        speaking().to_tokens(chat)
    model.set_tokenizer(Chatting(WORDS.vocabulary, bos_token="<s>", eos_token="</s>", pad_token="<pad>"))
    assert model.to_str_tokens(chat) == ["<s>", "a", "b", "</s>", "c", "</s>"]
    assert model.to_str_tokens(chat[:1]) == ["<s>", "a", "b", "</s>", "j"]  # ready for the answer
    assert model.to_tokens([chat, chat[:1]]).shape == (2, 6)
    assert torch.equal(model(chat), model(model.to_tokens(chat)))


# Precision and device.


@every
def test_every_way_to_a_precision_keeps_everything_together(name: str) -> None:
    model, tokens = network(name), some_tokens()
    ways = [
        (lambda m: m.to("cpu", torch.float64), torch.float64), (lambda m: m.half(), torch.float16),
        (lambda m: m.to(dtype=torch.float64), torch.float64), (lambda m: m.bfloat16(), torch.bfloat16),
        (lambda m: m.double(), torch.float64), (lambda m: m.float(), torch.float32),
        (lambda m: m.type(torch.float64), torch.float64), (lambda m: torch.nn.Sequential(m).float()[0], torch.float32),
    ]  # fmt: skip
    for way, dtype in ways:
        assert way(model) is model
        assert model.cfg.dtype == dtype == model.W_E.dtype and model.cfg.device == "cpu"
        assert KeyValueCache.init_cache(model.cfg).entries[0].past_keys.dtype == dtype
        if dtype != torch.float16 and model.cfg.attention_dir == "causal":
            assert model.run_with_cache(tokens)[1]["resid_post", -1].dtype == dtype
            assert model.generate(tokens[:, :4], 2, stop_at_eos=False, **GREEDY).shape == (3, 6)


# Weights.


def test_loading_a_state_dict_returns_what_did_not_fit() -> None:
    model = network("gpt2")
    state = model.state_dict()
    assert str(model.load_state_dict(state)) == "<All keys matched successfully>"
    del state["embed.W_E"]
    found = model.load_state_dict(state | {"extra": torch.zeros(1)}, strict=False)
    assert found.missing_keys == ["embed.W_E"] and found.unexpected_keys == ["extra"]


def test_a_subclass_loads_its_own_state_strictly() -> None:
    class Probed(HookedTransformer):
        def __init__(self, cfg: Any):
            super().__init__(cfg)
            self.probe = torch.nn.Linear(3, 2)

    one, other = Probed(network("gpt2").cfg), Probed(network("gpt2").cfg)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.probe.weight, other.probe.weight) and torch.equal(one.W_E, other.W_E)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_say_so(number: float) -> None:
    model = network("gpt2")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["blocks.0.attn.W_O"][0, 0, 0] = number
    with pytest.warns(loading.NotFiniteWeights, match=r"'blocks\.0\.attn\.W_O' holds 1 number"):
        model.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"'blocks\.0\.attn\.W_O' holds 1 of"):
        loading.build(HookedTransformer, model.cfg, dict(state))


def test_a_cache_that_is_older_than_the_weights_is_not_multiplied_with_them() -> None:
    model, tokens = network("gpt2"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    attributions = cache.logit_attrs(cache.decompose_resid(), 3)
    model.to("cpu")
    assert torch.equal(cache.logit_attrs(cache.decompose_resid(), 3), attributions)
    model.process_weights_()
    assert cache["resid_post", -1].shape == (3, 9, 24)
    for question in (lambda: cache.logit_attrs(cache.decompose_resid(), 3), cache.stack_head_results):
        with pytest.raises(StaleCache, match="rewritten since the run"):
            question()


def test_keys_and_values_of_another_model_are_refused() -> None:
    one, other, tokens = network("llama"), network("llama", seed=1), some_tokens()
    kept = KeyValueCache.init_cache(one.cfg, batch_size=3)
    one(tokens, past_kv_cache=kept)
    with pytest.raises(ConfigError, match="another model"):
        other(tokens, past_kv_cache=kept)
    with torch.no_grad():
        one.W_E.mul_(2)
    with pytest.raises(StaleCache, match="rewritten since these keys"):
        one(tokens, past_kv_cache=kept)


@pytest.mark.parametrize("layer", [True, False])
def test_a_layer_is_a_whole_number(layer: Any) -> None:
    model, tokens = network("gpt2"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    for question in (
        lambda: model(tokens, stop_at_layer=layer),
        lambda: cache.decompose_resid(layer=layer),
        lambda: cache["z", layer],
    ):
        with pytest.raises(ShapeError, match="is a whole number"):
            question()


def test_a_configuration_changed_after_the_model_was_built_is_said() -> None:
    model, tokens = network("gpt2"), some_tokens()
    model.cfg.use_attn_result = True  # a flag, which a run reads
    model(tokens)
    model.cfg.eps, model.cfg.n_heads = 0.1, 2
    with pytest.raises(ConfigError, match=r"n_heads from 4 to 2, eps from 1e-05 to 0\.1"):
        model(tokens)


# Starting and stopping.


def test_starting_after_stopping_and_losses_of_a_stopped_run_are_refused() -> None:
    model, tokens = network("gpt2"), some_tokens()
    resid = model(tokens, stop_at_layer=1)
    assert torch.equal(model(resid, start_at_layer=1, stop_at_layer=1), resid)
    with pytest.raises(ValueError, match="start_at_layer=2 comes after stop_at_layer=1"):
        model(resid, start_at_layer=2, stop_at_layer=1)
    for kind in ("loss", "both"):
        with pytest.raises(ValueError, match=f"there is no {kind}"):
            model(tokens, stop_at_layer=1, return_type=kind)


# Generation.


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False, "top_k": 3}, {"do_sample": False, "temperature": 0.5}, {"temperature": 0.0, "top_p": 0.5},
        {"do_sample": False, "freq_penalty": 1.0}, {"top_k": 3, "top_p": 0.5}, {"stop_at_eos": False, "eos_token_id": 3},
        {"freq_penalty": -1.0},
    ],
)  # fmt: skip
def test_an_option_that_can_have_no_effect_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"can have no effect|of at least 0"):
        speaking().generate("ab", 2, verbose=False, **options)


def test_logits_that_are_not_finite_end_a_generation() -> None:
    model = speaking()
    hook = ("ln_final.hook_normalized", lambda x, hook: x * torch.nan)
    with pytest.raises(NotFinite, match="logits after 3 tokens are NaN"), model.hooks([hook]):
        model.generate("ab", 2, **GREEDY)


def test_prompts_that_end_in_padding_are_refused() -> None:
    model = speaking()
    tokens = model.to_tokens(["abc", "a"], padding_side="right")
    for input in (tokens, {"input_ids": tokens, "attention_mask": (tokens != 2).long()}):
        with pytest.raises(TokenError, match="row 1 of the prompts ends in padding"):
            model.generate(input, 2, **GREEDY)
    with pytest.raises(TokenError, match="ends in padding"):
        model.generate(["abc", "a"], 2, padding_side="right", **GREEDY)
    assert len(model.generate(["abc", "a"], 2, **GREEDY)) == 2


@pytest.mark.parametrize("where", ["file", "config", "object"])
def test_every_end_token_of_the_generation_config_ends_a_row(where: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    cfg = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=12, n_positions=40, eos_token_id=1, bos_token_id=0)
    theirs = transformers.GPT2LMHeadModel(cfg).eval()
    theirs.generation_config.eos_token_id = [1, 5]
    if where == "object":
        model = HookedTransformer.from_pretrained("x", hf_model=theirs)
    else:
        theirs.save_pretrained(tmp_path)
        if where == "config":
            (tmp_path / "generation_config.json").unlink()
            config = json.loads((tmp_path / "config.json").read_text())
            (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 5]}))
        model = HookedTransformer.from_pretrained(tmp_path)
    assert model.end_tokens == [1, 5]

    def say_five(x: Tensor, hook: HookPoint) -> Tensor:
        return model.W_U[:, 5].expand_as(x) * 100

    with model.hooks([("ln_final.hook_normalized", say_five)]):
        out = model.generate(torch.tensor([[0, 3]]), 8, **GREEDY)
    assert out.tolist() == [[0, 3, 5]]


def test_a_configuration_prints_one_field_a_line() -> None:
    lines = str(network("gpt2").cfg).splitlines()
    assert lines[0] == "HookedTransformerConfig:" and len(lines) > 50
    assert any("'d_model': 24," in line for line in lines) and not any("clip_qkv" in line for line in lines)
