"""Habits of notebooks that were written for older packages: names that plotly dropped, lines that install packages."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway import compat
from cutaway.compat.einsums import einsum
from cutaway.compat.installing import without_aliased
from cutaway.errors import ShapeError

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


@pytest.mark.parametrize(
    ("equation", "short"),
    [
        ("batch pos d_model, d_model d_head -> batch pos d_head", "bpm,mh->bph"),
        ("... d_model, d_model d_head -> ... d_head", "...m,mh->...h"),
        ("bpm,mh->bph", "bpm,mh->bph"),
        ("batch pos d_model, d_model d_head ->", "bpm,mh->"),
    ],
)
def test_einsum_with_words(equation: str, short: str) -> None:
    x, W = torch.randn(2, 3, 4), torch.randn(4, 5)
    torch.testing.assert_close(einsum(equation, x, W), torch.einsum(short, x, W))
    np.testing.assert_allclose(einsum(equation, x.numpy(), W.numpy()), np.einsum(short, x.numpy(), W.numpy()), rtol=1e-5)


def test_einsum_says_what_is_wrong() -> None:
    with pytest.raises(ShapeError, match="2 terms on its left, and there are 1 operands"):
        einsum("a b, b c -> a c", torch.zeros(2, 2))
    with pytest.raises(ShapeError, match="'d' stands on the right"):
        einsum("a b -> a d", torch.zeros(2, 2))


def test_einsum_with_words_is_there_where_the_original_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compat.install()
    try:
        assert importlib.import_module("fancy_einsum").einsum is einsum
    finally:
        compat.uninstall()
    assert "fancy_einsum" not in sys.modules
    (tmp_path / "fancy_einsum.py").write_text("einsum = 'the original'\n")
    monkeypatch.syspath_prepend(tmp_path)
    compat.install()
    try:
        assert importlib.import_module("fancy_einsum").einsum == "the original"
    finally:
        compat.uninstall()
        sys.modules.pop("fancy_einsum")
