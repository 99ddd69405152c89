"""Layers that are read from their file when they run, for models larger than memory.

As many layers as fit stay; of the others one at a time has weights, and the rest stand on the meta device, where using them fails
loudly. Which stay is fixed: a pass goes over the layers in order, and then the one that was used last is the last to come again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cutaway.errors import ConfigError


class StreamedBlocks(nn.ModuleList):
    """The blocks of a network; asking for one reads its weights.

    Args:
        blocks: without memory, on the meta device.
        read: gives a parameter by the full name of the network's, in the precision and memory order that it computes in; writes
            it into its second argument, a tensor of another layer that is no longer needed, where there is one.
        room: bytes that weights of blocks may take.

    Raises:
        ConfigError: not even the largest block fits.
    """

    def __init__(self, blocks: nn.ModuleList, read: Callable[[str, Tensor | None], Tensor], room: int):
        super().__init__(blocks._modules.values())
        self.read = read
        self.sizes = [sum(one.numel() * one.element_size() for one in block.parameters()) for block in self.children()]
        largest = max(self.sizes, default=0)
        if room < largest:
            raise ConfigError(f"stream: weights of blocks may take {max(room, 0):,} bytes, and the largest block has {largest:,}")
        self.staying: set[int] = set()
        for layer, size in enumerate(self.sizes):
            if sum(self.sizes) > room and sum(self.sizes[one] for one in self.staying) + size + largest > room:
                break
            self.staying.add(layer)
        self.empty = dict(self.named_parameters())
        self.loaded: set[int] = set()
        self.peak = 0
        self.reads = 0

    @property
    def bytes_loaded(self) -> int:
        """Bytes of the weights that are in memory now."""
        return sum(self.sizes[layer] for layer in self.loaded)

    def weight(self, name: str) -> Tensor:
        """A parameter by the full name of the network's, read where it is not in memory."""
        layer, _, rest = name.removeprefix("blocks.").partition(".")
        module, _, last = rest.rpartition(".")
        if int(layer) in self.loaded:
            loaded: Tensor = getattr(self._of(int(layer)).get_submodule(module), last)
            return loaded
        return self.read(name, None)

    @contextmanager
    def reading(self, read: Callable[[str, Tensor | None], Tensor]) -> Iterator[None]:
        """For a while, weights that come from elsewhere; none that is in memory now is used."""
        before = self.read
        self.forget()
        self.read = read
        try:
            yield
        finally:
            self.forget()
            self.read = before

    def forget(self) -> None:
        """Let go of all weights that are in memory; they are read again when their block is asked for."""
        for layer in list(self.loaded):
            self._set(layer, self.empty.__getitem__)
        self.loaded.clear()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Span(self, range(len(self))[index])
        layer = range(len(self))[index]
        self._load(layer)
        return self._of(layer)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(_Span(self, range(len(self))))

    def _of(self, layer: int) -> nn.Module:
        return self.get_submodule(str(layer))

    def _load(self, layer: int) -> None:
        if layer in self.loaded:
            return
        spare: dict[str, Tensor] = {}  # memory is written over rather than freed, which an allocator does not give back
        for other in self.loaded - self.staying:
            names = [name for name in self.empty if name.startswith(f"{other}.")]
            spare = {name.partition(".")[2]: self.get_parameter(name).detach() for name in names}
            self._set(other, self.empty.__getitem__)
            self.loaded.remove(other)

        def read(name: str) -> nn.Parameter:
            room = spare.get(name.partition(".")[2])
            room = room if room is not None and room.shape == self.empty[name].shape else None
            return nn.Parameter(self.read(f"blocks.{name}", room), requires_grad=False)

        self._set(layer, read)
        self.loaded.add(layer)
        self.reads += 1
        self.peak = max(self.peak, self.bytes_loaded)

    def _set(self, layer: int, value: Callable[[str], nn.Parameter]) -> None:
        for name in [name for name in self.empty if name.startswith(f"{layer}.")]:
            path, _, last = name.partition(".")[2].rpartition(".")
            setattr(self._of(layer).get_submodule(path), last, value(name))


class _Span:
    """Some neighbouring blocks, each read when its turn comes."""

    def __init__(self, blocks: StreamedBlocks, layers: range):
        self.blocks, self.layers = blocks, layers

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[nn.Module]:
        return (self.blocks[layer] for layer in self.layers)
