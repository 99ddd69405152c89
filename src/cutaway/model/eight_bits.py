"""Weights kept in 8 bits: matrices of blocks as whole numbers with a scale for each output, made float when their block runs.

Products are computed in float as ever, so the only error is that of rounding each weight once. It is measured when the model is
loaded: how far log-probabilities are from those of the same model in full precision, on a text that is always the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int8
from torch import Tensor

from cutaway.model.streaming import StreamedBlocks
from cutaway.model.transformer import Transformer

LARGEST = 127
TEXT = (
    "The river rises in the hills north of the town and flows past three mills, of which the oldest was built in 1640. In winter "
    "it floods the meadows; one year the water stood two metres high in the church, and boats were rowed along the aisle. "
    "Children learn to swim below the second mill, where their grandparents did, and the baker still sells bread by the bridge."
)
COUNT = 64  # tokens, where the model has no tokenizer


@dataclass(frozen=True)
class Packed:
    """A matrix, or several: `q · scale`.

    Args:
        scale: for each output, `[..., 1, output]`.
    """

    q: Int8[Tensor, "*rest input output"]
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Packed:
        """The nearest whole numbers from −127 to 127."""
        scale = (x.abs().amax(-2, keepdim=True).float() / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        return cls((x / scale).round().to(torch.int8), scale)

    def unpacked(self, into: Tensor) -> Tensor:
        """Written into a tensor of the right shape."""
        if into.dtype == torch.float32:
            return torch.mul(self.q, self.scale, out=into)
        return into.copy_(self.q * self.scale)

    @property
    def bytes(self) -> int:
        """How many it takes."""
        return self.q.nbytes + self.scale.nbytes


@dataclass(frozen=True)
class Rounding:
    """What 8 bits change.

    Args:
        mean, largest: difference of log-probabilities, in nats, over the whole vocabulary at all positions.
        loss: change of the loss of the text's own tokens, in nats.
        same: share of positions at which the likeliest token is the same.
        tokens: of the text.
    """

    mean: float
    largest: float
    loss: float
    same: float
    tokens: int

    def __str__(self) -> str:
        return (
            "matrices of blocks are kept in 8 bits with a scale for each output: beside full precision log-probabilities differ "
            f"by {self.mean:.2g} nats on average and {self.largest:.2g} at most, the loss by {self.loss:+.2g}, and the likeliest "
            f"token is the same at {self.same:.0%} of the {self.tokens} tokens of a text"
        )


@torch.no_grad()
def measured(model: Transformer, exact: Callable[[str, Tensor | None], Tensor]) -> Rounding:
    """How far a model of packed weights is from that of the weights that `exact` reads."""
    blocks = model.blocks
    assert isinstance(blocks, StreamedBlocks)
    tokens = _sample(model)
    now = model.logits_of(_last(model, tokens)).log_softmax(-1)
    with blocks.reading(exact):
        true = model.logits_of(_last(model, tokens)).log_softmax(-1)
    off = (now - true).abs()
    loss = [-float(one[:, :-1].gather(-1, tokens[:, 1:, None]).mean()) for one in (now, true)]
    same = float((now.argmax(-1) == true.argmax(-1)).float().mean())
    return Rounding(float(off.mean()), float(off.max()), loss[0] - loss[1], same, tokens.shape[1])


def _sample(model: Transformer) -> Tensor:
    """Tokens of the text; of a model without a tokenizer, or with letters of its own, tokens drawn once."""
    try:
        tokens = model.tokens_and_mask(TEXT, None, None)[0] if model.tokenizer is not None else None
    except (KeyError, ValueError, LookupError):  # a vocabulary without these letters
        tokens = None
    if tokens is None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.cfg.d_vocab, (1, COUNT), generator=generator).to(model.embed.W_E.device)
    return tokens[:, : model.cfg.n_ctx]


def _last(model: Transformer, tokens: Tensor) -> Tensor:
    return model.run_blocks(*model.embed_tokens(tokens, model.prepare(tokens, None)))
