"""Checkpoints on disk: what is saved is read back, and every kind of bad file gets one clear sentence."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import CheckpointError, ConfigError, WeightsMismatch
from cutaway.sources import files
from cutaway.sources.checkpoint import LazyTensors
from cutaway.tokens import CharTokenizer
from cutaway.weights import canonical

PUBLISHED: dict[str, Any] = {"n_layers": 2, "n_heads": 3, "d_model": 42, "d_head": 14, "n_ctx": 20, "d_vocab": 11}


def config(**fields: Any) -> HookedTransformerConfig:
    small = {"n_layers": 1, "d_model": 8, "d_head": 4, "n_ctx": 5, "d_vocab": 3, "attn_only": True, "device": "cpu"}
    return HookedTransformerConfig(**{**small, **fields})


def weights(cfg: HookedTransformerConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in canonical.shapes(cfg).items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    file = tmp_path / "toy.safetensors"
    files.save(file, weights(config()), config())
    return file


# What is there.


def test_a_published_state_dict(shared: Path) -> None:
    cfg = HookedTransformerConfig(**PUBLISHED, attn_only=True, device="cpu")
    checkpoint = files.read(shared / "data/checkpoints/first_unique_char_model.pt", cfg)
    canonical.check(checkpoint.tensors, cfg)
    assert checkpoint.tensors["blocks.1.attn.W_O"].shape == (3, 14, 42)
    assert checkpoint.tensors["embed.W_E"].device.type == "cpu"
    assert checkpoint.provenance["file"].endswith("first_unique_char_model.pt")
    assert not checkpoint.processed
    with pytest.raises(WeightsMismatch, match="They have 2 layers: try n_layers=2"):
        canonical.check(checkpoint.tensors, config(**{**PUBLISHED, "n_layers": 1}))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_of_either_format(tmp_path: Path, zipped: bool) -> None:
    cfg = config()
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in weights(cfg).items()}
    torch.save(parameters, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    tensors = files.read(tmp_path / "m.pth", cfg).tensors
    assert all(torch.equal(tensors[name], tensor) and not tensors[name].requires_grad for name, tensor in weights(cfg).items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_is_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    cfg = config(dtype=dtype, n_key_value_heads=1, seed=3)
    tensors = weights(cfg, dtype)
    tokenizer = CharTokenizer("ab?", bos_token="?")
    file = tmp_path / "new" / "toy.safetensors"
    files.save(file, tensors, cfg, tokenizer=tokenizer, processed=True, metadata={"command": "train «it»", "seed": 3})
    checkpoint = files.read(file)
    assert list(checkpoint.tensors.keys()) and checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.tensors[name], tensor) and checkpoint.tensors[name].dtype == dtype
    assert checkpoint.config.to_dict() == cfg.to_dict()
    assert checkpoint.tokenizer == tokenizer
    assert checkpoint.processed
    assert checkpoint.provenance == {"file": str(file), "command": "train «it»", "seed": 3}
    assert os.listdir(file.parent) == ["toy.safetensors"]


def test_the_file_is_safetensors_to_everybody_else(saved: Path) -> None:
    tensors = load_file(saved)
    assert tensors.keys() == weights(config()).keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in weights(config()).items())
    with safe_open(saved, "pt") as opened:
        assert opened.metadata()["format"] == "pt"


def test_types_mix_and_layouts_do_not_matter(tmp_path: Path) -> None:
    plain = torch.arange(24.0).view(2, 3, 4)
    odd = {"a": plain.permute(2, 0, 1), "b": plain[:, 1:], "same": plain, "again": plain, "flag": torch.tensor([True, False])}
    odd |= {"half": plain.half()[0], "one": torch.tensor(1.5), "whole": torch.arange(3)}
    files.save(tmp_path / "a.safetensors", odd, config())
    back = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in odd.items())
    whole = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])
    assert all(header[name]["data_offsets"][0] % tensor.itemsize == 0 for name, tensor in odd.items()), "not aligned"
    files.save(tmp_path / "b.safetensors", {name: tensor.contiguous() for name, tensor in reversed(odd.items())}, config())
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_given_configuration_goes_before_the_one_inside(saved: Path) -> None:
    other = config(eps=1e-3)
    assert files.read(saved, other).config is other
    assert files.read(saved).config.eps == 1e-5


def test_reading_a_configuration_seeds_nothing(tmp_path: Path) -> None:
    files.save(tmp_path / "toy.safetensors", weights(config()), config(seed=3))
    torch.rand(1)
    state = torch.get_rng_state()
    assert files.read(tmp_path / "toy.safetensors").config.seed == 3
    assert torch.equal(torch.get_rng_state(), state)


def test_the_machine_of_the_maker_is_not_in_the_file(saved: Path) -> None:
    with safe_open(saved, "pt") as opened:
        assert "device" not in json.loads(opened.metadata()[files.KEY])["config"]


def test_a_type_that_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"z is torch\.complex64, which cannot be saved; there are torch\.float64"):
        files.save(tmp_path / "toy.safetensors", {"z": torch.zeros(2, dtype=torch.complex64)}, config())
    assert not os.listdir(tmp_path)


# Lazily.


def test_tensors_are_read_only_when_asked_for() -> None:
    read: list[str] = []
    tensors = LazyTensors({"a": (2,), "b": (3,)}, lambda name: read.append(name) or torch.zeros(2))
    assert "a" in tensors and "c" not in tensors and list(tensors) == ["a", "b"] and len(tensors) == 2
    assert tensors.get("c") is None
    assert read == []
    assert tensors["b"].shape == (2,)
    assert read == ["b"]
    with pytest.raises(KeyError, match="no tensor called"):
        tensors["embed"]


def test_checking_the_shapes_of_a_checkpoint_does_not_read_it() -> None:
    read: list[str] = []
    tensors = LazyTensors(canonical.shapes(config()), lambda name: read.append(name) or torch.zeros(1))
    canonical.check(tensors, config())
    assert len(read) < len(tensors), "in tests, where types of arguments are checked, a sample is read"


def test_a_saved_file_is_read_tensor_by_tensor(saved: Path) -> None:
    checkpoint = files.read(saved)
    assert isinstance(checkpoint.tensors, LazyTensors)
    assert checkpoint.tensors.shapes == {name: tuple(tensor.shape) for name, tensor in weights(config()).items()}


# Whole or not at all.


class Interrupted(dict[str, Tensor]):
    """A state dict whose owner presses Ctrl-C while its second tensor is written."""

    reads = 0

    def __getitem__(self, name: str) -> Tensor:
        self.reads += 1
        if self.reads > len(self) + 1:
            raise KeyboardInterrupt
        return super().__getitem__(name)


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        files.save(saved, Interrupted(weights(config())), config(eps=1.0))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*toy\.safetensors: .*; choose another place"):
        files.save(tmp_path / "file" / "toy.safetensors", weights(config()), config())
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        files.save(tmp_path / "folder", weights(config()), config())
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


# Bad input.


def test_a_missing_file_names_what_is_near(saved: Path) -> None:
    folder = saved.parent
    with pytest.raises(CheckpointError, match=r"no file called 'toy\.safetensor' in .* \(did you mean 'toy\.safetensors'\?\)"):
        files.read(folder / "toy.safetensor")
    with pytest.raises(CheckpointError, match=r"no file called 'xyz' in .*; there is toy\.safetensors$"):
        files.read(folder / "xyz")
    with pytest.raises(CheckpointError, match="there is no folder"):
        files.read(folder / "no" / "toy.pt")
    with pytest.raises(CheckpointError, match=r"is a folder; name a file in it; there is toy\.safetensors"):
        files.read(folder)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; download or save it again"),
        (b"hello world, I am a text of some length", "is cut short, damaged, or no file of weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "only a pointer of Git LFS"),
        (b"PK\x03\x04", "is cut short, damaged, or no file of weights"),
        (b"\x80\x02", "is cut short, damaged, or no file of weights"),
        (struct.pack("<Q", 10**15) + b"{", "is cut short, damaged, or no file of weights"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, said: str, suffix: str) -> None:
    (tmp_path / f"bad{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as error:
        files.read(tmp_path / f"bad{suffix}", config())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damage_of_any_kind_is_one_clear_sentence(tmp_path: Path, kind: str) -> None:
    """Files cut anywhere, or with bytes changed, are either refused in our own words or still hold tensors."""
    cfg, file = config(), tmp_path / "m"
    if kind == "safetensors":
        files.save(file, weights(cfg), cfg)
    else:
        torch.save(weights(cfg), file, _use_new_zipfile_serialization=kind == "zip")
    whole, chance = file.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        if chance.random() < 0.5:
            damaged = damaged[: chance.randrange(len(whole))]
        for _ in range(chance.randrange(4)):
            damaged[chance.randrange(len(damaged)) if damaged else 0 : 1] = bytes([chance.randrange(256)])
        file.write_bytes(damaged)
        try:
            tensors = files.read(file).tensors if kind == "safetensors" else files.read(file, cfg).tensors
            assert all(isinstance(tensors[name], Tensor) for name in tensors)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 75


class Bomb:
    """What it unpickles to makes a folder: a harmless stand-in for any command."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("how", ["zip", "legacy", "protocol 0", "protocol 4"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path: Path, how: str) -> None:
    target, file = tmp_path / "exploded", tmp_path / "model.pt"
    if how.startswith("protocol"):
        file.write_bytes(pickle.dumps({"w": Bomb(target)}, protocol=int(how[-1])))
    else:
        torch.save({"w": Bomb(target)}, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(CheckpointError) as error:
        files.read(file, config())
    assert not target.exists()
    assert "\n" not in str(error.value)
    assert "was run" in str(error.value)
    if not how.startswith("protocol"):
        assert re.search(r"asks for \w+\.mkdir, which could run any code; nothing was run", str(error.value))
    pickle.loads(pickle.dumps(Bomb(target)))
    assert target.exists(), "the stand-in does not even work"


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"asks for torch\.nn\.modules\.linear\.Linear.*torch\.save\(model\.state_dict"):
        files.read(tmp_path / "model.pt", config())


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ([1, 2], "holds a list, not a state dict"),
        (torch.ones(2), "holds a Tensor, not a state dict"),
        ({1: torch.ones(2)}, "holds a dict, not a state dict"),
        ({"w": torch.ones(2), "epoch": 3}, "is not a state dict: 'epoch' is an int; save model.state_dict"),
        ({"epoch": 3, "best": {"w": torch.ones(2)}}, "'epoch' is an int; its entry 'best' may be one"),
    ],
)
def test_what_is_no_state_dict_says_what_it_is(tmp_path: Path, held: Any, said: str) -> None:
    torch.save(held, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=said):
        files.read(tmp_path / "model.pt", config())


def test_weights_without_a_configuration_say_what_their_shapes_give_away(tmp_path: Path) -> None:
    torch.save(weights(config()), tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as error:
        files.read(tmp_path / "model.pt")
    assert str(error.value) == (
        "model.pt holds weights without their configuration (their shapes say n_layers=1, d_vocab=3, d_model=8, n_heads=2, "
        "d_head=4, n_ctx=5); give cfg=HookedTransformerConfig(…)"
    )
    torch.save({"w": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="without their configuration; give cfg"):
        files.read(tmp_path / "model.pt")


def test_safetensors_of_others_need_a_configuration(tmp_path: Path) -> None:
    save_file(weights(config()), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"no configuration of ours inside; give cfg=.*config\.json"):
        files.read(tmp_path / "m.safetensors")
    assert files.read(tmp_path / "m.safetensors", config()).tokenizer is None


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ("{", "is damaged: it is not JSON"),
        ("[]", "is not understood"),
        ('{"format": 2}', r"written by a newer cutaway \(format 2, not 1\); upgrade"),
        ('{"format": 1, "config": {"n_lairs": 2}}', "no configuration field called 'n_lairs' .did you mean 'n_layers'"),
        ('{"format": 1, "config": {"d_model": 2}}', "the configuration lacks n_layers"),
        ('{"format": 1, "config": 5}', "is not understood"),
        ('{"format": 1, "tokenizer": {"vocabulary": ["a", "a"]}}', "must differ"),
    ],
)
def test_what_a_file_says_about_its_model_must_be_understood(tmp_path: Path, about: str, said: str) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "m.safetensors", {files.KEY: about})
    with pytest.raises(CheckpointError, match=said):
        files.read(tmp_path / "m.safetensors")


def test_a_configuration_survives_json() -> None:
    cfg = config(dtype=torch.bfloat16, use_local_attn=True, window_size=2, attn_types=["local"], attn_scores_soft_cap=0.1)
    again = files.config_from_json(json.loads(json.dumps(files.config_to_json(cfg))))
    assert again.to_dict() == cfg.to_dict()
    with pytest.raises(ConfigError):
        files.config_from_json({"n_layers": 1})
