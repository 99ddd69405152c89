"""Interrupts at random moments: the next run gives the right numbers, no hook and no draft stays, no file is cut.

An interrupt is a `KeyboardInterrupt` out of a signal handler, as Ctrl-C raises it. A few moments of each kind of run in
`make test`, 500 in `make fuzz`. Native code of torch may turn an interrupt into another exception (`of_an_interrupt`); it is
an exception all the same, and the next run has to be right.
"""

from __future__ import annotations

import hashlib
import json
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
from cutaway.collect import collect
from cutaway.runs import edits
from cutaway.runs.sweep import heads, sweep
from cutaway.sources import files
from cutaway.tasks import FirstUniqueCharTask
from cutaway.tasks.training import STATE, read_state, train

MODEL = HookedTransformer.from_pretrained("first-unique-char", device="cpu").requires_grad_(False)
TOKENS = torch.randint(1, 10, (2, 5), generator=torch.Generator().manual_seed(0))
METRIC = metrics.loss(TOKENS)
NAME = "first-unique-char"
SITE = "blocks.0.attn.hook_z"
TASK = FirstUniqueCharTask(vocab=tuple("abc"), seq_len=6)


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
    vector.save(place / "vector.safetensors", replace=True)  # an interrupt may come when it is written already
    return SteeringVector.load(place / "vector.safetensors").values


def drawn(place: Path) -> Tensor:
    page = str(cutaway.head_scores(MODEL, TOKENS).figure().html())
    writing.write(place / "page.html", page)
    return torch.tensor(float(zlib.crc32((place / "page.html").read_bytes()) == zlib.crc32(page.encode())))


def trained(place: Path) -> Tensor:
    train(TASK, place / "model", epochs=2, steps=2, batch_size=8, lr=0.01, seed=5, device="cpu", resume=True)
    return torch.cat([one.flatten() for one in read_state(place / "model" / STATE)["model"].values()])


def collected(place: Path) -> Tensor:
    """The bytes of all files of the collection, drafts aside."""
    writing.write(place / "corpus.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in ["abc", "jaa", "eeebd"] * 8))
    collect(MODEL, place / "corpus.jsonl", ["resid_post0"], place / "set", chunk=64, length=16)
    kept = sorted(one for one in (place / "set").rglob("*") if one.is_file() and one not in drafts(place))
    return torch.tensor(list(hashlib.sha256(b"".join(one.read_bytes() for one in kept)).digest()))


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
    "training": trained,
    "collection": collected,
}  # fmt: skip


def moments(few: int, many: int) -> Any:
    """So many interrupts that came before the run's end."""
    return pytest.mark.parametrize("count", [pytest.param(few), pytest.param(many, marks=pytest.mark.fuzz)])


def drafts(folder: Path) -> list[Path]:
    return list(folder.rglob(".cutaway-*.partial"))


def of_an_interrupt(error: Exception) -> bool:
    """Whether an exception came of an interrupt: raised while one was handled, or known to replace it.

    `torch.asarray(storage)`, by which safetensors reads, clears an interrupt that comes while it tries the buffer protocol,
    and then says that a storage has no shape; of the interrupt it keeps no trace.
    """
    context: BaseException | None = error
    while context is not None:
        cleared = isinstance(context, ValueError) and "determine the shape of object type 'torch.storage" in str(context)
        if cleared or isinstance(context, KeyboardInterrupt):
            return True
        context = context.__cause__ or context.__context__
    return False


@contextmanager
def interrupting() -> Iterator[list[int]]:
    """Alarms interrupt; gives the list of those that came."""
    came: list[int] = []

    def stop(number: int, frame: Any) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        yield came
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt inside a finalizer
@moments(3, 500)
@pytest.mark.parametrize("kind", RUNS)
def test_after_an_interrupt_the_next_run_gives_the_right_numbers(kind: str, count: int, tmp_path: Path) -> None:
    run, draw = RUNS[kind], random.Random(kind)
    (tmp_path / "warm").mkdir()
    (tmp_path / "clean").mkdir()
    run(tmp_path / "warm")
    started = time.perf_counter()
    expected = run(tmp_path / "clean")
    lasts = time.perf_counter() - started
    with interrupting() as came:
        for number in range(10 * count):  # a moment may fall after the run's end
            if len(came) == count:
                break
            place, before = tmp_path / f"{number}", len(came)
            place.mkdir()
            try:
                signal.setitimer(signal.ITIMER_REAL, max(2e-5, draw.uniform(0, 1) * lasts))
                run(place)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
            except Exception as error:  # noqa: BLE001 — any type, as long as it came of the interrupt
                assert len(came) > before and of_an_interrupt(error), repr(error)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert not MODEL.list_hooks() and MODEL.context_level == 0, f"{kind}, moment {number}"
            assert torch.equal(run(place), expected), f"{kind}, moment {number}"
            for folder in {draft.parent for draft in drafts(tmp_path)}:
                writing.write(folder / "next", "x")
            assert not drafts(tmp_path)
    assert len(came) == count, "hardly any interrupt came in time"
