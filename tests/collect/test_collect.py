"""Collections: what is stored is what the model computes, whatever was there before; what is wrong is refused in a sentence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch

from cutaway import loading, writing
from cutaway.collect import Collection, collect
from cutaway.collect.corpus import Corpus, Document
from cutaway.collect.cutting import cut
from cutaway.collect.folders import Folder
from cutaway.collect.planning import plan
from cutaway.errors import (
    CollectionError,
    ConfigError,
    ContextTooLong,
    NotReadable,
    NotWritten,
    ShapeError,
    UnknownSite,
    WorkerRefused,
)
from cutaway.executors import Ranks
from cutaway.model.transformer import Transformer
from cutaway.runs.model_source import ModelSource

WORDS = [
    "the",
    "house",
    "of",
    "a",
    "sailor",
    "stood",
    "at",
    "the",
    "end",
    "of",
    "the",
    "long",
    "road",
    "and",
    "nobody",
    "had",
    "lived",
    "in",
    "it",
    "for",
    "years",
]
TEXTS = [" ".join(WORDS[(7 * n + k) % len(WORDS)] for k in range(3 + 5 * n % 40)) + "." for n in range(40)]
SITES = ["resid_post0", "z1"]
FULL = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]
SMALL = {"chunk": 2**10, "length": 48}


@pytest.fixture(scope="module")
def model() -> Transformer:
    return loading.from_pretrained(Transformer, "attn-only-2l")


def lines_file(folder: Path, texts: Sequence[str] = TEXTS, name: str = "corpus.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, str]:
    files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
    return {one.relative_to(folder).as_posix(): hashlib.md5(one.read_bytes()).hexdigest() for one in files}


@pytest.fixture(scope="module")
def whole(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus and its collection, finished in one go."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = lines_file(folder)
    done = collect(model, corpus, SITES, folder / "out", **SMALL)
    assert done.chunks > 4 and not done.set_aside
    return corpus, folder / "out"


# ------------------------------------------------------------------------------------------------ what is stored


def test_rows_are_what_the_model_computes_for_each_document_alone(model: Transformer, whole: tuple[Path, Path]) -> None:
    found = Collection(whole[1])
    everything = found.batch("z1", range(len(found)))
    resid = found.rows("resid_post0", range(len(found)))
    for document in (0, 7, 23, 39):
        mine = everything.document == document
        tokens = model.tokens_and_mask(TEXTS[document], None, None)[0]
        windows = [tokens[0, :48], *(torch.cat([tokens[0, :1], one]) for one in tokens[0, 48:].split(47) if len(one))]
        assert everything.token[mine].tolist() == torch.cat(windows).tolist()
        assert everything.position[mine].tolist() == [n for one in windows for n in range(len(one))]
        caches = [model.run_with_cache(one[None])[1] for one in windows]
        for site, stored in ((FULL[1], everything.values), (FULL[0], resid)):
            wanted = torch.cat([one[site][0] for one in caches])
            torch.testing.assert_close(stored[mine], wanted, atol=1e-5, rtol=1e-5)
        assert found.text(document) == TEXTS[document]


def test_packed_rows_are_full_and_hold_the_documents_one_after_the_other(model: Transformer, tmp_path: Path) -> None:
    corpus = lines_file(tmp_path)
    collect(model, corpus, ["resid_pre1"], tmp_path / "out", packing="packed", length=32, chunk=2**20)
    found = Collection(tmp_path / "out")
    batch = found.batch("resid_pre1", range(len(found)))
    bos, eos = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    stream = [token for text in TEXTS for token in [*model.tokens_and_mask(text, False, None)[0][0].tolist(), eos]]
    rows = [[bos, *stream[start : start + 31]] for start in range(0, len(stream), 31)]
    assert batch.token.tolist() == [token for row in rows for token in row]
    assert batch.position.tolist() == [n for row in rows for n in range(len(row))]
    cache = model.run_with_cache(torch.tensor(rows[2])[None])[1]
    torch.testing.assert_close(batch.values[64:96], cache["blocks.1.hook_resid_pre"][0], atol=1e-5, rtol=1e-5)
    ends = [int(batch.document[n]) for n in range(len(found)) if int(batch.token[n]) == eos and int(batch.position[n])]
    assert ends == list(range(len(TEXTS)))


def test_chosen_positions_are_rows_of_the_whole(model: Transformer, whole: tuple[Path, Path], tmp_path: Path) -> None:
    everything = Collection(whole[1]).batch("z1", range(len(Collection(whole[1]))))
    collect(model, whole[0], SITES, tmp_path / "last", positions="last", **SMALL)
    last = Collection(tmp_path / "last")
    batch = last.batch("z1", range(len(last)))
    assert batch.document.tolist() == list(range(len(TEXTS)))
    where = [int((everything.document == n).nonzero()[-1]) for n in range(len(TEXTS))]
    assert torch.equal(batch.values, everything.values[where]) and torch.equal(batch.token, everything.token[where])
    token = int(everything.token[5])
    collect(model, whole[0], SITES, tmp_path / "token", positions="tokens", tokens=[token], **SMALL)
    chosen = Collection(tmp_path / "token")
    assert torch.equal(chosen.batch("z1", range(len(chosen))).values, everything.values[everything.token == token])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_stored_formats_round_once(model: Transformer, whole: tuple[Path, Path], tmp_path: Path, dtype: str) -> None:
    exact = Collection(whole[1]).rows("z1", range(100))
    collect(model, whole[0], SITES, tmp_path, dtype=dtype, **SMALL)
    stored = Collection(tmp_path).rows("z1", range(100))
    if dtype != "int8":
        assert torch.equal(stored, exact.to(getattr(torch, dtype)))
        return
    steps = exact.flatten(1).abs().amax(1) / 127
    assert bool(((stored - exact).flatten(1).abs().amax(1) <= steps * 0.5001).all())


def test_a_number_too_large_for_the_format_is_refused(model: Transformer, tmp_path: Path) -> None:
    large = loading.from_pretrained(Transformer, "attn-only-2l")
    with torch.no_grad():
        large.embed.W_E.mul_(1e6)
    with pytest.raises(ConfigError, match="float16 ends below"):
        collect(large, lines_file(tmp_path), ["resid_post0"], tmp_path / "out", dtype="float16", **SMALL)


# ----------------------------------------------------------------------------------------------------- corpora


def test_every_kind_of_corpus_gives_the_same_documents(tmp_path: Path) -> None:
    wanted = [*TEXTS[:9]]
    table = pyarrow.table({"id": list(range(9)), "text": wanted})
    (tmp_path / "plain.txt").write_text("\n".join(wanted) + "\n\n", encoding="utf-8")
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    saved = tmp_path / "saved"
    saved.mkdir()
    for name, part in (("data-0.arrow", table.slice(0, 5)), ("data-1.arrow", table.slice(5))):
        with pyarrow.OSFile(str(saved / name), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(part)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]}))
    many = tmp_path / "many"
    many.mkdir()
    for number, text in enumerate(wanted):
        (many / f"{number}.txt").write_text(text, encoding="utf-8")
    lines_file(tmp_path, wanted)
    kinds = [Corpus(tmp_path / "plain.txt", lines=True), Corpus(tmp_path / "t.parquet"), Corpus(saved), Corpus(many),
             Corpus(tmp_path / "corpus.jsonl")]  # fmt: skip
    for corpus in kinds:
        assert [(one.number, one.text) for one in corpus] == list(enumerate(wanted)), corpus.path
    assert next(iter(kinds[1])).source == "t.parquet:1"


BROKEN = {
    b'{"text": "x"': "line 2", b'{"txt": "x"}': "no field 'text'; there is txt", b'{"text": 3}': "no text in 'text'",
    b'{"text": "\xff"}': "not JSON", b'{"text": "\\ud800"}': "not UTF-8 text", b"[" * 100_000: "nested",
}  # fmt: skip


@pytest.mark.parametrize("line", BROKEN, ids=BROKEN.values())
def test_broken_lines_stop_with_their_place_or_are_counted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n')
    said = "c.jsonl:2" if BROKEN[line] == "line 2" else BROKEN[line]
    with pytest.raises(CollectionError, match=said):
        list(Corpus(path))
    lenient = Corpus(path, skip_broken=True)
    assert [one.text for one in lenient] == ["one", "two"]
    assert len(lenient.broken) == 1 and lenient.broken[0].startswith("c.jsonl:2: ")


def test_a_corpus_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "other.parquet")
    for path, said in (("absent", "there is no corpus"), ("empty", "no file in"), ("cut.parquet", "damaged"),
                       ("other.parquet", "no column 'text'; there are body")):  # fmt: skip
        with pytest.raises(CollectionError, match=said):
            list(Corpus(tmp_path / path))


# ----------------------------------------------------------------------------------------------------- cutting


def test_pieces_are_the_documents_and_chunks_are_within_bounds() -> None:
    texts = [*TEXTS, "a word " * 500, "x" * 3000, "end"]
    documents = [Document(number, str(number), text) for number, text in enumerate(texts)]
    chunks = list(cut(documents, "mark", 700))
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    assert ["".join(one.text for one in pieces if one.document == number) for number in range(len(texts))] == texts
    assert all(chunk.characters <= 700 for chunk in chunks) and [one.number for one in chunks] == list(range(len(chunks)))
    assert [one.ends for one in pieces if one.document == 40] == [False] * 5 + [True]
    assert all(one.text[0] == " " for one in pieces if one.document == 40 and one.part)


def test_a_new_document_changes_the_chunks_near_it_only() -> None:
    texts = [f"{number} {text}" for number, text in enumerate(TEXTS * 20)]
    before = [chunk.key for chunk in cut(map(Document, range(9999), texts, texts), "mark", 2000)]
    for place in (0, 311, len(texts)):
        changed = [*texts[:place], "something new", *texts[place:]]
        after = [chunk.key for chunk in cut(map(Document, range(9999), changed, changed), "mark", 2000)]
        assert len(set(before) - set(after)) <= 6 < len(before) / 8
    assert not set(before) & {chunk.key for chunk in cut(map(Document, range(9999), texts, texts), "other", 2000)}


# --------------------------------------------------------------------------------------- again, and interrupted


def test_what_is_missing_or_damaged_is_computed_again_to_the_same_bytes(
    model: Transformer, whole: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[1], out)
    wanted = tree(out)
    shards, parts = sorted((out / "shards").iterdir()), sorted((out / "index").iterdir())
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-10])
    parts[2].unlink()
    parts[3].write_bytes(b"PAR1")
    (out / "card.json").unlink()
    with pytest.raises(CollectionError, match="is not finished"):
        Collection(out)
    done = collect(model, whole[0], SITES, out, **SMALL)
    assert done.chunks - 4 <= done.reused < done.chunks
    assert tree(out) == wanted
    assert collect(model, whole[0], SITES, out, **SMALL).reused == done.chunks


class Stop(BaseException):
    """Nothing catches it."""


def test_an_interrupted_collection_goes_on_to_the_same_bytes(
    model: Transformer, whole: tuple[Path, Path], tmp_path: Path
) -> None:
    def stop(done: float, total: float) -> None:
        raise Stop

    for _ in range(3):
        with pytest.raises(Stop):
            collect(model, whole[0], SITES, tmp_path / "out", progress=stop, **SMALL)
        if (tmp_path / "out" / "card.json").exists():
            break
    assert collect(model, whole[0], SITES, tmp_path / "out", **SMALL).reused == 3  # one more each time
    assert tree(tmp_path / "out") == tree(whole[1])


def test_a_longer_corpus_computes_what_is_new(model: Transformer, whole: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[1], out)
    longer = lines_file(tmp_path, [*TEXTS, "and one more line"], "longer.jsonl")
    done = collect(model, longer, SITES, out, **SMALL)
    assert done.reused >= done.chunks - 2
    fresh = collect(model, longer, SITES, tmp_path / "fresh", **SMALL)
    assert fresh.digest == done.digest and fresh.reused == 0
    again = collect(model, whole[0], SITES, out, **SMALL)
    assert again.digest == Collection(whole[1]).card["digest"]
    assert sorted(one.name for one in (out / "index").iterdir()) == sorted(one.name for one in (whole[1] / "index").iterdir())


def test_ranks_may_begin_at_the_same_moment(
    model: Transformer, whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank's draft of the plan is no file of somebody else's, nor is what it does before this one looks again."""
    begun, late = tmp_path / "begun", tmp_path / "late"
    begun.mkdir()
    (begun / ".cutaway-0123456789ab.partial").write_text("{")
    collect(model, whole[0], SITES, begun, **SMALL)

    def other_rank(folder: Folder) -> bool:
        shutil.copytree(whole[1], late, dirs_exist_ok=True)
        return True

    monkeypatch.setattr(Folder, "holds_files", other_rank)
    assert collect(model, whole[0], SITES, late, **SMALL).reused > 0
    assert tree(begun) == tree(late) == tree(whole[1])


def test_a_folder_of_something_else_is_refused(model: Transformer, whole: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match=r"holds a collection with other options \(length=48 there, 32 here\)"):
        collect(model, whole[0], SITES, whole[1], chunk=2**10, length=32)
    other = loading.from_pretrained(Transformer, "attn-only-2l")
    with torch.no_grad():
        other.embed.W_E.add_(0.1)
    with pytest.raises(CollectionError, match="other model"):
        collect(other, whole[0], SITES, whole[1], **SMALL)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(CollectionError, match="holds files and no collection"):
        collect(model, whole[0], SITES, tmp_path, **SMALL)
    with pytest.raises(CollectionError, match="holds no collection"):
        Collection(tmp_path)


def test_a_corpus_that_is_read_otherwise_is_told_from_another(model: Transformer, tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("a long line\nand a short one\n")
    collect(model, path, SITES, tmp_path / "whole", **SMALL)
    collect(model, Corpus(path, lines=True), SITES, tmp_path / "lines", **SMALL)
    for there, here, lines in (("lines", path, "lines=True there, False here"),
                               ("whole", Corpus(path, lines=True), "lines=False there, True here")):  # fmt: skip
        with pytest.raises(CollectionError, match=rf"read otherwise \({lines}\); give another folder"):
            collect(model, here, SITES, tmp_path / there, **SMALL)


def test_a_collection_of_another_corpus_stays(model: Transformer, whole: tuple[Path, Path], tmp_path: Path) -> None:
    before = tree(whole[1])
    other = lines_file(tmp_path, ["something else", "and no line of the other one"])
    with pytest.raises(CollectionError, match="holds a collection of another corpus; give another folder"):
        collect(model, other, SITES, whole[1], **SMALL)
    assert tree(whole[1]) == before
    nothing = lines_file(tmp_path, [], "nothing.jsonl")
    with pytest.raises(CollectionError, match=r"there is no text in .*nothing.jsonl"):
        collect(model, nothing, SITES, tmp_path / "none", **SMALL)


def test_what_cannot_be_collected_is_refused(model: Transformer, whole: tuple[Path, Path], tmp_path: Path) -> None:
    for sites, options, kind, said in (
        (["resid_post7"], {}, UnknownSite, "there are 2 layers"),
        (["pattern0"], {}, ShapeError, "each pair of positions"),
        ([], {}, ConfigError, "no sites"),
        (SITES, {"length": 10**6}, ContextTooLong, "positions"),
        (SITES, {"packing": "packed", "positions": "last"}, ConfigError, "packed rows"),
        (SITES, {"positions": "tokens"}, ConfigError, "goes with the tokens"),
    ):
        with pytest.raises(kind, match=said):
            collect(model, whole[0], sites, tmp_path / "out", **SMALL | options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_full_disk_stops_and_keeps_what_is_finished(
    model: Transformer, whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.fsync, [30]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(writing.os, "fsync", fsync)
    with pytest.raises(NotWritten, match="No space left"):
        collect(model, whole[0], SITES, tmp_path / "out", **SMALL)
    monkeypatch.undo()
    there = tree(tmp_path / "out")
    assert "card.json" not in there and not [name for name in there if "partial" in name]
    assert collect(model, whole[0], SITES, tmp_path / "out", **SMALL).reused > 0
    assert tree(tmp_path / "out") == tree(whole[1])


def test_a_folder_that_vanishes_is_not_made_anew(model: Transformer, whole: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(NotWritten, match="has vanished"):
        collect(model, whole[0], SITES, out, progress=lambda done, total: shutil.rmtree(out), **SMALL)
    assert not (out / "shards").exists()


def test_a_chunk_that_fails_is_set_aside_and_the_rest_is_there(model: Transformer, tmp_path: Path) -> None:
    broken = loading.from_pretrained(Transformer, "attn-only-2l")
    poison = int(model.tokens_and_mask("road", False, None)[0][0, 0])
    with torch.no_grad():
        broken.blocks[0].attn.b_O.fill_(0)
    texts = [f"a{n} b{n}" for n in range(30)]
    found = [set(model.tokens_and_mask(text, False, None)[0][0].tolist()) for text in [*texts, "Z~Z"]]
    (token, *_) = found[-1] - set().union(*found[:-1]) or {poison}
    with torch.no_grad():
        broken.embed.W_E[token] = float("nan")
    done = collect(broken, lines_file(tmp_path, [*texts, "Z~Z", *texts]), ["resid_post0"], tmp_path / "out", chunk=64)
    assert len(done.set_aside) == 1 and "NaN" in str(done.set_aside[0])
    assert len(Collection(tmp_path / "out").card["set_aside"]) == 1
    assert done.chunks > 4 and Collection(tmp_path / "out").batch("resid_post0", [0]).values.isfinite().all()


# ------------------------------------------------------------------------------------------------ reading, plans


def test_shuffled_batches_hold_every_row_once_and_go_on_in_the_middle(whole: tuple[Path, Path]) -> None:
    found = Collection(whole[1])
    exact = found.rows("z1", range(len(found)))
    batches = list(found.batches("z1", 64, seed=3))
    rows = torch.cat([one.rows for one in batches])
    assert sorted(rows.tolist()) == list(range(len(found))) and rows.tolist() != list(range(len(found)))
    assert torch.equal(torch.cat([one.values for one in batches]), exact[rows])
    later = torch.cat([one.rows for one in found.batches("z1", 64, seed=3, start=128)])
    assert torch.equal(later, rows[128:])
    assert len(np.unique(np.searchsorted(found._starts, batches[0].rows.numpy(), side="right"))) > 3  # over many shards
    loader = torch.utils.data.DataLoader(found.dataset("z1"), batch_size=50, shuffle=False)
    assert torch.equal(torch.cat(list(loader)), exact)
    assert len(found.sample("z1", 17, seed=1).rows.unique()) == 17


def test_statistics_are_those_of_all_rows(whole: tuple[Path, Path]) -> None:
    found = Collection(whole[1])
    x = found.rows("resid_post0", range(len(found))).double()
    stats = found.statistics("resid_post0")
    torch.testing.assert_close(stats.mean, x.mean(0))
    torch.testing.assert_close(stats.covariance, torch.cov(x.T))
    assert stats.mean_norm == pytest.approx(float(x.norm(dim=1).mean())) and stats.count == len(x)


def test_the_index_names_every_row_and_digests_are_checked(whole: tuple[Path, Path], tmp_path: Path) -> None:
    found = Collection(whole[1])
    frame = found.frame()
    assert list(frame.columns) == ["document", "position", "token", "site", "shard", "row", "digest"] or "part" in frame.columns
    assert len(frame) == 2 * len(found) and set(frame["site"]) == set(FULL)
    found.check()
    shutil.copytree(whole[1], tmp_path / "out")
    shard = next((tmp_path / "out" / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(NotReadable, match="damaged"):
        Collection(tmp_path / "out").check()


def test_a_plan_counts_and_writes_nothing(model: Transformer, whole: tuple[Path, Path], tmp_path: Path) -> None:
    counted = plan(model, whole[0], SITES, tmp_path / "out", executor="processes:2", **SMALL)
    done = Collection(whole[1])
    assert counted.chunks == len(done.shards) and counted.reused == 0 and counted.workers == 2 and not (tmp_path / "out").exists()
    assert counted.rows == pytest.approx(len(done), rel=0.2) and counted.operations > 0 and "GFLOP/s" in counted.summary()
    again = plan(model, whole[0], SITES, whole[1], **SMALL)
    assert again.reused == again.chunks and again.rows == len(done) and again.seconds == 0


def test_an_address_of_fsspec_holds_the_same_bytes(model: Transformer, whole: tuple[Path, Path]) -> None:
    fsspec = pytest.importorskip("fsspec")
    address = "memory://cutaway-tests"
    done = collect(model, whole[0], SITES, address, **SMALL)
    files = fsspec.filesystem("memory")
    stored = {
        name.removeprefix("/cutaway-tests/"): hashlib.md5(files.cat_file(name)).hexdigest()
        for name in files.find("/cutaway-tests")
    }
    assert stored == tree(whole[1]) and collect(model, whole[0], SITES, address, **SMALL).reused == done.chunks
    assert torch.equal(Collection(address).rows("z1", [5, 300]), Collection(whole[1]).rows("z1", [5, 300]))


# ------------------------------------------------------------------------------------------------------ workers


def test_workers_with_other_versions_or_another_model_are_refused(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource.of("attn-only-2l").travelling(Path())
    assert source.open().cfg.n_layers == 2
    other: dict[str, Any] = {**source.__dict__, "hash": "0" * 32}
    with pytest.raises(WorkerRefused, match="another model by the name"):
        ModelSource(**other).open()
    monkeypatch.setattr("cutaway.runs.model_source.versions", lambda: {"cutaway": "0.1.0", "torch": "1.0"})
    with pytest.raises(WorkerRefused, match=r"a worker has torch 1\.0"):
        source.open()


def test_ranks_without_a_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="torchrun or srun"):
        Ranks()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        Ranks()
