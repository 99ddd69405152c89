"""Listeners: functions attached to hook points, whose they are, how long they stay, and what caches keep.

A listener that is attached for a scope belongs to the thread that opened the scope, and to no other: two threads may run
one model with different hooks at the same time, without a lock. Closing a scope is one assignment, so that Ctrl-C at any
moment leaves either all of its listeners or none; those of a closed scope are never called, and are swept away later.
What the main thread attaches for good (`add_hook`) is heard in all threads, like its weights; what another thread
attaches for good, in that thread.

What a cache keeps shares memory with nothing that anybody else may write into: other entries, tensors that hooks were
given or gave back, the caller's input. So it never changes afterwards.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import ShapeError
from cutaway.model.slices import Slice

HookFunction = Callable[..., Any]


class _Here(threading.local):
    """What belongs to the thread at work."""

    def __init__(self) -> None:
        self.me = object()  # stands for the thread; unlike its number, it is not used again
        main = threading.current_thread() is threading.main_thread()
        self.base = None if main else Scope(self.me)
        self._end = _End(self.base)
        self.taken: set[int] = set()  # memory that hooks have seen, or caches keep, in the run under way
        self.reshaped: list[str] = []  # what hooks changed the shape of, in the run under way
        self.levelled: list[tuple[Any, Listener]] = []  # what was attached with a level, and by no scope
        self.stream: Any = None  # where the run stands, for a part of ours inside somebody else's module
        self.contexts: MutableMapping[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
        self.quiet = False  # whether listeners are left out


class Scope:
    """A stretch of one thread's time in which listeners are heard. `open` goes from true to false once."""

    __slots__ = ("attached", "level", "open", "taken", "thread")

    def __init__(self, me: object | None = None):
        self.open = True
        self.thread = me or HERE.me
        self.level = 0
        self.attached: list[tuple[Any, Listener]] = []
        self.taken: set[int] | None = None  # what `HERE` knew of when the scope began


class _End:
    """Goes when its thread goes, and closes what the thread attached for good."""

    def __init__(self, base: Scope | None):
        self.base = base

    def __del__(self) -> None:
        if self.base is not None:
            self.base.open = False


HERE = _Here()


@dataclass(eq=False)
class Listener:
    """One attached function: whether it only reads, how long it stays, how often it fired."""

    function: HookFunction
    reads: bool = False
    is_permanent: bool = False
    context_level: int | None = None
    fired: int = 0
    waits: bool = False  # a backward hook: whether a pass is waiting for its gradient
    scope: Scope | None = None  # None: heard in every thread, until it is taken off

    @property
    def hook(self) -> Handle:
        """The dialect's handle, whose `remove()` takes the function off."""
        return Handle(self)

    @property
    def dead(self) -> bool:
        """Whether it can never be heard again, because its scope is closed."""
        return self.scope is not None and not self.scope.open


@dataclass(frozen=True)
class Handle:
    """Takes one function off, as the handles of PyTorch's hooks do."""

    listener: Listener

    @property
    def id(self) -> int:
        """A number that no other attached function has."""
        return id(self.listener)

    def remove(self) -> None:
        """The function is not called any more."""
        self.listener.scope = CLOSED


CLOSED = Scope()
CLOSED.open = False


def heard(listeners: Any) -> list[Listener]:
    """Those of some listeners that the thread at work hears."""
    # (Any: other threads change the list, and a checker of types would look into it before it is copied.)
    if HERE.quiet:
        return []
    me = HERE.me
    return [one for one in tuple(listeners) if (scope := one.scope) is None or (scope.open and scope.thread is me)]


@contextmanager
def quiet() -> Iterator[None]:
    """Parts of a network run in here without any listener of this thread: for functions of a hook that call the network."""
    before, HERE.quiet = HERE.quiet, True
    try:
        yield
    finally:
        HERE.quiet = before


# Memory.


def memory_of(x: Tensor) -> int | None:
    """Where the storage of a tensor begins; None where there is none (meta) or it cannot be told (under transforms)."""
    try:
        return x.untyped_storage().data_ptr() or None
    except RuntimeError:  # NotImplementedError too: wrappers of functorch have no storage
        return None


def take(x: Any) -> None:
    """Note that somebody else may write into `x`, so that caches keep copies of it."""
    if isinstance(x, Tensor) and (memory := memory_of(x)) is not None:
        HERE.taken.add(memory)


def own(x: Tensor) -> Tensor:
    """A dense copy that shares memory with nothing, for hooks to write into."""
    copy = x.clone(memory_format=torch.contiguous_format)
    take(copy)
    return copy


def kept_copy(x: Tensor) -> Tensor:
    """A copy that is a broadcast view where `x` is one, so that per-head copies cost no more than before."""
    strides = x.stride()
    if 0 not in strides:
        return x.clone(memory_format=torch.contiguous_format)
    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)
    return x[once].clone(memory_format=torch.contiguous_format).expand_as(x)


def alone(x: Tensor) -> Tensor:
    """`x`, or a copy where its memory is somebody else's too: nobody's writing may reach what is kept, nor go out from it."""
    try:
        storage = x.untyped_storage()
    except RuntimeError:
        return x.clone()
    taken, memory = HERE.taken, storage.data_ptr()
    if memory in taken or x.nbytes < storage.nbytes():
        x = kept_copy(x)
        memory = x.untyped_storage().data_ptr()
    taken.add(memory)
    return x


# Caches.


class KeepActivation:
    """A reader that stores what passes in a dictionary: what caches are made of.

    Args:
        store: where to put it, under the site's full name (plus `suffix`).
        pos_axis: site name → index of its position axis, or None; used with `pos_slice`.
        copies: keep nothing that shares memory; without it, whoever reads the store must not write.

    Raises (when it is called):
        ShapeError: `remove_batch_dim`, and there is more than one example.
    """

    reads = True

    def __init__(
        self,
        store: MutableMapping[str, Tensor],
        *,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        pos_slice: Slice | None = None,
        pos_axis: Callable[[str], int | None] = lambda name: None,
        suffix: str = "",
        copies: bool = True,
    ):
        self.store, self.device, self.remove_batch_dim = store, device, remove_batch_dim
        self.pos_slice, self.pos_axis, self.suffix, self.copies = pos_slice, pos_axis, suffix, copies

    def __call__(self, tensor: Tensor, hook: Any) -> None:
        kept = tensor.detach()
        if self.pos_slice is not None and (axis := self.pos_axis(hook.name)) is not None and axis < kept.ndim:
            kept = self.pos_slice.apply(kept, dim=axis - kept.ndim)
        if self.remove_batch_dim:
            if kept.ndim == 0 or kept.shape[0] != 1:
                there = kept.shape[0] if kept.ndim else "no axis"
                raise ShapeError(
                    f"remove_batch_dim=True needs one example, and {hook.name!r} has {there}; "
                    "leave it out, and cache.apply_slice_to_batch_dim(i) takes one example"
                )
            kept = kept[0]
        if self.device is not None:
            kept = kept.to(self.device)
        if self.copies:  # a gradient may be somebody's `.grad`, or that of another site
            kept = kept_copy(kept) if self.suffix else alone(kept)
        self.store[hook.name + self.suffix] = kept
