"""Notebooks in the dialect's style, and the proof that together they use every name of it."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cutaway import CharTokenizer, compat

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.py"))


@pytest.fixture
def aliases() -> Iterator[None]:
    """The aliases, for a test; and gradients as they were."""
    grad = torch.is_grad_enabled()
    compat.install()
    yield
    compat.uninstall()
    torch.set_grad_enabled(grad)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_in_the_dialect(path: Path, aliases: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    namespace = {"__name__": "__main__", "letters": CharTokenizer("abcdefghij?", bos_token="?", eos_token="?", pad_token="?")}
    for number, cell in enumerate(re.split(r"^# %%.*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)):
        exec(compile(cell, f"{path.name}, cell {number}", "exec"), namespace)


def names_of(text: str) -> set[str]:
    """The names of the dialect that a description of it lists: what stands in code, as words."""
    text = text.split("## Configuration fields", 1)[0] + text.split("## CircuitsVis", 1)[1].split("## Where we differ", 1)[0]
    code = re.findall(r"```(.*?)```", text, re.DOTALL) + re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [re.sub(r"#.*", "", line) for part in code for line in part.split("\n")]
    return {word for line in lines for word in re.findall(r"[A-Za-z_][A-Za-z0-9_]{2,}", line)}


def words_of(notebook: Path) -> set[str]:
    """The words of its code: names, and what stands in strings; a comment uses nothing."""
    with tokenize.open(notebook) as file:
        code = " ".join(one.string for one in tokenize.generate_tokens(file.readline) if one.type != tokenize.COMMENT)
    return set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", code))


def test_the_notebooks_use_every_name(shared: Path) -> None:
    wanted = names_of((shared / "DIALECT.md").read_text(encoding="utf-8"))
    assert {"run_with_cache", "from_pretrained", "generic_activation_patch", "attention_patterns"} <= wanted
    assert len(wanted) > 250
    assert wanted.difference(*map(words_of, NOTEBOOKS)) == NO_NAMES


NO_NAMES = {
    "_every",
    "args",
    "attn_head_",
    "dest",
    "element",
    "hf_kwargs",
    "int",
    "over",
    "pattern_by_pos",
    "pattern_dest_src_pos",
    "predicate",
    "stacked",
    "string",
}
