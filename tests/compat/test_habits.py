"""Habits of notebooks that were written for older packages: names that plotly dropped, lines that install packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cutaway import compat
from cutaway.compat.installing import without_aliased

go = pytest.importorskip("plotly.graph_objects")


def test_old_names_of_titles_are_understood_while_installed() -> None:
    figure = go.Figure(go.Heatmap(z=[[1, 2]], colorbar={"title": "x"}))
    with pytest.raises(ValueError, match="titlefont"):
        figure.update_xaxes(titlefont={"size": 12})
    compat.install()
    try:
        figure.update_xaxes(titlefont={"size": 12}, title_text="Key")
        figure.update_traces(colorbar={"titleside": "right"})
        figure.update_layout(yaxis={"title": "Query", "titlefont_size": 9})
        with pytest.raises(ValueError, match="titleside"):
            figure.update_xaxes(titleside="right")
    finally:
        compat.uninstall()
    assert figure.layout.xaxis.title.font.size == 12 and figure.layout.xaxis.title.text == "Key"
    assert figure.data[0].colorbar.title.side == "right" and figure.layout.yaxis.title.font.size == 9
    with pytest.raises(ValueError, match="titlefont"):
        figure.update_xaxes(titlefont={"size": 12})


def test_a_plotly_that_is_imported_later_understands_them_too() -> None:
    code = (
        "import sys\nimport cutaway.compat\ncutaway.compat.install()\nassert 'plotly' not in sys.modules\n"
        "import plotly.graph_objects as go\nprint(go.Figure().update_xaxes(titlefont_size=7).layout.xaxis.title.font.size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("%pip install -q einops transformer_lens circuitsvis\n", "%pip install -q einops\n"),
        ("!pip install einops\n", "!pip install einops\n"),
        ("    !pip install git+https://github.com/neelnanda-io/TransformerLens.git numpy\n", "    !pip install numpy\n"),
        ("%uv pip install transformer-lens==2.0\n", "print('not installed, as cutaway stands in: transformer-lens==2.0')\n"),
        ("  !python -m pip install -q CircuitsVis", "  print('not installed, as cutaway stands in: CircuitsVis')"),
        ("print('pip install circuitsvis')\n", "print('pip install circuitsvis')\n"),
        ("!pip install -r requirements.txt\n", "!pip install -r requirements.txt\n"),
    ],
)  # fmt: skip
def test_lines_that_install_leave_out_what_is_aliased(line: str, left: str) -> None:
    assert without_aliased(["x = 1\n", line]) == ["x = 1\n", left]
