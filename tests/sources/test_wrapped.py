"""Wrappers around models: what they do to names, in folders, files and live objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutaway.errors import CheckpointError
from cutaway.hooked_transformer import HookedTransformer
from cutaway.sources import files, folders, objects, wrapped

TOKENS = torch.tensor([[3, 7, 11, 4]])
PREFIXES = ("_orig_mod.", "module.", "base_model.model.", "pretrained_model.", "module._orig_mod.", "_orig_mod.module.", "model.")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return HookedTransformer.from_pretrained("x", hf_model=model, device="cpu")(TOKENS)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_folder_whose_names_begin_with_a_wrapper(prefix: str, model: Any, folder: Path, tmp_path: Path) -> None:
    weights = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(weights, tmp_path / "pytorch_model.bin")
    found = HookedTransformer.from_pretrained(tmp_path, device="cpu")
    with torch.no_grad():
        assert torch.equal(found(TOKENS), logits(model))


@pytest.mark.parametrize("nest", ["model", "state_dict", "model_state_dict"])
def test_a_state_dict_inside_what_a_training_loop_saves(nest: str, model: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save({"epoch": 3, nest: model.state_dict(), "optimizer": {"lr": 0.1}}, tmp_path / "pytorch_model.bin")
    with torch.no_grad():
        assert torch.equal(HookedTransformer.from_pretrained(tmp_path, device="cpu")(TOKENS), logits(model))


def test_wrappers_in_the_middle_of_names() -> None:
    names = ["module.model._orig_mod.layers.0._checkpoint_wrapped_module.mlp.weight", "module.model._orig_mod.norm.weight"]
    assert list(wrapped.plain_names(names).values()) == ["model.layers.0.mlp.weight", "model.norm.weight"]


def test_what_only_looks_like_a_wrapper_stays() -> None:
    for names in (["model.layers.0.weight", "lm_head.weight"], ["module.a", "other.b"], ["model.embed_tokens.w", "model.norm.w"]):
        assert list(wrapped.plain_names(names).values()) == names


def test_two_tensors_of_one_name_stop() -> None:
    with pytest.raises(CheckpointError, match=r"two tensors are called 'a\.b' once"):
        wrapped.plain_names(["_orig_mod.a.b", "a.b"])


def test_value_heads_are_listed(model: Any, folder: Path, tmp_path: Path) -> None:
    heads = {"v_head.summary.weight": torch.zeros(1, 36), "v_head.summary.bias": torch.zeros(1)}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(dict(model.state_dict()) | heads, tmp_path / "pytorch_model.bin")
    assert folders.read(tmp_path).provenance["left_out"] == list(heads)
    with torch.no_grad():
        assert torch.equal(HookedTransformer.from_pretrained(tmp_path, device="cpu")(TOKENS), logits(model))


class ValueHead(nn.Module):
    """As TRL wraps a model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pretrained_model, self.config = model, model.config
        self.v_head = nn.Linear(36, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # (Torch's own, as it imports its compiler)
def test_live_models_in_wrappers(model: Any) -> None:
    want = logits(model)
    assert torch.equal(logits(torch.compile(model)), want)
    assert torch.equal(logits(nn.DataParallel(model)), want)
    assert torch.equal(logits(ValueHead(model)), want)
    assert objects.read(ValueHead(model)).provenance["left_out"] == ["v_head.weight", "v_head.bias"]


def test_state_dicts_of_our_own_networks(tmp_path: Path, model: Any) -> None:
    ours = HookedTransformer.from_pretrained("x", hf_model=model, device="cpu")
    saved = {f"_orig_mod.{name}": tensor for name, tensor in ours.state_dict().items()}
    other = HookedTransformer(ours.cfg)
    other.load_state_dict({"model": saved})
    with torch.no_grad():
        assert torch.equal(other(TOKENS), ours(TOKENS))
    torch.save(saved, tmp_path / "model.pt")
    assert set(files.read(tmp_path / "model.pt", ours.cfg).tensors) == set(ours.state_dict())
