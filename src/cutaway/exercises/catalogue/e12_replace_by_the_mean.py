"""Replace by the mean

Zero is a strange value: later layers may never have seen it. Write `with_mean_head(model, tokens, layer, head)`: the
logits `[batch, pos, d_vocab]` of the model when, at every position, the output of one head is replaced by its mean over
the batch at that position.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, tokens_for, words

FUNCTION = "with_mean_head"
STARTER = '''
def with_mean_head(model, tokens, layer, head):
    """The logits when one head's output is its mean over the batch, position by position."""
    ...
'''
HINT = """
In a hook on blocks.{layer}.attn.hook_z: z[:, :, head] = z[:, :, head].mean(0, keepdim=True). The mean over the batch
keeps the positions apart.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Several models and heads."""
    for model in (bundled(), random_network(draw), random_network(draw, attn_only=True), random_network(draw)):
        name = "the bundled model" if model.tokenizer is not None else words(model)
        layer, head = draw.randrange(model.cfg.n_layers), draw.randrange(model.cfg.n_heads)
        yield Case(f"head {layer}.{head} of {name}", (model, tokens_for(draw, model, 4), layer, head))


def solution(model: Any, tokens: Tensor, layer: int, head: int) -> Tensor:
    """By adding, to the stream after attention, what the head would have written less what it did."""
    _, cache = model.run_with_cache(tokens, names_filter=f"blocks.{layer}.attn.hook_z")
    z = cache["z", layer][:, :, head]
    change = (z.mean(0, keepdim=True) - z) @ model.blocks[layer].attn.W_O[head]

    def add(out: Tensor, hook: Any) -> Tensor:
        return out + change

    logits: Tensor = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.hook_attn_out", add)])
    return logits
