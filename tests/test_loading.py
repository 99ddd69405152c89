"""From every source to a network, by one call; and one clear sentence where that cannot be."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway import loading
from cutaway.config import HookedTransformerConfig
from cutaway.errors import CheckpointError, ConfigError, UnknownModel, WeightsMismatch
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model import placement
from cutaway.sources import files, hub, toys
from cutaway.sources.checkpoint import LazyTensors
from tests.architectures import network

TOKENS = torch.tensor([[1, 5, 9, 30, 52, 7], [1, 8, 8, 11, 3, 40]])


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


@pytest.fixture
def want(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(hub, "_listing", asked)
    monkeypatch.setattr(hub, "_download", asked)


def near(x: Tensor, y: Tensor, within: float = 2e-5) -> bool:
    x, y = x.detach(), y.detach()
    return float((x - y).abs().max() / y.abs().max()) < within


# Sources.


def test_a_folder_with_and_without_processing(folder: Path, want: Tensor) -> None:
    plain = HookedTransformer.from_pretrained_no_processing(str(folder), device="cpu")
    assert near(plain(TOKENS), want) and plain.cfg.normalization_type == "LN"
    processed = HookedTransformer.from_pretrained(folder, device="cpu")  # a Path will do
    assert near(processed(TOKENS).log_softmax(-1), want.log_softmax(-1)) and processed.cfg.normalization_type == "LNPre"
    assert processed.cfg.model_name == folder.name and processed.tokenizer is None


def test_a_live_model_is_left_as_it_is(model: Any, want: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for ours in (
        HookedTransformer.from_pretrained("gpt2", hf_model=model, device="cpu"),
        HookedTransformer.from_pretrained_no_processing("gpt2", hf_model=model, device="cpu"),
    ):
        assert near(ours(TOKENS).log_softmax(-1), want.log_softmax(-1))
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_toy_and_a_file_of_ours(tmp_path: Path, model: Any, want: Tensor) -> None:
    for name in toys.names():
        assert HookedTransformer.from_pretrained(name, device="cpu").tokenizer is not None
    ours = HookedTransformer.from_pretrained("x", hf_model=model, device="cpu")
    files.save(tmp_path / "mine.safetensors", ours.state_dict(), ours.cfg, processed=True)
    again = HookedTransformer.from_pretrained(tmp_path / "mine.safetensors", device="cpu")
    assert torch.equal(again(TOKENS), ours(TOKENS))
    with pytest.raises(ConfigError, match="n_ctx and first_n_layers are for models of transformers"):
        HookedTransformer.from_pretrained(tmp_path / "mine.safetensors", first_n_layers=1)


def test_a_checkpoint_of_a_run_asks_for_its_revision(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked = []

    def fetch(repo: str, access: hub.Access) -> Path:
        asked.append((repo, access.revision))
        return folder

    monkeypatch.setattr(hub, "fetch", fetch)
    ours = HookedTransformer.from_pretrained("pythia-70m", checkpoint_value=2000, device="cpu")
    assert asked == [("EleutherAI/pythia-70m", "step2000")]
    assert (ours.cfg.from_checkpoint, ours.cfg.checkpoint_index, ours.cfg.checkpoint_value) == (True, 12, 2000)
    HookedTransformer.from_pretrained("gpt2", revision="abc", device="cpu")
    assert asked[-1] == ("gpt2", "abc")
    with pytest.raises(ConfigError, match="not both"):
        HookedTransformer.from_pretrained("pythia-70m", checkpoint_index=1, revision="abc")


# Options.


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16", torch.float64])
def test_precision(dtype: Any, folder: Path, want: Tensor) -> None:
    ours = HookedTransformer.from_pretrained_no_processing(folder, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in ours.parameters()} == {loading.as_dtype(dtype)} == {ours.cfg.dtype}
    assert near(ours(TOKENS).double(), want.double(), within=1e-5 if dtype == torch.float64 else 0.1)


def test_processing_does_not_round_to_the_precision_of_the_file(model: Any, tmp_path: Path) -> None:
    """Weights in bfloat16, asked for in float32: rewriting them changes no probability."""
    import copy

    copy.deepcopy(model).bfloat16().save_pretrained(tmp_path)
    plain = HookedTransformer.from_pretrained_no_processing(tmp_path, device="cpu")
    processed = HookedTransformer.from_pretrained(tmp_path, device="cpu")
    assert near(processed(TOKENS).log_softmax(-1), plain(TOKENS).log_softmax(-1))


def test_fewer_layers_and_positions(folder: Path, model: Any) -> None:
    ours = HookedTransformer.from_pretrained_no_processing(folder, first_n_layers=2, n_ctx=9, device="cpu")
    with torch.no_grad():
        hidden = model(TOKENS, output_hidden_states=True).hidden_states
    assert near(ours(TOKENS, stop_at_layer=2), hidden[2])
    assert ours.W_pos.shape == (9, 36) and ours.cfg.n_layers == 2


def test_what_the_configuration_is_told(folder: Path) -> None:
    ours = HookedTransformer.from_pretrained(folder, default_prepend_bos=False, default_padding_side="left", device="cpu")
    assert ours.cfg.default_prepend_bos is False and ours.default_padding_side == "left"
    assert HookedTransformer.from_pretrained(folder, torch_dtype=torch.float64, device="cpu").cfg.dtype == torch.float64
    for given, near in {"tokeniser": "tokenizer", "fold_layernorm": "fold_ln", "revison": "revision"}.items():
        with pytest.raises(TypeError, match=rf"from_pretrained does not know bits8, {given} \(did you mean '{near}'\?\)$"):
            HookedTransformer.from_pretrained(folder, **{"bits8": 1, given: 2})


def test_weights_are_placed_over_several_devices() -> None:
    cfg = HookedTransformerConfig(n_layers=5, d_model=4, n_ctx=4, d_head=2, attn_only=True, d_vocab=3, device="cuda", n_devices=2)
    places = [placement.device_of(f"blocks.{layer}.attn.W_Q", cfg, {}).index for layer in range(5)]
    assert places == [0, 0, 0, 1, 1]
    ends = [placement.device_of(name, cfg, {}).index for name in ("embed.W_E", "pos_embed.W_pos", "ln_final.w", "unembed.W_U")]
    assert ends == [0, 0, 1, 1]


# Bad input: one clear sentence.


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"device": "cuda:77"}, r"device=cuda:77 with n_devices=1, and there (is|are) "),
        ({"device": "toaster"}, "no device called 'toaster'"),
        ({"device": "cpu", "n_devices": 2}, "n_devices=2 needs GPUs, and device is cpu"),
        ({"dtype": "float7"}, "dtype='float7' is not known"),
        ({"device": "cpu", "dtype": torch.int8}, "dtype=torch.int8 is no precision of weights"),
        ({"n_ctx": 41}, "learned embeddings of 40 positions only"),
        ({"first_n_layers": 4}, "first_n_layers=4 of a model that has 3"),
        ({"checkpoint_index": 3}, "published without checkpoints"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], why: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        HookedTransformer.from_pretrained(str(folder), **options)


def test_a_truncated_file(folder: Path, tmp_path: Path) -> None:
    import shutil

    place = shutil.copytree(folder, tmp_path / "cut")
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is cut short or damaged"):
        HookedTransformer.from_pretrained(place)


def test_names_that_nothing_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(repo: str, revision: str | None) -> list[str]:
        raise UnknownModel(f"no model called {repo!r}{hub._near(repo)}")

    monkeypatch.setattr(hub, "_listing", missing)
    with pytest.raises(UnknownModel, match=r"no model called 'gpt2-smol' \(did you mean 'gpt2-small'"):
        HookedTransformer.from_pretrained("gpt2-smol")
    with pytest.raises(CheckpointError, match="there is no folder"):
        HookedTransformer.from_pretrained("nowhere/model.safetensors")


def test_weights_of_another_model(folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    place = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"n_layer": 2}))
    with pytest.raises(WeightsMismatch, match=r"lacks: transformer\.h\.2\."), warnings.catch_warnings():
        HookedTransformer.from_pretrained(place)


def test_weights_are_copied_or_taken_as_they_are():
    model, other = (HookedTransformer(network("gpt2").cfg) for _ in range(2))
    weights = other.state_dict()
    model.load_state_dict(weights)
    assert torch.equal(model.W_U, other.W_U) and model.unembed.W_U.data_ptr() != other.unembed.W_U.data_ptr()
    model.load_state_dict(weights, assign=True)
    assert model.unembed.W_U.data_ptr() == other.unembed.W_U.data_ptr()


def test_auto_is_the_precision_of_the_checkpoint(model: Any, tmp_path: Path) -> None:
    import copy

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path)
    assert HookedTransformer.from_pretrained(tmp_path, torch_dtype="auto", device="cpu").cfg.dtype == torch.bfloat16
    assert HookedTransformer.from_pretrained(tmp_path, dtype="auto", device="cpu").W_E.dtype == torch.bfloat16
    assert HookedTransformer.from_pretrained("attn-only-2l", dtype="auto", device="cpu").cfg.dtype == torch.float16


def test_options_without_effect_are_taken_and_noted(folder: Path) -> None:
    options = {"attn_implementation": "sdpa", "trust_remote_code": True, "local_files_only": True}
    found = HookedTransformer.from_pretrained(folder, device="cpu", **options)
    assert torch.equal(found(TOKENS), HookedTransformer.from_pretrained(folder, device="cpu")(TOKENS))


@pytest.mark.parametrize(("fresh", "whole", "copied"), [(True, True, False), (True, False, True), (False, True, True)])
def test_what_is_read_for_nobody_else_is_not_copied(fresh: bool, whole: bool, copied: bool) -> None:
    """Only a part of something larger is, which would keep all of it; and what somebody else has."""
    there = torch.randn(6, 4) if whole else torch.randn(12, 4)[:6]
    given = LazyTensors({"x": (6, 4)}, lambda name: there, fresh=fresh)
    read = loading._read_once(given, torch.float32, loading.Shown())["x"]
    assert torch.equal(read, there) and (read.data_ptr() != there.data_ptr()) == copied
