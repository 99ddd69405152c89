"""Bundled models are found by name, with their cards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cutaway.config import HookedTransformerConfig
from cutaway.errors import UnknownModel
from cutaway.sources import files, toys
from cutaway.weights import canonical


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf of one toy, and of a folder that is none."""
    monkeypatch.setattr(toys, "FOLDER", tmp_path)
    cfg = HookedTransformerConfig(n_layers=0, d_model=4, d_head=2, n_ctx=3, d_vocab=2, attn_only=True, device="cpu")
    weights = {name: torch.ones(shape) for name, shape in canonical.shapes(cfg).items()}
    files.save(tmp_path / "tiny-model" / toys.MODEL, weights, cfg, metadata={"seed": 7})
    (tmp_path / "tiny-model" / toys.CARD).write_text("# tiny-model\n\n- Seed: 7 — ok\n", encoding="utf-8")
    (tmp_path / "unfinished").mkdir()
    return tmp_path


def test_a_toy_is_found_by_name(shelf: Path) -> None:
    assert toys.names() == ["tiny-model"]
    checkpoint = toys.find("tiny-model")
    assert checkpoint.config.d_model == 4
    assert checkpoint.tensors["embed.W_E"].shape == (2, 4)
    assert checkpoint.provenance["seed"] == 7
    assert toys.card("tiny-model") == "# tiny-model\n\n- Seed: 7 — ok\n"


@pytest.mark.parametrize("ask", [toys.find, toys.card])
def test_an_unknown_toy_names_what_is_near(shelf: Path, ask: object) -> None:
    assert callable(ask)
    with pytest.raises(UnknownModel, match=r"no bundled model called 'tiny_model' \(did you mean 'tiny-model'\?\)"):
        ask("tiny_model")
    with pytest.raises(UnknownModel, match=r"no bundled model called '\.\./secret'; there is tiny-model"):
        ask("../secret")


def test_an_empty_shelf_says_so(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "FOLDER", shelf / "nowhere")
    assert toys.names() == []
    with pytest.raises(UnknownModel, match="none is installed"):
        toys.find("first-unique-char")


@pytest.mark.parametrize("name", toys.names())
def test_what_ships_fits_its_configuration_and_has_a_card(name: str) -> None:
    checkpoint = toys.find(name)
    canonical.check(checkpoint.tensors, checkpoint.config)
    assert "cutaway train" in toys.card(name)
