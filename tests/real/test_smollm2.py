"""A real language model, from its file to what it says."""

from __future__ import annotations

import torch

from cutaway import HookedTransformer

PROMPT = "When Mary and John went to the store, John gave a drink to"


def test_it_names_the_indirect_object(smollm2: HookedTransformer) -> None:
    probabilities = smollm2(PROMPT)[0, -1].softmax(-1)
    assert probabilities.argmax() == smollm2.to_single_token(" Mary")
    assert torch.isclose(probabilities.max(), torch.tensor(0.92), atol=0.01)


def test_its_texts_begin_with_no_token_of_a_chat(smollm2: HookedTransformer) -> None:
    assert smollm2.tokenizer.bos_token == "<|im_start|>" and not smollm2.cfg.default_prepend_bos
    assert smollm2.to_str_tokens(PROMPT)[:3] == ["When", " Mary", " and"]
