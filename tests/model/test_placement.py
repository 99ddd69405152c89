"""Where layers go: maps of `transformers`' names, and plans of `accelerate` for a given memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, PackageNeeded
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model import placement

MEMORY = {0: 1, 1: 1}  # (given, so that no GPU is asked for)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    place = tmp_path_factory.mktemp("tiny-gpt2")
    sizes = {"vocab_size": 53, "n_positions": 40, "n_embd": 36, "n_layer": 3, "n_head": 6}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(place)
    return place


def config() -> HookedTransformerConfig:
    return HookedTransformerConfig(n_layers=4, d_model=32, n_ctx=8, d_head=8, d_vocab=50, act_fn="relu", device="cpu")


def indices(device_map: Any, memory: Any = MEMORY) -> list[int | None]:
    return [device.index for device in placement.of(device_map, config(), memory=memory).values()]


def test_maps_name_layers_as_families_do() -> None:
    llama = ("model.layers", "model.embed_tokens", "model.norm")
    for body, embed, norm in (llama, ("transformer.h", "transformer.wte", "transformer.ln_f")):
        named = {embed: 0, f"{body}.0": 0, f"{body}.1": 0, f"{body}.2": 1, f"{body}.3": 1, norm: 1, "lm_head": 1}
        assert indices(named) == [0, 0, 0, 1, 1, 1, 1]
    assert indices({"": 1}) == [1] * 7
    assert indices({"model": 0, "lm_head": 1}) == [0] * 6 + [1]
    assert indices({f"blocks.{layer}": layer for layer in range(4)}) == [0, 0, 1, 2, 3, 3, 3]
    assert indices(1) == indices("cuda:1") == indices(torch.device("cuda:1")) == [1] * 7


def test_a_plan_fills_devices_without_splitting_a_layer() -> None:
    pytest.importorskip("accelerate")
    block = 4 * (4 * 32 * 32 + 2 * 32 * 128 + 1000)
    found = indices("sequential", {0: 2 * block + 4 * 32 * 80, 1: 10 * block, "cpu": 10 * block})
    assert found[0] == 0 and found[-1] == 1 and sorted(found, key=str) == found
    assert 1 <= found[1:5].count(0) <= 3


def test_the_configuration_notes_the_devices() -> None:
    cfg = config()
    placement.of({"": 0, "lm_head": 1}, cfg, memory=MEMORY)
    assert cfg.device == "cuda:0" and cfg.n_devices == 2


@pytest.mark.parametrize("device_map", ["auto", "cpu", "balanced", {"": "cpu"}, {"transformer": "cpu", "lm_head": "cpu"}])
def test_a_map_of_the_cpu_changes_no_number(device_map: Any, folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("plans would use the GPU")
    tokens = torch.tensor([[3, 5, 7]])
    plain = HookedTransformer.from_pretrained(folder, device="cpu")
    placed = HookedTransformer.from_pretrained(folder, device_map=device_map)
    assert torch.equal(placed(tokens), plain(tokens)) and placed.cfg.n_devices == 1


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ({"model.visual": 0}, "device_map names 'model.visual'"),
        ({"model.layers.0": 0}, "no place for blocks.1; name it, or '' for all that is left"),
        ({"": "disk"}, "weights are held in memory here"),
        ("everywhere", "is no device; there are cpu, cuda:1, auto"),
        ({"": 99}, "device_map says cuda:99, and there are"),
    ],
)
def test_maps_that_cannot_be(device_map: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        placement.of(device_map, config())


def test_a_plan_needs_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(PackageNeeded, match="device_map='auto' needs the package accelerate"):
        placement.of("auto", config(), memory=MEMORY)
