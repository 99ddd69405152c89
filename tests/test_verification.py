"""`cutaway verify`: it agrees with transformers where we do, and says where it begins where we do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway.cli import app
from cutaway.errors import ConfigError
from cutaway.hooked_transformer import HookedTransformer
from cutaway.sources import hub
from cutaway.verification import Difference, Verification, known_models, verify


@pytest.fixture(scope="module")
def model() -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=53, n_positions=40, n_embd=36, n_layer=3, n_head=6, bos_token_id=1, eos_token_id=2, initializer_range=0.3
    )
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tiny-gpt2")
    model.save_pretrained(place)
    return place


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_a_folder_is_the_same_at_every_layer(folder: Path) -> None:
    result = verify(folder)
    places = ["resid_pre 0", "resid_pre 1", "resid_pre 2", "final norm", "logits", "log-probabilities, processed"]
    assert [one.place for one in result.differences] == places
    assert result.passed and result.first_apart is None and result.largest.relative < 2e-6
    assert (result.tokens, result.family) == (40, "GPT2LMHeadModel")


def test_a_live_model(model: Any) -> None:
    assert verify("mine", hf_model=model).passed


def test_where_it_first_appears(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong weight in block 1 shows before block 2, and not before."""
    load = HookedTransformer.from_pretrained_no_processing.__func__  # type: ignore[attr-defined]

    def loaded_wrongly(cls: Any, *args: Any, **options: Any) -> HookedTransformer:
        ours = load(cls, *args, **options)
        with torch.no_grad():
            ours.blocks[1].attn.b_O += 1e-3
        return ours

    monkeypatch.setattr(HookedTransformer, "from_pretrained_no_processing", classmethod(loaded_wrongly))
    result = verify(folder)
    assert not result.passed and result.first_apart is not None and result.first_apart.place == "resid_pre 2"
    assert "NOT the same, first at resid_pre 2; largest difference" in result.summary()
    said = run("verify", str(folder))
    assert said.exit_code == 1 and "NOT the same" in said.stdout


def test_not_a_number_is_never_the_same() -> None:
    nan = float("nan")
    result = Verification("x", "y", 3, 2e-5, (Difference("logits", nan, nan), Difference("b", 0.0, 0.0)))
    assert not result.passed and result.largest.place == "logits"


def test_command_line(folder: Path) -> None:
    said = run("verify", str(folder))
    assert said.exit_code == 0 and "the same as transformers; largest difference" in said.stdout
    assert json.loads(run("verify", str(folder), "--json").stdout)["passed"] is True
    strict = run("verify", str(folder), "--tolerance", "0")
    assert strict.exit_code == 1 and "NOT the same" in strict.stdout


@pytest.mark.parametrize(
    ("name", "why"),
    [("first-unique-char", "a model of our own"), ("nowhere/at/all", "no folder and no model called 'nowhere/at/all'")],
)
def test_what_cannot_be_compared(name: str, why: str) -> None:
    said = run("verify", name)
    assert said.exit_code == 2 and why in said.stderr and said.stderr.count("\n") == 1


def test_a_model_that_transformers_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"d_model": 4, "n_layers": 1, "n_ctx": 5, "d_head": 2}')
    with pytest.raises(ConfigError, match="is not a model of transformers"):
        verify(tmp_path)


def test_models_lists_families_toys_and_aliases() -> None:
    known = known_models()
    said = run("models").stdout
    for name in [family["name"] for family in known["families"]] + known["bundled"] + list(hub.ALIASES):
        assert name in said
    assert not set(known["bundled"]) & set(known["aliases"])
    assert json.loads(run("models", "--json").stdout) == known
