"""Hook points: named places in a network where anybody may read or change what passes.

A `HookPoint` that nobody listens to hands its input on, untouched. There are two kinds of listeners.
*Readers* (our caches) promise not to write and see the tensor as it is, which may be a broadcast view.
*Hooks* (anybody's code) each get a copy of their own that shares memory with nothing, so an edit in place
can never reach a parameter, another site or an activation that was kept earlier.

`HookedRootModule` attaches listeners for a scope and takes them off again on every way out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.errors import HookNeverFired, ShapeError, UnknownSite, nearest
from cutaway.model.sites import layers_there
from cutaway.model.slices import Slice, SliceInput

HookFunction = Callable[..., Any]
NamesFilter = None | str | Sequence[str] | Callable[[str], bool]
NamedHook = tuple[str | Callable[[str], bool], HookFunction]


@dataclass(eq=False)
class Listener:
    """One attached function: whether it only reads, how long it stays, how often it fired."""

    function: HookFunction
    reads: bool = False
    is_permanent: bool = False
    context_level: int | None = None
    fired: int = 0


class KeepActivation:
    """A reader that stores what passes in a dictionary: what caches are made of.

    Args:
        store: where to put it, under the site's full name (plus `suffix`).
        pos_axis: site name → index of its position axis, or None; used with `pos_slice`.
    """

    reads = True

    def __init__(
        self,
        store: dict[str, Tensor],
        *,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        pos_slice: Slice | None = None,
        pos_axis: Callable[[str], int | None] = lambda name: None,
        suffix: str = "",
    ):
        self.store, self.device, self.remove_batch_dim = store, device, remove_batch_dim
        self.pos_slice, self.pos_axis, self.suffix = pos_slice, pos_axis, suffix

    def __call__(self, tensor: Tensor, hook: HookPoint) -> None:
        assert hook.name is not None
        kept = tensor.detach()
        if self.pos_slice is not None and (axis := self.pos_axis(hook.name)) is not None:
            kept = self.pos_slice.apply(kept, dim=axis - kept.ndim)
        if self.remove_batch_dim:
            kept = kept[0]
        self.store[hook.name + self.suffix] = kept if self.device is None else kept.to(self.device)


class HookPoint(nn.Module):
    """A named place that an activation passes. Hooks are called `hook(tensor, hook=HookPoint)`."""

    def __init__(self) -> None:
        super().__init__()
        self.name: str | None = None
        self.ctx: dict[Any, Any] = {}
        self.fwd_hooks: list[Listener] = []
        self.bwd_hooks: list[Listener] = []

    @property
    def listening(self) -> bool:
        """Whether anybody would notice what passes here."""
        return bool(self.fwd_hooks or self.bwd_hooks or self._torch_hooks)

    @property
    def written(self) -> bool:
        """Whether somebody may change what passes here, or needs its gradient: the stream must run through it."""
        return bool(self.bwd_hooks or self._torch_hooks or any(not one.reads for one in self.fwd_hooks))

    @property
    def _torch_hooks(self) -> bool:
        return bool(self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.listening:
            return x
        if self._forward_pre_hooks:
            x = _own(x)
        return super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        for listener in tuple(self.fwd_hooks):
            listener.fired += 1
            x = self._pass(listener, x)
        if self.bwd_hooks and x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self._pass_gradient)
        return _own(x) if self._forward_hooks else x

    def _pass(self, listener: Listener, x: Tensor) -> Tensor:
        """What flows on after one listener has seen `x`."""
        if listener.reads:
            listener.function(x, hook=self)
            return x
        own = _own(x)
        out = listener.function(own, hook=self)
        if out is None:
            return own
        if isinstance(out, tuple) and len(out) == 1:  # how PyTorch's gradient hooks return
            out = out[0]
        if not isinstance(out, Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ShapeError(f"the hook on {self.name!r} returned {got}, where {tuple(x.shape)} is needed (or None)")
        return out

    def _pass_gradient(self, gradient: Tensor) -> Tensor:
        for listener in tuple(self.bwd_hooks):
            listener.fired += 1
            gradient = self._pass(listener, gradient)
        return gradient

    def add_hook(
        self,
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Attach a function to the forward (`fwd`) or backward (`bwd`) pass until `remove_hooks`."""
        self._attach(hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend)

    def add_perma_hook(self, hook: HookFunction, dir: str = "fwd") -> None:
        """Attach a function that `remove_hooks` leaves on unless it is told otherwise."""
        self._attach(hook, dir=dir, is_permanent=True)

    def _attach(
        self, hook: HookFunction, *, dir: str = "fwd", is_permanent: bool = False, level: int | None = None, prepend: bool = False
    ) -> Listener:
        listener = Listener(hook, getattr(hook, "reads", False) is True, is_permanent, level)
        listeners = self._listeners(dir)
        listeners.insert(0 if prepend else len(listeners), listener)
        return listener

    def _detach(self, listener: Listener) -> None:
        self.fwd_hooks = [one for one in self.fwd_hooks if one is not listener]
        self.bwd_hooks = [one for one in self.bwd_hooks if one is not listener]

    def _listeners(self, dir: str) -> list[Listener]:
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"a hook's direction is 'fwd' or 'bwd', not {dir!r}")
        return self.fwd_hooks if dir == "fwd" else self.bwd_hooks

    def remove_hooks(self, dir: str = "fwd", including_permanent: bool = False, level: int | None = None) -> None:
        """Take functions off, of one direction or `both`; with `level`, only those of that nested scope."""
        if dir not in ("fwd", "bwd", "both"):
            raise ValueError(f"hooks are removed from 'fwd', 'bwd' or 'both', not {dir!r}")

        def stays(one: Listener) -> bool:
            if including_permanent:
                return False
            return one.is_permanent or (level is not None and one.context_level != level)

        if dir in ("fwd", "both"):
            self.fwd_hooks = [one for one in self.fwd_hooks if stays(one)]
        if dir in ("bwd", "both"):
            self.bwd_hooks = [one for one in self.bwd_hooks if stays(one)]

    def clear_context(self) -> None:
        """Empty `ctx`, where hooks may leave things for each other."""
        self.ctx = {}

    def layer(self) -> int:
        """The block that this point is in, read from its name `blocks.{layer}.…`."""
        parts = (self.name or "").split(".")
        if len(parts) < 2 or not parts[1].isdigit():
            raise ValueError(f"the hook point {self.name!r} is in no block, so it has no layer")
        return int(parts[1])


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


def _own(x: Tensor) -> Tensor:
    """A dense copy that shares memory with nothing."""
    return x.clone(memory_format=torch.contiguous_format)


class HookedRootModule(nn.Module):
    """A module whose hook points can be listened to by name. Subclasses call `setup()` when they are built."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.is_caching = False
        self.context_level = 0
        self.runs = 0  # how many runs there were; a hook that never fired says so
        self.mod_dict: dict[str, nn.Module] = {}
        self.hook_dict: dict[str, HookPoint] = {}

    def setup(self) -> None:
        """Name every module and collect the hook points."""
        self.mod_dict = {name: module for name, module in self.named_modules() if name}
        self.hook_dict = {name: module for name, module in self.mod_dict.items() if isinstance(module, HookPoint)}
        for name, module in self.mod_dict.items():
            module.name = name  # type: ignore[assignment]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return super().__call__(*args, **kwargs)

    def hook_points(self) -> Iterable[HookPoint]:
        """All hook points, in the order of the network."""
        return self.hook_dict.values()

    def list_hooks(self) -> dict[str, list[HookFunction]]:
        """Which functions are attached where, by site."""
        listening = ((name, [*point.fwd_hooks, *point.bwd_hooks]) for name, point in self.hook_dict.items())
        return {name: [one.function for one in listeners] for name, listeners in listening if listeners}

    # What a network with flags and positions knows better.

    def is_enabled(self, name: str) -> bool:
        """Whether predicates and unfiltered caches choose this site."""
        return True

    def position_axis(self, name: str) -> int | None:
        """Which axis of this site is its position (of the destination, for patterns); None: it has none."""
        return None

    def why_silent(self, name: str) -> str:
        """Why the last run did not pass this site."""
        return "the run did not pass it"

    def _point(self, name: str) -> HookPoint:
        if name not in self.hook_dict:
            hint = layers_there(name, self.hook_dict) or nearest(name, self.hook_dict)
            raise UnknownSite(f"no site called {name!r}{hint}; model.hook_dict lists all {len(self.hook_dict)}")
        return self.hook_dict[name]

    def _chosen(self, name: str | Callable[[str], bool]) -> list[HookPoint]:
        """The point of a name, or the enabled points that a predicate picks."""
        if isinstance(name, str):
            return [self._point(name)]
        return [point for one, point in self.hook_dict.items() if self.is_enabled(one) and name(one)]

    # Attaching and taking off.

    def check_hooks_to_add(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        **_: Any,
    ) -> None:
        """Subclasses may refuse a hook here by raising."""

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Attach a function to a site, or to the enabled sites that a predicate picks, until `reset_hooks`.

        Raises:
            UnknownSite: no site has this name, or the predicate picks none.
            TypeError: the function cannot be called with a tensor and `hook=`.
        """
        if not self._attach(name, hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend):
            raise UnknownSite(f"the predicate of the hook {called(hook)} picks none of the enabled sites")

    def _attach(
        self, name: str | Callable[[str], bool], hook: HookFunction, *, dir: str = "fwd", is_permanent: bool = False, **how: Any
    ) -> list[tuple[HookPoint, Listener]]:
        points = self._chosen(name)
        for point in points:
            check_signature(hook, str(point.name))
            self.check_hooks_to_add(point, str(point.name), hook, dir=dir, is_permanent=is_permanent)
        return [(point, point._attach(hook, dir=dir, is_permanent=is_permanent, **how)) for point in points]

    def add_perma_hook(self, name: str | Callable[[str], bool], hook: HookFunction, dir: str = "fwd") -> None:
        """Attach a function that `reset_hooks` leaves on unless it is told otherwise."""
        self.add_hook(name, hook, dir=dir, is_permanent=True)

    def remove_all_hook_fns(self, direction: str = "both", including_permanent: bool = False, level: int | None = None) -> None:
        """Take functions off all points."""
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent=including_permanent, level=level)

    def clear_contexts(self) -> None:
        """Empty the `ctx` of all points."""
        for point in self.hook_points():
            point.clear_context()

    def reset_hooks(
        self, clear_contexts: bool = True, direction: str = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Take functions off all points, and empty their `ctx`."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level=level)
        self.is_caching = False

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[NamedHook] = [],
        bwd_hooks: Sequence[NamedHook] = [],
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Any]:
        """Attach functions for a scope; yields the model.

        Raises:
            UnknownSite: no site has a name that was given.
            HookNeverFired: the scope ended, without an exception, and a hook was never called.
        """
        with self._attached(fwd_hooks, bwd_hooks, [*fwd_hooks, *bwd_hooks], reset_hooks_end, clear_contexts):
            yield self

    @contextmanager
    def _attached(
        self,
        fwd_hooks: Sequence[NamedHook],
        bwd_hooks: Sequence[NamedHook],
        expected: Sequence[NamedHook],
        reset_hooks_end: bool,
        clear_contexts: bool,
    ) -> Iterator[None]:
        """Attach for a scope; when it ends well, each of the `expected` pairs must have fired."""
        attached: list[tuple[HookPoint, Listener]] = []
        groups: list[tuple[str, NamedHook, list[tuple[HookPoint, Listener]]]] = []
        runs = self.runs
        self.context_level += 1
        try:
            for direction, hooks in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for pair in hooks:
                    new = self._attach(*pair, dir=direction, level=self.context_level)
                    attached += new
                    groups.append((direction, pair, new))
            yield
            for direction, pair, new in groups:
                if not any(listener.fired for _, listener in new) and any(pair is one for one in expected):
                    raise HookNeverFired(self._never_fired(direction, *pair, ran=self.runs > runs))
        finally:
            self.context_level -= 1
            if reset_hooks_end:
                self.is_caching = False
                for point, listener in attached:
                    point._detach(listener)
                if clear_contexts:
                    self.clear_contexts()

    def _never_fired(self, direction: str, name: str | Callable[[str], bool], hook: HookFunction, *, ran: bool) -> str:
        """A sentence that names the hook and says why it did not fire."""
        what = called(hook)
        if not isinstance(name, str):
            picked = [point.name for point in self._chosen(name)]
            if not picked:
                off = [one for one in self.hook_dict if not self.is_enabled(one) and name(one)]
                more = f"; it would pick {off[0]!r}, which a flag of the configuration switches on" if off else ""
                return f"the hook {what} never fired: its predicate picks none of the enabled sites{more}"
            where, site = f"the sites its predicate picks, {picked[0]!r} and {len(picked) - 1} more", str(picked[0])
        else:
            where, site = repr(name), name
        if not ran:
            why = "the model was not run while it was attached"
        elif direction == "bwd":
            why = "no gradient came by: call backward() inside `with model.hooks(bwd_hooks=…)`, on a loss that depends on it"
        else:
            why = self.why_silent(site)
        return f"the {direction} hook {what} on {where} never fired: {why}"

    # Running.

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Sequence[NamedHook] = [],
        bwd_hooks: Sequence[NamedHook] = [],
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run once with functions attached.

        Raises:
            HookNeverFired: the run never passed the site of a hook (a predicate: any of its sites). Backward
                hooks cannot fire before the caller's `backward()`, so they need `model.hooks(…)` or
                `reset_hooks_end=False`.
        """
        if bwd_hooks and reset_hooks_end:
            raise HookNeverFired(
                "run_with_hooks takes its hooks off when the forward pass ends, so its bwd_hooks could never fire; "
                "call backward() inside `with model.hooks(bwd_hooks=…)`, or pass reset_hooks_end=False"
            )
        if not bwd_hooks:
            with self.hooks(fwd_hooks, [], reset_hooks_end, clear_contexts) as model:
                return model(*model_args, **model_kwargs)
        for name, hook in bwd_hooks:
            self.add_hook(name, hook, dir="bwd", level=self.context_level + 1)
        with self.hooks(fwd_hooks, [], reset_hooks_end=False) as model:
            return model(*model_args, **model_kwargs)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Slice | SliceInput = None,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run once and keep activations: `(output, site → tensor)`.

        Args:
            names_filter: which sites: None (all enabled ones), a full name, a list of them, or a predicate.
            device: where to keep them.
            remove_batch_dim: drop the first axis (a batch of one).
            incl_bwd: call `backward()` on the output and keep gradients too, as `<name>_grad`.
            pos_slice: which positions to keep; an int keeps the axis. Patterns are sliced on dest.

        Raises:
            UnknownSite: the filter names no site.
            HookNeverFired: a site was asked for by name and the run never passed it.
        """
        cache, fwd, bwd = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, pos_slice=pos_slice)
        expected = fwd if names_filter is not None and not callable(names_filter) else []
        with self._attached(fwd, bwd, expected, reset_hooks_end, clear_contexts):
            out = self(*model_args, **model_kwargs)
            if incl_bwd:
                out.backward()
        return out, cache

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Slice | SliceInput = None,
    ) -> tuple[dict[str, Tensor], list[NamedHook], list[NamedHook]]:
        """A store and the forward and backward hooks that fill it; nothing is attached yet."""
        store: dict[str, Tensor] = {} if cache is None else cache
        where = None if pos_slice is None else Slice.unwrap(pos_slice)

        def keep(suffix: str) -> KeepActivation:
            return KeepActivation(
                store,
                device=device,
                remove_batch_dim=remove_batch_dim,
                pos_slice=where,
                pos_axis=self.position_axis,
                suffix=suffix,
            )

        names = self._filtered(names_filter)
        forward, backward = keep(""), keep("_grad")
        return store, [(name, forward) for name in names], [(name, backward) for name in names if incl_bwd]

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Attach hooks that keep activations in the returned dictionary until `reset_hooks`."""
        store, fwd, bwd = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for direction, pairs in (("fwd", fwd), ("bwd", bwd)):
            for name, hook in pairs:
                self.add_hook(name, hook, dir=direction)
        self.is_caching = True
        return store

    def cache_all(
        self, cache: dict[str, Tensor] | None, incl_bwd: bool = False, device: Any = None, remove_batch_dim: bool = False
    ) -> None:
        """The dialect's old name: keep every enabled site in `cache`."""
        self.add_caching_hooks(None, incl_bwd, device, remove_batch_dim, cache)

    def cache_some(
        self, cache: dict[str, Tensor] | None, names: Callable[[str], bool], incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False,
    ) -> None:  # fmt: skip
        """The dialect's old name: keep some sites in `cache`."""
        self.add_caching_hooks(names, incl_bwd, device, remove_batch_dim, cache)

    def _filtered(self, names_filter: NamesFilter) -> list[str]:
        """The full names that a filter picks, in the order of the network."""
        if names_filter is None:
            return [name for name in self.hook_dict if self.is_enabled(name)]
        if isinstance(names_filter, str):
            return [str(self._point(names_filter).name)]
        if callable(names_filter):
            picked = [name for name in self.hook_dict if self.is_enabled(name) and names_filter(name)]
            off = [name for name in self.hook_dict if not self.is_enabled(name) and names_filter(name)]
            if not picked:
                by_flag = [
                    f"; it would pick {name!r}, which a flag of the configuration switches on (or ask for it by name)"
                    for name in off
                ]
                raise UnknownSite("the names_filter picks none of the enabled sites" + "".join(by_flag[:1]))
            return picked
        asked = {str(self._point(name).name) for name in names_filter}
        return [name for name in self.hook_dict if name in asked]
