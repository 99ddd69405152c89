"""Kernels for `x @ W + b` on the processor, and which of them is fastest here, by measurement.

Which of Torch's kernels is fast depends on the processor's make and generation, on the number of threads, on the precision
and on the way the weights lie in memory; none is fastest everywhere. So each class of products (`ProductClass`) is measured
when it is first used: a few milliseconds, on random numbers of the same shapes. The choice holds for the process, and is
kept in the user's cache folder for this processor and this Torch (see `kernel_choices.py`).

oneDNN's own kernel, which Torch has and does not document, is taken only where it is at least 1.15 times as fast as every
documented one. `CUTAWAY_KERNELS=torch` switches the measuring off: then every product is `F.linear`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from cutaway.errors import ConfigError
from cutaway.model import kernel_choices
from cutaway.model.kernel_choices import Choice

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

HALVES = (torch.bfloat16, torch.float16)
MEASURED = (torch.float32, *HALVES)  # precisions for which there is more than one kernel
TORCHS = ("linear", "matmul")  # the kernels that anything of Torch's may watch, transform or compile
ROWS = (1, 4, 16, 64)  # what stands for up to twice as many rows; more are measured as MANY
MANY = 128
WIDEST = 4096  # wider outputs are measured on a part: halved until they are narrower
PIECE = 2**22  # weights that `widened` holds in float32 at a time
COLD = 2**21  # few rows are measured on weights that no longer lie in the processor's nearest cache: so many numbers of them
MARGIN = {"linear": 1.0, "matmul": 1.0, "widened": 1.05, "onednn": 1.15, "vector": 1.0}
"""How many times faster than the others a kernel must be. (`matmul` is the same computation as `linear`, by a shorter way.)"""
TIMES = 5  # measurements of each kernel, the fastest of which counts; the first may pay for what a library sets up
ENOUGH = 0.03  # seconds after which a class is measured no more than twice
GRADIENT = 3  # products of a forward and a backward pass


@dataclass(frozen=True)
class ProductClass:
    """Products that are measured together: all but the numbers in them, and rows by the power of four.

    Args:
        rows: the number of rows that is measured.
        lies: how the weights lie in memory: "in" where those of each input are side by side (`W` is contiguous), "out" where
            those of each output are, "cut" where `W` is a part of a larger matrix.
        gradient: whether gradients of the weights or the input are computed as well.
    """

    dtype: torch.dtype
    rows: int
    d_in: int
    d_out: int
    lies: str
    gradient: bool

    @property
    def key(self) -> str:
        """The class in words, as the cache file has it."""
        what = f"{str(self.dtype).removeprefix('torch.')} {self.rows} x {self.d_in} x {self.d_out} {self.lies}"
        return f"{what} gradient" if self.gradient else what


def class_of(x: Tensor, W: Tensor, *, gradient: bool) -> ProductClass:
    """The class of the product `x @ W`."""
    d_in, d_out = W.shape
    rows = x.numel() // max(d_in, 1)
    measured = next((few for few in ROWS if rows < 2 * few), MANY)
    return ProductClass(x.dtype, measured, _size(d_in), _size(d_out), lies(W), gradient)


def _size(size: int) -> int:
    """The size that stands for this one: its own where weights are likely to have it, else one with four leading bits.

    Weights have few sizes; parts of them, and the rows that a gradient sums over, have any.
    """
    if size % 64 == 0 or size > WIDEST:
        return size
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


def lies(W: Tensor) -> str:
    """How the weights lie in memory (see `ProductClass`)."""
    return "in" if W.is_contiguous() else "out" if W.T.is_contiguous() else "cut"


# The kernels.


def _matmul(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    if b is None:
        return x @ W
    if x.ndim < 2:
        return F.linear(x, W.T, b)
    return torch.addmm(b, x.flatten(0, -2), W).view(*x.shape[:-1], W.shape[1])


def _widened(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """A product of half precision in float32, rounded once at its end; the weights are widened piece by piece."""
    x = x.float()
    if W.numel() <= PIECE:
        return F.linear(x, W.T.float(), None if b is None else b.float()).to(W.dtype)
    out = torch.empty(*x.shape[:-1], W.shape[1], dtype=W.dtype)
    for columns in range(0, W.shape[1], width := max(1, PIECE // W.shape[0])):
        part = slice(columns, columns + width)
        out[..., part] = F.linear(x, W[:, part].T.float(), None if b is None else b[part].float())
    return out


def _onednn(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    if lies(W) == "cut":  # the kernel is a thousand times slower on a part of a larger matrix
        W = W.contiguous()
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, W.T, b, "none", [], "")
    return out


def _vector(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """A product of one row, as a matrix times a vector."""
    row = x.flatten()
    out = torch.mv(W.T, row) if b is None else torch.addmv(b, W.T, row)
    return out.view(*x.shape[:-1], W.shape[1])


def _linear(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return F.linear(x, W.T, b)


KERNELS: dict[str, Product] = {
    "linear": _linear, "matmul": _matmul, "widened": _widened, "onednn": _onednn, "vector": _vector,
}  # fmt: skip


@cache
def has_onednn() -> bool:
    """Whether this Torch has oneDNN's own kernel, and it gives the right numbers."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    x, W, b = (torch.arange(n, dtype=torch.float32, device="cpu") for n in (12, 20, 5))
    x, W = x.view(3, 4), W.view(4, 5)
    try:
        return torch.equal(_onednn(x, W, b), _linear(x, W, b))
    except (RuntimeError, TypeError):  # a build without it, or another Torch, whose kernel takes other arguments
        return False


def candidates(of: ProductClass) -> list[str]:
    """The kernels that can compute products of this class; `linear` is the first."""
    names = ["linear"]
    if not of.gradient and of.rows < MANY:
        names.append("matmul")
    if of.dtype in HALVES:
        names.append("widened")
        if of.rows == 1 and not of.gradient:
            names.append("vector")
    elif has_onednn() and torch._C._get_mkldnn_enabled():
        names.append("onednn")
    return names


# The choice.


def kernel_for(x: Tensor, W: Tensor, *, gradient: bool) -> str:
    """The name of the kernel for `x @ W`, the same from the first call of a process to its last.

    Between products Python runs with cold caches, so that the way to an answer that is known is short.
    """
    if _fixed:
        return "linear"
    exactly = (x.dtype, x.numel(), W.shape, W.stride(), gradient, torch.get_num_threads())
    if (name := _known.get(exactly)) is None:
        if not free(x, W):
            return "linear"
        name = _known[exactly] = choice(class_of(x, W, gradient=gradient)).kernel if measuring() else "linear"
    return name if name != "onednn" or _mkldnn() else "linear"


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Every product is `F.linear` while this is open: the same bits in every process, whatever each of them has measured."""
    _fixed.append(True)
    try:
        yield
    finally:
        _fixed.pop()


def free(x: Tensor, W: Tensor) -> bool:
    """Whether any kernel may be used: on the processor, with nobody watching, transforming or compiling Torch's operations."""
    return (
        x.device.type == "cpu"
        and x.dtype is W.dtype
        and x.dtype in MEASURED
        and x.ndim > 1
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def choice(of: ProductClass) -> Choice:
    """The fastest kernel of a class with the rates of all, measured now where nobody has measured it before."""
    with _lock:
        here = _situation()
        kept = _by_situation.setdefault(here.name, {})
        if of.key not in kept:
            found = kernel_choices.load(here).get(of.key)
            kept[of.key] = found if found is not None and _covers(found, candidates(of)) else measure(of)
            if found is not kept[of.key]:
                kernel_choices.save(here, kept)
        return kept[of.key]


def _covers(found: Choice, names: list[str]) -> bool:
    """Whether a kept choice is one of these kernels, and all of them were measured (an earlier version may have had fewer)."""
    return found.kernel in names and found.rates.keys() >= {*names}


@torch.no_grad()
def measure(of: ProductClass) -> Choice:
    """Time each kernel of a class; for some milliseconds."""
    operands = _Operands(of)
    seconds = {name: float("inf") for name in candidates(of) if operands.right(name)}
    until = time.perf_counter() + ENOUGH
    for turn in range(TIMES):
        for name in seconds:
            if turn < 2 or (seconds[name] < 1.5 * min(seconds.values()) and time.perf_counter() < until):
                seconds[name] = min(seconds[name], operands.seconds(name))
    fastest = min(seconds, key=lambda name: seconds[name] * MARGIN[name])
    return Choice(fastest, {name: operands.operations / taken / 1e9 for name, taken in seconds.items()})


class _Operands:
    """Random numbers of a class's shapes, with which its kernels are timed."""

    def __init__(self, of: ProductClass):
        self.of, width = of, of.d_out
        while width > WIDEST:
            width //= 2
        copies = max(1, COLD // (of.d_in * width)) if of.rows < ROWS[-1] else 1
        random = torch.Generator("cpu").manual_seed(0)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, device="cpu", dtype=torch.float32).to(of.dtype)

        self.x, self.b, self.above = numbers(of.rows, of.d_in), numbers(width), numbers(of.rows, width)
        W = self._laid(numbers(of.d_in, width))
        self.weights = [W, *(W.clone() for _ in range(copies - 1))]
        self.operations = 2 * of.rows * of.d_in * width * copies * (GRADIENT if of.gradient else 1)

    def _laid(self, W: Tensor) -> Tensor:
        if self.of.lies == "cut":
            return torch.cat([W, W[:, :64]], dim=1)[:, : W.shape[1]]  # its copies lie as they do, but for the first
        return W if self.of.lies == "in" else W.T.contiguous().T

    def right(self, name: str) -> bool:
        """Whether a kernel gives the right numbers here, up to rounding."""
        W = self.weights[0]
        found, wanted = KERNELS[name](self.x, W, self.b).float(), F.linear(self.x, W.T, self.b).float()
        allowed = 0.05 if self.of.dtype in HALVES else 1e-4
        return float((found - wanted).abs().max()) <= allowed * float(wanted.abs().max())

    def seconds(self, name: str) -> float:
        """Of one product with each copy of the weights, and of the two of its backward pass where there is one."""
        kernel = KERNELS[name]
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        for W in self.weights:
            kernel(self.x, W, None)
            if self.of.gradient:
                kernel(self.above, W.T, None)
                kernel(self.x.T, self.above, None)
        return max(clock() - start, 1e-9)


# What there is to tell about them.

NAMES = {"linear": "F.linear", "matmul": "@", "widened": "float32 product", "onednn": "oneDNN", "vector": "mv"}
STANDARD = {
    "one row": ProductClass(torch.float32, 1, 576, 1536, "in", gradient=False),
    "few rows": ProductClass(torch.float32, 16, 576, 1536, "in", gradient=False),
    "many rows": ProductClass(torch.float32, MANY, 576, 1536, "in", gradient=False),
    "many rows, wide apart": ProductClass(torch.float32, MANY, 768, 3072, "in", gradient=False),
    "wide output": ProductClass(torch.float32, 64, 576, 49152, "in", gradient=False),
    "gradients": ProductClass(torch.float32, MANY, 576, 1536, "in", gradient=True),
    "one row, bfloat16": ProductClass(torch.bfloat16, 1, 576, 1536, "out", gradient=False),
    "many rows, bfloat16": ProductClass(torch.bfloat16, MANY, 576, 1536, "out", gradient=False),
    "many rows, float16": ProductClass(torch.float16, MANY, 576, 1536, "out", gradient=False),
}
"""Classes that stand for all, of the sizes of SmolLM2-135M and GPT-2 small."""


def standard() -> dict[str, Choice]:
    """The choice for each class that stands for others; measured now where it never was."""
    if not measuring():
        return {}
    return {words: choice(of) for words, of in STANDARD.items()}


def line() -> str:
    """This processor and its kernels, in one line for the head of a table."""
    made = standard()
    if not made:
        return f"{_situation()}; products by F.linear, as CUTAWAY_KERNELS says"
    rates = [f"{words} {NAMES[one.kernel]} {one.rates[one.kernel]:.0f}" for words, one in made.items()]
    return f"{_situation()}; products, in billions of operations per second: {', '.join(rates)}"


@cache
def measuring() -> bool:
    """Whether kernels are chosen by measurement: always, unless `CUTAWAY_KERNELS=torch`.

    Raises:
        ConfigError: `CUTAWAY_KERNELS` is something else.
    """
    setting = os.environ.get("CUTAWAY_KERNELS", "")
    if setting not in ("", "torch"):
        raise ConfigError(f"CUTAWAY_KERNELS={setting!r} is not known; leave it unset to measure, or set it to torch for F.linear")
    return not setting


def forget() -> None:
    """Choose anew from here on, from what the cache folder keeps or by measurement. For tests."""
    _known.clear()
    _by_situation.clear()
    measuring.cache_clear()


_known: dict[tuple[object, ...], str] = {}
_by_situation: dict[str, dict[str, Choice]] = {}
_fixed: list[bool] = []
_lock = threading.RLock()


def _mkldnn() -> bool:
    enabled: bool = torch._C._get_mkldnn_enabled()
    return enabled


def _situation() -> kernel_choices.Situation:
    return kernel_choices.situation(torch.get_num_threads(), mkldnn=_mkldnn())
