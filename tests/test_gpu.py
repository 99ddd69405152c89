"""On a GPU: every analysis gives the numbers that it gives on the processor, and what is kept stays on the device.

`make test-gpu` uses the GPU that is there. Otherwise one is pretended (see `pretend_gpu`), which finds every operation that would
mix devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cutaway
from cutaway import metrics
from cutaway.errors import ConfigError
from cutaway.runs import edits
from cutaway.runs.grids import heads, residual
from tests.architectures import ALL, network, some_tokens
from tests.pretend_gpu import pretend
from tests.runs.test_every_result import CALLS, Given
from tests.test_unequal_texts import LAW, LONG, NOT_FOR, TOGETHER, model_for, other, padded

DEVICE = "cuda"
REAL = torch.cuda.is_available()
HALF = {torch.bfloat16: 0.1, torch.float16: 0.02}  # and how far from float32 a small network may be, of its largest number


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[None]:
    """A GPU, with products of float32 in float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    with pytest.MonkeyPatch.context() as patch, nullcontext() if REAL else pretend(patch):
        yield
    torch.backends.cuda.matmul.allow_tf32 = before


def same(got: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal but for rounding, relative to the largest number."""
    got, expected = (torch.as_tensor(one).detach().cpu().double() for one in (got, expected))
    assert got.shape == expected.shape
    assert torch.equal(got.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    scale = expected[finite].abs().max().clamp(min=0.1) if finite.any() else 1
    assert not finite.any() or (got - expected)[finite].abs().max() <= tolerance * scale


def here(tensor: Tensor) -> bool:
    return tensor.device.type == DEVICE


@pytest.mark.parametrize("kind", ALL)
def test_a_run_and_its_cache(kind: str) -> None:
    plain, moved = network(kind), network(kind).to(DEVICE)
    tokens = some_tokens()
    expected, kept = plain.run_with_cache(tokens)
    got, on_device = moved.run_with_cache(tokens)
    assert here(got) and all(here(value) for value in on_device.values()) and list(kept) == list(on_device)
    same(got, expected)
    for name, value in kept.items():
        same(on_device[name], value)
    cpu = on_device.to("cpu")
    assert not any(here(value) for value in cpu.values())


@pytest.mark.skipif(not REAL, reason="the processor's own half precision has its laws elsewhere")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ALL)
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    plain, moved = network(kind, spread=0.15), network(kind, spread=0.15).to(DEVICE, dtype)
    tokens = some_tokens()
    got, kept = moved.run_with_cache(tokens)
    assert got.dtype == dtype and here(got) and here(kept["resid_post", 1])
    if kind != "mixture":  # which expert a token goes to may turn on rounding
        same(got.float(), plain(tokens), HALF[dtype])
    new = moved.generate(tokens[:, :3], max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)
    assert here(new) and torch.equal(new[:, :3].cpu(), tokens[:, :3])


@pytest.mark.parametrize("kind", ["gpt2", "llama"] if REAL else ["llama"])
@pytest.mark.parametrize("name", LAW)
def test_an_analysis_of_padded_texts(name: str, kind: str) -> None:
    if (name, kind) in NOT_FOR:
        pytest.skip(NOT_FOR[name, kind])
    function, texts = LAW[name]
    found = []
    for device in ("cpu", DEVICE):
        model = model_for(kind, "left").to(device)
        found.append(function(model, padded(model, texts, "left")[0].to(device))[0])
    same(found[1], found[0])


def in_two(model: Any) -> Any:
    """The model with its last layer and what follows on the processor."""
    model.to(DEVICE)
    for part in (model.blocks[-1], model.ln_final, model.unembed):
        part.to("cpu")
    model.cfg.n_devices = 2
    return model


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")  # Torch's own, of a backward pass that reaches the GPU late
@pytest.mark.parametrize("kind", ["gpt2", "llama"] if REAL else ["gpt2"])
@pytest.mark.parametrize("name", LAW)
def test_an_analysis_of_a_model_in_two_places(name: str, kind: str) -> None:
    if (name, kind) in NOT_FOR:
        pytest.skip(NOT_FOR[name, kind])
    function, texts = LAW[name]
    plain, split = model_for(kind, "left"), in_two(model_for(kind, "left"))
    tokens = padded(plain, texts, "left")[0]
    if name in ("edge_attribution", "edge_effects", "run_circuit", "CircuitRunner", "edge_effects, at the end"):
        with pytest.raises(ConfigError, match="edges are computed on one device"):
            function(split, tokens)
        return
    same(function(split, tokens)[0], function(plain, tokens)[0])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", TOGETHER)
def test_what_is_said_of_all_texts(name: str, kind: str) -> None:
    found = []
    for device in ("cpu", DEVICE):
        model = model_for(kind, "left").to(device)
        found.append(TOGETHER[name](model, padded(model, [*LONG, "dcba"], "left")[0].to(device)))
    for expected, got in zip(*found, strict=True):
        same(got, expected, 1e-3)


@pytest.fixture(scope="module")
def given() -> tuple[Given, Given]:
    return Given("cpu"), Given(DEVICE)


DRAWN = {"dose_response", "max_activating_texts"}  # texts and vectors drawn on the device are others there


@pytest.mark.parametrize("name", CALLS)
def test_a_result(name: str, given: tuple[Given, Given], tmp_path: Path) -> None:
    expected, got = (CALLS[name](one) for one in given)
    if name not in DRAWN:
        same(got.values.data, expected.values.data, 1e-3)
    assert got.summary() and len(got.to_frame()) == len(expected.to_frame())
    again = cutaway.load(got.save(tmp_path / "x.cutaway"))
    same(again.values.data, got.values.data)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_sweeps_say_how_exact_they_are(dtype: torch.dtype) -> None:
    model = model_for("llama", "right").to(DEVICE, dtype)
    tokens = padded(model, LONG, "right")[0]
    clean = model.run_with_cache(other(tokens))[1]
    for grid in (heads(edits.patch(clean)), residual(edits.patch(clean))):
        found = cutaway.sweep(model, tokens, grid, metrics.logit_difference([1], [2]), audit=3)
        assert found.audit is not None and found.values.data.isfinite().all()


def test_generation_is_the_same_text() -> None:
    texts = []
    for device in ("cpu", DEVICE):
        model = model_for("llama", "left").to(device)
        texts.append(model.generate(LONG, max_new_tokens=6, do_sample=False, stop_at_eos=False, verbose=False))
    assert texts[0] == texts[1]


def test_gradients_and_training_stay_on_the_device() -> None:
    model = network("gpt2").to(DEVICE)
    loss = model(some_tokens(), return_type="loss")
    loss.backward()
    assert all(here(weight.grad) for weight in model.parameters() if weight.grad is not None)
    plain = network("gpt2")
    plain(some_tokens(), return_type="loss").backward()
    for one, another in zip(model.parameters(), plain.parameters(), strict=True):
        if another.grad is not None:
            same(one.grad, another.grad, 1e-3)


def test_a_model_that_is_partly_on_the_processor(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 53, "n_positions": 40, "n_embd": 36, "n_layer": 4, "n_head": 6}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path)
    plain = cutaway.HookedTransformer.from_pretrained(tmp_path, device="cpu")
    halves = {"transformer.wte": 0, "transformer.wpe": 0, "transformer.h.0": 0, "transformer.h.1": 0, "": "cpu"}
    split = cutaway.HookedTransformer.from_pretrained(tmp_path, device_map=halves)
    tokens = torch.randint(0, 53, (3, 8), generator=torch.Generator().manual_seed(0))
    others = (tokens + 3) % 53
    assert here(split.blocks[0].attn.W_Q) and split.blocks[3].attn.W_Q.device.type == "cpu"
    expected, kept = plain.run_with_cache(tokens)
    got, on_devices = split.run_with_cache(tokens)
    same(got, expected)
    for name, value in kept.items():
        same(on_devices[name], value)
    metric = metrics.logit_difference([1], [2])
    for call in (
        lambda model: cutaway.sweep(model, tokens, heads(), metric).values.data,
        lambda model: cutaway.patch(model, tokens, others, metric, kinds=["resid_pre", "z"]).sweeps["z"].values.data,
        lambda model: cutaway.path_patch(model, tokens, others, metric).values.data,
        lambda model: cutaway.attribute(model, tokens).values.data,
        lambda model: cutaway.lens(model, tokens).values.data,
    ):
        same(call(split), call(plain), 1e-3)
    with pytest.raises(ConfigError, match="edges are computed on one device"):
        cutaway.edge_attribution(split, tokens, others, metric)
    new = [model.generate(tokens, 4, do_sample=False, stop_at_eos=False, verbose=False).cpu() for model in (plain, split)]
    assert torch.equal(*new)


@pytest.mark.skipif(not REAL, reason="needs the memory of a real GPU")
def test_a_device_that_runs_out_takes_smaller_chunks() -> None:
    model = network("gpt2", n_ctx=512, d_model=64, d_mlp=256, n_layers=4).to(DEVICE)
    tokens = torch.randint(0, 13, (8, 512), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    metric = metrics.logit_difference([1], [2])
    expected = cutaway.sweep(model, tokens, heads(), metric).values.data.cpu()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    del free
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 250 * 2**20) / total)
    try:
        got = cutaway.sweep(model, tokens, heads(), metric).values.data.cpu()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    same(got, expected)


def test_a_streamed_model_and_8_bits(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 53, "n_positions": 40, "n_embd": 36, "n_layer": 4, "n_head": 6}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path)
    tokens = torch.randint(0, 53, (3, 8), generator=torch.Generator().manual_seed(0))
    load = cutaway.HookedTransformer.from_pretrained_no_processing
    for options in ({"stream": 2**18}, {"weight_bits": 8}):
        plain, moved = (load(tmp_path, device=device, **options) for device in ("cpu", DEVICE))
        same(moved(tokens), plain(tokens))
        metric = metrics.logit_difference([1], [2])
        expected, got = (cutaway.sweep(model, tokens, heads(), metric).values.data for model in (plain, moved))
        same(got, expected)
