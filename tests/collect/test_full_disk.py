"""A disk that is really full, and one that is taken away: a clear stop, everything finished kept, and the rest afterwards.

The disk is a small file system in memory, which needs the right to mount one; elsewhere these tests skip, and
`test_collect.py` has a disk that only says that it is full.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cutaway import ablate, across, edits, loading, metrics, sweep
from cutaway.cli import app
from cutaway.collect import collect
from cutaway.errors import NotWritten
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts

NAME = "attn-only-2l"
TEXTS = [f"line {number} of a corpus, and {number * 7} words more of what is in it" for number in range(40)]
SITES = ["resid_post0", "z1"]


def mount(*words: str) -> bool:
    try:
        return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)):
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, str]:
    files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
    return {one.relative_to(folder).as_posix(): hashlib.md5(one.read_bytes()).hexdigest() for one in files}


def finished_of(there: dict[str, str], whole: dict[str, str]) -> int:
    """How many files are there; each as in the whole, and no draft among them."""
    assert {name: whole.get(name) for name in there} == there
    return len(there)


@pytest.mark.parametrize("executor", ["local", "processes:2"])
def test_a_collection_on_a_full_disk(disk: Path, corpus: Path, tmp_path: Path, executor: str) -> None:
    collect(NAME, corpus, SITES, tmp_path / "whole", chunk=2**8)
    whole = tree(tmp_path / "whole")
    with pytest.raises(NotWritten, match=r"cannot write .*: No space left on device"):
        collect(NAME, corpus, SITES, disk / "out", chunk=2**8, executor=executor)
    assert 4 < finished_of(tree(disk / "out"), whole) < len(whole)
    assert mount("-o", "remount,size=64m", str(disk))
    done = collect(NAME, corpus, SITES, disk / "out", chunk=2**8, executor=executor)
    assert done.reused > 0 and tree(disk / "out") == whole


def test_sweeps_and_answers_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    model = loading.from_pretrained(Transformer, NAME)
    tokens = model.tokens_and_mask(TEXTS[0], None, None)[0]
    prompts = [Prompts.of_texts(model, [text]) for text in TEXTS[:8]]
    cells = [edits.Edit(("z", n % 2), edits.zero(), heads=n // 2) for n in range(16)]
    sweep(model, tokens, cells, metrics.loss(tokens), results=tmp_path / "whole", memory=300_000)
    across(ablate, model, prompts, results=tmp_path / "whole", kinds=["zero"])
    whole = tree(tmp_path / "whole")
    (disk / "filler").write_bytes(b"\0" * (2**20 - 6 * 4096))
    with pytest.raises(NotWritten, match="No space left"):
        sweep(model, tokens, cells, metrics.loss(tokens), results=disk / "out", memory=300_000)
        across(ablate, model, prompts, results=disk / "out", kinds=["zero"])
    finished_of({name: mark for name, mark in tree(disk / "out").items() if "asked" not in name}, whole)
    (disk / "filler").unlink()
    values = sweep(model, tokens, cells, metrics.loss(tokens), results=disk / "out", memory=300_000).values.data
    assert across(ablate, model, prompts, results=disk / "out", kinds=["zero"]).computed <= 8
    assert tree(disk / "out") == whole and bool(torch.isfinite(values).all())


@pytest.mark.parametrize("executor", ["local", "processes:2"])
def test_a_disk_that_is_taken_away(disk: Path, corpus: Path, executor: str) -> None:
    def take(done: float, total: float) -> None:
        subprocess.run(["umount", "-l", str(disk)], capture_output=True, check=False)

    with pytest.raises(NotWritten, match="has vanished"):
        collect(NAME, corpus, SITES, disk / "out", chunk=2**8, executor=executor, progress=take)
    assert not list(disk.iterdir())  # nothing is written under the place where it was


def test_the_command_says_it_in_one_sentence(disk: Path, corpus: Path) -> None:
    words = ["collect", NAME, str(corpus), "--sites", "resid_post0,z1", "--chunk", "256", "--out", str(disk / "out")]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 2 and said.stderr.startswith("cutaway: cannot write ") and said.stderr.count("\n") == 1
