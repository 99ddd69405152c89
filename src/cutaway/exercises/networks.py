"""Networks that exercises are tried on: the bundled one, and small ones with random weights that nobody has seen."""

from __future__ import annotations

import random
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.hooked_transformer import HookedTransformer

SPREAD = 0.25  # of random weights: large enough for attention that is far from uniform


def bundled() -> HookedTransformer:
    """The model that ships with cutaway: two layers of three heads that find the first unique character."""
    return HookedTransformer.from_pretrained("first-unique-char", device="cpu").requires_grad_(False)


def random_network(draw: random.Random, **fields: Any) -> HookedTransformer:
    """A small network with random weights of every kind, and with sizes drawn where `fields` does not set them."""
    d_head = draw.choice((4, 5, 6))
    heads = draw.choice((2, 3, 4))
    layers = draw.choice((2, 3))
    sizes = {
        "n_layers": layers,
        "n_heads": heads,
        "d_head": d_head,
        "d_model": draw.choice((16, 20, 24)),
        "n_ctx": 24,
        "d_vocab": 17,
    }
    rest: dict[str, Any] = {"act_fn": "gelu", "d_mlp": 29, "device": "cpu"} | sizes | fields
    if rest.get("attn_only"):
        rest["d_mlp"] = None
    model = HookedTransformer(HookedTransformerConfig(**rest)).eval()
    generator = torch.Generator().manual_seed(draw.getrandbits(31))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * SPREAD + name.endswith(".w"))
    return model.requires_grad_(False)


def words(model: HookedTransformer) -> str:
    """A network in words, for messages."""
    cfg = model.cfg
    kind = "attention only" if cfg.attn_only else "with MLPs"
    return f"a random network ({cfg.n_layers} layers of {cfg.n_heads} heads, {kind})"


def tokens_for(draw: random.Random, model: HookedTransformer, batch: int = 2, length: int = 9) -> Int[Tensor, "batch pos"]:
    """Random tokens that the model knows."""
    generator = torch.Generator().manual_seed(draw.getrandbits(31))
    return torch.randint(0, model.cfg.d_vocab, (batch, length), generator=generator)


def repeated(draw: random.Random, model: HookedTransformer, batch: int = 2, length: int = 7) -> Int[Tensor, "batch pos"]:
    """Random tokens without repeats, said twice."""
    rows = [draw.sample(range(model.cfg.d_vocab), length) for _ in range(batch)]
    return torch.tensor(rows).repeat(1, 2)
