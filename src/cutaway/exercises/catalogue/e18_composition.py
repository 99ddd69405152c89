"""Who reads whom

A head of a later layer can read what an earlier head wrote: into its keys, its queries or its values. How strongly their
weights are made for each other is measured by their product. Write `key_composition(model)`: a tensor `[head, head]`
with, for each head of layer 0 (first axis) and each of layer 1, the Frobenius norm of the product, over the product of
the Frobenius norms, of

- what the earlier head writes: `W_V @ W_O`, `[d_model, d_model]`,
- how the later head makes keys, as its queries read them: `W_K @ W_Qᵀ`, `[d_model, d_model]`.

(Elhage et al. 2021, "A mathematical framework for transformer circuits".)
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, words

FUNCTION = "key_composition"
STARTER = '''
import torch


def key_composition(model):
    """How much the keys of each head of layer 1 read of each head of layer 0: [head of layer 0, head of layer 1]."""
    ...
'''
HINT = """
For one pair: OV = model.W_V[0, a] @ model.W_O[0, a] and KQ = model.W_K[1, b] @ model.W_Q[1, b].T; the answer is
(OV @ KQ).norm() / (OV.norm() * KQ.norm()). The order matters: weights multiply on the right.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Several models."""
    yield Case("the bundled model", (bundled(),))
    for attn_only in (True, False, False):
        model = random_network(draw, attn_only=attn_only)
        yield Case(words(model), (model,))


def solution(model: Any) -> Tensor:
    """By traces of Gram matrices, without making any of the large products: ‖AB‖² = tr(AᵀA · BBᵀ)."""
    first, second = (block.attn for block in model.blocks[:2])
    wrote = [first.W_O[a].T @ (first.W_V[a].T @ first.W_V[a]) @ first.W_O[a] for a in range(model.cfg.n_heads)]
    reads = [second.W_K[b] @ (second.W_Q[b].T @ second.W_Q[b]) @ second.W_K[b].T for b in range(model.cfg.n_heads)]
    rows = [[torch.trace(left @ right) / (torch.trace(left) * torch.trace(right)) for right in reads] for left in wrote]
    return torch.stack([torch.stack(row) for row in rows]).sqrt()
