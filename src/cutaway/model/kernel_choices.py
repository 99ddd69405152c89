"""Where measured choices of kernels are kept: a JSON file in the user's cache folder for each processor and Torch.

A file that is broken, or was written for another processor, another Torch, other threads or other switches of the libraries,
is ignored and written anew. It is written atomically, so that a reader never sees half of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cutaway import writing
from cutaway.errors import NotWritten

FORMAT = 1
SWITCHES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "ATEN_CPU_CAPABILITY")
"""Environment variables that make the libraries use fewer of the processor's instructions."""


@dataclass(frozen=True)
class Choice:
    """The kernel of a class of products, and the rate of each that was measured, in billions of operations per second."""

    kernel: str
    rates: dict[str, float]


@dataclass(frozen=True)
class Situation:
    """What rates depend on beside the product itself; choices are kept for each situation."""

    processor: str
    capability: str
    torch: str
    threads: int
    mkldnn: bool
    switches: str

    @property
    def name(self) -> str:
        """A file name that tells situations apart."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + ("s" if self.threads != 1 else "")
        switches = f", {self.switches}" if self.switches else ""
        return f"{self.processor} ({self.capability}), {threads}, torch {self.torch}{switches}"


def situation(threads: int, *, mkldnn: bool) -> Situation:
    """This process's."""
    switches = " ".join(f"{name}={os.environ[name]}" for name in SWITCHES if name in os.environ)
    return Situation(processor(), capability(), torch.__version__, threads, mkldnn, switches)


@cache
def processor() -> str:
    """The processor's own name, with the numbers of its generation where the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine() or "unknown"
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name") or fields.get("CPU implementer") or platform.machine()
    numbers = " ".join(f"{short} {fields[long]}" for short, long in _NUMBERS.items() if long in fields)
    return f"{name}, {numbers}" if numbers else name


_NUMBERS = {"family": "cpu family", "model": "model", "part": "CPU part"}


@cache
def capability() -> str:
    """The vector instructions that Torch uses, and those for matrices where the processor has them."""
    named = str(torch.backends.cpu.get_cpu_capability())
    extra = [words for words, test in _EXTRA.items() if getattr(torch.cpu, test, bool)()]
    return " + ".join([named, *extra])


_EXTRA = {"AMX": "_is_amx_tile_supported", "bfloat16": "_is_avx512_bf16_supported"}


def folder() -> Path:
    """Where choices are kept: the user's cache folder, or the one that `CUTAWAY_CACHE` names."""
    if own := os.environ.get("CUTAWAY_CACHE"):
        return Path(own).expanduser() / "kernels"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "cutaway" / "kernels"


def load(of: Situation) -> dict[str, Choice]:
    """The choices kept for this situation; none where there is no file, or one that is not right."""
    try:
        found = json.loads((folder() / f"{of.name}.json").read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError):  # no file, no home, or no JSON
        return {}
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("situation") != asdict(of):
        return {}
    kept = found.get("choices")
    return {key: _choice(value) for key, value in kept.items() if _sound(value)} if isinstance(kept, dict) else {}


def _sound(value: Any) -> bool:
    rates = value.get("rates") if isinstance(value, dict) else None
    return (
        isinstance(rates, dict)
        and value.get("kernel") in rates
        and all(type(rate) in (int, float) and math.isfinite(rate) and rate > 0 for rate in rates.values())
    )


def _choice(value: Any) -> Choice:
    return Choice(value["kernel"], {name: float(rate) for name, rate in value["rates"].items()})


def save(of: Situation, choices: dict[str, Choice]) -> None:
    """Keep the choices, with those that other processes have made meanwhile; where nothing can be written, nothing is."""
    together = load(of) | choices
    found = {
        "format": FORMAT,
        "situation": asdict(of),
        "choices": {key: asdict(together[key]) for key in sorted(together)},
    }
    with contextlib.suppress(NotWritten, RuntimeError):  # a home that is read only, full, or not there
        writing.write(folder() / f"{of.name}.json", json.dumps(found, indent=1))
