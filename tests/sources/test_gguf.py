"""GGUF files: every architecture against the model it was converted from and against `transformers`' own reader."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutaway.errors import CheckpointError, CutawayError, PackageNeeded, UnsupportedArchitecture
from cutaway.hooked_transformer import HookedTransformer
from cutaway.sources import gguf, gguf_file
from cutaway.sources.gguf_tables import ARCHITECTURES
from cutaway.weights.families import FAMILIES
from tests.sources import llama_cpp
from tests.weights.families.tiny import CASES, COMMON, ROPE, tiny, tokens_for

pytest.importorskip("gguf")
pytestmark = [
    pytest.mark.filterwarnings("ignore::cutaway.weights.processing.SkippedRewrite"),
    pytest.mark.filterwarnings("ignore::cutaway.sources.tokenizers.TokenizerMissing"),
]

GEMMA = COMMON | {"head_dim": 10, "sliding_window": 6, "query_pre_attn_scalar": 256}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FILES: dict[str, dict[str, Any]] = {
    "gpt2": {}, "bloom": {}, "falcon 7b": {}, "llama": {}, "llama, biases": {}, "llama, linear": {}, "llama, yarn": {},
    "qwen3": {}, "phi3": {}, "starcoder2, no biases": {}, "stablelm": {}, "stablelm, side by side": {},
    "falcon 40b": {"bias": False},
    "mixtral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3_moe": {"norm_topk_prob": True},
    "starcoder2": {"sliding_window": None},
    "gemma2": GEMMA | {"final_logit_softcapping": 4.0, "attn_logit_softcapping": 2.0},
    "gemma3": {"query_pre_attn_scalar": 256, "num_hidden_layers": 7, "layer_types": None,
               "rope_parameters": {"sliding_attention": ROPE | {"rope_theta": 10000.0},
                                   "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0}}},
}  # fmt: skip
"""Cases of tiny models, and settings that GGUF files cannot say otherwise."""


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A tiny Llama whose matrices can be quantised, as a file."""
    return written(tmp_path / "tiny.gguf")


def written(file: Path, kind: str = "F32", split: int = 0, **extra: Any) -> Path:
    config, name, given = CASES["llama"]
    torch.manual_seed(0)
    import transformers

    settings = given | {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "initializer_range": 0.3}
    model = getattr(transformers, name)(getattr(transformers, config)(**settings))
    llama_cpp.write(model, file, kind=kind, extra=extra, split=split)
    return file


def model_of(case: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    config, kind, given = CASES[case]
    monkeypatch.setitem(CASES, case, (config, kind, given | settings))
    return tiny(case)


@torch.no_grad()
@pytest.mark.parametrize("case", FILES)
def test_a_converted_model_computes_the_same(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(case, monkeypatch, **FILES[case])
    file = tmp_path / "tiny.gguf"
    llama_cpp.write(model, file)
    found = HookedTransformer.from_pretrained(file, device="cpu")
    tokens = tokens_for(model)
    want = model(tokens).logits.log_softmax(-1)
    assert (found(tokens).log_softmax(-1) - want).abs().max() < 5e-5 * want.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("case", ["llama", "gemma2", "qwen2", "qwen3_moe", "gpt2", "bloom", "starcoder2", "stablelm"])
def test_transformers_reads_the_same_from_the_file(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of tensors, and what is done to them, are those of its own reader."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = model_of(case, monkeypatch, **FILES.get(case, {}))
    file = tmp_path / "tiny.gguf"
    llama_cpp.write(model, file)
    theirs = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)
    ours = gguf.read(file, with_tokenizer=False)
    single = {name for name in theirs["tensors"] if ".experts." not in name}
    assert single == {name for name in ours.tensors if ".experts." not in name}
    for name in single:
        assert torch.equal(ours.tensors[name], theirs["tensors"][name]), name
    known = {name: value for name, value in theirs["config"].items() if name in ours.config and name != "_model_name_or_path"}
    assert len(known) > 5 and {name: ours.config[name] for name in known} == known


def test_there_is_a_family_for_each_architecture() -> None:
    assert {one.model_type for one in ARCHITECTURES.values()} <= set(FAMILIES)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_tensors_are_what_the_package_makes_of_them(kind: str, tmp_path: Path) -> None:
    from gguf import GGUFReader, dequantize

    file = written(tmp_path / "tiny.gguf", kind)
    stored = {one.name: one for one in GGUFReader(file).tensors}
    ours = gguf.read(file, with_tokenizer=False)
    assert ours.provenance["quantisation"][kind] > 10
    names = {"blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight", "token_embd.weight": "model.embed_tokens.weight"}
    for theirs, name in names.items():
        assert np.array_equal(ours.tensors[name].numpy(), dequantize(stored[theirs].data, stored[theirs].tensor_type))


def test_a_tensor_is_the_same_in_however_many_slices_it_is_read(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = gguf_file.read_header(llama).tensors["token_embd.weight"]
    whole = gguf_file.read_rows(entry)
    monkeypatch.setattr(gguf_file, "SLICE", 3 * entry.shape[-1])
    assert torch.equal(gguf_file.read_rows(entry), whole)
    assert torch.equal(gguf_file.read_rows(entry, 5, 9), whole[5:14])


def test_llama_3_scales_its_rotations(tmp_path: Path) -> None:
    """Its factors are kept for each frequency; the config is found again from them."""
    file = tmp_path / "tiny.gguf"
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(0, 64, 2) / 64)
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    factors = torch.from_numpy(1 / ((1 - smooth) / 8 + smooth)).float()
    found = gguf._factors(factors, {"head_dim": 64, "rope_theta": 500000.0}, file)
    assert found["rope_scaling"] == {"rope_type": "llama3", **LLAMA3}
    with pytest.raises(UnsupportedArchitecture, match=r"the scaling of rotations by rope_freqs\.weight in the header of tiny"):
        gguf._factors(factors * 1.01, {"head_dim": 64, "rope_theta": 500000.0}, file)


# Folders and parts.


def test_a_folder_with_one_file_is_that_file(llama: Path) -> None:
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(HookedTransformer.from_pretrained(llama.parent)(tokens), HookedTransformer.from_pretrained(llama)(tokens))
    written(llama.with_name("another.gguf"))
    with pytest.raises(CheckpointError, match=r"several GGUF files; name one of them: another\.gguf, tiny\.gguf"):
        HookedTransformer.from_pretrained(llama.parent)


def test_a_model_in_parts_is_the_whole(llama: Path) -> None:
    whole = dict(gguf.read(llama, with_tokenizer=False).tensors)
    written(llama.with_name("parts.gguf"), split=7)
    llama.unlink()
    parts = sorted(llama.parent.iterdir())
    assert len(parts) > 3 and parts[0].name.startswith("parts-00001-of-")
    found = gguf.read(gguf.in_folder(llama.parent) or llama, with_tokenizer=False).tensors
    assert set(found) == set(whole) and all(torch.equal(found[name], whole[name]) for name in whole)
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"no file .*parts-00002-of-.*; the model lacks a part"):
        gguf.read(parts[0], with_tokenizer=False)


# Bad input.


@pytest.mark.parametrize(
    ("path", "words"),
    [("absent/tiny.gguf", "there is no folder .*absent$"), ("tinny.gguf", r"called 'tinny.gguf' .*did you mean 'tiny.gguf'"),
     ("tiny-00001-of-00002.gguf", "no file called 'tiny-00001-of-00002.gguf'")],
)  # fmt: skip
def test_a_wrong_path_is_no_part_that_is_missing(path: str, words: str, llama: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        HookedTransformer.from_pretrained(llama.parent / path)


def test_an_architecture_that_is_not_known_says_which_are(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(UnsupportedArchitecture, match="is of the architecture 'mamba'; GGUF files of bloom, falcon, gemma2"):
        HookedTransformer.from_pretrained(tmp_path / "mamba.gguf")


def test_a_quantisation_that_cannot_be_undone_says_which_can(llama: Path) -> None:
    data = bytearray(llama.read_bytes())
    at = data.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 2 * 8
    data[at : at + 4] = struct.pack("<I", 9)  # Q8_1
    llama.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'blk\.0\.ffn_up\.weight' in .* as Q8_1, .* there are F32, F16, Q4_0"):
        HookedTransformer.from_pretrained(llama)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("expert_shared_count", 2, "expert_shared_count=2"), ("rope.scaling.type", "ntk", "rope.scaling.type='ntk'"),
     ("general.type", "adapter", "of type 'adapter'"),
     ("attention.value_length", 32, "attention.value_length=32 beside attention.key_length=16")],
)  # fmt: skip
def test_a_setting_that_changes_the_model_and_is_not_understood_stops(key: str, value: Any, said: str, tmp_path: Path) -> None:
    file = written(tmp_path / "tiny.gguf", **{key: value, "rope.scaling.factor": 2.0})
    with pytest.raises(UnsupportedArchitecture, match=said):
        HookedTransformer.from_pretrained(file)


def test_a_damaged_file_is_an_error_of_ours(llama: Path) -> None:
    whole = llama.read_bytes()
    draw = np.random.default_rng(0)
    head = whole.index(b"blk.2.ffn_up") + 100
    for _ in range(300):
        data = bytearray(whole)
        if draw.random() < 0.3:
            data = data[: draw.integers(1, len(data))]
        else:
            data[int(draw.integers(0, head))] = int(draw.integers(256))
        llama.write_bytes(data)
        try:
            source = gguf.read(llama, with_tokenizer=False)
            source.tensors["model.norm.weight"]
        except (CutawayError, KeyError) as error:
            assert str(error)


def test_without_the_package_the_error_names_it(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(PackageNeeded, match=r"the package gguf: pip install 'cutaway\[gguf\]'"):
        HookedTransformer.from_pretrained(llama)
