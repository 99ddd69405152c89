"""Exceptional positions: a planted one is found with its head, and a network without one has none."""

from __future__ import annotations

import torch

from cutaway import HookedTransformer, HookedTransformerConfig
from cutaway.explain.parts import exceptional
from cutaway.explain.subject import Subject
from cutaway.explain.substitution import Exchange
from cutaway.prompts import Prompts

WIDTH, TOKENS = 8, 5


def copying(planted: bool) -> HookedTransformer:
    """Two layers of two heads: 1.0 copies tokens to the logits; 0.1 writes nothing or, `planted`, copies the one at place 2."""
    size = 2 * TOKENS + 2
    cfg = HookedTransformerConfig(
        n_layers=2,
        d_model=size,
        n_heads=2,
        d_head=size,
        n_ctx=WIDTH,
        d_vocab=TOKENS,
        attn_only=True,
        normalization_type=None,
        seed=0,
    )
    model = HookedTransformer(cfg)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        rows = torch.arange(TOKENS)
        model.embed.W_E[rows, rows] = 1.0
        model.unembed.W_U[TOKENS + rows, rows] = 10.0  # nothing of the embedding reaches the logits by itself
        model.pos_embed.W_pos[2, -1] = 1.0
        for block, head, key in ((1, 0, None), *(((0, 1, -1),) if planted else ())):
            attn = model.blocks[block].attn
            attn.W_V[head, rows, rows] = 1.0
            attn.W_O[head, rows, TOKENS + rows] = 3.0
            if key is not None:  # attends to the place that holds 1 in the last dimension, if it is there itself
                attn.W_Q[head, -1, 0], attn.W_K[head, -1, 0] = 100.0, 100.0
        if planted:  # what 1.0 attends to at that place is nothing of use
            model.blocks[1].attn.W_V[0] = 0.5 * model.blocks[1].attn.W_V[0]
    return model


def exchange_of(model: HookedTransformer) -> Exchange:
    dice = torch.Generator().manual_seed(0)
    rows = torch.randint(0, TOKENS, (80, WIDTH), generator=dice).tolist()
    prompts = Prompts.of_rows(rows, right=tuple(dict.fromkeys(range(WIDTH), (0,)) for _ in rows))
    subject = Subject(model, prompts)
    return Exchange(subject, subject.answered(prompts))


def test_a_planted_exception_is_found_with_its_head_and_where_there_is_none_none_is():
    (found,) = exceptional(exchange_of(copying(planted=True)))
    assert (found.layer, list(found.effects), found.nodes) == (0, [2], ("0.1",))
    assert "position 2 (" in found.sentence() and "mostly 0.1" in found.sentence()
    assert exceptional(exchange_of(copying(planted=False))) == []
