"""Patch the stream

Two texts differ in a few tokens, and so do the answers. Where in the model does the difference live? Write
`patched(model, clean, corrupted, right, wrong)`: a tensor `[layer, pos]` with the logit of token `right` less that of
token `wrong`, at the last position, when the model reads `corrupted` but at one position, before one layer, the residual
stream is that of `clean`.

Both texts are `[1, pos]` and of the same length.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, tokens_for, words

FUNCTION = "patched"
STARTER = '''
import torch


def patched(model, clean, corrupted, right, wrong):
    """The logit difference at the last position for every patched (layer, pos): [layer, pos]."""
    _, cache = model.run_with_cache(clean)
    ...
'''
HINT = """
Two loops, over layers and positions. A hook on blocks.{layer}.hook_resid_pre writes
resid[:, pos] = cache["resid_pre", layer][:, pos], in a run on `corrupted`.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Several models."""
    for model in (bundled(), random_network(draw), random_network(draw, attn_only=True), random_network(draw)):
        name = "the bundled model" if model.tokenizer is not None else words(model)
        clean, corrupted = tokens_for(draw, model, 1, 7), tokens_for(draw, model, 1, 7)
        right, wrong = draw.sample(range(model.cfg.d_vocab), 2)
        yield Case(name, (model, clean, corrupted, right, wrong))


def solution(model: Any, clean: Tensor, corrupted: Tensor, right: int, wrong: int) -> Tensor:
    """All positions of a layer at once, as the rows of a batch that resumes there."""
    length = clean.shape[1]
    rows = []
    for layer in range(model.cfg.n_layers):
        good, bad = (model(text, stop_at_layer=layer)[0] for text in (clean, corrupted))
        batch = bad.repeat(length, 1, 1)
        batch[torch.arange(length), torch.arange(length)] = good
        logits = model(batch, start_at_layer=layer)[:, -1]
        rows.append(logits[:, right] - logits[:, wrong])
    return torch.stack(rows)
