"""Switch heads off

The plainest way to ask what a head is for: silence it and look what changes. Write `loss_without(model, tokens)`: a
tensor `[layer, head]` with the model's mean next-token loss on `tokens` `[batch, pos]` when just that head's output is
zero at all positions, less the loss of the model as it is.

Use hooks; they must be off again when your function is done.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, tokens_for, words

FUNCTION = "loss_without"
STARTER = '''
import torch


def loss_without(model, tokens):
    """How much the loss rises when each head is silent: [layer, head]."""
    usual = model(tokens, return_type="loss")
    ...
'''
HINT = """
A hook on blocks.{layer}.attn.hook_z gets what the heads have seen, [batch, pos, head, d_head], and may write into it:
set z[:, :, head] = 0. model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(name, hook)]) takes it off again.
functools.partial gives the hook its head.
"""
RTOL, ATOL = 1e-3, 1e-5


def cases(draw: random.Random) -> Iterator[Case]:
    """Several models."""
    for model in (bundled(), random_network(draw), random_network(draw, attn_only=True), random_network(draw)):
        name = "the bundled model" if model.tokenizer is not None else words(model)
        yield Case(name, (model, tokens_for(draw, model, 4)))


def solution(model: Any, tokens: Tensor) -> Tensor:
    """By taking the head's output matrix away instead of its output."""
    usual = model(tokens, return_type="loss")
    out = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for layer, block in enumerate(model.blocks):
        for head in range(model.cfg.n_heads):
            weights = block.attn.W_O[head].clone()
            block.attn.W_O.data[head] = 0
            out[layer, head] = model(tokens, return_type="loss") - usual
            block.attn.W_O.data[head] = weights
    return out
