"""Attention from queries and keys

An attention head compares the query of each position with the key of every position before it (and with its own), and
turns the results into probabilities. Write `pattern(q, k, scale)`:

- `q` and `k` are `[batch, pos, head, d_head]`, as the sites `blocks.0.attn.hook_q` and `hook_k` hold them,
- `scale` is what the dot products are divided by,
- the answer is `[batch, head, dest, src]`: how much `dest` attends to `src`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, tokens_for, words

FUNCTION = "pattern"
STARTER = '''
import torch


def pattern(q, k, scale):
    """Attention probabilities [batch, head, dest, src] from queries and keys [batch, pos, head, d_head]."""
    ...
'''
HINT = """
torch.einsum("bqhd,bkhd->bhqk", q, k) / scale gives the scores. A position may not look at later ones: set those scores
to minus infinity before the softmax over the last axis. torch.tril or torch.triu make the mask.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Queries and keys of real runs."""
    for model in (bundled(), random_network(draw), random_network(draw, attn_only=True), random_network(draw)):
        name = "the bundled model" if model.tokenizer is not None else words(model)
        layer = draw.randrange(model.cfg.n_layers)
        tokens = tokens_for(draw, model)
        sites = [f"blocks.{layer}.attn.hook_{which}" for which in "qk"]
        _, cache = model.run_with_cache(tokens, names_filter=sites)
        yield Case(f"layer {layer} of {name}", (cache[sites[0]], cache[sites[1]], float(model.cfg.d_head**0.5)))


def solution(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """One query at a time, over the keys that it may see."""
    batch, length, heads, _ = q.shape
    out = torch.zeros(batch, heads, length, length)
    for dest in range(length):
        scores = (q[:, dest, None] * k[:, : dest + 1]).sum(-1) / scale  # batch, src, head
        weights = (scores - scores.max(1, keepdim=True).values).exp()
        out[:, :, dest, : dest + 1] = (weights / weights.sum(1, keepdim=True)).mT
    return out
