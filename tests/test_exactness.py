"""What docs/exactness.md promises is held by tests that exist, and the planted faults can still be planted."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8")


def test_thirty_ways_and_a_test_for_each() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| `(tests/[\w/]+\.py)::(\w+)` \|$", PAGE, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 31))
    for number, file, name in rows:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"row {number}: there is no {file}::{name}"


def test_planted_faults_fit_the_source() -> None:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks" / "mutants.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module
    spec.loader.exec_module(module)
    assert len(module.FAULTS) >= 20
    for fault in module.FAULTS:
        assert fault.old in (ROOT / "src" / "cutaway" / fault.file).read_text(encoding="utf-8"), fault.name
        assert fault.new != fault.old
        assert (ROOT / fault.tests).exists()
