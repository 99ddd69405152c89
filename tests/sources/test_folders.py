"""Folders as `save_pretrained` writes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import CheckpointError
from cutaway.sources import folders, tokenizers


def same(found: Any, model: Any) -> None:
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(found.tensors[name], tensor), name


def test_one_file(folder: Path, model: Any) -> None:
    found = folders.read(folder)
    same(found, model)
    assert found.config["model_type"] == "gpt2" and found.tokenizer is None and found.name == folder.name


def test_several_files(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    same(folders.read(tmp_path), model)


def test_bin_files(folder: Path, model: Any, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    same(folders.read(tmp_path), model)
    names = list(weights)
    index = {name: f"part-{number % 2}.bin" for number, name in enumerate(names)}
    for part in ("part-0.bin", "part-1.bin"):
        torch.save({name: weights[name] for name in names if index[name] == part}, tmp_path / part)
    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    same(folders.read(tmp_path), model)


def test_tokenizer_of_the_folder(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "with")
    tokenizer.save_pretrained(place)
    assert folders.read(place).tokenizer.encode("w7 w9") == [7, 9]
    assert folders.read(place, with_tokenizer=False).tokenizer is None
    assert folders.read(place, tokenizer="mine").tokenizer == "mine"


def test_a_broken_tokenizer_is_a_warning(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "broken")
    (place / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    with pytest.warns(tokenizers.TokenizerMissing, match="cannot be read .*; tokens still work"):
        assert folders.read(place).tokenizer is None


def test_what_is_missing_or_damaged_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder .*nowhere"):
        folders.read(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json in"):
        folders.read(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"no weights in .* holds config\.json"):
        folders.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged: it is not JSON"):
        folders.read(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="xpected object, got array"):
        folders.read(tmp_path)
