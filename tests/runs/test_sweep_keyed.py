"""Sweeps with a folder of results: the same bytes by any executor, again, wider, and after an interruption."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from cutaway import Prompts, ablate, across, edits, grids, loading, metrics, plan, sweep
from cutaway.analysis.patching import patch
from cutaway.errors import CheckpointError, ConfigError, NotWritten, WorkerFailed
from cutaway.executors import Executor, Processes
from cutaway.model.transformer import Transformer
from cutaway.runs.sweep.engine import BatchRun
from cutaway.runs.sweep.planning import Plan

TEXTS = ["the house of a sailor stood", "at the end of the long road", "and nobody had lived in it"]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return loading.from_pretrained(Transformer, "attn-only-2l")


@pytest.fixture(scope="module")
def tokens(model: Transformer) -> torch.Tensor:
    return torch.cat([model.tokens_and_mask(text, None, None)[0][:, :6] for text in TEXTS])


def heads(model: Transformer, count: int = 16) -> list[edits.Edit]:
    return [edits.Edit(("z", n % 2), edits.zero(), heads=n // 2) for n in range(count)]


def tree(folder: Path, inside: str = "values") -> dict[str, str]:
    return {one.name: hashlib.md5(one.read_bytes()).hexdigest() for one in (folder / inside).iterdir()}


def run(
    model: Transformer, tokens: torch.Tensor, folder: Path, count: int = 16, executor: str | Executor | None = None
) -> torch.Tensor:
    found = sweep(model, tokens, heads(model, count), metrics.loss(tokens), results=folder, executor=executor, memory=200_000)
    assert found.audit.cells and found.audit.difference < 1e-4
    return found.values.data


@pytest.fixture(scope="module")
def whole(model: Transformer, tokens: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    folder = tmp_path_factory.mktemp("results")
    return folder, run(model, tokens, folder)


def test_values_are_those_of_a_plain_sweep(model: Transformer, tokens: torch.Tensor, whole: tuple[Path, torch.Tensor]) -> None:
    plain = sweep(model, tokens, heads(model), metrics.loss(tokens), memory=200_000)
    torch.testing.assert_close(whole[1], plain.values.data, atol=1e-5, rtol=1e-5)
    assert len(tree(whole[0])) > 3 and not (whole[0] / "asked").exists() and not (whole[0] / ".weights").exists()


def test_two_processes_write_the_same_bytes(
    model: Transformer, tokens: torch.Tensor, whole: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    values = run(model, tokens, tmp_path, executor=Processes(2))
    assert torch.equal(values, whole[1]) and tree(tmp_path) == tree(whole[0])
    assert not (tmp_path / "asked").exists() and not (tmp_path / ".weights").exists()


def test_again_and_wider_computes_what_is_new(
    model: Transformer, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    real = BatchRun.values

    def values(self: BatchRun, chunk: int) -> torch.Tensor:
        found = real(self, chunk)
        ran.append(len(found) if chunk >= 0 else 0)
        return found

    monkeypatch.setattr(BatchRun, "values", values)
    first = run(model, tokens, tmp_path, 10)
    batches = ran.count(0)
    assert sum(ran) == 10 * batches
    ran.clear()
    assert torch.equal(run(model, tokens, tmp_path, 10), first) and not ran
    wider = run(model, tokens, tmp_path, 16)
    assert sum(ran) == 6 * batches and torch.equal(wider[:10], first)
    ran.clear()
    sweep(model, tokens, heads(model), metrics.loss(tokens + 0), results=tmp_path, memory=200_000)
    assert not ran  # the same by value, though other tensors
    sweep(model, tokens, heads(model), metrics.loss(tokens.roll(1, 0)), results=tmp_path, memory=200_000)
    assert sum(ran) == 16 * batches  # another metric


def test_a_plan_says_what_is_there_and_writes_nothing(model: Transformer, tokens: torch.Tensor, tmp_path: Path) -> None:
    def planned(count: int, folder: Path | None) -> Plan:
        metric = metrics.loss(tokens)
        return plan(model, tokens, heads(model, count), metric, memory=200_000, results=folder, measure=False)

    run(model, tokens, tmp_path, 10)
    before = {path.name for path in tmp_path.rglob("*")}
    nothing, some, all_there = planned(16, None), planned(16, tmp_path), planned(10, tmp_path)
    assert (nothing.reused, some.reused, all_there.reused) == (0, 10, 10)
    assert all_there.operations < some.operations < nothing.operations
    assert "10 of them are there already and only read" in some.summary() and "there already" not in nothing.summary()
    assert {path.name for path in tmp_path.rglob("*")} == before


def test_an_interrupted_sweep_follows_its_plan_to_the_same_bytes(
    model: Transformer, tokens: torch.Tensor, whole: tuple[Path, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = BatchRun.values, [3]

    def values(self: BatchRun, chunk: int) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, chunk)

    monkeypatch.setattr(BatchRun, "values", values)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokens, tmp_path)
    monkeypatch.undo()
    kept = tree(tmp_path)
    assert len(kept) == 3
    damaged = next((tmp_path / "values").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-4])
    assert torch.equal(run(model, tokens, tmp_path), whole[1]) and tree(tmp_path) == tree(whole[0])


def test_patching_goes_to_workers(model: Transformer, tmp_path: Path) -> None:
    pair = "the house of a sailor", "the end of a long"
    ids = [model.tokens_and_mask(text, None, None)[0] for text in pair]
    length = min(one.shape[1] for one in ids)
    one, other = (x[:, :length] for x in ids)
    metric = metrics.logit_difference([5], [9])
    mine = patch(model, one, other, metric, kinds=["z"])
    theirs = patch(model, one, other, metric, kinds=["z"], results=tmp_path, executor="local")
    torch.testing.assert_close(mine.values.data, theirs.values.data, atol=1e-4, rtol=1e-4)


def test_what_has_no_key_is_refused(model: Transformer, tokens: torch.Tensor, tmp_path: Path) -> None:
    changed = edits.Edit(("z", 0), edits.function(lambda x: x * 2))
    with pytest.raises(CheckpointError, match="an edit of this sweep is a function"):
        sweep(model, tokens, changed, metrics.loss(tokens), results=tmp_path)
    with pytest.raises(CheckpointError, match="metric is a function"):
        sweep(model, tokens, heads(model), lambda logits: logits.mean((1, 2)), results=tmp_path)
    with pytest.raises(ConfigError, match="needs results="):
        sweep(model, tokens, heads(model), metrics.loss(tokens), executor="processes:2")
    with pytest.raises(ConfigError, match="method='exact'"):
        sweep(model, tokens, heads(model), metrics.loss(tokens), results=tmp_path, method="gradient")


def test_chunks_that_fail_and_a_folder_that_vanishes_stop_the_sweep(
    model: Transformer, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def values(self: BatchRun, chunk: int) -> torch.Tensor:
        raise RuntimeError("no")

    monkeypatch.setattr(BatchRun, "values", values)
    with pytest.raises(WorkerFailed, match="failed three times"):
        run(model, tokens, tmp_path)
    monkeypatch.setattr("cutaway.runs.kept_sweeps.workers.Keyed.keep", _vanishing(tmp_path))
    monkeypatch.setattr(BatchRun, "values", lambda self, chunk: torch.zeros(1))
    with pytest.raises(NotWritten, match="has vanished"):
        run(model, tokens, tmp_path)


def _vanishing(folder: Path):  # type: ignore[no-untyped-def]
    import shutil

    from cutaway.runs.kept_sweeps.by_key import Keyed

    real = Keyed.keep

    def keep(self: Keyed, batch: int, chunk: int, x: torch.Tensor) -> None:
        shutil.rmtree(folder / "plans")
        real(self, batch, chunk, x)

    return keep


@pytest.mark.parametrize("kept_by", ["resume", "results", "across"])
def test_a_folder_that_vanishes_is_not_made_anew(model: Transformer, tokens: torch.Tensor, tmp_path: Path, kept_by: str) -> None:
    folder = tmp_path / "out"

    def remove(done: float, total: float) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    with pytest.raises(NotWritten, match="has vanished"):
        if kept_by == "across":
            prompts = [Prompts.of_texts(model, [text]) for text in ("the king", "a queen")]
            across(ablate, model, prompts, results=folder, kinds=["zero"], progress=remove)
        else:
            where = {kept_by: folder}
            sweep(model, tokens, heads(model), metrics.loss(tokens), memory=200_000, progress=remove, **where)
    assert not folder.exists()


def test_grids_have_keys_too(model: Transformer, tokens: torch.Tensor, tmp_path: Path) -> None:
    grid = grids.heads(edits.zero())
    found = sweep(model, tokens, grid, metrics.loss(tokens), results=tmp_path)
    again = sweep(model, tokens, grid, metrics.loss(tokens), results=tmp_path)
    assert torch.equal(found.values.data, again.values.data) and found.values.axes == again.values.axes
