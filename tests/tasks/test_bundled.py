"""The bundled models are what their cards say, and do what they were trained for."""

from __future__ import annotations

import re

import pytest

from cutaway.model.transformer import Transformer
from cutaway.sources import toys
from cutaway.tasks import Examples, FirstUniqueChar, FirstUniqueCharTask, evaluate


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


def test_first_unique_char_has_the_configuration_of_its_task():
    saved, asked = toys.find("first-unique-char").config.to_dict(), FirstUniqueCharTask().config().to_dict()
    assert {key: value for key, value in saved.items() if value != asked[key]} == {}


def test_first_unique_char_takes_text():
    tokenizer = toys.find("first-unique-char").tokenizer
    assert tokenizer == FirstUniqueCharTask().tokenizer()
