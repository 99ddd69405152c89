"""Grids in the terminal fit a screen, show what is largest, and say what they leave out."""

from __future__ import annotations

import pytest
import torch

from cutaway.commands.shaded import LONGEST, ROWS, grid


@pytest.mark.parametrize("size", [(2, 3), (30, 4), (30, 40), (5, 200), (1, 1)])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_grid_fits_the_screen(size: tuple[int, int], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    values = torch.rand(size, generator=torch.Generator().manual_seed(0)) / 100 + 0.05
    values[-1, -1] = 3.0
    columns = [f"{at}  a very long word{at}" for at in range(size[1])]
    lines = grid(values, [str(at) for at in range(size[0])], columns, "layer").splitlines()
    notes = [line for line in lines if "--all prints all" in line]
    table = lines[: len(lines) - len(notes)]
    assert all(len(line) <= width for line in table) and len(table) == 1 + min(size[0], ROWS)
    assert "█3.00" in table[-1] and table[-1].split()[0] == str(size[0] - 1)  # the largest is there, in the last row
    shown = (len(table[0]) - 6) // LONGEST
    assert len(notes) == (size[0] > ROWS or shown < size[1])
    whole = grid(values, [str(at) for at in range(size[0])], columns, "layer", whole=True).splitlines()
    assert len(whole) == 1 + size[0] and whole[0].count("…") == size[1] and "left out" not in "".join(whole)
    assert all(line.count(".") == size[1] for line in whole[1:])


def test_shades_go_by_size_and_nothing_is_a_dot() -> None:
    values = torch.tensor([[0.04, 0.06, -0.3, 0.51, 0.9, torch.nan]])
    row = grid(values, ["0"], list("abcdef"), "layer", whole=True).splitlines()[1]
    assert row.split() == ["0", "0.04", "░0.06", "▒-0.30", "▓0.51", "█0.90", "·"]
