"""Models larger than the memory they may take: collected and swept by reading layers as they run, with the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cutaway import HookedTransformer, HookedTransformerConfig, edits, metrics, sweep
from cutaway.collect import collect
from cutaway.errors import ConfigError
from cutaway.model.eight_bits import measured
from cutaway.model.streaming import StreamedBlocks
from cutaway.model.transformer import Transformer
from cutaway.runs.hashes import model_hash
from cutaway.runs.model_source import load
from cutaway.sources import files
from cutaway.tokens import CharTokenizer
from tests.model.streamed_memory import work

LETTERS = CharTokenizer([*"abcdefgh ", "<b>"], bos_token="<b>", eos_token="<b>", pad_token="<b>")
TEXT = "abc def gah bed face dad had a bad cab "


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cfg = HookedTransformerConfig(
        n_layers=8, d_model=32, n_ctx=64, d_head=8, n_heads=4, d_mlp=128, d_vocab=10, act_fn="gelu", seed=0,
        normalization_type="RMS", gated_mlp=True, positional_embedding_type="rotary", rotary_dim=8,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    files.save(path, Transformer(cfg).state_dict(), cfg, tokenizer=LETTERS, processed=True)
    return path


def size_of(path: Path) -> int:
    return sum(one.numel() * one.element_size() for one in load(str(path), "float32", "cpu").parameters())


def live(model: Transformer) -> int:
    return sum(one.numel() * one.element_size() for one in model.parameters() if not one.is_meta)


def test_a_model_of_twice_the_memory_has_the_same_bits_and_never_more_weights_than_that(saved: Path) -> None:
    whole, limit = load(str(saved), "float32", "cpu"), size_of(saved) // 2
    model = load(str(saved), "float32", "cpu", limit)
    blocks = model.blocks
    assert isinstance(blocks, StreamedBlocks) and 0 < len(blocks.staying) < 7
    outside = live(model)
    tokens = torch.randint(0, 9, (3, 20), generator=torch.Generator().manual_seed(0))
    seen = []
    with (
        torch.no_grad(),
        model.hooks([(f"blocks.{n}.hook_resid_post", lambda x, hook: seen.append(live(model))) for n in range(8)]),
    ):
        assert torch.equal(model(tokens), whole(tokens))
    assert max(seen) <= limit and blocks.peak + outside <= limit
    assert model_hash(model) == model_hash(whole) and live(model) <= limit
    with torch.no_grad():
        model(tokens)
    assert blocks.reads == len(blocks.staying) + 2 * (8 - len(blocks.staying))  # those that stay are read once


def test_collections_and_sweeps_of_it_are_those_of_the_whole_model(saved: Path, tmp_path: Path) -> None:
    limit = size_of(saved) // 2
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXT[n:] for n in range(20)), encoding="utf-8")
    digests = []
    for name, stream in (("whole", None), ("streamed", limit)):
        done = collect(saved, corpus, ["resid_post7", "z3"], tmp_path / name, length=32, stream=stream, chunk=200)
        digests.append((done.digest, hashlib.md5((tmp_path / name / "card.json").read_bytes()).hexdigest()))
    assert digests[0] == digests[1]
    whole, model = load(str(saved), "float32", "cpu"), load(str(saved), "float32", "cpu", limit)
    tokens = whole.tokens_and_mask(TEXT[:24], None, None)[0]
    cells = [edits.Edit(("resid_pre", n), edits.zero(), positions=3 + n) for n in range(8)]
    cells += [edits.Edit(("z", n), edits.zero(), heads=1) for n in range(8)]
    found = [sweep(one, tokens, cells, metrics.loss(tokens)) for one in (whole, model)]
    assert torch.equal(found[0].values.data, found[1].values.data) and found[1].audit.cells
    assert isinstance(model.blocks, StreamedBlocks) and model.blocks.peak + live(model) - model.blocks.bytes_loaded <= limit


def test_the_plain_call_streams_weights_as_published(saved: Path) -> None:
    limit = size_of(saved) // 2
    model = HookedTransformer.from_pretrained_no_processing(str(saved), stream=limit)
    assert isinstance(model.blocks, StreamedBlocks) and live(model) <= limit
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens), load(str(saved), "float32", "cpu")(tokens))
        _, cache = model.run_with_cache(tokens, names_filter="blocks.7.hook_resid_post")
    assert len(cache) == 1 and live(model) <= limit
    with pytest.raises(ConfigError, match="as published, onto one device"):
        HookedTransformer.from_pretrained(str(saved), stream=limit, device_map="cpu")


def test_too_little_memory_is_refused_with_what_is_needed(saved: Path) -> None:
    with pytest.raises(ConfigError, match="the largest block has"):
        load(str(saved), "float32", "cpu", 10_000)


def fits_in_half(name: str, *, room: int, beside: int) -> None:
    """A process never takes more than half of a model beyond what an empty one takes, and finds what the whole model gives."""
    whole = work(name, None, beside)
    allowed = whole["weights"] // 2
    script = Path(__file__).with_name("streamed_memory.py")
    command = [sys.executable, str(script), name, str(allowed - room), str(beside)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    streamed = json.loads(done.stdout.splitlines()[-1])
    assert allowed - room < streamed["peak"] <= allowed, (streamed["peak"], allowed)
    assert streamed["digest"] == whole["digest"] and streamed["values"] == whole["values"]
    assert streamed["audit"] < 1e-4 and len(streamed["values"]) == streamed["layers"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process's memory is read from /proc")
def test_a_process_never_takes_more_than_half_of_a_model_that_it_streams(tmp_path: Path) -> None:
    cfg = HookedTransformerConfig(
        n_layers=12, d_model=384, n_ctx=96, d_head=64, n_heads=6, d_mlp=1536, d_vocab=30, act_fn="gelu", seed=0,
        normalization_type="RMS", gated_mlp=True, positional_embedding_type="rotary", rotary_dim=64,
    )  # fmt: skip
    letters = CharTokenizer([*"abcdefghijklmnopqrstuvwxyz. ", "<b>", "?"], bos_token="<b>", eos_token="<b>", pad_token="<b>")
    path = tmp_path / "model.safetensors"
    files.save(path, Transformer(cfg).state_dict(), cfg, tokenizer=letters, processed=True)
    fits_in_half(str(path), room=36 * 2**20, beside=8 * 2**20)


def test_weights_in_8_bits_take_a_quarter_and_say_how_far_off_they_are(saved: Path, tmp_path: Path) -> None:
    whole = load(str(saved), "float32", "cpu")
    model = load(str(saved), "float32", "cpu", options=(("weight_bits", 8),))
    blocks = model.blocks
    assert isinstance(blocks, StreamedBlocks) and not blocks.staying
    wanted = {name: x for name, x in whole.state_dict().items() if name.startswith("blocks.")}
    for name, x in wanted.items():
        step = x.abs().amax(-2, keepdim=True) / 127 if x.ndim > 1 else torch.zeros(())
        assert bool(((blocks.weight(name) - x).abs() <= step * 0.5001).all()), name
    tokens = torch.randint(0, 9, (3, 20), generator=torch.Generator().manual_seed(0))
    rounded = {name: blocks.weight(name) if name.startswith("blocks.") else x for name, x in whole.state_dict().items()}
    by_hand = load(str(saved), "float32", "cpu")
    by_hand.load_state_dict(rounded)
    with torch.no_grad():
        assert torch.equal(model(tokens), by_hand(tokens)) and not torch.equal(model(tokens), whole(tokens))
    found = measured(model, lambda name, room: wanted[name].clone())
    assert str(found) == model.provenance["weight_bits"] and 0 < found.mean < 0.05 and found.mean < found.largest
    packed = blocks.read
    assert measured(model, lambda name, room: packed(name, None)).largest == 0.0  # no rounding, no error
    assert model_hash(model) == model_hash(by_hand) != model_hash(whole)


def test_collections_and_sweeps_in_8_bits_go_to_workers(saved: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXT[n:] for n in range(20)), encoding="utf-8")
    options = {"length": 32, "chunk": 200}
    here = collect(saved, corpus, ["resid_post7"], tmp_path / "here", weight_bits=8, **options)  # type: ignore[arg-type]
    assert "kept in 8 bits" in here.rounding and here.rounding in here.summary()
    model = load(str(saved), "float32", "cpu", options=(("weight_bits", 8),))
    there = collect(model, corpus, ["resid_post7"], tmp_path / "there", executor="processes:1", **options)  # type: ignore[arg-type]
    assert here.digest == there.digest
    tokens = model.tokens_and_mask(TEXT[:24], None, None)[0]
    cells = [edits.Edit(("z", n), edits.zero(), heads=1) for n in range(8)]
    found = [
        sweep(model, tokens, cells, metrics.loss(tokens), results=tmp_path / str(name), executor=name)
        for name in ("local", "processes:1")
    ]
    assert torch.equal(found[0].values.data, found[1].values.data) and found[0].audit.difference < 1e-4
    assert not (tmp_path / "processes:1" / ".weights").exists()


def test_8_bits_of_what_cannot_be_are_refused(saved: Path) -> None:
    for options, said in (({"weight_bits": 4}, "kept in 8 bits"), ({"weight_bits": 8, "stream": 10**9}, "without stream=")):
        with pytest.raises(ConfigError, match=said):
            HookedTransformer.from_pretrained_no_processing(str(saved), **options)
    with pytest.raises(ConfigError, match="for a model by name"):
        collect(load(str(saved), "float32", "cpu"), saved, ["z3"], saved.parent / "out", weight_bits=8)
