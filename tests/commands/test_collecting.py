"""`cutaway collect` and `cutaway cluster check` with bad input: one sentence and exit code 2, or the promised exit code."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway import loading
from cutaway.cli import app
from cutaway.collect import Collection, conformance
from cutaway.model.transformer import Transformer
from cutaway.sources import files

NAME = "attn-only-2l"
TEXTS = [f"line {number} of a corpus, and {number * 7} words more" for number in range(24)]
INSIDE = """
import os, shutil
if os.environ.get("PLANTED"):
    exec(os.environ["PLANTED"])
"""


def corpus_in(folder: Path, *lines: bytes) -> Path:
    path = folder / "corpus.jsonl"
    path.write_bytes(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS) + b"".join(lines))
    return path


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


def refused(said: str, *words: Any) -> None:
    """Exit code 2 and one sentence on stderr that says this."""
    found = run(*words)
    assert found.exit_code == 2 and said in found.stderr, (found.exit_code, found.stderr, found.exception)
    assert found.stderr.startswith("cutaway: ") and found.stderr.count("\n") == 1 and not found.stdout


def test_broken_lines_sites_and_folders_of_others(tmp_path: Path) -> None:
    corpus, out = corpus_in(tmp_path, b'{"text": "x"\n'), tmp_path / "out"
    words = ["collect", NAME, corpus, "--out", out, "--chunk", 512]
    refused("corpus.jsonl:25: it is not JSON", *words, "--sites", "resid_post0")
    lenient = run(*words, "--sites", "resid_post0", "--skip-broken")
    assert lenient.exit_code == 0 and "1 broken lines left out; the first: corpus.jsonl:25" in lenient.stdout
    refused("no site called", *words, "--sites", "resid_pst0", "--skip-broken")
    refused("there are 2 layers", *words, "--sites", "resid_post9", "--skip-broken")
    refused("holds a collection with other options", *words, "--sites", "z1", "--skip-broken")
    other = tmp_path / "model.safetensors"
    model = loading.from_pretrained(Transformer, NAME)
    weights = {name: x * 2 if name == "embed.W_E" else x for name, x in model.state_dict().items()}
    files.save(other, weights, model.cfg, tokenizer=model.tokenizer, processed=True)
    refused("other model", "collect", other, *words[2:], "--sites", "resid_post0", "--skip-broken")
    refused("no executor called 'dask'", *words, "--sites", "resid_post0", "--skip-broken", "--executor", "dask")
    refused("there is no corpus", "collect", NAME, tmp_path / "absent", "--out", tmp_path / "no", "--sites", "z1")
    assert Collection(out).card["skipped"] and not (tmp_path / "no").exists()


def test_a_poisoned_chunk_is_set_aside_after_three_tries_and_the_exit_code_says_so(tmp_path: Path) -> None:
    model = loading.from_pretrained(Transformer, NAME)
    tokens = [set(model.tokens_and_mask(text, False, None)[0][0].tolist()) for text in [*TEXTS, "Z~Z"]]
    (token, *_) = tokens[-1] - set().union(*tokens[:-1])
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    weights["embed.W_E"][token] = 3e38  # finite, and too large to add anything to
    path = tmp_path / "model.safetensors"
    files.save(path, weights, model.cfg, tokenizer=model.tokenizer, processed=True)
    corpus = corpus_in(tmp_path, b'{"text": "Z~Z"}\n')
    words = ["collect", path, corpus, "--sites", "resid_post1", "--out", tmp_path / "out", "--chunk", 256]
    found = run(*words)
    assert found.exit_code == 1 and "set aside after three tries: chunk" in found.stdout and "NaN or infinity" in found.stdout
    assert len(Collection(tmp_path / "out").card["set_aside"]) == 1
    again = run(*words, "--json")
    told = json.loads(again.stdout)
    assert again.exit_code == 1 and told["reused"] == told["chunks"] > 3  # the others are there


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("import cutaway; cutaway.__version__ = '0.0.1'", "a worker has cutaway 0.0.1 and the driver"),
        ("import torch; torch.__version__ = '1.0'", "a worker has torch 1.0 and the driver"),
        ("shutil.copy(OTHER, MODEL)", "a worker found another model by the name"),
    ],
    ids=["cutaway", "torch", "model"],
)
def test_workers_with_other_versions_or_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str, said: str
) -> None:
    model = loading.from_pretrained(Transformer, NAME)
    places = {"MODEL": tmp_path / "model.safetensors", "OTHER": tmp_path / "other.safetensors"}
    for name, factor in (("MODEL", 1), ("OTHER", 2)):
        weights = {key: x * factor if key == "embed.W_E" else x for key, x in model.state_dict().items()}
        files.save(places[name], weights, model.cfg, tokenizer=model.tokenizer, processed=True)
    (tmp_path / "sitecustomize.py").write_text(INSIDE, encoding="utf-8")  # run by each worker as it starts
    for name, place in places.items():
        planted = planted.replace(name, repr(str(place)))
    monkeypatch.setenv("PLANTED", planted)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    words = ["--sites", "resid_post0", "--out", tmp_path / "out", "--executor", "processes:1"]
    refused(said, "collect", places["MODEL"], corpus_in(tmp_path), *words)
    assert not (tmp_path / "out" / "card.json").exists()


def test_an_unreachable_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        refused(f"no Ray cluster answers at '{address}'", "cluster", "check", address)
    words = ["--sites", "resid_post0", "--out", tmp_path / "out", "--executor", "ray:127.0.0.1:1"]
    refused("no Ray cluster answers at '127.0.0.1:1'", "collect", NAME, corpus_in(tmp_path), *words)


def test_clocks_that_disagree_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = []
    for name, clock in (("now", time.time), ("then", lambda: 1e9)):
        monkeypatch.setattr(time, "time", clock)
        done = run("collect", NAME, corpus_in(tmp_path), "--sites", "z0", "--out", tmp_path / name, "--chunk", 512)
        assert done.exit_code == 0
        here = [one for one in sorted((tmp_path / name).rglob("*")) if one.is_file()]
        trees.append([(one.relative_to(tmp_path / name).as_posix(), hashlib.md5(one.read_bytes()).hexdigest()) for one in here])
    assert trees[0] == trees[1] and len(trees[0]) > 4


@contextmanager
def no_cluster(address: str | None, workers: int | None = None) -> Iterator[Any]:
    yield SimpleNamespace(cluster_resources=lambda: {"CPU": 2})


def test_a_check_says_what_a_cluster_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"cutaway": "0.0.1", "torch": str(torch.__version__)}
    seen = [{"host": "far", "versions": versions, "clock": 0.0, "back": 3600.0, "sees": False}] * 4
    monkeypatch.setattr(conformance, "connected", no_cluster)
    monkeypatch.setattr(conformance, "line", lambda ray, count: "Ray: 2 workers")
    monkeypatch.setattr(conformance, "_look", lambda executor, job, count: seen[:count])
    found = run("cluster", "check", "local", "--folder", tmp_path)
    assert found.exit_code == 1 and "NO  workers have the driver's versions: far has cutaway 0.0.1" in found.stdout
    assert "ok  clocks: up to 3600.00 s apart, which changes nothing" in found.stdout
    assert "NO  workers see the folder: far do not see" in found.stdout and "same bytes" not in found.stdout
