"""Published models with known tasks: a report from their files alone, by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cutaway.cli import app

NAMES = (
    "bce_D3-@1l1h16d4lr00drop", "bce_aastar-@1l2h16d3lr01drop", "bce_tomita1-@1l1h16d3lr00drop", "bin_majority-@1l1h16d3lr01drop",
    "count-#1l4h256d3lr01drop", "max_of_list_42", "modular_addition_113", "palindromes", "sort-@1l1h256d3lr01drop",
    "unique_copy-@2l1h64d3lr01drop",
)  # fmt: skip
CLAIMED = {  # what is known of them, by the question that finds it
    "unique_copy-@2l1h64d3lr01drop": ("attention to the token after the last earlier occurrence", "1.0"),
    "sort-@1l1h256d3lr01drop": ("attention to the answer, from the answer", "0.0"),
    "max_of_list_42": ("attention to the answer, from the answer", "0.3"),
    "modular_addition_113": ("what a component adds to the mean logit of right answers over the wrong ones", "0.mlp"),
}


@pytest.mark.parametrize("name", NAMES)
def test_subjects(shared: Path, name: str, tmp_path: Path):
    folder = shared / "data" / "subjects" / name
    words = ["report", str(folder), "--examples", str(folder / "test.jsonl"), "--out", str(tmp_path), "--size", "40", "--json"]
    result = CliRunner().invoke(app, [*words, *(f"--questions={one}" for one in ("performance", "attention", "attribution"))])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    accuracy = found["findings"][0]["values"]["all"][0]
    assert accuracy > 0.9 and ("taken_for" in found) == name.startswith("bce")
    what, head = CLAIMED.get(name, ("", None))
    claims = {one["what"]: one.get("claims", []) for one in found["findings"]}
    assert not what or claims[what][0] == head
