"""A GPU that is not there: tensors stay on the processor, and a mode remembers which of them a GPU would hold.

Under `PretendGPU`, `x.to("cuda")` is a copy that says it is on `cuda:0`; whatever is computed from it says so too; and an
operation that would meet tensors of both places stops with the error that it stops with on a GPU. So code that mixes
devices is found where there is no GPU. Numbers are the processor's, and what runs inside a backward pass is not watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

GPU = torch.device("cuda", 0)
JOINED = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "searchsorted", "bucketize", "isin", "equal", "embedding"}
"""Functions that take no number of the processor among tensors of a GPU."""
ASSIGNS = {"copy_", "set_", "__deepcopy__", "_has_compatible_shallow_copy_type"}


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors(value)


def wanted(device: Any) -> bool:
    """Whether a device is the GPU; a whole number names one."""
    return (isinstance(device, int) and not isinstance(device, bool)) or torch.device(device).type == "cuda"


class PretendGPU(TorchFunctionMode):
    """See above. Tensors that were made where nobody watched (untold) go with either place."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Any = WeakTensorKeyDictionary()

    def on(self, tensor: Tensor) -> bool | None:
        found: bool | None = self.held.get(tensor)
        return found

    def tell(self, values: Any, on: bool | None) -> Any:
        """Note where these tensors are, but for those that are known; give them back."""
        for tensor in tensors(values):
            if on is not None and tensor not in self.held:
                self.held[tensor] = on
        return values

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            return self._attribute(func, func.__self__.__name__, args)
        special: Callable[..., Any] | None = getattr(self, f"_{name.strip('_')}", None)
        if name in ("to", "cuda", "cpu", "numpy", "__array__", "__getitem__", "__setitem__", "grad") and special is not None:
            return special(func, *args, **kwargs)
        place = self._together(name, list(tensors(args)) + list(tensors(kwargs)))
        if kwargs.get("device") is not None:
            place, kwargs["device"] = wanted(kwargs["device"]), "cpu"
        elif place is None and not list(tensors(args)):
            place = False  # made from nothing, and no device named
        if kwargs.get("generator") is not None and place:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        return self.tell(func(*args, **kwargs), place)

    def _together(self, name: str, found: list[Tensor]) -> bool | None:
        """Where the result of these is.

        Raises:
            RuntimeError: they are in two places.
        """
        places = [(self.on(tensor), tensor.dim()) for tensor in found]
        there = any(on for on, _ in places)
        here = [dim for on, dim in places if on is False and (dim or name in JOINED)]
        if name in ASSIGNS:
            return places[0][0] if places else None
        if there and here:
            raise RuntimeError(f"Expected all tensors to be on the same device, and {name} has tensors on cuda:0 and cpu")
        return True if there else False if any(on is False for on, _ in places) else None

    def _attribute(self, func: Any, name: str, args: Any) -> Any:
        if name == "device":
            return GPU if self.on(args[0]) else func(*args)
        if name == "is_cuda":
            return bool(self.on(args[0]))
        if func.__name__ == "__set__":
            if name == "data":
                self.held[args[0]] = bool(self.on(args[1]))
            return func(*args)
        return self.tell(func(*args), self.on(args[0]))

    def _to(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = args[0] if args and not isinstance(args[0], torch.dtype) else kwargs.get("device", kwargs.get("other"))
        now = bool(self.on(tensor))
        place = now if given is None else bool(self.on(given)) if isinstance(given, Tensor) else wanted(given)
        if isinstance(given, Tensor):
            kwargs = {"dtype": given.dtype, **{name: value for name, value in kwargs.items() if name != "other"}}
            args = args[1:]
        elif args and given is not None:
            args = ("cpu", *args[1:])
        elif kwargs.get("device") is not None:
            kwargs["device"] = "cpu"
        if place != now:
            kwargs["copy"] = True
        moved: Tensor = func(tensor, *args, **kwargs)
        return self._moved(moved, place)

    def _moved(self, tensor: Tensor, place: bool) -> Tensor:
        self.held[tensor] = place
        return tensor

    def _cuda(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor if self.on(tensor) else self._moved(tensor.clone(), True)

    def _cpu(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._moved(tensor.clone(), False) if self.on(tensor) else tensor

    def _numpy(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.on(tensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")
        return func(tensor, *args, **kwargs)

    _array = _numpy

    def _index(self, tensor: Tensor, index: Any) -> list[Tensor]:
        """The tensors of an index, which may be on the processor whatever they index."""
        found = [one for one in tensors(index) if one.dim()]
        if self.on(tensor) is False and any(self.on(one) for one in found):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        return found

    def _getitem(self, func: Any, tensor: Tensor, index: Any) -> Any:
        self._index(tensor, index)
        return self.tell(func(tensor, index), self.on(tensor))

    def _setitem(self, func: Any, tensor: Tensor, index: Any, value: Any) -> Any:
        if self._index(tensor, index) and isinstance(value, Tensor) and value.dim():
            self._together("index_put_", [tensor, value])
        return func(tensor, index, value)

    def _grad(self, func: Any, outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found = func(outputs, inputs, *args, **kwargs)
        for gradient, of in zip(found, tensors(inputs), strict=True):
            self.tell(gradient, self.on(of))
        return found


def pretend(patch: pytest.MonkeyPatch) -> PretendGPU:
    """The mode, and Torch saying that there is one GPU with 1 GiB free."""
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**30, 2**30))
    patch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    patch.setattr(torch.cuda, "get_device_name", lambda device=None: "pretended")
    mode, made = PretendGPU(), nn.Parameter.__new__

    def parameter(kind: Any, data: Any = None, requires_grad: bool = True) -> Tensor:
        return mode.tell(made(kind, data, requires_grad), None if data is None else mode.on(data))

    patch.setattr(nn.Parameter, "__new__", parameter)
    return mode
