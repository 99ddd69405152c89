"""Notebooks run from outside: outputs kept, one sentence for whatever stops them, nothing lost at an interrupt."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cutaway import notebooks
from cutaway.cli import app

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the libraries that talk to kernels
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

MODEL = """
import torch, transformer_lens, circuitsvis as cv
model = transformer_lens.HookedTransformer.from_pretrained("first-unique-char")
_, cache = model.run_with_cache(torch.tensor([[10, 0, 1, 2]]), remove_batch_dim=True)
cv.attention.attention_patterns(tokens=list("?abc"), attention=cache["pattern", 0])
"""


def written(path: Path, *sources: str, **metadata: Any) -> Path:
    cells = [nbformat.v4.new_markdown_cell("# A notebook"), *(nbformat.v4.new_code_cell(source) for source in sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def outputs(path: Path) -> list[list[dict[str, Any]]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]


def test_a_notebook_runs_with_the_aliases_and_keeps_its_outputs(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("NUMBER = 41\n")
    path = written(tmp_path / "a.ipynb", MODEL, "import helper\nprint(helper.NUMBER + 1)", "", "%pip install -q circuitsvis")
    seen: list[notebooks.NotebookCell] = []
    ran = notebooks.run(path, watch=seen.append)
    assert not ran.failed and [cell.number for cell in seen] == [1, 2, 3] and {cell.of for cell in seen} == {3}
    assert ran.out == tmp_path / "a.run.ipynb" and "3 of 3 cells ran" in ran.summary()
    figure, printed, empty, pip = outputs(ran.out)
    figure = [one for one in figure if "data" in one]  # loading prints a line before it
    assert "srcdoc" in "".join(figure[0]["data"]["text/html"]) and "3 heads" in "".join(figure[0]["data"]["text/plain"])
    assert printed[0]["text"] == "42\n" or printed[0]["text"] == ["42\n"]
    assert empty == [] and "cutaway stands in: circuitsvis" in "".join(pip[0]["text"])
    assert outputs(path) == [[], [], [], []], "the notebook itself is left alone"


def test_it_stops_at_the_first_error_or_keeps_going(tmp_path: Path) -> None:
    sources = (
        "kept = 1",
        "import no_such_package.part",
        "while True:\n    pass",
        "from transformer_lens import HookedEncoder",
        "raise ConnectionError('no route')",
        "print(kept)",
    )
    path = written(tmp_path / "a.ipynb", *sources)
    said = CliRunner().invoke(app, ["notebook", str(path)])
    assert said.exit_code == 2 and "cell 2: it needs the package no_such_package, which is not installed" in said.stderr
    assert "[1/6]" in said.stdout and "[3/6]" not in said.stdout
    (tmp_path / "deep").mkdir()
    ran = notebooks.run(path, tmp_path / "deep" / "out.ipynb", keep_going=True, timeout=3)
    problems = {cell.number: cell.problem or "" for cell in ran.failed}
    assert list(problems) == [2, 3, 4, 5] and ran.out == tmp_path / "deep" / "out.ipynb"
    assert "longer than 3 s" in problems[3] and "loads no encoders" in problems[4] and "from the network" in problems[5]
    last = outputs(ran.out)
    assert "".join(last[5][0]["text"]) == "1\n" and last[2][-1]["ename"] == "TimeoutError"


def test_an_interrupt_keeps_the_outputs_so_far(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ipynb", "print('first')", "open('started', 'w').close()\nwhile True:\n    pass")
    command = [sys.executable, "-m", "cutaway.cli", "notebook", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "started").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "the outputs so far are in" in said and "Traceback" not in said
    assert "".join(outputs(tmp_path / "a.run.ipynb")[0][0]["text"]) == "first\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no notebook"),
        ("{", "no notebook"),
        ("{}", "no notebook"),
        ('{"cells": 3, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', "no notebook"),
        ('{"cells": [], "metadata": {"kernelspec": {"name": "x", "display_name": "x", "language": "julia"}},'
         ' "nbformat": 4, "nbformat_minor": 5}', "a notebook of julia"),
    ],
)  # fmt: skip
def test_what_is_no_notebook_is_said_in_a_sentence(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(text)
    said = CliRunner().invoke(app, ["notebook", str(path)])
    assert said.exit_code == 2 and said.stderr.count("\n") == 1 and part in said.stderr
    assert not (tmp_path / "a.run.ipynb").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["notebook", str(tmp_path / "no.ipynb")])
    assert said.exit_code == 2 and "no.ipynb" in said.stderr


def test_the_kernel_is_installed_under_a_prefix(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["kernel", "install", "--prefix", str(tmp_path)])
    assert said.exit_code == 0, said.output
    spec = json.loads((tmp_path / "share" / "jupyter" / "kernels" / "cutaway" / "kernel.json").read_text())
    assert spec["display_name"] == "Python (cutaway)" and spec["argv"][1:3] == ["-m", "cutaway.compat.kernel"]


def test_a_missing_package_is_named() -> None:
    with pytest.raises(notebooks.PackageNeeded, match="the package no_such_thing: pip install"):
        notebooks.needed("no_such_thing.part")


def test_reasons_are_told_from_names() -> None:
    assert notebooks.why("ModuleNotFoundError", "No module named 'a.b'\nmore") == (
        "it needs the package a, which is not installed (ModuleNotFoundError: No module named 'a.b')"
    )
    assert notebooks.why("KeyboardInterrupt", "") == "KeyboardInterrupt"
    assert notebooks.why("ValueError", "first\nsecond") == "ValueError: first"


def test_a_notebook_with_a_lone_surrogate_runs_onto_itself(tmp_path: Path) -> None:
    path = written(tmp_path / "a.ipynb", "print(6 * 7)", "x = '\\ud800'\nprint(len(x))")
    path.write_text(path.read_text().replace("# A notebook", "\\ud800 alone"))
    assert not notebooks.run(path, path, replace=True).failed
    again = json.loads(path.read_bytes())
    assert again["cells"][0]["source"] in ("\ud800 alone", ["\ud800 alone"])
    assert [one[0]["text"] for one in outputs(path)] in ([["42\n"], ["1\n"]], ["42\n", "1\n"])


def test_a_kernel_under_a_prefix_can_be_read_by_others(tmp_path: Path) -> None:
    installed = notebooks.install_kernel(prefix=tmp_path)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (installed, *installed.iterdir())}
    assert modes[installed.name] & 0o055 == 0o055 and modes["kernel.json"] & 0o044 == 0o044
    both = CliRunner().invoke(app, ["kernel", "install", "--prefix", str(tmp_path), "--sys-prefix"])
    assert both.exit_code == 2 and "either --prefix or --sys-prefix" in both.output
