"""Layers that are read from their file when they run, for models larger than memory.

As many layers as fit stay; of the others one at a time has weights, and the rest stand on the meta device, where using them fails
loudly. Which stay is fixed: a pass goes over the layers in order, and then the one that was used last is the last to come again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from cutaway.errors import ConfigError


class StreamedBlocks(nn.ModuleList):
    """The blocks of a network; asking for one reads its weights.

    Args:
        blocks: without memory, on the meta device.
        read: gives a parameter by the full name of the network's, in the precision and memory order that it computes in.
        room: bytes that weights of blocks may take.

    Raises:
        ConfigError: not even the largest block fits.
    """

    def __init__(self, blocks: nn.ModuleList, read: Callable[[str], Tensor], room: int):
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
    def held(self) -> int:
        """Bytes of the weights that are in memory now."""
        return sum(self.sizes[layer] for layer in self.loaded)

    def weight(self, name: str) -> Tensor:
        """A parameter by the full name of the network's, read where it is not in memory."""
        layer, _, rest = name.removeprefix("blocks.").partition(".")
        module, _, last = rest.rpartition(".")
        if int(layer) in self.loaded:
            held: Tensor = getattr(self._of(int(layer)).get_submodule(module), last)
            return held
        return self.read(name)

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
        for other in self.loaded - self.staying:
            self._set(other, self.empty.__getitem__)
            self.loaded.remove(other)
        self._set(layer, lambda name: nn.Parameter(self.read(f"blocks.{name}"), requires_grad=False))
        self.loaded.add(layer)
        self.reads += 1
        self.peak = max(self.peak, self.held)

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
