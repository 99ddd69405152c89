"""How surprised a model is by the tokens that come next.

Log-probabilities of the whole vocabulary are held for a few thousand positions at a time, never for all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.axes import Logits

CHUNK = 2**25  # numbers in one piece of logits


def cross_entropy(logits: Logits, labels: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    """The loss (nats) at each position against the label at that position."""
    flat, wanted = logits.flatten(0, 1), labels.flatten().long().to(logits.device)
    rows = max(1, CHUNK // flat.shape[-1])
    pieces = [F.cross_entropy(a, b, reduction="none") for a, b in zip(flat.split(rows), wanted.split(rows), strict=True)]
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view(labels.shape)


def next_token_loss(
    logits: Logits,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    per_token: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "batch previous"]:
    """The loss (nats) of predicting each next token: its mean, or `[batch, pos - 1]` with `per_token`.

    Positions where the token or the next one is padding (0 in the mask) count nothing.
    """
    loss = cross_entropy(logits[:, :-1], tokens[:, 1:])
    if attention_mask is None:
        return loss if per_token else loss.mean()
    both = attention_mask[:, :-1].bool() & attention_mask[:, 1:].bool()
    loss = loss * both
    return loss if per_token else loss.sum() / both.sum()
