"""What repetition brings

A model with induction heads predicts the second half of repeated text better than the first. Write
`gain(model, tokens)`: the mean loss (nats) of predicting tokens of the first half, less that of the second half.

`tokens` is `[batch, 2 × n]`. The first token of the first half is predicted by nobody, so the first half has n - 1
predictions per row and the second n. A loss is minus the log-probability of the token that comes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, repeated, words

FUNCTION = "gain"
STARTER = '''
def gain(model, tokens):
    """Mean loss on the first half of tokens [batch, 2 n], less that on the second half."""
    log_probs = model(tokens).log_softmax(-1)  # [batch, pos, d_vocab]
    ...
'''
HINT = """
log_probs[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0] is the log-probability of each token from the second on:
[batch, 2 n - 1]. Its first n - 1 columns belong to the first half.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Several models and lengths."""
    model = bundled()
    yield Case("the bundled model", (model, repeated(draw, model, 4, 6)))
    for length in (3, 6, 8):
        model = random_network(draw)
        yield Case(words(model), (model, repeated(draw, model, 3, length)))


def solution(model: Any, tokens: Tensor) -> float:
    """From the model's own loss of each token."""
    losses = model(tokens, return_type="loss", loss_per_token=True)
    half = tokens.shape[1] // 2
    return float(losses[:, : half - 1].mean() - losses[:, half - 1 :].mean())
