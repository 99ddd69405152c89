"""Models that people have and that cannot be read: each command says in one sentence why, and what to try, and exits with 2."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cutaway.cli import app
from tests.sources import llama_cpp

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 53, "hidden_size": 36, "intermediate_size": 52,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 40,
}  # fmt: skip


def folder_of(place: Path, **fields: Any) -> Path:
    """A folder of a tiny Llama with these fields of its config; a refusal reads no weights, so they may be nothing."""
    from safetensors.torch import save_file

    (place / "config.json").write_text(json.dumps(LLAMA | fields))
    save_file({}, place / "model.safetensors")
    return place


def gguf_of_an_unknown_family(place: Path) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(place / "mamba.gguf", "mamba")
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return place / "mamba.gguf"


def gguf_of_an_unknown_quantisation(place: Path) -> Path:
    pytest.importorskip("gguf")
    import transformers

    sizes = LLAMA | {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    llama_cpp.write(model, file := place / "tiny.gguf")
    data = bytearray(file.read_bytes())
    at = data.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight") + 4 + 2 * 8
    data[at : at + 4] = struct.pack("<I", 9)  # Q8_1
    file.write_bytes(data)
    return file


def adapter_without_its_base(place: Path) -> Path:
    pytest.importorskip("peft")
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "base_model_name_or_path": str(place / "gone")}
    (place / "adapter_config.json").write_text(json.dumps(about | {"target_modules": ["q_proj"]}))
    return place


def with_fields(**fields: Any) -> Callable[[Path], Path]:
    return lambda place: folder_of(place, **fields)


def quantised(method: str) -> Callable[[Path], Path]:
    return with_fields(quantization_config={"quant_method": method})


REMOTE = {"AutoModelForCausalLM": "modeling.Own"}
REFUSED: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "GGUF, family": (gguf_of_an_unknown_family, ["'mamba'", "GGUF files of bloom, falcon, gemma2"]),
    "GGUF, quantisation": (gguf_of_an_unknown_quantisation, ["as Q8_1", "there are F32, F16, Q4_0"]),
    "adapter": (adapter_without_its_base, ["gone', which is missing", "base_model_name_or_path"]),
    "contradiction": (with_fields(hidden_size=37), ["transformers refuses this config", "mend config.json"]),
    "contradiction, layer_types": (with_fields(layer_types=["no_such_attention"] * 2), ["layer_types"]),
    "bitsandbytes": (quantised("bitsandbytes"), ["by bitsandbytes", ".dequantize().save_pretrained", "load that folder"]),
    "fp8": (quantised("fp8"), ["quantised by fp8", "FineGrainedFP8Config(dequantize=True)"]),
    "mxfp4": (quantised("mxfp4"), ["quantised by mxfp4", "Mxfp4Config(dequantize=True)"]),
    "compressed-tensors": (quantised("compressed-tensors"), ["CompressedTensorsConfig(dequantize=True)"]),
    "gptq": (quantised("gptq"), ["quantised by gptq", "the model that it was quantised from"]),
    "remote code": (
        with_fields(model_type="own", architectures=["Own"], auto_map=REMOTE),
        ["code of a repository is never run", "architecture="],
    ),
    "remote code, known type": (with_fields(architectures=["Own"], auto_map=REMOTE), ["is a Own", "architecture="]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_read_is_refused_in_one_sentence(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make, parts = REFUSED[case]
    ran = tmp_path / "ran"
    (tmp_path / "modeling.py").write_text(f"open({str(ran)!r}, 'w')")
    model = make(tmp_path)
    for command in ("next", "verify"):
        said = CliRunner().invoke(app, [command, str(model), "--text", "a"])
        assert said.exit_code == 2, said.output
        assert said.stderr.startswith("cutaway: ") and said.stderr.count("\n") == 1 and "Traceback" not in said.output
        assert [part for part in parts if part not in said.stderr] == [], said.stderr
    assert not ran.exists(), "code of a checkpoint was run"
