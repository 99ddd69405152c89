"""A tiny model of `transformers`, as an object and as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

SIZES = {"vocab_size": 53, "n_positions": 40, "n_embd": 36, "n_layer": 3, "n_head": 6, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(scope="session")
def model() -> Any:
    import transformers

    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, initializer_range=0.3)).eval()


@pytest.fixture(scope="session")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `save_pretrained` writes it: one safetensors file, no tokenizer."""
    place = tmp_path_factory.mktemp("tiny-gpt2")
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A tokenizer of `transformers`, made of one word per token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, 53)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")
