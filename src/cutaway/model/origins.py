"""Where kept activations come from: the tokens, the padding and the weights of the run that kept them.

With causal attention an activation depends on the tokens up to its position and on nothing else. So what a cache holds is, up
to the first token that differs, what another run of the same network computes, however either was computed. `Kept` carries what
must be known to say so, and forgets it of any entry that was replaced or written into.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.errors import ShapeError


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
    def of(model: Any, tokens: Tensor, padding: Tensor | None, weights: int | None = None) -> Origin:
        """The origin of what a network keeps of a run on these tokens; `weights`: the state of its weights, where known."""
        mask = None if padding is None else padding.bool().clone()
        return Origin(tokens.clone(), mask, weakref.ref(model), model.weights_state() if weights is None else weights)

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


SAMPLES = 32  # entries of each weight that its state looks at


class WeightsState:
    """The state of some weights, as a number that is another one when they were rewritten or replaced.

    Torch counts writes into a tensor but none into its `.data`, so entries spread over each weight are looked at, too. (A write
    into `.data` that changes a few rows of a large matrix may miss them all.)
    """

    def __init__(self) -> None:
        self._looked: tuple[tuple[Any, ...], list[Tensor]] = (), []

    def number(self, weights: Sequence[Tensor], more: tuple[Any, ...] = (), *, look: bool = True) -> int:
        """The state now; `more` is what else must stay the same. Without `look`, only as Torch counts."""
        counted = tuple((id(one), 0 if one.is_inference() else one._version) for one in weights)
        try:
            looked = b"".join(_bytes(one) for one in self._samples(weights)) if look else b""
        except RuntimeError:  # under transforms of functorch there is nothing to look at
            looked = b""
        return hash((counted, more, looked))

    def _samples(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Some entries of all weights together, one tensor for each precision and device."""
        where = tuple((id(one), one.data_ptr()) for one in weights)
        if self._looked[0] != where:
            self._looked = where, [_spread(one.detach()) for one in weights if not one.is_meta]
        kinds: dict[tuple[Any, ...], list[Tensor]] = {}
        for one in self._looked[1]:
            kinds.setdefault((one.dtype, one.device), []).append(one if one.ndim == 1 else one.reshape(-1))
        return [torch.cat(some) for some in kinds.values()]


def _spread(x: Tensor) -> Tensor:
    """About `SAMPLES` entries spread over a tensor, as a view of it."""
    dense = x.permute(sorted(range(x.ndim), key=lambda axis: -int(x.stride()[axis])))
    if not dense.is_contiguous():  # a part of another tensor: a few entries along each axis
        return dense[tuple(slice(None, None, max(1, size // 4)) for size in dense.shape)]
    flat = dense.view(-1)
    return flat[:: max(1, len(flat) // SAMPLES)]


def _bytes(x: Tensor) -> bytes:
    return x.cpu().view(torch.uint8).numpy().tobytes()


def shared_beginning(tokens: Int[Tensor, "batch pos"], padding: Tensor | None) -> int:
    """How many positions at the beginning all rows have in common."""
    same = (tokens == tokens[:1]).all(0)
    if padding is not None:
        same &= (padding == padding[:1]).all(0)
    return int(same.long().cumprod(0).sum())


@dataclass(frozen=True, eq=False)
class Passed:
    """The run that some activations passed in, hooked or not: whose it was, and which of its tokens are no padding.

    Args:
        model: the network that ran, as long as it lives.
        weights: the state of its weights in that run.
        real: true where a position is a token and not padding, on whichever side; None: all are.
    """

    model: weakref.ref[Any]
    weights: int
    real: Bool[Tensor, "batch pos"] | None


class Kept(dict[str, Tensor]):
    """Site → activation, with the origin of those entries that are as the run left them. A copy is a plain dictionary.

    Args:
        origin: the run, where activations follow from its tokens alone.
        left: the entries that are as the run left them; None: all.
        passed: the run, whatever hooks it had; None: not known.
    """

    def __init__(
        self,
        store: Mapping[str, Tensor],
        origin: Origin | None = None,
        left: Mapping[str, Any] | None = None,
        passed: Passed | None = None,
    ):
        super().__init__(store)
        self.origin, self.passed = origin, passed
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


def check_column(pos_slice: Any, real: Bool[Tensor, "batch pos"] | None) -> None:
    """Make sure that a position chosen by a number is a token of every row.

    Raises:
        ShapeError: it is padding in some row.
    """
    if real is None or not isinstance(pos_slice, int) or not -real.shape[1] <= pos_slice < real.shape[1]:
        return
    lacking = (~real[:, pos_slice]).nonzero().flatten().tolist()
    if lacking:
        raise ShapeError(
            f"pos_slice={pos_slice} is a column, and it is padding in row {lacking[0]}; pad on the "
            f"{'left' if pos_slice < 0 else 'right'}, run texts of one length, or keep all positions and choose in each row"
        )


def made_from(
    store: Mapping[str, Tensor], each: Callable[[Tensor], Tensor], rows: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """A store with every entry changed in the same way, which leaves its numbers as they are.

    Args:
        rows: how the examples were chosen, as a function of a tensor whose first axis they are; None: all in order.
    """
    made = {name: each(tensor) for name, tensor in store.items()}
    if not isinstance(store, Kept):
        return made
    origin, passed = store.origin, store.passed
    if rows is not None:
        origin = None if origin is None else origin.rows(rows)
        passed = passed if passed is None or passed.real is None else replace(passed, real=rows(passed.real))
    return Kept(made, origin, {name: None for name in store if store.origin_of(name) is not None}, passed)
