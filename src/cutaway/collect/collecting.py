"""The public call: what is asked is written down, chunks that are not there are computed, and a card says what came of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cutaway import reading
from cutaway.collect.corpus import Corpus, arrows
from cutaway.collect.cutting import Chunk, cut
from cutaway.collect.folders import CARD, PLAN, Folder, Place, place_of
from cutaway.collect.options import Options, sites_for
from cutaway.collect.shards import INDEX, TEXTS, Receipt, finished, part_name, texts_of
from cutaway.collect.worker import CollectJob
from cutaway.config import HookedTransformerConfig
from cutaway.errors import CollectionError, ConfigError, ContextTooLong
from cutaway.executors import Executor, SetAside, executor_of
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options, size
from cutaway.prompts import word_token
from cutaway.runs.hashes import digest
from cutaway.runs.model_source import ModelSource
from cutaway.tokens import to_saved

FORMAT = 1
READ = "corpus read with"
WEIGHTS = ".weights"  # where a model that is only in memory is written for other processes

Progress = Callable[[float, float], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Collected:
    """What a call of `collect` did.

    Args:
        out: where the collection is.
        chunks, reused: how many there are, and how many were there already.
        rows: of each site.
        tokens: that ran, those of reused chunks included.
        bytes: of all shards.
        skipped: broken lines of the corpus, left out.
        set_aside: chunks that failed three times, and are not there.
        rounding: how far the model is from full precision, where its weights are kept in 8 bits.
        digest: over all shards, in order: equal for equal collections.
    """

    out: str
    chunks: int
    reused: int
    rows: int
    tokens: int
    bytes: int
    skipped: tuple[str, ...]
    set_aside: tuple[SetAside, ...]
    digest: str
    rounding: str = ""

    def summary(self) -> str:
        """In words."""
        lines = [
            f"{self.rows:,} rows of {self.tokens:,} tokens in {self.chunks} shards ({self.bytes / 2**20:.1f} MiB), "
            f"{self.reused} of which were there already; digest {self.digest}"
        ]
        if self.rounding:
            lines.append(self.rounding)
        if self.skipped:
            lines.append(f"{len(self.skipped)} broken lines left out; the first: {self.skipped[0]}")
        lines += [f"set aside after three tries: {one}" for one in self.set_aside]
        return "\n".join([*lines, self.out])

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return self.__dict__ | {"set_aside": [one.__dict__ for one in self.set_aside], "skipped": list(self.skipped)}


@dataclass(frozen=True, eq=False)
class Settled:
    """A collection, settled: what is read, by which model, what is stored, and the mark of all that."""

    source: ModelSource
    corpus: Corpus
    options: Options
    mark: str
    plan: dict[str, Any]

    def chunks(self) -> Iterator[Chunk]:
        """The corpus in chunks."""
        return cut(self.corpus, self.mark, self.options.chunk)


@options(length=1, chunk=16, batch=1, threads=1, stream=1, weight_bits=8)
def collect(
    model: Transformer | str | Path,
    corpus: Corpus | str | Path,
    sites: Sequence[str | tuple[Any, ...]],
    out: Path | str,
    *,
    packing: str = "documents",
    length: int = 128,
    positions: str = "all",
    tokens: Sequence[int | str] = (),
    dtype: str = "float32",
    compute: str = "float32",
    prepend_bos: bool | None = None,
    chunk: int = 2**17,
    batch: int = 2**11,
    executor: str | Executor | None = None,
    threads: int = 1,
    stream: int | str | None = None,
    weight_bits: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    say: Say | None = None,
) -> Collected:
    """Store the activations of a corpus as a data set; where part of it is there already, the rest.

    Shards depend on the texts, the model and these options alone, not on the executor, so that an interrupted collection
    goes on with the same call, by any executor. Weights are taken as published; give a model to take them otherwise.

    Args:
        model: a network, or a name or path as `from_pretrained` takes it.
        corpus: a file of text, JSON lines or parquet, a folder of them or one of `datasets`; a `Corpus` says more.
        sites: full or short names: "blocks.5.hook_resid_post", "resid_post5", ("resid_post", 5).
        out: a folder, or an address of `fsspec`, that all workers see.
        packing: "documents" (each in rows of its own) or "packed" (joined by EOS, rows full).
        length: tokens of a row at most.
        positions: "all", "last" (the last of each document), or "tokens" (where one of `tokens` stands).
        dtype: how activations are stored: float32, bfloat16, float16, or int8 with a scale for each row.
        compute: the precision of the network, where it is loaded by name.
        prepend_bos: whether rows begin with a BOS token; by default as the model has it.
        chunk, batch: characters of a chunk, and tokens that run together, at most.
        executor: "local", "processes:N", "ray", "ray:ADDRESS", "ranks", or one of `cutaway.executors`.
        threads: of each worker.
        stream: bytes of weights in memory at most, or a text such as "2 GiB"; layers beyond them are read when they run.
        weight_bits: 8: keep the weights of a model by name in 8 bits; `rounding` of what comes back says what that changes.
        device: where to compute, or a plan of `accelerate` (`auto`, `balanced`, …) that places layers over all devices.
        progress: called with (bytes of text done now, all bytes that were not done before, as far as they are known).
        say: called once with a sentence, before the first chunk is computed, where some were finished before.

    Raises:
        CollectionError: the corpus cannot be read, or `out` holds another collection.
        UnknownSite, ShapeError: a site is not there, or has no row for each position.
        NotWritten: the folder or the disk does not take it; what is finished is kept.
        WorkerRefused: a worker has other versions or another model.
    """
    settled = settle(
        model, corpus, sites, packing=packing, length=length, positions=positions, tokens=tokens, dtype=dtype, compute=compute,
        prepend_bos=prepend_bos, chunk=chunk, batch=batch, threads=threads, stream=stream, weight_bits=weight_bits, device=device,
    )  # fmt: skip
    return run(settled, place_of(out), executor_of(executor), progress, say)


def settle(
    model: Transformer | str | Path, corpus: Corpus | str | Path, sites: Sequence[str | tuple[Any, ...]], *, packing: str,
    length: int, positions: str, tokens: Sequence[int | str], dtype: str, compute: str, prepend_bos: bool | None, chunk: int,
    batch: int, threads: int, stream: int | str | None, weight_bits: int | None, device: str,
) -> Settled:  # fmt: skip
    """Check what is asked, before a weight is read; see `collect`."""
    arrows()
    stream = None if stream is None else size(stream, "stream")
    corpus = corpus if isinstance(corpus, Corpus) else Corpus(Path(corpus))
    given = (("weight_bits", weight_bits),) if weight_bits else ()
    if weight_bits and isinstance(model, Transformer) and not model.provenance.get("weight_bits"):
        raise ConfigError(
            "weight_bits= is for a model by name; load this one with from_pretrained_no_processing(…, weight_bits=8)"
        )
    wanted: list[Options] = []

    def look(cfg: HookedTransformerConfig, tokenizer: Any) -> None:
        if tokenizer is None:
            raise ConfigError("this model has no tokenizer, and a corpus is text; give one with model.set_tokenizer")
        if length > cfg.n_ctx:
            raise ContextTooLong(f"length={length}, and the model has {cfg.n_ctx} positions")
        bos = cfg.default_prepend_bos if prepend_bos is None else prepend_bos
        ids = tuple(sorted({one if isinstance(one, int) else word_token(tokenizer, one) for one in tokens}))
        wanted.append(Options(sites_for(cfg, sites), packing, length, positions, ids, dtype, bos, chunk, batch))

    source = ModelSource.of(model, dtype=compute, device=device, threads=threads, stream=stream, options=given, look=look)
    network, options = source.live, wanted[0]
    assert network is not None
    rounding = str(network.provenance.get("weight_bits", ""))
    plan = {
        "format": FORMAT,
        "model": {"name": str(source.name or network.cfg.model_name), "hash": source.hash, "dtype": source.dtype}
        | ({"rounding": rounding} if rounding else {}),
        "tokenizer": digest([to_saved(network.tokenizer)]),
        "options": options.to_json(),
        "threads": threads,
        "device": str(network.cfg.device).partition(":")[0],
        "versions": dict(source.versions),
    }
    decides = {name: value for name, value in plan.items() if name != "model"} | {"model": source.hash}
    plan[READ] = corpus.reading  # decides nothing by itself: the texts do
    return Settled(source, corpus, options, digest([decides]), plan)


def run(
    settled: Settled, place: Place, executor: Executor, progress: Progress | None = None, say: Say | None = None
) -> Collected:
    """Compute the chunks that are not there."""
    _begin(settled, place)
    with _travelling(settled.source, place, executor) as source:
        settled = replace(settled, source=source)  # where workers load the model, this process lets go of it
        return _run(settled, CollectJob(source, settled.options, str(place)), place, executor, progress, say)


def _run(
    settled: Settled, job: CollectJob, place: Place, executor: Executor, progress: Progress | None, say: Say | None
) -> Collected:
    receipts: dict[int, Receipt] = {}
    reused, total, passed = 0, float(settled.corpus.size), 0.0
    count = before = 0

    def missing() -> Iterator[Chunk]:
        nonlocal reused, count, before
        for chunk in settled.chunks():
            count += 1
            kept = finished(place, chunk.head)
            if kept is None:
                if say is not None and reused and count == reused + 1:
                    say(f"{reused} chunks of {before:,} characters finished before; the rest is left")
                yield chunk
            else:
                reused += 1
                before += chunk.characters
                receipts[kept.number] = kept

    def done(chunk: Any, receipt: Receipt) -> None:
        nonlocal passed
        receipts[receipt.number] = receipt
        passed += getattr(chunk, "characters", 0)
        if progress is not None:
            progress(passed, max(passed, total - before))

    aside = executor.run(job, missing(), done)
    if not count:
        broken = f", and {len(settled.corpus.broken)} broken lines" if settled.corpus.broken else ""
        raise CollectionError(f"there is no text in {settled.corpus.path}{broken}")
    found = _collected(settled, place, [receipts[number] for number in sorted(receipts)], reused, aside)
    if executor.leader:
        _finish(settled, place, found, receipts, count)
    return found


def _collected(settled: Settled, place: Place, receipts: list[Receipt], reused: int, aside: list[SetAside]) -> Collected:
    return Collected(
        str(place), len(receipts), reused, sum(one.rows for one in receipts), sum(one.tokens for one in receipts),
        sum(one.bytes for one in receipts), tuple(settled.corpus.broken), tuple(sorted(aside, key=lambda one: one.number)),
        digest([[one.digest, one.rows] for one in receipts]), settled.plan["model"].get("rounding", ""),
    )  # fmt: skip


def _begin(settled: Settled, place: Place) -> None:
    """Write down what is asked, or check that the folder is of the same collection.

    Raises:
        CollectionError: it is of another.
    """
    place.begin()
    if not place.exists(PLAN):
        if not (isinstance(place, Folder) and place.holds_files()):
            place.write(PLAN, json.dumps(settled.plan, indent=1))
            return
        if not place.exists(PLAN):  # another rank may have begun in between
            raise CollectionError(f"{place} holds files and no collection; give an empty or a new folder")
    kept = reading.decode(place.read(PLAN), dict[str, Any], f"{place}/{PLAN}")
    for name, wanted in json.loads(json.dumps(settled.plan)).items():
        if name == READ:
            continue
        if name == "model":
            wanted, found = wanted["hash"], (kept.get(name) or {}).get("hash")
        else:
            found = kept.get(name)
        if found != wanted:
            was, now = _first_difference(found, wanted)
            raise CollectionError(f"{place} holds a collection with other {name} ({was} there, {now} here); give another folder")
    _check_corpus(settled.corpus, place, kept.get(READ) or {})


def _check_corpus(corpus: Corpus, place: Place, read: Mapping[str, Any]) -> None:
    """A corpus that grew, or lost some, goes on; the index of one that shares nothing with it would be written over.

    Args:
        read: what the corpus of the collection was read with.

    Raises:
        CollectionError: none of the documents of the first and the last chunk that are there is in this corpus, or lines of text
            files were documents there and are none here.
    """
    now = corpus.reading
    other = {name: f"{name}={read[name]!r} there, {now[name]!r} here" for name in now if read.get(name, now[name]) != now[name]}
    how = f" ({'; '.join(other.values())})" if other else ""
    if "lines" in other:
        raise CollectionError(f"{place} holds a collection whose corpus was read otherwise{how}; give another folder")
    names = [name for name in place.names(TEXTS) if name.endswith(".parquet")]  # no drafts
    known = {text for name in {*names[:1], *names[-1:]} for text in texts_of(place, f"{TEXTS}/{name}")}
    if known and not any(document.text.startswith(tuple(known)) for document in corpus):
        raise CollectionError(f"{place} holds a collection of another corpus{how}; give another folder")


def _first_difference(found: Any, wanted: Any) -> tuple[str, str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        name = next(name for name in [*wanted, *found] if found.get(name) != wanted.get(name))
        return f"{name}={found.get(name)}", str(wanted.get(name))
    return str(found), str(wanted)


@contextmanager
def _travelling(source: ModelSource, place: Place, executor: Executor) -> Iterator[ModelSource]:
    """The model as workers find it. One that is only in memory is written beside the shards, and removed at the end."""
    if not executor.travels:
        yield source
    elif source.name:
        yield source.travelling(Path())
    elif not isinstance(place, Folder):
        raise ConfigError(f"workers cannot load a model that is only in memory from {place}; save it, and give its file")
    else:
        try:
            yield source.travelling(place.path / WEIGHTS)
        finally:
            shutil.rmtree(place.path / WEIGHTS, ignore_errors=True)


def _finish(settled: Settled, place: Place, found: Collected, receipts: dict[int, Receipt], count: int) -> None:
    """Remove parts of a longer corpus, and write the card."""
    for inside in (INDEX, TEXTS):
        for name in place.names(inside):
            if name > part_name(inside, count - 1).rpartition("/")[2]:
                place.remove(f"{inside}/{name}")
    card = settled.plan | {
        "shards": [[one.number, one.key, one.digest, one.bytes, one.rows, one.first] for _, one in sorted(receipts.items())],
        "rows": found.rows, "tokens": found.tokens, "bytes": found.bytes, "skipped": list(found.skipped),
        "set_aside": [one.__dict__ for one in found.set_aside], "digest": found.digest,
    }  # fmt: skip
    place.write(CARD, json.dumps(card, indent=1))
