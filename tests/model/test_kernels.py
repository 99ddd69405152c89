"""Choices of kernels: by measurement, kept, the same from first call to last; a broken or foreign file changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cutaway.errors import ConfigError
from cutaway.model import kernel_choices, kernels
from cutaway.model.kernels import KERNELS, ProductClass, candidates, choice, class_of, kernel_for
from cutaway.model.products import linear

CLASS = ProductClass(torch.float32, 16, 128, 256, "in", gradient=False)


@pytest.fixture(autouse=True)
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No choices yet, and a cache folder of its own; gives back the folder of the files."""
    monkeypatch.setenv("CUTAWAY_CACHE", str(tmp_path / "cache"))
    kernels.forget()
    yield tmp_path / "cache" / "kernels"
    monkeypatch.undo()
    kernels.forget()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ProductClass, str]]:
    """What was timed; the kernels take the seconds that `SECONDS` says."""
    seen: list[tuple[ProductClass, str]] = []

    def seconds(self: Any, name: str) -> float:
        seen.append((self.of, name))
        return SECONDS[name]

    monkeypatch.setattr(kernels._Operands, "seconds", seconds)
    return seen


SECONDS = {"linear": 2.0, "matmul": 3.0, "widened": 4.0, "onednn": 5.0, "vector": 6.0}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.is_dir() else []


def test_the_fastest_is_taken(measured: list[Any], monkeypatch: pytest.MonkeyPatch):
    assert choice(CLASS).kernel == "linear"
    kernels.forget()
    kernel_choices.folder().joinpath(files(kernel_choices.folder())[0]).unlink()
    monkeypatch.setitem(SECONDS, "matmul", 1.9)
    assert choice(CLASS).kernel == "matmul"


@pytest.mark.skipif(not kernels.has_onednn(), reason="this Torch has no kernel of oneDNN that we use")
@pytest.mark.parametrize(("faster", "taken"), [(1.10, "linear"), (1.20, "onednn")])
def test_what_torch_does_not_document_must_be_clearly_faster(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, faster: float, taken: str
):
    monkeypatch.setitem(SECONDS, "onednn", SECONDS["linear"] / faster)
    assert choice(CLASS).kernel == taken


def test_a_class_is_measured_once_and_kept_for_other_processes(measured: list[Any], afresh: Path):
    first = choice(CLASS)
    count = len(measured)
    assert count >= len(candidates(CLASS)) and choice(CLASS) == first and len(measured) == count
    (kept,) = files(afresh)
    assert json.loads(kept.read_text())["choices"][CLASS.key]["kernel"] == first.kernel
    kernels.forget()  # as another process starts
    assert choice(CLASS) == first and len(measured) == count


def test_choices_of_other_processes_stay_in_the_file(measured: list[Any], afresh: Path):
    other = ProductClass(torch.float32, 64, 128, 256, "in", gradient=False)
    choice(CLASS)
    kernels._by_situation.clear()  # another process, which knows nothing of it
    choice(other)
    (kept,) = files(afresh)
    assert set(json.loads(kept.read_text())["choices"]) == {CLASS.key, other.key}


def broken(found: dict[str, Any], key: str) -> dict[str, str]:
    """Files that are not right, by what is wrong with them."""

    def but(**changed: Any) -> str:
        return json.dumps(found | changed)

    entry = found["choices"][key]
    return {
        "empty": "",
        "half of it": json.dumps(found)[:100],
        "no object": "[1, 2]",
        "another format": but(format=0),
        "another processor": but(situation=found["situation"] | {"processor": "another"}),
        "another torch": but(situation=found["situation"] | {"torch": "1.0"}),
        "no choices": but(choices=None),
        "an unknown kernel": but(choices={key: entry | {"kernel": "mine", "rates": {"mine": 1.0}}}),
        "no rates": but(choices={key: {"kernel": "linear"}}),
        "rates of nothing": but(choices={key: entry | {"rates": {"linear": 0}}}),
        "rates that are no numbers": but(choices={key: entry | {"rates": {"linear": "fast"}}}),
        "a kernel that was not measured": but(choices={key: entry | {"kernel": "widened"}}),
        "a list": but(choices={key: [1]}),
    }


def test_broken_and_foreign_files_are_ignored_and_written_anew(measured: list[Any], afresh: Path):
    right = choice(CLASS)
    (kept,) = files(afresh)
    for wrong, text in broken(json.loads(kept.read_text()), CLASS.key).items():
        kept.write_text(text)
        kernels.forget()
        count = len(measured)
        assert choice(CLASS) == right, wrong
        assert len(measured) > count, wrong
        assert json.loads(kept.read_text())["choices"][CLASS.key]["kernel"] == right.kernel, wrong


def test_a_folder_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measured: list[Any]):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("CUTAWAY_CACHE", str(tmp_path / "a file"))
    assert choice(CLASS).kernel == "linear"


def test_nothing_half_written_is_left(measured: list[Any], afresh: Path, monkeypatch: pytest.MonkeyPatch):
    choice(CLASS)
    (kept,) = files(afresh)
    before = kept.read_text()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    choice(ProductClass(torch.float32, 64, 128, 256, "in", gradient=False))
    assert files(afresh) == [kept] and kept.read_text() == before


def test_it_can_be_switched_off(measured: list[Any], afresh: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SECONDS, "matmul", 1.0)
    monkeypatch.setenv("CUTAWAY_KERNELS", "torch")
    kernels.forget()
    x, W = drawn(16, 128), drawn(128, 256)
    with torch.no_grad():
        assert torch.equal(linear(x, W), F.linear(x, W.T))
    assert kernel_for(x, W, gradient=False) == "linear" and not measured and not files(afresh)


def test_another_word_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUTAWAY_KERNELS", "mkl")
    kernels.forget()
    with pytest.raises(ConfigError, match=r"CUTAWAY_KERNELS='mkl'.*torch"):
        kernel_for(drawn(16, 128), drawn(128, 256), gradient=False)


@pytest.mark.parametrize("dtype", [torch.float32, *kernels.HALVES])
@pytest.mark.parametrize("lies", ["in", "out", "cut"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("rows", [1, 16])
def test_every_kernel_that_is_measured_gives_the_right_numbers(dtype: torch.dtype, lies: str, gradient: bool, rows: int):
    of = ProductClass(dtype, rows, 128, 192, lies, gradient)
    operands = kernels._Operands(of)
    assert class_of(operands.x, operands.weights[0], gradient=gradient) == of
    assert all(operands.right(name) for name in candidates(of))
    assert set(kernels.measure(of).rates) == set(candidates(of))


@pytest.mark.parametrize("shape", [(576,), (1, 576), (1, 1, 576)])
def test_one_row_in_half_precision_may_be_a_vector(shape: tuple[int, ...]):
    x, W, b = (drawn(*one).to(torch.bfloat16) for one in (shape, (576, 96), (96,)))
    for given in (None, b):
        wanted = F.linear(x.double(), W.T.double(), None if given is None else given.double())
        torch.testing.assert_close(KERNELS["vector"](x, W, given).double(), wanted, rtol=0.02, atol=0.3)
    names = {dtype: candidates(ProductClass(dtype, 1, 576, 96, "out", gradient=False)) for dtype in kernels.MEASURED}
    assert [dtype for dtype, some in names.items() if "vector" in some] == list(kernels.HALVES)
    assert "vector" not in candidates(ProductClass(torch.bfloat16, 4, 576, 96, "out", gradient=False))


def test_what_was_kept_before_there_was_a_kernel_is_measured_anew(measured: list[Any], afresh: Path):
    of = ProductClass(torch.bfloat16, 1, 128, 256, "out", gradient=False)
    choice(of)
    (kept,) = files(afresh)
    found = json.loads(kept.read_text())
    del found["choices"][of.key]["rates"]["vector"]
    kept.write_text(json.dumps(found))
    kernels.forget()
    count = len(measured)
    assert "vector" in choice(of).rates and len(measured) > count


def test_a_kernel_that_gives_wrong_numbers_is_never_taken(monkeypatch: pytest.MonkeyPatch, measured: list[Any]):
    monkeypatch.setitem(KERNELS, "matmul", lambda x, W, b: (x @ W) * 1.01)
    monkeypatch.setitem(SECONDS, "matmul", 0.1)
    assert choice(CLASS).kernel == "linear" and "matmul" not in choice(CLASS).rates


def test_measuring_draws_no_random_numbers_of_ours_and_needs_no_gradients():
    state = torch.get_rng_state()
    with torch.inference_mode():
        choice(CLASS)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.device("meta"):
        assert kernels.measure(ProductClass(torch.float32, 4, 128, 192, "out", gradient=True)).rates


def test_bits_are_the_same_from_first_call_to_last(measured: list[Any], monkeypatch: pytest.MonkeyPatch):
    x, W, b = drawn(4, 30, 300), drawn(300, 700), drawn(700)
    with torch.no_grad():
        first = linear(x, W, b)
        for name in SECONDS:  # were it measured again, another kernel would win
            monkeypatch.setitem(SECONDS, name, 1 / SECONDS[name])
            assert torch.equal(linear(x, W, b), first)
    assert len({of for of, _ in measured}) == 1


def test_sizes_that_only_parts_of_weights_have_share_a_class():
    W = drawn(300, 700)
    classes = {class_of(drawn(3, rows), drawn(rows, 128), gradient=False) for rows in range(513, 577)}
    assert len(classes) == 1
    assert class_of(drawn(5, 300), W, gradient=False) == ProductClass(torch.float32, 4, 320, 704, "in", gradient=False)
    assert class_of(drawn(5, 50257), drawn(50257, 3), gradient=False).d_in == 50257


RUN = """
import sys, torch
from cutaway.model.kernels import ProductClass, choice
torch.set_num_threads(1)
found = [choice(ProductClass(torch.float32, 128, 768, width, lies, False)) for width in (768, 3072) for lies in ("in", "out")]
print([(one.kernel, round(one.rates["onednn"] / one.rates["linear"], 2)) for one in found])
"""


@pytest.mark.skipif(not kernels.has_onednn(), reason="this Torch has no kernel of oneDNN that we use")
def test_the_choice_follows_the_machine(afresh: Path):
    """The libraries are told to use half of the vector unit, one after the other, as if the processor were another."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no wider vector unit to switch off")

    def with_(**switches: str) -> tuple[set[str], list[float]]:
        done = subprocess.run(
            [sys.executable, "-c", RUN], env={**os.environ, **switches}, capture_output=True, text=True, check=True
        )
        found = eval(done.stdout)
        return {kernel for kernel, _ in found}, [ratio for _, ratio in found]

    slow_onednn = with_(ONEDNN_MAX_CPU_ISA="AVX2")
    slow_mkl = with_(MKL_ENABLE_INSTRUCTIONS="AVX2")
    assert slow_onednn[0] == {"linear"}, slow_onednn
    if max(slow_mkl[1]) > 1.15:  # MKL heeds the switch on processors of its maker only
        assert "onednn" in slow_mkl[0], slow_mkl
    assert len(files(afresh)) == 2
