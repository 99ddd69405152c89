"""Models larger than the memory they may take: collected and swept by reading layers as they run, with the same bits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from cutaway import HookedTransformer, HookedTransformerConfig, edits, metrics, sweep
from cutaway.collect import collect
from cutaway.errors import ConfigError
from cutaway.model.streaming import StreamedBlocks
from cutaway.model.transformer import Transformer
from cutaway.runs.hashes import model_hash
from cutaway.runs.model_source import load
from cutaway.sources import files
from cutaway.tokens import CharTokenizer

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
    assert isinstance(model.blocks, StreamedBlocks) and model.blocks.peak + live(model) - model.blocks.held <= limit


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
