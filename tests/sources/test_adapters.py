"""Adapters: what base and adapter compute together is what the merged weights compute, and the live model stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import CheckpointError, PackageNeeded, UnsupportedArchitecture
from cutaway.hooked_transformer import HookedTransformer
from cutaway.verification import verify

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # (of peft, about the shapes of GPT-2's layers)
TOKENS = torch.tensor([[3, 7, 11, 4]])
KINDS = {
    "lora": {"cls": "LoraConfig", "r": 3, "lora_alpha": 7, "target_modules": ["c_attn", "c_fc"]},
    "rslora with biases": {"cls": "LoraConfig", "r": 2, "use_rslora": True, "bias": "all", "target_modules": ["c_attn"]},
    "dora": {"cls": "LoraConfig", "r": 2, "use_dora": True, "target_modules": ["c_attn"]},
    "ia3": {"cls": "IA3Config", "target_modules": ["c_attn", "c_fc"], "feedforward_modules": ["c_fc"]},
    "whole embedding": {"cls": "LoraConfig", "r": 2, "target_modules": ["c_attn"], "modules_to_save": ["wte"]},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 53, "n_positions": 40, "n_embd": 36, "n_layer": 2, "n_head": 6}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, initializer_range=0.3, tie_word_embeddings=False))
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(base: Path, kind: str = "lora") -> Any:
    import transformers

    settings = dict(KINDS[kind])
    config = getattr(peft, str(settings.pop("cls")))(**settings, task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    return shaken(model).eval()


def shaken(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def apart(found: HookedTransformer, model: Any) -> float:
    with torch.no_grad():
        want = model(TOKENS).logits.log_softmax(-1)
        return float((found(TOKENS).log_softmax(-1) - want).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_folders_and_live_models(kind: str, base: Path, tmp_path: Path) -> None:
    model = adapted(base, kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert apart(HookedTransformer.from_pretrained("x", hf_model=model, device="cpu"), model) < 5e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert set(before) == set(model.state_dict())
    model.save_pretrained(tmp_path / "adapter")
    assert apart(HookedTransformer.from_pretrained(tmp_path / "adapter", device="cpu"), model) < 5e-5
    plain = type(model.get_base_model()).from_pretrained(base)
    assert (
        apart(HookedTransformer.from_pretrained(base, device="cpu"), plain)
        < 5e-5
        < apart(HookedTransformer.from_pretrained(base, device="cpu"), model)
    )


def test_an_adapter_can_be_verified(base: Path, tmp_path: Path) -> None:
    """Beside what `transformers` and PEFT compute without merging."""
    adapted(base).save_pretrained(tmp_path / "adapter")
    assert verify(tmp_path / "adapter").passed


def test_adapters_that_are_switched_off_count_for_nothing(base: Path) -> None:
    model = adapted(base)
    with model.disable_adapter():
        assert apart(HookedTransformer.from_pretrained("x", hf_model=model, device="cpu"), model) < 5e-5
    model.merge_adapter()
    assert apart(HookedTransformer.from_pretrained("x", hf_model=model, device="cpu"), model) < 5e-5


def test_adapters_added_to_a_model_of_transformers(base: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.add_adapter(peft.LoraConfig(r=3, target_modules=["c_attn"], modules_to_save=["wte"]))
    shaken(model).eval()
    assert apart(HookedTransformer.from_pretrained("x", hf_model=model, device="cpu"), model) < 5e-5
    model.disable_adapters()
    assert apart(HookedTransformer.from_pretrained("x", hf_model=model, device="cpu"), model) < 5e-5


def test_an_adapter_with_more_tokens_than_its_base(base: Path, tmp_path: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(57)
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["wte", "lm_head"], task_type="CAUSAL_LM")
    model = shaken(peft.get_peft_model(model, config)).eval()
    model.save_pretrained(tmp_path / "adapter")
    found = HookedTransformer.from_pretrained(tmp_path / "adapter", device="cpu")
    assert found.cfg.d_vocab == 57 and apart(found, model) < 5e-5


# Bad input.


def test_a_missing_base_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted(base).save_pretrained(tmp_path / "adapter")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"needs its base '.*base', which is missing .*base_model_name_or_path"):
        HookedTransformer.from_pretrained(tmp_path / "adapter")


def test_an_adapter_of_another_base_says_that_it_does_not_fit(base: Path, tmp_path: Path) -> None:
    import transformers

    adapted(base).save_pretrained(tmp_path / "adapter")
    sizes = {"vocab_size": 53, "n_positions": 40, "n_embd": 24, "n_layer": 2, "n_head": 6}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "smaller")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "smaller")}))
    with pytest.raises(CheckpointError, match="does not fit its base"):
        HookedTransformer.from_pretrained(tmp_path / "adapter")


def test_prompts_that_were_learned_cannot_be_merged(base: Path) -> None:
    import transformers

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    with pytest.raises(UnsupportedArchitecture, match="PROMPT_TUNING adds to the prompt and cannot be merged"):
        HookedTransformer.from_pretrained("x", hf_model=model)


def test_without_the_package_the_error_names_it(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted(base).save_pretrained(tmp_path / "adapter")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(PackageNeeded, match=r"pip install 'cutaway\[peft\]'"):
        HookedTransformer.from_pretrained(tmp_path / "adapter")
