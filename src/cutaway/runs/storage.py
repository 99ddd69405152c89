"""Where a clean run's activations are kept: in memory, in a temporary file, or computed again when they are read.

A part of the file is mapped each time somebody asks for it, so that memory holds those of the layer at work and no others.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import shutil
import tempfile
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import NotWritten

MEMORY, DISK, RECOMPUTE = "memory", "disk", "recompute"
WORDS = {
    MEMORY: "in memory",
    DISK: "in a temporary file",
    RECOMPUTE: "as the stream before each layer; queries, keys and values are computed again for each pass",
}


@dataclass(frozen=True)
class Keeping:
    """Where what a clean run keeps goes, how many bytes it has, and how many of them memory holds at once."""

    how: str
    bytes: int
    held: int

    def __str__(self) -> str:
        return f"a clean run keeps {self.bytes / 2**20:.0f} MiB {WORDS[self.how]}"


def where_kept(cfg: HookedTransformerConfig, tokens: int, sites: int, running: int, memory: int | None, device: Any) -> Keeping:
    """Where the activations of so many tokens are kept.

    Args:
        sites: how many sites are kept beside the stream and what attention reads, each counted as wide as the stream.
        running: bytes that running cells take.
        memory: bytes that both may take; None: what is free.
    """
    token = tokens * cfg.torch_dtype.itemsize
    layer = (cfg.n_heads + 2 * (cfg.n_heads if cfg.ungroup_grouped_query_attention else cfg.kv_heads)) * cfg.d_head * token
    streams, stores = (cfg.n_layers + 1) * cfg.d_model * token, sites * cfg.d_model * token
    whole = streams + stores + cfg.n_layers * layer
    room = (free_memory(device) if memory is None else memory) - running
    if whole <= room:
        return Keeping(MEMORY, whole, whole)
    if torch.device(device).type == "cpu" and 2 * whole <= shutil.disk_usage(tempfile.gettempdir()).free:
        return Keeping(DISK, whole, 2 * cfg.d_model * token + layer)
    return Keeping(RECOMPUTE, streams + stores, streams + stores + layer)


def free_memory(device: Any) -> float:
    """Bytes that a device has free; infinite where nobody says."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE) if meminfo.exists() else None
    return math.inf if found is None else 1024.0 * int(found[1])


class OnDisk(UserDict[Any, Any]):
    """Tensors, or tuples of them, in a temporary file without a name, which goes with the process, however that ends.

    What is read is a private mapping.

    Raises:
        NotWritten: the folder of temporary files has no room, or takes none.
    """

    def __init__(self) -> None:
        super().__init__()
        with _named():
            self.file = tempfile.TemporaryFile()  # noqa: SIM115 (open for as long as this is there)
        weakref.finalize(self, self.file.close)
        self.end = 0

    def __setitem__(self, key: Any, value: Any) -> None:
        several = isinstance(value, tuple)
        with _named():
            self.data[key] = several, [self._written(x) for x in (value if several else (value,))]

    def _written(self, x: Tensor) -> tuple[int, torch.Size, torch.dtype]:
        at = -(-self.end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY  # where a mapping can begin
        self.file.seek(at)
        self.file.write(x.contiguous().flatten().view(torch.uint8).numpy().data)
        self.file.flush()
        self.end = at + x.numel() * x.element_size()
        return at, x.shape, x.dtype

    def __getitem__(self, key: Any) -> Any:
        several, parts = self.data[key]
        read = [self._mapped(*part) for part in parts]
        return tuple(read) if several else read[0]

    def _mapped(self, at: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if not shape.numel():
            return torch.empty(shape, dtype=dtype)
        mapped = mmap.mmap(self.file.fileno(), shape.numel() * dtype.itemsize, access=mmap.ACCESS_COPY, offset=at)
        return torch.frombuffer(mapped, dtype=dtype).view(shape)


@contextmanager
def _named() -> Iterator[None]:
    """Say of a disk's error where and what to try."""
    try:
        yield
    except OSError as error:
        raise NotWritten(
            f"activations of a sweep do not fit into {os.environ.get('TMPDIR', tempfile.tempdir or 'the temporary folder')} "
            f"({error.strerror or error}); give another folder (TMPDIR), more memory=, or fewer examples"
        ) from error


class Recomputed(dict[int, tuple[Tensor, ...]]):
    """What attention reads of each layer, computed when it is read; that of the last layer asked for stays."""

    def __init__(self, compute: Callable[[int], tuple[Tensor, ...]]):
        super().__init__()
        self.compute = compute

    def __missing__(self, layer: int) -> tuple[Tensor, ...]:
        self.clear()  # before the next one is computed
        self[layer] = self.compute(layer)
        return self[layer]
