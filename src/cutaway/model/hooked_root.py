"""A module whose hook points can be listened to by name: hooks and caches for a scope, a run, or for good.

Where a run stands is kept apart for each thread, like the listeners of its scopes (`listeners.py`).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.errors import HookDidNotFire, HookNeverFired, ShapeError, SharedHookPoint, UnknownSite, nearest
from cutaway.model.hook_points import HookPoint, NamedHook, NamesFilter, called, check_signature
from cutaway.model.listeners import HERE, HookFunction, KeepActivation, Listener, Scope, memory_of, take
from cutaway.model.named_hooks import NamedHooks
from cutaway.model.sites import why_absent
from cutaway.model.slices import Slice, SliceInput

NOT_COPIED = ("_here", "_waiting", "_watched")
Attached = list[tuple[HookPoint, Listener]]


class RunState(threading.local):
    """What a thread's runs of one model leave behind, and the scopes that it has open. Subclasses add to it."""

    def __init__(self) -> None:
        self.runs = 0  # how many runs there were; a hook that never fired says so
        self.scopes: list[Scope] = []
        self.level = 0  # what was set by hand, beside the scopes that are open
        self.is_caching = False


class HookedRootModule(NamedHooks, nn.Module):
    """A module whose hook points can be listened to by name. Subclasses call `setup()` when they are built.

    Any module may stand at a hook point (`block.hook_mlp_out = sae`) or in place of a part, and hook points may be
    added anywhere; `setup()` finds them again.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self._here = self._new_state()
        self._waiting: Attached = []  # attached for good, and not fired yet
        self.mod_dict: dict[str, nn.Module] = {}
        self.hook_dict: dict[str, HookPoint] = {}
        self.also_called: dict[str, str] = {}  # another name of a hook point → the one by which it is known

    def _new_state(self) -> RunState:
        return RunState()

    def setup(self) -> None:
        """Name every module and collect the hook points."""
        before, also = self.hook_dict, self.also_called
        self.mod_dict, self.also_called = {}, {}
        first: dict[nn.Module, str] = {self: ""}
        for name, module in self.named_modules(remove_duplicate=False):
            if first.setdefault(module, name) == name != "":
                self.mod_dict[name] = module
            elif isinstance(module, HookPoint):
                self.also_called[name] = first[module]
        self.hook_dict = {name: module for name, module in self.mod_dict.items() if isinstance(module, HookPoint)}
        self._warn_of_shared({name: one for name, one in self.also_called.items() if also.get(name) != one})
        for name, module in self.mod_dict.items():
            with suppress(AttributeError):  # a module of somebody else's may have a name that cannot be set
                module.name = name  # type: ignore[assignment]
        for name, point in before.items():
            if self.hook_dict.get(name, point) is not point and (point.fwd_hooks or point.bwd_hooks):
                message = f"another hook point stands at {name!r} now, and the hooks of the one before are gone with it"
                warnings.warn(message, HookDidNotFire, stacklevel=2)

    @staticmethod
    def _warn_of_shared(names: dict[str, str]) -> None:
        """Say of hook points that stand at two places that runs pass them under one name: the later pass is the one kept."""
        if not names:
            return
        other, name = next(iter(names.items()))
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        text = f"the hook point {name!r} stands at {other!r}, too{more}; it is listed, called and cached by its first name alone"
        warnings.warn(f"{text}, at every pass of either place; put a HookPoint of its own there", SharedHookPoint, stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins without runs behind it and without scopes."""
        return {name: value for name, value in self.__dict__.items() if name not in NOT_COPIED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._here, self._waiting = self._new_state(), []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._here.runs += 1
        taken, reshaped = HERE.taken, HERE.reshaped
        HERE.taken, HERE.reshaped = set(taken), []
        for given in (*args, *kwargs.values()):
            take(given)  # the caller may write into it when the run is over
        try:
            out = super().__call__(*args, **kwargs)
            if HERE.taken and isinstance(out, Tensor) and memory_of(out) in HERE.taken:
                out = out.clone()  # a cache or a hook has it too
        except RuntimeError as error:
            if HERE.reshaped and not isinstance(error, HookNeverFired):
                message = "; ".join(HERE.reshaped)
                raise ShapeError(f"{message}, and what follows cannot take that: {str(error).splitlines()[0]}") from error
            raise
        finally:
            HERE.taken, HERE.reshaped = taken, reshaped
        if self._waiting:
            self._warn_of_silent()
        return out

    # What the thread at work has open.

    @property
    def runs(self) -> int:
        """How many runs there were in this thread."""
        return self._here.runs

    @runs.setter
    def runs(self, number: int) -> None:
        self._here.runs = number

    @property
    def context_level(self) -> int:
        """How many scopes are open in this thread. Can be set, as notebooks do after an interrupt."""
        return sum(one.open for one in self._here.scopes) + self._here.level

    @context_level.setter
    def context_level(self, level: int) -> None:
        self._here.level += level - self.context_level

    @property
    def is_caching(self) -> bool:
        """Whether `add_caching_hooks` was called since the last `reset_hooks`, in this thread."""
        return self._here.is_caching

    @is_caching.setter
    def is_caching(self, whether: bool) -> None:
        self._here.is_caching = whether

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

    def left_out(self, name: str) -> bool:
        """Whether the caller himself started or stopped the last run so that it could not pass this site."""
        return False

    def _point(self, name: str) -> HookPoint:
        if name in self.also_called:
            one = self.also_called[name]
            raise UnknownSite(f"{name!r} is the hook point {one!r}, which stands at both places; use that name")
        if name not in self.hook_dict:
            hint = why_absent(name, self.hook_dict) or nearest(name, self.hook_dict)
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
        prepend: bool = False,
    ) -> None:
        """Subclasses may refuse a hook here by raising."""

    def check_and_add_hook(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Attach a function to a point that is at hand, after the checks that `add_hook` makes."""
        check_signature(hook, hook_point_name)
        self.check_hooks_to_add(hook_point, hook_point_name, hook, dir=dir, is_permanent=is_permanent)
        hook_point.add_hook(hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend)

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

        What the main thread attaches here is heard in every thread; what another one attaches, in that thread. A hook
        whose site the next run does not pass is warned of once.

        Raises:
            UnknownSite: no site has this name, or the predicate picks none.
            TypeError: the function cannot be called with a tensor and `hook=`.
        """
        new = self._attach(name, hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend)
        if not new:
            raise UnknownSite(f"the predicate of the hook {called(hook)} picks none of the enabled sites")
        if level is not None and not is_permanent:
            HERE.levelled.extend(new)
        elif dir == "fwd" and isinstance(name, str):
            self._waiting.extend(new)

    def _attach(
        self, name: str | Callable[[str], bool], hook: HookFunction, *, dir: str = "fwd", is_permanent: bool = False, **how: Any
    ) -> Attached:
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
        self._here.is_caching = False  # (not by the property: libraries call this as Python ends, when `setattr` is gone)

    # Scopes.

    def hooks(
        self,
        fwd_hooks: Sequence[NamedHook] = [],
        bwd_hooks: Sequence[NamedHook] = [],
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> HookScope:
        """Attach functions for a scope; `with` yields the model. Only the thread that opens the scope hears them.

        A hook that was never called when the scope ends without an exception is warned of (`HookDidNotFire`). Backward
        hooks belong to the forward passes made in the scope, and are also called by a `backward()` after it.

        Raises:
            UnknownSite: no site has a name that was given.
        """
        return HookScope(self, fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts)

    def _enter(self, scope: Scope) -> None:
        """Begin a scope. (It is made by whoever closes it, so that no interrupt comes between.)"""
        scopes = self._here.scopes = [one for one in self._here.scopes if one.open]
        scope.level = self.context_level + 1
        scopes.append(scope)
        scope.taken = HERE.taken
        HERE.taken = set(scope.taken)

    def _attach_all(self, scope: Scope, direction: str, hooks: Sequence[NamedHook]) -> list[ScopedHook]:
        """Attach pairs of name and function for a scope."""
        groups = []
        for name, hook in hooks:
            new = self._attach(name, hook, dir=direction, level=scope.level, scope=scope)
            scope.attached += new
            groups.append(ScopedHook(direction, name, hook, new))
        return groups

    def _attach_readers(self, scope: Scope, direction: str, names: Iterable[str], keep: KeepActivation) -> None:
        """Attach one cache to many sites: one listener, however many there are."""
        listener = Listener(keep, True, context_level=scope.level, scope=scope)
        checks = type(self).check_hooks_to_add is not HookedRootModule.check_hooks_to_add
        for name in names:
            point = self.hook_dict[name]
            if checks:
                self.check_hooks_to_add(point, name, keep, dir=direction)
            (point._fwd if direction == "fwd" else point._bwd).append(listener)
            scope.attached.append((point, listener))

    def _take_off(self, scope: Scope, reset_hooks_end: bool, clear_contexts: bool) -> None:
        """What is left to do when a scope is closed; nothing of it is heard any more, however far this comes."""
        if scope.taken is not None:
            HERE.taken = scope.taken
        if not reset_hooks_end:
            for _, listener in scope.attached:  # they stay, as if attached for good
                listener.scope = HERE.base
            scope.attached.clear()
            return
        self._here.is_caching = False
        for point, listener in scope.attached:
            point._drop(listener)
        if HERE.levelled:
            levelled = [(point, one) for point, one in HERE.levelled if one.context_level == scope.level and self._has(point)]
            for point, one in levelled:
                point._drop(one)
            HERE.levelled[:] = [pair for pair in HERE.levelled if pair not in levelled]
        if clear_contexts:
            self.clear_contexts()
        scope.attached.clear()  # it and its listeners hold each other, and listeners hold what they kept

    def _has(self, point: HookPoint) -> bool:
        return point.name is not None and self.hook_dict.get(point.name) is point

    # Hooks that did not fire.

    def _check_fired(self, groups: Iterable[ScopedHook], *, ran: bool, strict: bool) -> None:
        """Stop at a hook that was never called (with `strict`, and where the caller did not see to that), or warn of it."""
        for group in groups:
            if group.fired:
                continue
            message = self._never_fired(group, ran=ran)
            points = [str(point.name) for point, _ in group.attached]
            if strict and group.direction == "fwd" and not (ran and points and all(map(self.left_out, points))):
                raise HookNeverFired(message)
            warnings.warn(message, HookDidNotFire, stacklevel=3)

    def _warn_of_silent(self) -> None:
        """After a run: warn, once, of what is attached for good and was not called."""
        waiting, self._waiting = self._waiting, []
        for point, listener in waiting:
            if not listener.fired and not listener.dead and (listener in point.fwd_hooks):
                group = ScopedHook("fwd", str(point.name), listener.function, [(point, listener)])
                warnings.warn(self._never_fired(group, ran=True), HookDidNotFire, stacklevel=3)

    def _never_fired(self, group: ScopedHook, *, ran: bool) -> str:
        """A sentence that names the hook and says why it did not fire."""
        what, name = called(group.hook), group.name
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
        elif group.direction == "bwd":
            why = "no gradient can come by, since nothing that passed needs one; run on a loss, without torch.no_grad()"
        else:
            why = self.why_silent(site)
        return f"the {group.direction} hook {what} on {where} never fired: {why}"

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
        """Run once with functions attached. Backward hooks are called when `backward()` reaches this run's sites.

        Raises:
            HookNeverFired: the run never passed the site of a forward hook (a predicate: any of its sites). Where
                `start_at_layer` or `stop_at_layer` is the reason, this is a warning.
        """
        scope = Scope()
        try:
            self._enter(scope)
            groups = self._attach_all(scope, "fwd", fwd_hooks) + self._attach_all(scope, "bwd", bwd_hooks)
            out = self(*model_args, **model_kwargs)
            self._check_fired(groups, ran=True, strict=True)
            return out
        finally:
            scope.open = False  # first, and in one step: an interrupt after this finds nothing attached
            self._take_off(scope, reset_hooks_end, clear_contexts)

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
        """Run once and keep activations: `(output, site → tensor)`. What is kept never changes afterwards.

        Args:
            names_filter: which sites: None (all enabled ones), a full name, a list of them, or a predicate.
            device: where to keep them.
            remove_batch_dim: drop the first axis (a batch of one).
            incl_bwd: call `backward()` on the output and keep gradients too, as `<name>_grad`.
            pos_slice: which positions to keep; an int keeps the axis. Patterns are sliced on dest.

        Raises:
            UnknownSite: the filter names no site.
            HookNeverFired: a site was asked for by name and the run never passed it. Where `start_at_layer` or
                `stop_at_layer` is the reason, this is a warning.
            ShapeError: `remove_batch_dim` with more than one example.
        """
        names, store = self._filtered(names_filter), dict[str, Tensor]()
        forward, backward = self._keepers(store, device, remove_batch_dim, pos_slice)
        scope = Scope()
        try:
            self._enter(scope)
            self._attach_readers(scope, "fwd", names, forward)
            if incl_bwd:
                self._attach_readers(scope, "bwd", names, backward)
            out = self(*model_args, **model_kwargs)
            if incl_bwd:
                out.backward()
            if names_filter is not None and not callable(names_filter) and len(store) < len(names):
                absent = [ScopedHook("fwd", name, forward, [(self.hook_dict[name], Listener(forward))]) for name in names]
                self._check_fired([one for one in absent if one.name not in store], ran=True, strict=True)
        finally:
            scope.open = False  # first, and in one step: an interrupt after this finds nothing attached
            self._take_off(scope, reset_hooks_end, clear_contexts)
        return out, store

    def _keepers(
        self, store: dict[str, Tensor], device: Any, remove_batch_dim: bool, pos_slice: Slice | SliceInput
    ) -> tuple[KeepActivation, KeepActivation]:
        """What fills a store in the forward and in the backward pass."""
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

        return keep(""), keep("_grad")

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
        names = self._filtered(names_filter)
        forward, backward = self._keepers(store, device, remove_batch_dim, pos_slice)
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
                self._attach(name, hook, dir=direction)
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
        requested = {str(self._point(name).name) for name in names_filter}
        return [name for name in self.hook_dict if name in requested]


class ScopedHook:
    """One function that was attached for a scope, to one site or to those that a predicate picked."""

    def __init__(self, direction: str, name: str | Callable[[str], bool], hook: HookFunction, attached: Attached):
        self.direction, self.name, self.hook, self.attached = direction, name, hook, attached

    @property
    def fired(self) -> bool:
        """Whether it was called; a backward hook: or will be, once a gradient comes."""
        return any(listener.fired or listener.waits for _, listener in self.attached)


class HookScope:
    """What `model.hooks(…)` gives: a scope to be entered with `with`, once or again."""

    def __init__(
        self,
        model: HookedRootModule,
        fwd_hooks: Sequence[NamedHook],
        bwd_hooks: Sequence[NamedHook],
        reset_hooks_end: bool,
        clear_contexts: bool,
    ):
        self.model, self.pairs = model, (("fwd", fwd_hooks), ("bwd", bwd_hooks))
        self.reset_hooks_end, self.clear_contexts = reset_hooks_end, clear_contexts
        self._entered: list[tuple[Scope, list[ScopedHook], int]] = []

    def __enter__(self) -> Any:
        model = self.model
        scope, groups = Scope(), list[ScopedHook]()
        try:
            model._enter(scope)
            for direction, hooks in self.pairs:
                groups += model._attach_all(scope, direction, hooks)
            self._entered.append((scope, groups, model.runs))
        except BaseException:
            scope.open = False
            model._take_off(scope, True, False)
            raise
        return model

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        scope, groups, runs = self._entered[-1]
        scope.open = False  # first, and in one step: an interrupt after this finds nothing attached
        self.model._take_off(scope, self.reset_hooks_end, self.clear_contexts)
        del self._entered[-1]
        if kind is None:
            ran = self.model.runs > runs or any(group.fired for group in groups)  # (`forward` itself may have been called)
            self.model._check_fired(groups, ran=ran, strict=False)

    def __del__(self) -> None:
        """Close what `__exit__` could not: an interrupt may come as it is called, before its first line."""
        for scope, _, _ in getattr(self, "_entered", ()):
            scope.open = False
            self.model._take_off(scope, self.reset_hooks_end, self.clear_contexts)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("model.hooks(…) opens a scope: `with model.hooks(…) as model:`")
