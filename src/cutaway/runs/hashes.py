"""Hashes of values, tensors and networks: what records, vectors and kept results are told apart by."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cutaway.model.streaming import StreamedBlocks
from cutaway.model.transformer import Transformer
from cutaway.weights.canonical import without_buffers

PIECE = 2**20  # numbers that are copied at once


def digest(parts: Iterable[Any]) -> str:
    """A short hash of JSON values and tensors."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            found.update(str((tuple(part.shape), part.dtype)).encode())
            for piece in _pieces(part.detach()):
                found.update(piece.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            found.update(json.dumps(part, sort_keys=True, default=str).encode())
    return found.hexdigest()


def _pieces(x: Tensor) -> Iterable[Tensor]:
    """`x` in parts along its first axis, so that no copy of a whole large tensor is made to put its numbers in order."""
    if x.is_contiguous() or x.numel() <= PIECE:
        return [x]
    return x.split(max(1, PIECE * len(x) // x.numel()))


def model_hash(model: Transformer) -> str:
    """A hash of a network's weights and architecture, the same wherever it was loaded from: what records and vectors keep."""
    skipped = ("device", "model_name", "seed", "n_devices", "init_weights", "tokenizer_name", "original_architecture")
    cfg = {name: str(value) for name, value in model.cfg.to_dict().items() if name not in skipped}
    weights = without_buffers(model.state_dict())
    return digest(itertools.chain([cfg], *(_named(model, name, tensor) for name, tensor in weights.items())))


def _named(model: Transformer, name: str, tensor: Tensor) -> Iterator[Any]:
    """A weight with its name; of a streamed block it is read when its turn comes."""
    yield name
    yield model.blocks.weight(name) if tensor.is_meta and isinstance(model.blocks, StreamedBlocks) else tensor
