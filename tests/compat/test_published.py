"""A published notebook, unmodified: every cell runs, and prints what its text says.

Its cells come from the folder of shared data beside the repository; stand-ins for the course's own helper modules are in
`course`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cutaway import notebooks

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("plotly")
pytest.importorskip("sklearn")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the libraries that talk to kernels
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ON_A_CPU = """
import torch
_load = torch.load
torch.load = lambda *args, **kwargs: _load(*args, **{"map_location": "cpu"} | kwargs)
torch.Tensor.cuda = lambda self, *args, **kwargs: self
"""
PRINTED = (
    "Average cross entropy loss: 0.017\nAverage probability on correct label: 0.988\nMin probability on correct label: 0.001\n",
    "Duplicate detectors:\n  H0.1: b, c, d, e, f, g, h, i, j\n  H0.2: a, b, g\n"
    "Anti-duplicate detectors:\n  H0.0: a, b, c, d, g, i\n  H0.1: a\n  H0.2: c, e, f, h, j\n",
    "Responsible heads:\n  H1.0: a, c\n  H1.1: d, e, f, j\n  H1.2: b, g, h, i\n",
)


def cells_of(shared: Path, name: str) -> list[str]:
    spec = importlib.util.spec_from_file_location("seed_cells", shared / "tools" / "seed_cells.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[str] = module.cells((shared / "seeds" / name).read_text(encoding="utf-8"), solutions=True)
    return found


def test_first_unique_character(shared: Path, tmp_path: Path) -> None:
    exercises = tmp_path / "chapter1_transformers" / "exercises"
    shutil.copytree(Path(__file__).parent / "course", exercises)
    section = exercises / "monthly_algorithmic_problems" / "august23_unique_char"
    shutil.copy(shared / "data" / "checkpoints" / "first_unique_char_model.pt", section)
    sources = cells_of(shared, "first_unique_character.txt")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (ON_A_CPU, *sources)])
    nbformat.write(book, tmp_path / "book.ipynb")
    ran = notebooks.run(tmp_path / "book.ipynb")
    assert not ran.failed and len(ran.cells) == len(sources) + 1 == 41, ran.summary()
    outputs = [cell["outputs"] for cell in json.loads(ran.out.read_text(encoding="utf-8"))["cells"]]
    streams = "".join("".join(one["text"]) for cell in outputs for one in cell if one["output_type"] == "stream")
    for text in PRINTED:
        assert text in streams
    figures = [one["data"] for cell in outputs for one in cell if one["output_type"] == "display_data"]
    patterns = ["".join(data["text/plain"]) for data in figures if "srcdoc" in "".join(data.get("text/html", ""))]
    assert len(patterns) == 12 and all("heads," in text and "'?' (0) → '?' (0)" in text for text in patterns), patterns
    assert sum("application/vnd.plotly.v1+json" in data for data in figures) > 35


def test_stand_ins_have_what_the_notebooks_import() -> None:
    names: dict[str, Any] = {}
    source = (Path(__file__).parent / "course" / "tests.py").read_text(encoding="utf-8")
    exec(source, names)
    for name in ("average_over_condition", "current_attn_detector", "first_attn_detector", "prev_attn_detector"):
        assert callable(names[f"test_{name}"])
    names["test_average_over_condition"](lambda values, condition: values.diagonal(dim1=1, dim2=2).mean(1))
