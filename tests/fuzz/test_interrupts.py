"""Interrupts at random moments: the next run gives the right numbers, no hook and no draft stays, no file is cut.

An interrupt is a `KeyboardInterrupt` out of a signal handler, as Ctrl-C raises it. A few moments of each kind of run in
`make test`, 500 in `make fuzz`.
"""

from __future__ import annotations

import random
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cutaway
from cutaway import HookedTransformer, metrics, records, writing
from cutaway.analysis.steering import SteeringVector
from cutaway.runs import edits
from cutaway.runs.sweep import heads, sweep
from cutaway.sources import files

MODEL = HookedTransformer.from_pretrained("first-unique-char", device="cpu").requires_grad_(False)
TOKENS = torch.randint(1, 10, (2, 5), generator=torch.Generator().manual_seed(0))
METRIC = metrics.loss(TOKENS)
NAME = "first-unique-char"
SITE = "blocks.0.attn.hook_z"


def scoped(place: Path) -> Tensor:
    with MODEL.hooks([(SITE, lambda x, hook: x * 0.5)]):
        return MODEL(TOKENS)


def saved(place: Path) -> Tensor:
    files.save(place / "model.safetensors", MODEL.state_dict(), MODEL.cfg, tokenizer=MODEL.tokenizer, processed=True)
    return HookedTransformer.from_pretrained(str(place / "model.safetensors"), device="cpu")(TOKENS)


def recorded(place: Path) -> Tensor:
    """A record is there whole, or can be written."""
    folder = place / "record"
    if not (folder / records.RECORD).exists():
        records.write(folder, swept(), NAME)
    return records.read_record(folder).values


def swept(**options: Any) -> Any:
    return sweep(MODEL, TOKENS, heads(), METRIC, audit=0, **options)


def vector_kept(place: Path) -> Tensor:
    vector = cutaway.contrast_vectors(MODEL, ["abc", "abd"], ["eee", "jja"], [1])[1]
    vector.save(place / "vector.safetensors")
    return SteeringVector.load(place / "vector.safetensors").values


def drawn(place: Path) -> Tensor:
    page = str(cutaway.head_scores(MODEL, TOKENS).figure().html())
    writing.write(place / "page.html", page)
    return torch.tensor(float(zlib.crc32((place / "page.html").read_bytes()) == zlib.crc32(page.encode())))


RUNS: dict[str, Callable[[Path], Tensor]] = {
    "plain": lambda place: MODEL(TOKENS),
    "loss": lambda place: MODEL(TOKENS, return_type="loss"),
    "hooks": lambda place: MODEL.run_with_hooks(TOKENS, fwd_hooks=[(SITE, lambda x, hook: x * 0)]),
    "scope": scoped,
    "cache": lambda place: MODEL.run_with_cache(TOKENS)[1]["resid_post", 1],
    "edits": lambda place: cutaway.run(MODEL, TOKENS, edits=[edits.zero().at(("z", 0))], metric=METRIC).value,
    "generation": lambda place: MODEL.generate(TOKENS, 3, do_sample=False, stop_at_eos=False, verbose=False),
    "sweep": lambda place: swept().values.data,
    "sweep, resumed": lambda place: swept(resume=place / "chunks").values.data,
    "sweep, results kept": lambda place: swept(results=place / "results").values.data,
    "edge attribution": lambda place: cutaway.edge_attribution(
        MODEL, TOKENS, TOKENS.flip(1), metrics.logit_difference([1], [2]), steps=2
    ).values.data.nan_to_num(),
    "record": recorded,
    "model file": saved,
    "vector": vector_kept,
    "page": drawn,
}  # fmt: skip


def moments(few: int, many: int) -> Any:
    return pytest.mark.parametrize("count", [pytest.param(few), pytest.param(many, marks=pytest.mark.fuzz)])


def drafts(folder: Path) -> list[Path]:
    return list(folder.rglob(".cutaway-*.partial"))


@contextmanager
def interrupting() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt inside a finalizer
@moments(8, 500)
@pytest.mark.parametrize("kind", RUNS)
def test_after_an_interrupt_the_next_run_gives_the_right_numbers(kind: str, count: int, tmp_path: Path) -> None:
    run, draw = RUNS[kind], random.Random(kind)
    (tmp_path / "warm").mkdir()
    (tmp_path / "clean").mkdir()
    run(tmp_path / "warm")
    started = time.perf_counter()
    expected = run(tmp_path / "clean")
    lasts = time.perf_counter() - started
    stopped = 0
    with interrupting():
        for number in range(count):
            place = tmp_path / f"{number}"
            place.mkdir()
            try:
                signal.setitimer(signal.ITIMER_REAL, max(2e-5, draw.uniform(0, 1.1) * lasts))
                run(place)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                stopped += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert not MODEL.list_hooks() and MODEL.context_level == 0, f"{kind}, moment {number}"
            assert torch.equal(run(place), expected), f"{kind}, moment {number}"
            for folder in {draft.parent for draft in drafts(tmp_path)}:
                writing.write(folder / "next", "x")
            assert not drafts(tmp_path)
    assert stopped > count // 8, "hardly any interrupt came in time"
