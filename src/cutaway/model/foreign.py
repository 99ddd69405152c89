"""Modules of others inside the network: at a hook point, or in place of a block, its attention or its MLP.

They are called with the dialect's keywords, and what they return is checked where they stand, so that a message names
the place. `Stream`, which travels beside the residual here and which they do not know, waits in `HERE` for the part of
ours that such a module may wrap. A module of ours whose `forward` somebody replaced is somebody else's, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.errors import ConfigError, HookReturned
from cutaway.model.hook_points import HookPoint
from cutaway.model.listeners import HERE

Watched = list[tuple[weakref.ref[nn.Module], Any]]


def call(module: Any, stream: Any, *args: Any, **kwargs: Any) -> Any:
    """Call somebody else's module, with `stream` at hand for a part of ours inside it."""
    outer, HERE.stream = HERE.stream, stream
    try:
        return module(*args, **kwargs)
    finally:
        HERE.stream = outer


ATTENTION_STEPS = (
    "calculate_qkv_matrices", "calculate_attention_scores", "apply_causal_mask", "calculate_z_scores", "apply_rotary",
)  # fmt: skip
REPLACED = frozenset(("forward", *ATTENTION_STEPS))  # methods that people replace on an instance


def intact(module: nn.Module, *forwards: Any) -> bool:
    """Whether a module runs as it was written: by one of these functions, if any are given, in whose place nobody put another."""
    return REPLACED.isdisjoint(module.__dict__) and (not forwards or type(module).forward in forwards)


CONTAINERS = (nn.ModuleList, nn.Identity)  # of Torch's, which our networks are made of


def ours(module: nn.Module) -> bool:
    """Whether one module is of this package, as it was written."""
    return intact(module) and (type(module) in CONTAINERS or type(module).__module__.startswith("cutaway."))


def untouched(module: nn.Module) -> bool:
    """Whether one module is ours, and nobody listens to it."""
    if module._forward_hooks or module._forward_pre_hooks or (isinstance(module, HookPoint) and module.written):
        return False
    return ours(module)


def part_with(model: Any, layer: int, part: str, *names: str) -> Any:
    """The attention (`attn`) or the MLP (`mlp`) of a layer, whose weights of these names somebody reads.

    Raises:
        ConfigError: another module stands there, or in place of the block, and lacks one of them; says where and which.
    """
    block = model.blocks[layer]
    found = getattr(block, part, None)
    lacking = next((name for name in names if not hasattr(found, name)), None)
    if lacking is None:
        return found
    place, module = (f"blocks.{layer}", block) if found is None else (f"blocks.{layer}.{part}", found)
    raise ConfigError(
        f"{place} is a {type(module).__name__}, which has no {f'{part}.' if found is None else ''}{lacking}, and its weights are "
        "read here; ask about the network without it, or give it an attribute of that name"
    )


def watch(places: Iterable[tuple[str, nn.Module]], before: Watched) -> Watched:
    """Check what these modules return from now on, and no longer what those did that were watched before."""
    for reference, handle in before:
        if reference() is not None:
            handle.remove()
    return [(weakref.ref(module), module.register_forward_hook(_Check(name), with_kwargs=True)) for name, module in places]


class _Check:
    """A hook of PyTorch that looks at what a module returns."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        what = f"the {type(module).__name__} at {self.name!r}"
        if not isinstance(out, Tensor):
            raise HookReturned(f"{what} returned {type(out).__name__}, where a tensor is needed")
        given = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
        if given is None or given.is_floating_point() != out.is_floating_point():
            if given is not None:
                raise HookReturned(f"{what} returned {out.dtype}, where {given.dtype} passes")
            return
        if out.device != given.device:
            raise HookReturned(f"{what} returned a tensor on {out.device}, where {given.device} is needed")
        if out.dtype != given.dtype and not torch.is_autocast_enabled(given.device.type):
            raise HookReturned(f"{what} returned {out.dtype}, where {given.dtype} passes; convert it with .to(x.dtype)")
