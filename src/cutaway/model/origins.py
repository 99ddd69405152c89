"""Where kept activations come from: the tokens, the padding and the weights of the run that kept them.

With causal attention an activation depends on the tokens up to its position and on nothing else. So what a cache holds is, up
to the first token that differs, what another run of the same network computes, however either was computed. `Kept` carries what
must be known to say so, and forgets it of any entry that was replaced or written into.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Origin:
    """The run that some activations come from.

    Args:
        tokens: what ran; -1 where nothing is known.
        padding: true where a position is a token and not padding; None: all are.
        model: the network that ran, as long as it lives.
        weights: the state of its weights in that run.
    """

    tokens: Int[Tensor, "batch pos"]
    padding: Bool[Tensor, "batch pos"] | None
    model: weakref.ref[Any]
    weights: int

    @staticmethod
    def of(model: Any, tokens: Tensor, padding: Tensor | None) -> Origin:
        """The origin of what a network keeps of a run on these tokens."""
        mask = None if padding is None else padding.bool().clone()
        return Origin(tokens.clone(), mask, weakref.ref(model), model.weights_state())

    def shared_with(self, model: Any, tokens: Tensor, padding: Tensor | None) -> Int[Tensor, "batch"] | None:
        """How many positions each row of another run begins with that are the same here; None: it may differ anywhere.

        The number of rows is that of the other run; an origin of one row is compared with each.
        """
        fits = self.tokens.shape[1] == tokens.shape[1] and len(self.tokens) in (1, len(tokens))
        if not fits or model.cfg.attention_dir != "causal" or not self.is_of(model):
            return None
        own = self.tokens.to(tokens.device)
        same = own == tokens
        if self.padding is not None or padding is not None:
            same &= _dense(self.padding, own) == _dense(padding, tokens)
        return same.long().cumprod(-1).sum(-1)

    def is_of(self, model: Any) -> bool:
        """Whether it is a run of this network with the weights that it has now."""
        ran: Any = self.model()
        return ran is not None and ran is model and self.weights == model.weights_state() and bool(model.untouched())

    def same_run(self, other: Origin) -> bool:
        """Whether another origin has the same tokens and padding."""
        if self.tokens.shape != other.tokens.shape:
            return False
        pads = [_dense(one.padding, one.tokens) for one in (self, other)]
        return torch.equal(self.tokens, other.tokens) and torch.equal(*pads)

    def rows(self, chosen: Callable[[Tensor], Tensor]) -> Origin:
        """The origin of some examples, in some order."""
        return replace(self, tokens=chosen(self.tokens), padding=None if self.padding is None else chosen(self.padding))

    def mean(self) -> Origin:
        """The origin of means over examples: known where all examples have the same token."""
        same = (self.tokens == self.tokens[:1]).all(0)
        if self.padding is not None:
            same &= (self.padding == self.padding[:1]).all(0)
        return replace(self.rows(lambda x: x[:1]), tokens=torch.where(same, self.tokens[:1], -1))


def _dense(padding: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool) if padding is None else padding.to(like.device).bool()


def shared_beginning(tokens: Int[Tensor, "batch pos"], padding: Tensor | None) -> int:
    """How many positions at the beginning all rows have in common."""
    same = (tokens == tokens[:1]).all(0)
    if padding is not None:
        same &= (padding == padding[:1]).all(0)
    return int(same.long().cumprod(0).sum())


class Kept(dict[str, Tensor]):
    """Site → activation, with the origin of those entries that are as the run left them. A copy is a plain dictionary."""

    def __init__(self, store: Mapping[str, Tensor], origin: Origin | None = None, left: Mapping[str, Any] | None = None):
        super().__init__(store)
        self.origin = origin
        chosen = {} if origin is None else {name: tensor for name, tensor in store.items() if left is None or name in left}
        self._left = {name: (weakref.ref(tensor), _version(tensor)) for name, tensor in chosen.items()}

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # of what was stored and loaded nothing is known

    def origin_of(self, site: str) -> Origin | None:
        """Where the entry comes from; None: that is not known, or somebody wrote into it."""
        known, own = self._left.get(site), self.get(site)
        if known is None or own is None or known[0]() is not own or known[1] != _version(own):
            return None
        return self.origin


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def made_from(
    store: Mapping[str, Tensor], each: Callable[[Tensor], Tensor], rows: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """A store with every entry changed in the same way, which leaves its numbers as they are.

    Args:
        rows: how the examples were chosen, as a function of a tensor whose first axis they are; None: all in order.
    """
    made = {name: each(tensor) for name, tensor in store.items()}
    if not isinstance(store, Kept) or store.origin is None:
        return made
    origin = store.origin if rows is None else store.origin.rows(rows)
    return Kept(made, origin, {name: None for name in store if store.origin_of(name) is not None})
