"""Activation addition

A model can be steered by adding, while it reads, the difference of two thoughts. Write
`steered(model, tokens, plus, minus, layer, strength)`: the logits on `tokens` `[1, pos]` when, before layer `layer`,

- the residual stream of `plus` less that of `minus` (two texts of the same length n, `[1, n]`),
- times `strength`,

is added to the first n positions. Positions from n on are left alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, tokens_for, words

FUNCTION = "steered"
STARTER = '''
def steered(model, tokens, plus, minus, layer, strength):
    """The logits on tokens [1, pos] with strength * (plus - minus) added before the layer, at the first positions."""
    name = f"blocks.{layer}.hook_resid_pre"
    ...
'''
HINT = """
Run the model on `plus` and on `minus` and keep the site `name` of both. Then run it on `tokens` with a hook there that
adds to resid[:, :n].
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Several models, layers and strengths."""
    for model in (bundled(), random_network(draw), random_network(draw, attn_only=True), random_network(draw)):
        name = "the bundled model" if model.tokenizer is not None else words(model)
        layer = draw.randrange(model.cfg.n_layers)
        texts = [tokens_for(draw, model, 1, length) for length in (9, 4, 4)]
        yield Case(f"layer {layer} of {name}", (model, *texts, layer, draw.choice((-3.0, 0.5, 2.0, 5.0))))


def solution(model: Any, tokens: Tensor, plus: Tensor, minus: Tensor, layer: int, strength: float) -> Tensor:
    """By stopping before the layer, adding, and going on from there."""
    stream = model(tokens, stop_at_layer=layer).clone()
    change = model(plus, stop_at_layer=layer) - model(minus, stop_at_layer=layer)
    stream[:, : change.shape[1]] += strength * change
    logits: Tensor = model(stream, start_at_layer=layer)
    return logits
