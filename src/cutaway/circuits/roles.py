"""What heads attend to, in the words of a behaviour: from which role's position, to which.

Attention alone does not say what a head does; beside a circuit that it is part of, it says where the head reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.model.components import parse_head
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts


@dataclass(frozen=True)
class Attends:
    """Where a head looks most, beside the first token.

    Args:
        head: as "1.5".
        dest, src: roles; "after S1" is the token behind a role's.
        weight: mean attention over prompts.
        first: mean attention to the first token from there, where a head looks that finds nothing.
    """

    head: str
    dest: str
    src: str
    weight: float
    first: float

    def __str__(self) -> str:
        return f"{self.head} looks from {self.dest} to {self.src} ({self.weight:.2f})"


def attention_to_roles(model: Transformer, prompts: Prompts, heads: Sequence[str]) -> list[Attends]:
    """For each head the pair of roles with the largest mean attention from one to the other.

    Raises:
        UnknownName: no such head.
    """
    places = {name: at.to(torch.long) for name, at in prompts.roles.items()}
    sources = places | {f"after {name}": at + 1 for name, at in places.items()}
    found, rows = [], torch.arange(len(prompts))
    wanted = [parse_head(head, model.cfg) for head in heads]
    patterns = _patterns(model, prompts.tokens, sorted({layer for layer, _ in wanted}))
    for head, (layer, index) in zip(heads, wanted, strict=True):
        pattern = patterns[layer][:, index]
        pairs = [
            (float(pattern[rows, dest, src.clamp(max=pattern.shape[-1] - 1)][src <= dest].mean()), to, name)
            for to, dest in places.items()
            for name, src in sources.items()
            if bool((src <= dest).all()) and not bool((src == 0).all())
        ]
        if pairs:
            weight, to, name = max(pairs)
            found.append(Attends(head, to, name, weight, float(pattern[rows, places[to], 0].mean())))
    return found


@torch.no_grad()
def _patterns(model: Transformer, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
    _, cache = Transformer.run_with_cache(model, tokens.to(model.W_U.device), names_filter=names)
    return {layer: cache[name].float().cpu() for layer, name in zip(layers, names, strict=True)}
