"""Logits by component

Without norms, logits are sums: of what the embedding, and each head of each layer, writes along the direction of a
token. Write `logit_attribution(model, tokens)` for a network of attention only, without norms and with position
embeddings that are added to queries and keys only: a tensor `[pos - 1, 1 + layers × heads]` with what

- the token's embedding (first column), and
- each head (then layer by layer, head by head)

adds to the logit of the token that really comes next. `tokens` is one text, `[pos]`. The biases are nobody's, so the
rows sum to the logits less those.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import random_network, tokens_for, words

FUNCTION = "logit_attribution"
STARTER = '''
import torch


def logit_attribution(model, tokens):
    """What embedding and heads add to the right next token's logit: [pos - 1, 1 + layers * heads]."""
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith(("hook_embed", "hook_z")))
    ...
'''
HINT = """
model.W_U[:, tokens[1:]] has the direction of each next token, [d_model, pos - 1]. What a head writes is z @ W_O[head]:
cache["z", layer] is [1, pos, head, d_head] and model.W_O is [layer, head, d_head, d_model]. Leave out the last position.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Networks without norms."""
    for layers in (2, 1, 3, 2):
        shape = {"n_layers": layers, "attn_only": True, "normalization_type": None, "positional_embedding_type": "shortformer"}
        model = random_network(draw, **shape)
        yield Case(words(model), (model, tokens_for(draw, model, 1, 8)[0]))


def solution(model: Any, tokens: Tensor) -> Tensor:
    """Column by column, from what each component writes at the positions that have a next token."""
    _, cache = model.run_with_cache(tokens)
    answers = tokens[1:]
    embedded = model.embed(tokens[:-1])
    columns = [model.unembed(embedded)[torch.arange(len(answers)), answers] - model.b_U[answers]]
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            written = cache["z", layer][0, :-1, head] @ model.blocks[layer].attn.W_O[head]
            columns.append((written * model.W_U.T[answers]).sum(-1))
    return torch.stack(columns, dim=1)
