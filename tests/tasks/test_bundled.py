"""The bundled models are what their cards say, and do what they were trained for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.model.hook_points import HookPoint
from cutaway.model.transformer import Transformer
from cutaway.sources import toys
from cutaway.tasks import AttnOnly2L, Examples, FirstUniqueChar, FirstUniqueCharTask, evaluate
from cutaway.tasks.attn_only_2l import bigram_loss, head_scores


def bundled(name: str) -> Transformer:
    checkpoint = toys.find(name)
    model = Transformer(checkpoint.config)
    model.load_state_dict(dict(checkpoint.tensors))
    return model


def figure(card: str, before: str) -> float:
    """The number that follows some words in a card."""
    found = re.search(re.escape(before) + r" ([\d.]*\d)", card)
    assert found, f"the card does not say {before!r}"
    return float(found[1])


def test_first_unique_char_finds_the_first_unique_character():
    model, card = bundled("first-unique-char"), toys.card("first-unique-char")
    loss, accuracy = evaluate(model, Examples(*FirstUniqueChar(1000)[:]))
    assert accuracy > 0.99
    assert loss == pytest.approx(figure(card, "`FirstUniqueChar(size=1000, seed=42)`: loss"), abs=2e-4)
    assert evaluate(model, FirstUniqueCharTask().validation())[1] == pytest.approx(figure(card, "accuracy"), abs=2e-4)
    assert "`cutaway train first-unique-char --out DIR --seed 42`" in card


def asked_otherwise(saved: Any, asked: Any) -> dict[str, Any]:
    """The fields that a task asks otherwise; a device is a name or a `torch.device`."""
    wanted = asked.to_dict() | {"device": str(asked.device)}
    return {key: value for key, value in saved.to_dict().items() if value != wanted[key]}


def test_first_unique_char_has_the_configuration_of_its_task():
    assert asked_otherwise(toys.find("first-unique-char").config, FirstUniqueCharTask().config()) == {}


def test_first_unique_char_takes_text():
    tokenizer = toys.find("first-unique-char").tokenizer
    assert tokenizer == FirstUniqueCharTask().tokenizer()


def twice(model: Transformer, half: int = 60) -> torch.Tensor:
    tokens = torch.randint(1, model.cfg.d_vocab, (8, half), generator=torch.Generator().manual_seed(11))
    return torch.cat([torch.zeros_like(tokens[:, :1]), tokens, tokens], 1)


def test_attn_only_2l_has_a_previous_token_head_and_an_induction_head():
    model = bundled("attn-only-2l")
    previous, induction = head_scores(model, twice(model))
    assert float(previous[0].max()) > 0.6 and float(induction[1].max()) > 0.6


def test_attn_only_2l_continues_what_repeats():
    model = bundled("attn-only-2l")
    tokens = twice(model)
    with torch.no_grad():
        guessed = model(tokens)[:, 61:-1].argmax(-1)
    assert float((guessed == tokens[:, 62:]).float().mean()) > 0.8


def gain(model: Transformer, tokens: torch.Tensor, silent: list[int]) -> tuple[float, float]:
    """Loss in the first half and in the second, with some heads of layer 1 writing nothing."""

    def silence(z: torch.Tensor, hook: HookPoint) -> torch.Tensor:
        z[:, :, silent] = 0
        return z

    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", silence)])
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    half = (tokens.shape[1] - 1) // 2
    return float(losses[:, :half].mean()), float(losses[:, half + 1 :].mean())


def test_attn_only_2l_gains_from_repetition_by_its_induction_heads():
    model = bundled("attn-only-2l")
    tokens = twice(model)
    first, second = gain(model, tokens, [])
    assert second < first / 2
    _, induction = head_scores(model, tokens)
    heads = (induction[1] > 0.5).nonzero().flatten().tolist()
    without_first, without_second = gain(model, tokens, heads)
    assert without_first - without_second < (first - second) / 4
    others = [head for head in range(model.cfg.n_heads) if induction[1, head] < 0.1]
    assert len(others) >= 2 and gain(model, tokens, others)[1] < first / 20


def test_attn_only_2l_has_no_norm_no_biases_and_half_precision():
    checkpoint = toys.find("attn-only-2l")
    cfg = checkpoint.config
    assert (cfg.n_layers, cfg.attn_only, cfg.normalization_type) == (2, True, None)
    assert cfg.positional_embedding_type == "shortformer"
    assert {checkpoint.tensors[name].dtype for name in checkpoint.tensors} == {torch.float16}
    biases = [name for name in checkpoint.tensors if name.rpartition(".")[2].startswith("b_")]
    assert not any(bool(checkpoint.tensors[name].any()) for name in biases)
    weights = sum(checkpoint.tensors[name].numel() for name in checkpoint.tensors if name not in biases)
    assert 1.4e6 < weights < 1.7e6


def test_attn_only_2l_knows_more_of_text_than_pairs_of_tokens(shared: Path):
    texts = [shared / "data" / "text" / name for name in ("tinyshakespeare.txt", "wikitext-2-valid-test.txt")]
    task, checkpoint = AttnOnly2L.read(texts), toys.find("attn-only-2l")
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.get_vocab() == task.tokenizer().get_vocab()
    assert asked_otherwise(checkpoint.config, task.config()) == {}
    some = Examples(*(part[::4] for part in task.validation()))
    loss, _ = evaluate(bundled("attn-only-2l"), some)
    assert loss < bigram_loss(task._training, task._kept, task.vocab_size) - 0.3
