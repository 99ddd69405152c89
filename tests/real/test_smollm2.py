"""A real language model, from its file to what it says, and the analyses on it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from cutaway import HookedTransformer, attribute, behaviour, metrics, patch
from cutaway.cli import app
from cutaway.errors import CheckpointError
from tests.model.test_streaming import fits_in_half

PROMPT = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Mary and John went to the store, Mary gave a drink to"
TEXT = """The river rises in the hills north of the town and flows past three mills, of which the oldest was built in 1640.
In winter it floods the meadows; in 1947 the water stood two metres high in the church, and boats were rowed along the aisle."""
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::cutaway.weights.processing.SkippedRewrite")


def test_it_names_the_indirect_object(smollm2: HookedTransformer) -> None:
    probabilities = smollm2(PROMPT)[0, -1].softmax(-1)
    assert probabilities.argmax() == smollm2.to_single_token(" Mary")
    assert torch.isclose(probabilities.max(), torch.tensor(0.92), atol=0.01)
    assert smollm2(OTHER)[0, -1].argmax() == smollm2.to_single_token(" John")


@torch.no_grad()
def test_it_names_a_later_year(smollm2: HookedTransformer) -> None:
    """Its tokenizer splits digits; each digit is right or wrong, and it takes a right one."""
    prompts = behaviour("greater-than").prompts(24, 0, smollm2.tokenizer)
    likeliest = smollm2(prompts.tokens)[range(24), prompts.at].argmax(-1).tolist()
    assert all(token in next(iter(right.values())) for token, right in zip(likeliest, prompts.right, strict=True))


def test_its_texts_begin_with_no_token_of_a_chat(smollm2: HookedTransformer) -> None:
    assert smollm2.tokenizer.bos_token == "<|im_start|>" and not smollm2.cfg.default_prepend_bos
    assert smollm2.to_str_tokens(PROMPT)[:3] == ["When", " Mary", " and"]


@torch.no_grad()
def test_it_computes_what_transformers_computes(smollm2: HookedTransformer, file: Path) -> None:
    """Against `transformers` in float64, with weights that it dequantises itself; its own float32 is as far away."""
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM, GgufConfig

    options = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
    theirs = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float64, **options).eval()
    tokens = smollm2.to_tokens(TEXT)
    want = theirs(tokens).logits.log_softmax(-1)
    assert (smollm2(tokens).log_softmax(-1) - want).abs().max() < 1e-4


@torch.no_grad()
def test_attribution_adds_up_to_the_logit_difference(smollm2: HookedTransformer) -> None:
    found = attribute(smollm2, PROMPT, targets=" Mary", minus=" John")
    logits = smollm2(PROMPT)[0, -1]
    wanted = logits[smollm2.to_single_token(" Mary")] - logits[smollm2.to_single_token(" John")]
    assert torch.isclose(found.values.data[:, 0, -1].sum(), wanted, atol=1e-3)
    labels = found.values.names("component")
    assert labels[int(found.values.data[:, 0, -1].argmax())] == "23.3"


@torch.no_grad()
def test_the_answer_moves_from_the_repeated_name_to_the_end(smollm2: HookedTransformer) -> None:
    metric = metrics.logit_difference(smollm2.to_single_token(" Mary"), smollm2.to_single_token(" John"))
    found = patch(smollm2, PROMPT, OTHER, metric, kinds=["resid_pre", "z"])
    stream, heads = found.normalised("resid_pre").data, found.normalised("z").data
    name, end = 9, stream.shape[1] - 1
    assert stream[0, name] > 0.99 and stream[0, end].abs() < 0.01
    assert stream[29, end] > 0.9 and stream[29, name].abs() < 0.1
    assert divmod(int(heads.argmax()), heads.shape[1]) == (23, 3)
    assert found.audit.difference < 1e-3


def test_it_goes_on_with_a_text_and_answers_in_a_chat(smollm2: HookedTransformer) -> None:
    greedy = {"do_sample": False, "verbose": False}
    assert smollm2.generate("The capital of France is", 3, **greedy).startswith("The capital of France is Paris")
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    asked = smollm2.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    answer = smollm2.generate(asked, 12, prepend_bos=False, **greedy)
    assert "Paris" in answer[len(asked) - 40 :]


def test_commands_know_it_by_name(file: Path) -> None:
    ran = CliRunner().invoke(app, ["predict", "smollm2-135m-instruct", "--text", PROMPT + " Mary"])
    assert ran.exit_code == 0, ran.output
    assert "Mary" in ran.output


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """examples/real_model.py, which `make demo` ends with."""
    spec = importlib.util.spec_from_file_location("real_model", ROOT / "examples" / "real_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_demo(smollm2: HookedTransformer, example: ModuleType, tmp_path: Path) -> None:
    with torch.no_grad():
        html = example.page(smollm2).save(tmp_path / "report.html").read_text()
    for said in ("The next token is “Mary” (0.92)", "Most of it comes from 23.3 +", "restores most of the answer"):
        assert said in html, said


def test_the_demo_ends_well_without_the_model(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(*args: object, **options: object) -> None:
        raise CheckpointError("it is nowhere")

    monkeypatch.setattr(example.HookedTransformer, "from_pretrained", nothing)
    monkeypatch.setattr(sys, "argv", ["real_model.py"])
    example.main()
    assert capsys.readouterr().out == "no page about a real model: it is nowhere\n"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process's memory is read from /proc")
@pytest.mark.fuzz  # a made-up model shows the same in less time: tests/model/test_streaming.py
def test_it_is_collected_and_swept_in_half_of_its_memory(file: Path) -> None:
    fits_in_half(str(file), room=76 * 2**20, beside=16 * 2**20)


@torch.no_grad()
def test_8_bits_change_little_and_say_how_much(file: Path) -> None:
    model = HookedTransformer.from_pretrained_no_processing(str(file), weight_bits=8)
    assert model(PROMPT)[0, -1].argmax() == model.to_single_token(" Mary")
    said = model.provenance["weight_bits"]
    assert "the same at 98% of the 81 tokens" in said and "0.1 nats on average and 0.95 at most" in said
