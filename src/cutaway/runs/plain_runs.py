"""Full forward passes with nothing left out: plain, with bound edits as hooks, with gradients of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import ShapeError
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Bound


def plain_pass(model: Transformer, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The stream after the last layer of a full forward pass."""
    stream = model.prepare(tokens, mask)
    resid, stream = model.embed_tokens(tokens, stream)
    return model.run_blocks(resid, stream)


@torch.no_grad()
def is_forward(model: Transformer, tokens: Tensor, mask: Tensor | None) -> bool:
    """Whether a call of the model gives what its plain pass gives, tried on two examples: subclasses may have their `forward`."""
    if not model.own_forward:
        return True
    tokens, mask = tokens[:2], torch.ones_like(tokens[:2]) if mask is None else mask[:2]
    called, plain = model(tokens, attention_mask=mask), model.logits_of(plain_pass(model, tokens, mask))
    if not isinstance(called, Tensor) or called.shape != plain.shape:
        return False
    return bool((called - plain)[mask.bool()].abs().max() <= 1e-3 * plain.abs().max())


def hooks_of(bounds: Sequence[Bound], store: Mapping[str, Tensor], first: int, last: int) -> list[tuple[str, Any]]:
    """Hooks that make these edits in a run of the examples `first` to `last` at full length; `store`: values of a clean run."""

    def hook_of(bound: Bound) -> Any:
        def edit(x: Tensor, hook: Any) -> Tensor:
            return bound.applied(x, store.get(bound.site))

        edit.order = bound.change.order  # type: ignore[attr-defined]
        return edit

    local = [bound.local(first, last) for bound in bounds]
    return [(bound.site, hook_of(bound)) for bound in local if bound is not None]


def gradients(
    model: Transformer, tokens: Tensor, sites: Sequence[str], value: Callable[[Tensor], Tensor], *, mask: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:  # fmt: skip
    """Activations and gradients at some sites, of the sum of `value` (stream after the last layer → `[batch]` or `[]`)."""
    activations: dict[str, Tensor] = {}

    def hold(x: Tensor, hook: Any) -> Tensor:
        activations[str(hook.name)] = x = x if x.requires_grad else x.requires_grad_()
        return x

    with torch.enable_grad(), without_weight_gradients(model), model.hooks([(site, hold) for site in sites]):
        model.runs += 1
        out = checked(value(plain_pass(model, tokens, mask)))
        found = torch.autograd.grad(out.sum(), list(activations.values()), allow_unused=True)
    grads = {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(activations.items(), found, strict=True)}
    return {name: x.detach() for name, x in activations.items()}, grads, out.detach()


def checked(value: Tensor) -> Tensor:
    """A metric's value, which has a gradient.

    Raises:
        ShapeError: it has none, as ranks, shares of right answers, and what is detached.
    """
    if not value.requires_grad:
        raise ShapeError(
            "this metric has no gradient; give one that has, such as a logit difference or a loss, or compute exactly"
        )
    return value


@contextmanager
def without_weight_gradients(model: Transformer) -> Iterator[None]:
    """Switch off weight gradients, so that autograd keeps no buffers for them."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
