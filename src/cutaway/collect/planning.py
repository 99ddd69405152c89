"""What a collection will cost, before it runs: operations, bytes, time at the measured rate, and what is there already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.collect import rows as packing
from cutaway.collect.collecting import Settled, settle
from cutaway.collect.corpus import Corpus
from cutaway.collect.cutting import Chunk
from cutaway.collect.folders import PLAN, place_of
from cutaway.collect.formats import packed
from cutaway.collect.options import Options
from cutaway.collect.shards import Receipt, finished
from cutaway.collect.worker import Reach, activations
from cutaway.executors import Executor, executor_of
from cutaway.model.transformer import Transformer
from cutaway.runs.bars import duration


@dataclass(frozen=True)
class CollectPlan:
    """The cost of a collection.

    Args:
        chunks, reused: how many there are, and how many of them are there already.
        documents, characters, tokens: of the corpus; tokens are estimated from the first chunk that is missing, as rows are.
        rows: of each site.
        operations: floating-point operations of what is missing.
        bytes: of all shards.
        memory: of a worker: weights, one chunk's activations, and one batch.
        seconds: of one worker, at the rate of that first chunk; 0 where nothing is missing.
        workers: how many compute at once; None where only the cluster knows.
    """

    chunks: int
    reused: int
    documents: int
    characters: int
    tokens: int
    rows: int
    operations: float
    bytes: int
    memory: int
    seconds: float
    workers: int | None

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return dict(self.__dict__)

    def summary(self) -> str:
        """In words."""
        lines = [
            f"{self.documents:,} documents of {self.characters:,} characters in {self.chunks} chunks, {self.reused} of which are "
            "there already",
            f"about {self.tokens:,} tokens, {self.rows:,} rows of each site, {self.bytes / 2**20:,.1f} MiB of shards",
            f"about {self.operations:.3g} operations, {self.memory / 2**20:,.0f} MiB of memory in each worker",
        ]
        if self.seconds:
            share = f"; {duration(self.seconds / self.workers)} with {self.workers}" if self.workers and self.workers > 1 else ""
            rate = self.operations / self.seconds / 1e9
            lines.append(f"about {duration(self.seconds)} with one worker, at the {rate:.0f} GFLOP/s of the first chunk{share}")
        return "\n".join(lines)


def plan(
    model: Transformer | str | Path, corpus: Corpus | str | Path, sites: Sequence[str | tuple[Any, ...]], out: Path | str,
    *, executor: str | Executor | None = None, **options: Any,
) -> CollectPlan:  # fmt: skip
    """Count what `collect` with the same arguments would do. Runs one chunk, and writes nothing."""
    known: dict[str, Any] = {
        "packing": "documents", "length": 128, "positions": "all", "tokens": (), "dtype": "float32", "compute": "float32",
        "prepend_bos": None, "chunk": 2**17, "batch": 2**11, "threads": 1, "stream": None, "weight_bits": None, "device": "cpu",
    }  # fmt: skip
    settled = settle(model, corpus, sites, **known | options)
    place, first = place_of(out), None
    started = place.exists(PLAN)
    kept: list[Receipt] = []
    documents, characters, missing, count = 0, 0, 0, 0
    for chunk in settled.chunks():
        found = finished(place, chunk.head) if started else None
        count, characters = count + 1, characters + chunk.characters
        documents += sum(one.part == 0 for one in chunk.pieces)
        if found is not None:
            kept.append(found)
            continue
        missing += chunk.characters
        first = first or chunk
    probe = _Probe() if first is None else _probe(settled, first)
    scale = 0.0 if first is None else missing / first.characters
    workers = executor_of(executor).workers
    return CollectPlan(
        count, len(kept), documents, characters, int(sum(one.tokens for one in kept) + probe.tokens * scale),
        int(sum(one.rows for one in kept) + probe.rows * scale), probe.operations * scale,
        int(sum(one.bytes for one in kept) + probe.bytes * scale), probe.memory, probe.seconds * scale, workers,
    )  # fmt: skip


@dataclass(frozen=True)
class _Probe:
    """What one chunk took."""

    tokens: int = 0
    rows: int = 0
    operations: float = 0.0
    bytes: int = 0
    memory: int = 0
    seconds: float = 0.0


def _probe(settled: Settled, chunk: Chunk) -> _Probe:
    model, options = settled.source.live, settled.options
    assert model is not None
    rows = packing.rows_of(chunk.pieces, model.tokenizer, options)
    places = packing.chosen(rows, options)
    reach = Reach.of(model, options.sites)
    started = time.perf_counter()
    with settled.source.computing():
        found = activations(model, rows, places, options, reach)
        tensors = {name: x for site in options.sites for name, x in packed(found[site], options.dtype, site).items()}
    seconds = time.perf_counter() - started
    tokens = sum(map(len, rows))
    weights = sum(one.numel() * one.element_size() for one in model.parameters() if one.device.type != "meta")
    activation_bytes = sum(one.numel() * one.element_size() for one in (*found.values(), *tensors.values()))
    stored = sum(one.numel() * one.element_size() for one in tensors.values())
    batch = sum(one[0].numel() * one.element_size() for one in found.values() if len(one)) * options.batch
    memory = weights + activation_bytes + batch
    return _Probe(tokens, sum(map(len, places)), tokens * per_token(model, reach.stop, options), stored, memory, seconds)


def per_token(model: Transformer, layers: int, options: Options) -> float:
    """Operations of one token through the first layers, 2 for each multiplication; attention at half a row's length."""
    cfg = model.cfg
    return float(sum(
        sum(cost for step in program.steps for cost in step.cost if step.writes[0] != "attn.hook_z")
        + 4 * cfg.n_heads * cfg.d_head * options.length / 2
        for program in map(model.program_of, range(layers))
    ))  # fmt: skip
