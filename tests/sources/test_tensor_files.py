"""Safetensors read by hand: the same numbers as the library's, and damage is found before anything is believed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cutaway.errors import CheckpointError
from cutaway.sources.files import pickled
from cutaway.sources.tensor_files import safetensors, sharded

TENSORS = {
    "a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.randn(2, 2, 2).half(), "d": torch.arange(4),
    "none": torch.zeros(0, 3), "scalar": torch.tensor(2.5, dtype=torch.float64), "yes": torch.tensor([True, False]),
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def test_every_type_and_shape_comes_back(file: Path) -> None:
    read = safetensors([file])
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert read.shapes[name] == tuple(tensor.shape)
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_each_read_is_a_tensor_of_its_own(file: Path) -> None:
    read = safetensors([file])
    read["a"].zero_()
    assert torch.equal(read["a"], TENSORS["a"])


def test_files_that_belong_together(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    read = safetensors(sharded(index))
    assert read["a"].sum() == 2 and read["b"].shape == (3,)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no file .*two\.safetensors; the model lacks a part"):
        safetensors(sharded(index))
    for bad in ('{"weight_map": {"a": "../../etc/passwd"}}', '{"weight_map": {"a": 3}}', "{}", "no json", "[]"):
        index.write_text(bad)
        with pytest.raises(CheckpointError, match=r"outside its folder|is damaged|is not understood"):
            sharded(index)


@given(cut=st.integers(min_value=0, max_value=700))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_a_file_cut_short_is_never_believed(cut: int, file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    short = tmp_path / "short.safetensors"
    short.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(CheckpointError, match=r"short\.safetensors is cut short or damaged|is not understood|is damaged"):
        safetensors([short])


def header(file: Path, about: Any, room: int = 64) -> None:
    encoded = about if isinstance(about, bytes) else json.dumps(about).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(room))


@pytest.mark.parametrize(
    "about",
    [
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}},
        {"a": {"dtype": "F32", "shape": [400], "data_offsets": [0, 1600]}},
        {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, -16]}},
        {"a": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": "four", "data_offsets": [0, 16]}},
        {"a": {"shape": [4]}},
        {"a": 3},
        ["a"],
        b"\xff\xfe{",
    ],
)
def test_a_header_that_lies_is_refused(about: Any, tmp_path: Path) -> None:
    file = tmp_path / "lying.safetensors"
    header(file, about)
    with pytest.raises(CheckpointError, match=r"is cut short or damaged|is not understood|is damaged"):
        safetensors([file])


def test_types_that_are_no_weights_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "packed.safetensors"
    header(file, {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}})
    with pytest.raises(CheckpointError, match=r"'a' in packed\.safetensors is of type F8_E4M3, which we do not read"):
        safetensors([file])


def test_a_file_that_shrinks_after_it_was_opened(file: Path) -> None:
    read = safetensors([file])
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match="it ends within"):
        for name in read:
            read[name]


def test_pickles_are_read_as_weights_alone(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    read = pickled([tmp_path / "pytorch_model.bin"])
    assert torch.equal(read["a"], TENSORS["a"]) and read.shapes["c"] == (2, 2, 2)
    (tmp_path / "evil.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "pwned").encode() + b"'\ntR.")
    with pytest.raises(CheckpointError):
        pickled([tmp_path / "evil.bin"])
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(CheckpointError, match="the model lacks a part"):
        pickled([tmp_path / "absent.bin"])
