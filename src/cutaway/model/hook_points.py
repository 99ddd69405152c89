"""Hook points: named places in a network where anybody may read or change what passes.

A `HookPoint` that nobody listens to hands its input on, untouched. There are two kinds of listeners.
*Readers* (our caches) promise not to write and see the tensor as it is, which may be a broadcast view.
*Hooks* (anybody's code) of one point in one pass see one tensor, a copy that shares memory with no parameter, no other
site and nothing that a cache keeps, so an edit in place reaches what flows on, and nothing else. A hook that returns a
tensor replaces it: the hooks after it see a copy of that one.

Backward hooks belong to the forward pass that passed them: they are called at `backward()`, whatever was taken off since.
`HookedRootModule` (in `hooked_root.py`) attaches listeners for a scope and takes them off again on every way out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from cutaway.errors import CutawayError, HookReturned, ShapeError
from cutaway.model.listeners import HERE, HookFunction, KeepActivation, Listener, Scope, heard, memory_of, own, take

WHOLE_STREAM = ("hook_tokens", "hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_normalized")
"""Sites from which everything that follows is computed, so that even an axis of length one is broadcast nowhere."""

NamesFilter = None | str | Sequence[str] | Callable[[str], bool]
NamedHook = tuple[str | Callable[[str], bool], HookFunction]


class HookPoint(nn.Module):
    """A named place that an activation passes. Hooks are called `hook(tensor, hook=HookPoint)`."""

    def __init__(self) -> None:
        super().__init__()
        self.name: str | None = None
        self.axes: tuple[str, ...] | None = None  # the words of its axes, where the network knows them
        self._fwd: list[Listener] = []
        self._bwd: list[Listener] = []

    # Who listens, as the thread at work sees it.

    @property
    def fwd_hooks(self) -> list[Listener]:
        """What is attached to the forward pass."""
        return heard(self._fwd)

    @fwd_hooks.setter
    def fwd_hooks(self, listeners: list[Listener]) -> None:
        self._fwd = list(listeners)

    @property
    def bwd_hooks(self) -> list[Listener]:
        """What is attached to the backward pass."""
        return heard(self._bwd)

    @bwd_hooks.setter
    def bwd_hooks(self, listeners: list[Listener]) -> None:
        self._bwd = list(listeners)

    @property
    def ctx(self) -> dict[Any, Any]:
        """Where hooks may leave things for each other; each thread has its own."""
        found = HERE.contexts.get(self)
        if found is None:
            found = HERE.contexts[self] = {}
        return found

    @ctx.setter
    def ctx(self, things: dict[Any, Any]) -> None:
        HERE.contexts[self] = things

    @property
    def listening(self) -> bool:
        """Whether anybody would notice what passes here."""
        return bool((self._fwd and heard(self._fwd)) or (self._bwd and heard(self._bwd)) or self._torch_hooks)

    @property
    def written(self) -> bool:
        """Whether somebody may change what passes here, or needs its gradient: the stream must run through it."""
        writers = self._fwd and any(not one.reads for one in heard(self._fwd))
        return bool(writers or (self._bwd and heard(self._bwd)) or self._torch_hooks)

    @property
    def _torch_hooks(self) -> bool:
        return bool(self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks)

    # A pass.

    def __call__(self, x: Tensor) -> Tensor:
        if self._torch_hooks:
            return super().__call__(own(x) if self._forward_pre_hooks else x)
        return self.forward(x) if self._fwd or self._bwd else x

    def forward(self, x: Tensor) -> Tensor:
        ours = bool(self._forward_pre_hooks)  # whether x is a copy for hooks already
        for listener in heard(self._fwd) if self._fwd else ():
            listener.fired += 1
            if not listener.reads and not ours:
                x, ours = own(x), True
            try:
                out = listener.function(x, hook=self)
            except (IndexError, RuntimeError, ValueError) as error:
                self._named_in(error, x)
                raise
            if listener.reads:
                continue
            if out is not None and out is not x:
                new = self._accepted(out, x)
                take(new)
                memory = memory_of(new)
                ours = memory is not None and memory == memory_of(x)
                x = new
        if self._bwd and x.requires_grad and (listeners := heard(self._bwd)):
            x = x.view_as(x)
            x.register_hook(_Backward(self, listeners))
        return own(x) if self._forward_hooks and not ours else x

    def _named_in(self, error: Exception, x: Tensor) -> None:
        """Say in a hook's own error which site it was on, and what shape passed there."""
        message = error.args[0] if error.args else None
        if isinstance(message, str) and not isinstance(error, CutawayError) and "in a hook on" not in message:
            error.args = (f"{message} (in a hook on {self.name!r}, where {tuple(x.shape)} passes)", *error.args[1:])

    def _accepted(self, out: Any, x: Tensor) -> Tensor:
        """What a hook returned, once it is clear that it can stand for `x`."""
        if isinstance(out, tuple) and len(out) == 1:  # how PyTorch's gradient hooks return
            out = out[0]
        if not isinstance(out, Tensor):
            raise HookReturned(f"a hook on {self.name!r} returned {type(out).__name__}, where a tensor is needed (or None)")
        if out.shape != x.shape and not self._may_reshape(out, x):
            raise ShapeError(f"a hook on {self.name!r} returned {tuple(out.shape)}, where {tuple(x.shape)} is needed (or None)")
        if out.device != x.device:
            raise HookReturned(f"a hook on {self.name!r} returned a tensor on {out.device}, where {x.device} is needed")
        if out.is_floating_point() != x.is_floating_point() or out.is_complex() != x.is_complex():
            raise HookReturned(f"a hook on {self.name!r} returned {out.dtype}, where {x.dtype} passes; use .to(x.dtype)")
        return out

    def _may_reshape(self, out: Tensor, x: Tensor) -> bool:
        """Whether another number of examples or positions may flow on from here.

        What follows says itself where it does not fit (`HookedRootModule` then names this point), except that an axis
        of length one would be broadcast without a word wherever something is added to it. Keys and values that heads share
        may become those of each head.
        """
        if self.axes is None:
            return True
        if out.ndim != x.ndim:
            return False
        whole = (self.name or "").rpartition(".")[2] in WHOLE_STREAM
        changed = [(word, old, new) for word, old, new in zip(self.axes, x.shape, out.shape, strict=True) if old != new]
        fits = all(
            (word in ("batch", "pos") and (whole or new > 1)) or (word == "kv" and not new % old) for word, old, new in changed
        )
        if fits:
            HERE.reshaped.append(f"a hook on {self.name!r} returned {tuple(out.shape)}, where {tuple(x.shape)} passed")
        return fits

    # Attaching and taking off.

    def add_hook(
        self,
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Attach a function to the forward (`fwd`) or backward (`bwd`) pass until `remove_hooks`.

        With `level`, it also goes when the scope or run of that level ends, as the scope's own functions do.
        """
        listener = self._attach(hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend)
        if level is not None and not is_permanent:
            HERE.levelled.append((self, listener))

    def add_perma_hook(self, hook: HookFunction, dir: str = "fwd") -> None:
        """Attach a function that `remove_hooks` leaves on unless it is told otherwise."""
        self._attach(hook, dir=dir, is_permanent=True)

    def _attach(
        self,
        hook: HookFunction,
        *,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        scope: Scope | None = None,
    ) -> Listener:
        """Attach for a scope; without one, for as long as the model or the thread lives.

        A function whose attribute `order` is below 0 is called before all others of this point, one above 0 after them.
        """
        listeners = self._listeners(dir)
        for one in listeners:
            if one.dead:
                self._drop(one)
        reads = getattr(hook, "reads", False) is True
        listener = Listener(hook, reads, is_permanent, level, scope=HERE.base if scope is None else scope)
        order = order_of(listener)
        before = [order_of(one) < order if prepend else order_of(one) <= order for one in listeners]
        listeners.insert(sum(before), listener)
        return listener

    def _drop(self, listener: Listener) -> None:
        """Take one listener off; each step is whole, so that other threads see the list before or after it."""
        for listeners in (self._fwd, self._bwd):
            if listener in listeners:
                listeners.remove(listener)

    def _listeners(self, dir: str) -> list[Listener]:
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"a hook's direction is 'fwd' or 'bwd', not {dir!r}")
        return self._fwd if dir == "fwd" else self._bwd

    def remove_hooks(self, dir: str = "fwd", including_permanent: bool = False, level: int | None = None) -> None:
        """Take functions off, of one direction or `both`; with `level`, only those of that nested scope."""
        if dir not in ("fwd", "bwd", "both"):
            raise ValueError(f"hooks are removed from 'fwd', 'bwd' or 'both', not {dir!r}")
        for direction in ("fwd", "bwd") if dir == "both" else (dir,):
            for one in heard(self._listeners(direction)):
                if including_permanent or not (one.is_permanent or (level is not None and one.context_level != level)):
                    self._drop(one)

    def has_hooks(self, dir: str = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether functions are attached to `fwd`, `bwd` or `both`; with `level`, only those of that nested scope count."""
        if dir not in ("fwd", "bwd", "both"):
            raise ValueError(f"hooks are looked for on 'fwd', 'bwd' or 'both', not {dir!r}")
        directions = ("fwd", "bwd") if dir == "both" else (dir,)
        attached = [one for direction in directions for one in heard(self._listeners(direction))]
        return any(
            (including_permanent or not one.is_permanent) and (level is None or one.context_level == level) for one in attached
        )

    def clear_context(self) -> None:
        """Empty `ctx`, where hooks may leave things for each other."""
        HERE.contexts.pop(self, None)

    def layer(self) -> int:
        """The block that this point is in, read from its name `blocks.{layer}.…`."""
        parts = (self.name or "").split(".")
        if len(parts) < 2 or not parts[1].isdigit():
            raise ValueError(f"the hook point {self.name!r} is in no block, so it has no layer")
        return int(parts[1])

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a model keeps what was attached for good; what a scope attached belongs to that scope alone."""
        state = self.__dict__.copy()
        for name in ("_fwd", "_bwd"):
            for_good = [one for one in heard(state[name]) if one.scope is None or one.scope is HERE.base]
            state[name] = [Listener(one.function, one.reads, one.is_permanent, one.context_level) for one in for_good]
        return state


class _Backward:
    """What autograd calls with the gradient of one pass: the listeners that were there when it passed."""

    def __init__(self, point: HookPoint, listeners: list[Listener]):
        self.point, self.listeners = point, listeners
        for one in listeners:
            one.waits = True

    def __call__(self, gradient: Tensor) -> Tensor:
        ours = False
        for listener in self.listeners:
            if listener.reads:
                if not listener.dead:  # a cache is finished when its run is
                    listener.fired += 1
                    listener.function(gradient, hook=self.point)
                continue
            listener.fired += 1
            if not ours:
                gradient, ours = own(gradient), True
            out = listener.function(gradient, hook=self.point)
            if out is not None and out is not gradient:
                gradient, ours = self.point._accepted(out, gradient), False
        return gradient


def order_of(listener: Listener) -> int:
    """Where it stands among the listeners of its point."""
    return int(getattr(listener.function, "order", 0))


def listening(point: Any) -> bool:
    """Whether anybody would notice what passes here; a module of somebody else's always does."""
    return point.listening if isinstance(point, HookPoint) else True


def written(point: Any) -> bool:
    """Whether what passes here may be changed; a module of somebody else's may."""
    return point.written if isinstance(point, HookPoint) else True


def called(hook: HookFunction) -> str:
    """What to call a function in a message."""
    return getattr(hook, "__name__", None) or type(hook).__name__


def check_signature(hook: HookFunction, site: str) -> None:
    """Stop with `TypeError` where a function cannot be called as hooks are: `hook(tensor, hook=…)`."""
    if isinstance(hook, KeepActivation):
        return
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # some built-in functions do not say what they take
        return
    try:
        signature.bind(None, hook=None)
    except TypeError:
        raise TypeError(f"the hook {called(hook)}{signature} on {site!r} must take a tensor and `hook`: def f(x, hook)") from None
