"""The logit lens

What would the model say if it stopped thinking early? Write `lens(model, tokens)`: the logits
`[layer + 1, batch, pos, d_vocab]` that the final norm and the unembedding give on the residual stream before each layer
(the first entry is before layer 0) and after the last (the last entry, which is the model's own answer).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, tokens_for, words

FUNCTION = "lens"
STARTER = '''
import torch


def lens(model, tokens):
    """The logits at every depth: [layer + 1, batch, pos, d_vocab]."""
    ...
'''
HINT = """
model.unembed(model.ln_final(resid)) turns a residual stream into logits. The streams are cache["resid_pre", layer], and
cache["resid_post", -1] after the last layer.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Several models, one of them without norms."""
    for model in (bundled(), random_network(draw), random_network(draw, normalization_type=None), random_network(draw)):
        name = "the bundled model" if model.tokenizer is not None else words(model)
        yield Case(name, (model, tokens_for(draw, model, 2)))


def solution(model: Any, tokens: Tensor) -> Tensor:
    """By really stopping early."""
    streams = [model(tokens, stop_at_layer=layer) for layer in range(model.cfg.n_layers)]
    rows = [model.unembed(model.ln_final(stream)) for stream in streams]
    return torch.stack([*rows, model(tokens)])
