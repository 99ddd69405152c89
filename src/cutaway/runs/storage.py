"""Where a clean run's activations are kept: in memory, in files of a temporary folder, or computed again when they are read.

A file is mapped each time somebody asks for it, so that memory holds those of the layer at work and no others.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import weakref
from collections import UserDict
from collections.abc import Callable
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
    DISK: "in a temporary folder",
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
    """Tensors, or tuples of them in files of a temporary folder, which goes when this does; what is read is a private mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="cutaway-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.count = 0

    def __setitem__(self, key: Any, value: Any) -> None:
        several = isinstance(value, tuple)
        self.data[key] = several, [self._written(x) for x in (value if several else (value,))]

    def _written(self, x: Tensor) -> tuple[Path, torch.Size, torch.dtype]:
        path = self.folder / str(self.count)
        self.count += 1
        try:
            with path.open("wb") as out:
                x.contiguous().flatten().view(torch.uint8).numpy().tofile(out)
        except OSError as error:
            raise NotWritten(
                f"activations of a sweep do not fit into {self.folder} ({error.strerror}); give another folder (TMPDIR), "
                "more memory=, or fewer examples"
            ) from error
        return path, x.shape, x.dtype

    def __getitem__(self, key: Any) -> Any:
        several, parts = self.data[key]
        read = [torch.from_file(str(path), shared=False, size=shape.numel(), dtype=dtype).view(shape) if shape.numel()
                else torch.empty(shape, dtype=dtype) for path, shape, dtype in parts]  # fmt: skip
        return tuple(read) if several else read[0]


class Recomputed(dict[int, tuple[Tensor, ...]]):
    """What attention reads of each layer, computed when it is read; that of the last layer asked for stays."""

    def __init__(self, compute: Callable[[int], tuple[Tensor, ...]]):
        super().__init__()
        self.compute = compute

    def __missing__(self, layer: int) -> tuple[Tensor, ...]:
        self.clear()  # before the next one is computed
        self[layer] = self.compute(layer)
        return self[layer]
