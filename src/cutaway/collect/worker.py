"""What a worker does with a chunk: texts to rows, rows through the model as far as the deepest site, rows to a shard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.collect import rows as packing
from cutaway.collect.cutting import Chunk
from cutaway.collect.folders import Place, place_of
from cutaway.collect.formats import packed
from cutaway.collect.options import Options
from cutaway.collect.shards import Receipt, known_shard, write_part, write_shard
from cutaway.model.hook_points import KeepActivation
from cutaway.model.sites import table
from cutaway.model.transformer import Transformer
from cutaway.runs.model_source import ModelSource

INPUT = "hook_resid_pre"


@dataclass(frozen=True)
class CollectJob:
    """A collection, as workers are told of it."""

    source: ModelSource
    options: Options
    out: str

    def start(self) -> Callable[[Chunk], Receipt]:
        """Load the model; see `Job`."""
        return _Worker(self.source, self.source.open(), self.options, place_of(self.out)).receipt


@dataclass(frozen=True, eq=False)
class _Worker:
    source: ModelSource
    model: Transformer
    options: Options
    place: Place
    reach: Reach = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reach", Reach.of(self.model, self.options.sites))

    def receipt(self, chunk: Chunk) -> Receipt:
        rows = packing.rows_of(chunk.pieces, self.model.tokenizer, self.options)
        places = packing.chosen(rows, self.options)
        digest, size = known_shard(self.place, chunk.key) or self._written(chunk.key, rows, places)
        columns = {
            "piece": _joined([row.piece[at] for row, at in zip(rows, places, strict=True)]),
            "position": _joined(places),
            "token": _joined([row.tokens[at] for row, at in zip(rows, places, strict=True)]),
        }
        ran = sum(map(len, rows))
        receipt = Receipt(chunk.number, chunk.key, chunk.head.first, digest, size, len(columns["token"]), ran)
        write_part(self.place, chunk, receipt, self.options.sites, columns)
        return receipt

    def _written(self, key: str, rows: list[packing.Row], places: list[np.ndarray]) -> tuple[str, int]:
        with self.source.computing():
            found = activations(self.model, rows, places, self.options, self.reach)
        tensors: dict[str, Tensor] = {}
        for site in self.options.sites:
            tensors |= packed(found.pop(site), self.options.dtype, site)
        return write_shard(self.place, key, tensors)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)


@dataclass(frozen=True)
class Reach:
    """How far the network has to run.

    Args:
        stop: the layer before which it stops.
        input: the site that is the stream there, which no block has to give.
        final: whether the final norm runs, too.
    """

    stop: int
    input: str | None
    final: bool

    @classmethod
    def of(cls, model: Transformer, sites: tuple[str, ...]) -> Reach:
        """What these sites need."""
        layers = [int(name.split(".")[1]) for name in sites if name.startswith("blocks.")]
        final = any(name.startswith("ln_final") for name in sites)
        stop = model.cfg.n_layers if final else max(layers, default=-1) + 1
        deepest = [name for name in sites if name.startswith(f"blocks.{stop - 1}.")]
        if not final and deepest == [f"blocks.{stop - 1}.{INPUT}"]:
            return cls(stop - 1, deepest[0], False)
        return cls(stop, None, final)


def activations(
    model: Transformer, rows: list[packing.Row], places: list[np.ndarray], options: Options, reach: Reach
) -> dict[str, Tensor]:
    """The activations of each site at the chosen positions of all rows, one row after the other, `[row, …]`."""
    starts = np.concatenate([[0], np.cumsum([len(one) for one in places])])
    pad = getattr(model.tokenizer, "pad_token_id", None) or 0
    out: dict[str, Tensor] = {}
    for numbers in packing.batches(rows, options.batch):
        at = np.concatenate([np.full(len(places[number]), line) for line, number in enumerate(numbers)])
        positions = np.concatenate([places[number] for number in numbers])
        where = np.concatenate([np.arange(starts[number], starts[number + 1]) for number in numbers])
        if not len(where):
            continue
        kept = _run(model, [rows[number] for number in numbers], pad, options.sites, reach)
        for site in options.sites:
            x = kept.pop(site)[torch.from_numpy(at), torch.from_numpy(positions)]
            if site not in out:
                out[site] = torch.empty((int(starts[-1]), *x.shape[1:]), dtype=x.dtype)
            out[site][torch.from_numpy(where)] = x.cpu()
    return out or {site: _nothing(model, site) for site in options.sites}


def _run(model: Transformer, rows: list[packing.Row], pad: int, sites: tuple[str, ...], reach: Reach) -> dict[str, Tensor]:
    found, real = packing.padded(rows, pad)
    tokens = torch.from_numpy(found).to(model.device)
    mask = torch.from_numpy(real).long().to(tokens.device)
    store: dict[str, Tensor] = {}
    keep = KeepActivation(store, copies=False)
    with model.hooks([(site, keep) for site in sites if site != reach.input]):
        model.runs += 1
        seen_by_all = model.cfg.attention_dir == "bidirectional" and not bool(mask.all())
        stream = model.prepare(tokens, mask if seen_by_all else None)  # causal attention never sees padding on the right
        resid, stream = model.embed_tokens(tokens, stream)
        resid = model.run_blocks(resid, stream, 0, reach.stop)
        if reach.final:
            model.ln_final(resid)
    return store if reach.input is None else store | {reach.input: resid}


def _nothing(model: Transformer, site: str) -> Tensor:
    """No row of a site: of a chunk in which nothing was chosen."""
    cfg = model.cfg
    sizes = {"head": cfg.n_heads, "kv": cfg.kv_heads, "d_head": cfg.d_head, "d_model": cfg.d_model, "d_mlp": cfg.d_mlp or 0,
             "expert": cfg.num_experts or 0, "chosen": cfg.experts_per_token or 0, "1": 1}  # fmt: skip
    words: tuple[Any, ...] = table(cfg)[site][2:]
    return torch.zeros(0, *(sizes.get(word, cfg.n_heads * cfg.d_head) for word in words))
