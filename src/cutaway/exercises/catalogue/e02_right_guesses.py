"""How many next tokens does it guess?

A language model predicts, at each position, the token that comes next. Write `right_guesses(model, tokens)`: how many
of the tokens `[batch, pos]` (all rows together) the model's likeliest guess gets right. The first token of a row is
never guessed, and the guess after the last one cannot be checked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, tokens_for, words

FUNCTION = "right_guesses"
STARTER = '''
def right_guesses(model, tokens):
    """How many of the tokens [batch, pos] the model's likeliest guess gets right: a whole number."""
    logits = model(tokens)  # [batch, pos, d_vocab]; the logits at a position are about the next one
    ...
'''
HINT = """
The likeliest guess is logits.argmax(-1). Compare its positions up to the last but one with the tokens from the
second one on, and count.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """Texts that the models guess now and then."""
    model = bundled()
    yield Case("the bundled model", (model, tokens_for(draw, model, 20, 12)))
    for _ in range(3):
        model = random_network(draw, d_vocab=5)
        yield Case(words(model), (model, tokens_for(draw, model, 6, 11)))


def solution(model: Any, tokens: Tensor) -> int:
    """Row by row, position by position."""
    count = 0
    for row in tokens:
        for position in range(1, len(row)):
            scores = model(row[None, :position])[0, -1]
            count += int(scores[row[position]] == scores.max())
    return count
