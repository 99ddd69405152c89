"""Attribution through the final norm

With a final LayerNorm, logits are no longer sums, unless its scale is kept as it was: then it is linear. Write
`difference_by_head(model, cache, right, wrong)`: a tensor `[layer, head, batch]` with what each head adds, at the last
position, to the logit of `right` less that of `wrong`.

`right` and `wrong` are tokens `[batch]`. The norm's weight and bias were folded away, so that it centres its input and
divides it by a scale: `cache["scale"]` is `[batch, pos, 1]`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, tokens_for, words

FUNCTION = "difference_by_head"
STARTER = '''
import torch


def difference_by_head(model, cache, right, wrong):
    """What each head adds to logit(right) - logit(wrong) at the last position: [layer, head, batch]."""
    ...
'''
HINT = """
What a head writes is cache["z", layer][:, -1, head] @ model.W_O[layer, head], [batch, d_model]. Subtract its mean over
d_model, divide by cache["scale"][:, -1], and multiply with the difference of two columns of model.W_U.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Folded models."""
    models = [("the bundled model", bundled())]
    models += [(words(model), model) for model in (random_network(draw, normalization_type="LNPre") for _ in range(3))]
    for name, model in models:
        tokens = tokens_for(draw, model, 3)
        right, wrong = tokens_for(draw, model, 2, 3)
        yield Case(name, (model, model.run_with_cache(tokens)[1], right, wrong))


def solution(model: Any, cache: Any, right: Tensor, wrong: Tensor) -> Tensor:
    """By pulling the direction back through the norm and each head's output matrix."""
    direction = model.W_U.T[right] - model.W_U.T[wrong]
    direction = (direction - direction.mean(-1, keepdim=True)) / cache["ln_final.hook_scale"][:, -1]
    of_layers = []
    for layer in range(model.cfg.n_layers):
        along = torch.einsum("hdm,bm->hbd", model.blocks[layer].attn.W_O, direction)
        of_layers.append(torch.einsum("hbd,bhd->hb", along, cache["z", layer][:, -1]))
    return torch.stack(of_layers)
