"""Gradients at what each reader reads, summed over runs, and brought back to the stream once for all of them.

Heads read one stream, so the forward pass is the ordinary one; keys and values that heads share are told apart by giving each
head a copy of them. From the gradient `g` of a head's queries, keys or values to that of its own copy of the stream `x` there is
a weight and a norm of scale `s`. The norm's derivative has two terms, `A g / s` with a constant matrix `A`, and a multiple of
`x`. So what has to be summed over runs is `g / s`, as wide as a head, and the multiples; the copies of the stream, one for each
head and each of its inputs, are written once. That is where the usual way spends most of its time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.circuits.components import Resid, attended, embedded, heads_write, mlp_writes, project_by_head, read_by
from cutaway.circuits.graph import READS
from cutaway.model.key_values import KeyValueCache
from cutaway.model.norm import LayerNorm, RMSNorm, post_norm
from cutaway.model.positions import Stream
from cutaway.model.transformer import Transformer
from cutaway.runs.plain_runs import checked, without_weight_gradients

Value = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class _Layer:
    """Sums of one layer, over the runs so far."""

    scaled: list[Tensor] = field(default_factory=list)  # for queries, keys, values: g / s
    streams: list[Tensor] = field(default_factory=list)  # the (centred) stream of each run
    multiples: list[Tensor] = field(default_factory=list)  # how much of it, for each head's queries, keys, values
    whole: Tensor | None = None  # where a norm is none of ours: gradients of the copies themselves
    mlp: Tensor | None = None


class GradientSum:
    """Gradients at all readers, summed over runs of the same tokens.

    Args:
        tokens: those that run, `[batch, pos]`.
        kept: keys and values of the positions before them.
    """

    def __init__(self, model: Transformer, tokens: Tensor, kept: KeyValueCache | None = None):
        self.model = model
        self.stream: Stream = embedded(model, tokens, kept)[1]
        self.layers = [_Layer() for _ in model.blocks]
        self.last: Any = 0

    def add(
        self, resid: Resid, value: Value, layer: int = 0, middle: Resid | None = None, parts: list[Tensor] | None = None
    ) -> None:
        """One run, from the stream before a layer, or, with `middle`, from that between its attention and its MLP.

        Args:
            parts: a list that what each writer adds goes to.
        """
        cfg = self.model.cfg
        nodes: list[Tensor] = []
        reads: list[tuple[int, Tensor, int]] = []  # layer, what its heads read, how many of its nodes come first
        with torch.enable_grad(), without_weight_gradients(self.model):
            resid = resid.detach().requires_grad_()
            for number in range(layer, cfg.n_layers):
                block, before = self.model.blocks[number], resid
                at = len(nodes)
                if middle is not None and number == layer:
                    resid = middle.detach().requires_grad_()
                else:
                    projected = [project_by_head(block, which, read_by(block, which, resid, self.stream)) for which in READS]
                    nodes += projected
                    z = attended(block, projected, self.stream)
                    if parts is not None:
                        parts += heads_write(block, z.detach()).unbind(2)
                    resid = resid + post_norm(block, "ln1_post")(block.attn.output(z))
                reads.append((number, before, at))
                if not cfg.attn_only:
                    inner = resid if cfg.has_resid_mid else before
                    inner = inner.view_as(inner)  # a node of its own, apart from the stream that goes on
                    nodes.append(inner)
                    out = mlp_writes(block, inner)
                    if parts is not None:
                        parts.append(out.detach())
                    resid = resid + out
            last = resid.view_as(resid)
            nodes.append(last)
            found = torch.autograd.grad(checked(value(last)).sum(), nodes, allow_unused=True)
        grads = [torch.zeros_like(node) if one is None else one for node, one in zip(nodes, found, strict=True)]
        for number, before, at in reads:
            sums = self.layers[number]
            if middle is None or number != layer:
                self._add_heads(number, before.detach(), nodes[at : at + 3], grads[at : at + 3])
                at += 3
            if not cfg.attn_only:
                sums.mlp = grads[at] if sums.mlp is None else sums.mlp + grads[at]
        self.last = self.last + grads[-1]

    def _add_heads(self, number: int, resid: Resid, projected: list[Tensor], grads: list[Tensor]) -> None:
        block, sums = self.model.blocks[number], self.layers[number]
        norm, clip = block.ln1, block.attn.cfg.clip_qkv
        if clip is not None:
            grads = [grad.masked_fill(x.abs() >= clip, 0) for grad, x in zip(grads, projected, strict=True)]
        if isinstance(norm, nn.Identity):
            scaled = grads
        elif not isinstance(norm, LayerNorm | RMSNorm) or self.stream.shortformer is not None:
            whole = torch.cat([self._through(block, which, grad, resid) for which, grad in zip(READS, grads, strict=True)], 2)
            sums.whole = whole if sums.whole is None else sums.whole + whole
            return
        else:
            full = resid.float() if resid.dtype != torch.float64 else resid
            full = full - full.mean(-1, keepdim=True) if isinstance(norm, LayerNorm) else full
            square = full.pow(2).mean(-1, keepdim=True) + norm.eps
            sums.streams.append(full.to(resid))
            multiples = [
                ((x.detach() - _constant(block, which)) * grad).sum(-1) / (square * full.shape[-1])
                for which, x, grad in zip(READS, projected, grads, strict=True)
            ]
            sums.multiples.append(torch.cat(multiples, 2).to(resid))
            scaled = [grad * square.rsqrt().unsqueeze(-1).to(grad) for grad in grads]
        sums.scaled = [a + b for a, b in zip(sums.scaled, scaled, strict=True)] if sums.scaled else scaled

    def _through(self, block: Any, which: str, grad: Tensor, resid: Resid) -> Float[Tensor, "batch pos head d_model"]:
        """The gradient of each head's own copy of the stream, by autograd."""
        normal = torch.einsum("bphd,hmd->bphm", grad, getattr(block.attn, f"W_{which.upper()}"))
        with torch.enable_grad():
            own = resid.unsqueeze(2).expand(normal.shape).requires_grad_()
            return torch.autograd.grad(block.ln1(own), own, normal)[0]

    def heads(self, layer: int) -> Float[Tensor, "batch pos reader d_model"] | None:
        """At what the queries, keys and values of a layer's heads read; None: no run has come there."""
        sums, block = self.layers[layer], self.model.blocks[layer]
        if sums.whole is not None or not sums.scaled:
            return sums.whole
        norm, out = block.ln1, []
        for which, grad in zip(READS, sums.scaled, strict=True):
            weight = getattr(block.attn, f"W_{which.upper()}").detach()
            weight = weight if isinstance(norm, nn.Identity) or norm.w is None else weight * norm.w.detach()[:, None]
            weight = weight - weight.mean(1, keepdim=True) if isinstance(norm, LayerNorm) else weight
            out.append(torch.einsum("bphd,hmd->bphm", grad, weight))
        whole = torch.cat(out, 2)
        if not sums.streams:
            return whole
        multiples, streams = torch.stack(sums.multiples, -1), torch.stack(sums.streams, -2)
        return whole.flatten(0, 1).baddbmm_(multiples.flatten(0, 1), streams.flatten(0, 1), alpha=-1).view_as(whole)

    def mlp(self, layer: int) -> Resid | None:
        """At what a layer's MLP reads."""
        return self.layers[layer].mlp


def _constant(block: Any, which: str) -> Float[Tensor, "head d_head"]:
    """What queries, keys or values are where the normalised input is zero before the norm's weight and bias."""
    bias: Tensor = getattr(block.attn, f"b_{which.upper()}").detach()
    offset = getattr(block.ln1, "b", None)
    if offset is None:
        return bias
    return bias + torch.einsum("m,hmd->hd", offset.detach(), getattr(block.attn, f"W_{which.upper()}").detach())
