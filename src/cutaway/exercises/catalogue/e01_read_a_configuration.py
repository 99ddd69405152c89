"""Read a configuration

Every model carries a description of itself, `model.cfg`. Write `describe(model)`: a dictionary with

- `layers`: how many layers there are,
- `heads`: how many attention heads the whole model has,
- `context`: the most tokens it can read at once,
- `neurons`: how many MLP neurons the whole model has (0 if it has attention only),
- `attention_weights`: how many numbers the matrices W_Q, W_K, W_V and W_O of all layers hold together, biases left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from cutaway.exercises.exercise import Case
from cutaway.exercises.networks import bundled, random_network, words

FUNCTION = "describe"
STARTER = '''
def describe(model):
    """A dictionary: layers, heads, context, neurons, attention_weights."""
    cfg = model.cfg
    ...
'''
HINT = """
The fields are cfg.n_layers, cfg.n_heads, cfg.n_ctx, cfg.d_mlp, cfg.d_model, cfg.d_head and cfg.attn_only.
Each head has four matrices, and each of them has d_model × d_head numbers.
"""


def cases(draw: random.Random) -> Iterator[Case]:
    """The bundled model, and networks of both kinds."""
    yield Case("the bundled model", (bundled(),))
    for attn_only in (False, True, False):
        model = random_network(draw, attn_only=attn_only)
        yield Case(words(model), (model,))


def solution(model: Any) -> dict[str, int]:
    """Counted from the weights, not from the configuration."""
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    queries = [shape for name, shape in shapes.items() if name.endswith("attn.W_Q")]
    matrices = ("attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_O")
    return {
        "layers": len(queries),
        "heads": sum(shape[0] for shape in queries),
        "context": shapes["pos_embed.W_pos"][0],
        "neurons": sum(shape[1] for name, shape in shapes.items() if name.endswith("mlp.W_in")),
        "attention_weights": sum(p.numel() for name, p in model.named_parameters() if name.endswith(matrices)),
    }
