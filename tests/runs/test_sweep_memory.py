"""Sweeps with little memory: a clean run kept elsewhere has the same bits, an allocator that gives up costs smaller chunks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway import HookedTransformerConfig, edits, metrics, plan, sweep
from cutaway.errors import NotWritten, OutOfMemory
from cutaway.model.transformer import Transformer
from cutaway.runs import storage
from cutaway.runs.sweep import engine
from cutaway.runs.sweep.clean import run_clean

TOKENS = torch.randint(0, 20, (4, 24), generator=torch.Generator().manual_seed(1))


def network(**changed: Any) -> Transformer:
    options: dict[str, Any] = {"normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 8}
    return Transformer(HookedTransformerConfig(
        n_layers=4, d_model=32, n_ctx=64, d_head=8, n_heads=4, d_vocab=20, seed=0, act_fn="gelu", **options | changed,
    ))  # fmt: skip


MODELS = {
    "rotary": dict[str, Any](),
    "grouped": {"n_key_value_heads": 2, "gated_mlp": True},
    "learned": {"positional_embedding_type": "standard", "normalization_type": "LN"},
    "bfloat16": {"dtype": "bfloat16"},
}


def cells(model: Transformer, shared: int = 0) -> list[edits.Edit]:
    _, other = model.run_with_cache(TOKENS.flip(1))
    change = edits.patch(other)
    found = [change.at(("resid_pre", layer), positions=at) for layer in range(4) for at in (shared, 23)]
    found += [change.at((site, layer), heads=1) for layer in range(4) for site in ("z", "q")]
    return [*found, change.at(("v", 1), positions=7), change.at(("pattern", 2), heads=0), edits.zero().at(("mlp_out", 1))]


@pytest.mark.parametrize("how", [storage.DISK, storage.RECOMPUTE])
@pytest.mark.parametrize("name", MODELS)
def test_a_clean_run_that_is_kept_elsewhere_has_the_same_bits(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(**MODELS[name])
    metric = metrics.loss(TOKENS)
    wanted = sweep(model, TOKENS, cells(model), metric)
    asked: list[str] = []

    def elsewhere(*given: Any, keep: str, **rest: Any) -> Any:
        asked.append(keep)
        return run_clean(*given, keep=how, **rest)

    monkeypatch.setattr(engine, "run_clean", lambda *given, keep=how, **rest: elsewhere(*given, keep=keep, **rest))
    found = sweep(model, TOKENS, cells(model), metric)
    assert torch.equal(found.values.data, wanted.values.data) and torch.equal(found.clean.data, wanted.clean.data)
    assert storage.MEMORY in asked


@pytest.mark.parametrize("how", [storage.DISK, storage.RECOMPUTE])
def test_a_shared_beginning_goes_elsewhere_too(how: str) -> None:
    model = network()
    tokens = torch.cat([TOKENS[:1].expand(4, -1), TOKENS], 1)
    sites = ["blocks.1.attn.hook_z"]
    here, there = (run_clean(model, tokens, sites, share=True, keep=keep) for keep in (storage.MEMORY, how))
    assert len(here.resid) == len(there.resid) == 5
    for layer in range(4):
        assert torch.equal(here.resid[layer], there.resid[layer])
        for one, other in zip(here.read[layer], there.read[layer], strict=True):
            torch.testing.assert_close(one, other)
    assert torch.equal(here.last, there.last) and torch.equal(here.store[sites[0]], there.store[sites[0]])


def test_the_plan_says_where_a_clean_run_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    some, metric = cells(model), metrics.loss(TOKENS)
    counted = plan(model, TOKENS, some, metric, measure=False)
    assert counted.keeping.how == storage.MEMORY and "in memory" in counted.summary()
    kept = run_clean(model, TOKENS, [])
    whole = sum(x.nbytes for x in kept.resid.values()) + sum(x.nbytes for layer in range(4) for x in kept.read[layer])
    plain = plan(model, TOKENS, some[:8], metric, measure=False).keeping
    assert plain.bytes == plain.held == whole
    least = 300_000
    counted = plan(model, TOKENS, some, metric, measure=False, memory=least)
    assert counted.keeping.how == storage.DISK and counted.keeping.held < counted.keeping.bytes / 3
    assert "temporary file" in counted.summary() and counted.to_json()["keeping"]["how"] == "disk"
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    again = plan(model, TOKENS, some, metric, measure=False, memory=least)
    assert again.keeping.how == storage.RECOMPUTE and again.operations > counted.operations


@pytest.mark.parametrize("executor", [None, "processes:1"])
def test_a_sweep_in_little_memory_uses_the_disk_and_no_name_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str | None
) -> None:
    """So nothing is left behind, however a process ends: workers run no code when they do."""
    model, metric, where = network(), metrics.loss(TOKENS), tmp_path / "temporary"
    where.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(where))
    monkeypatch.setenv("TMPDIR", str(where))
    written: list[int] = []
    plain = storage.OnDisk._written

    def watched(*given: Any) -> Any:
        written.append(len([*where.iterdir()]))
        return plain(*given)

    monkeypatch.setattr(storage.OnDisk, "_written", watched)
    told = {} if executor is None else {"results": tmp_path / "results", "executor": executor}
    found = sweep(model, TOKENS, cells(model), metric, memory=300_000, **told)
    assert (len(written) > 10 or executor) and not any(written) and not [*where.glob("cutaway-*")]
    assert found.audit.difference < 1e-5


def test_a_disk_that_is_full_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, at: int) -> None: ...

        def write(self, data: Any) -> None:
            raise OSError(28, "No space left on device")

    store = storage.OnDisk()
    monkeypatch.setattr(store, "file", Full())
    with pytest.raises(NotWritten, match="No space left"):
        store["x"] = torch.ones(3)


KEPT = [torch.arange(7.0), torch.ones(2, 0, 3), torch.randn(3, 5).bfloat16(), torch.tensor(2), torch.randn(4, 6).T]


@pytest.mark.parametrize("x", KEPT)
def test_what_the_disk_keeps_comes_back_and_writing_into_it_changes_nothing(x: torch.Tensor) -> None:
    store = storage.OnDisk()
    store["one"], store["both"] = x, (x, x + 1)
    store["one"].zero_()
    assert torch.equal(store["one"], x) and torch.equal(store["both"][1], x + 1) and store["one"].dtype == x.dtype


ERRORS = {
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "python": MemoryError(),
}


def gives_up(monkeypatch: pytest.MonkeyPatch, error: BaseException, most: Callable[[], int]) -> list[int]:
    """An allocator that has room for so many cells at once; what ran."""
    ran: list[int] = []
    plain = engine.run_chunk

    def limited(model: Any, clean: Any, rules: Any, some: Any, between: Any) -> Any:
        if len(some) > most():
            raise error
        ran.append(len(some))
        return plain(model, clean, rules, some, between)

    monkeypatch.setattr(engine, "run_chunk", limited)
    return ran


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_where_memory_runs_out_halves_of_a_chunk_run(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    model, metric = network(), metrics.loss(TOKENS)
    some = cells(model)
    wanted = sweep(model, TOKENS, some, metric)
    ran = gives_up(monkeypatch, error, lambda: 3)
    found = sweep(model, TOKENS, some, metric)
    assert max(ran) <= 3 and sum(ran) == len(some)
    torch.testing.assert_close(found.values.data, wanted.values.data)
    assert "memory ran out in 1 chunk of cells" in found.summary() and "memory ran out" not in wanted.summary()


def test_what_was_finished_is_kept_where_memory_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, metric = network(), metrics.loss(TOKENS)
    some = cells(model)
    wanted = sweep(model, TOKENS, some, metric, memory=300_000)
    left = iter([100, 100, *[0] * 99])
    ran = gives_up(monkeypatch, ERRORS["device"], lambda: next(left))
    with pytest.raises(OutOfMemory, match="ran on 4 examples of 24 tokens"):
        sweep(model, TOKENS, some, metric, memory=300_000, resume=tmp_path)
    assert len(ran) == 2 and len([*tmp_path.glob("values-*")]) == 2
    monkeypatch.undo()
    passes = []
    monkeypatch.setattr(engine, "run_chunk", lambda *given, plain=engine.run_chunk: passes.append(given) or plain(*given))
    found = sweep(model, TOKENS, some, metric, memory=300_000, resume=tmp_path)
    assert torch.equal(found.values.data, wanted.values.data)
    counted = plan(model, TOKENS, some, metric, measure=False, memory=300_000)
    assert len(passes) == counted.chunks - 2


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    gives_up(monkeypatch, RuntimeError("the size of tensor a must match"), lambda: 0)
    with pytest.raises(RuntimeError, match="must match") as raised:
        sweep(model, TOKENS, cells(model), metrics.loss(TOKENS))
    assert not isinstance(raised.value, OutOfMemory)
