"""Reports as such: how parts are put together, what is written, and that it is written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cutaway.errors import CheckpointError
from cutaway.report import HTML, JSON, REPORTS, LettersReport, Part
from cutaway.report.words import by_head, correlation, count, listed, mean_of, num, percent, share, signed, slope
from cutaway.tasks import names
from cutaway.view import table
from cutaway.writing import check_folder


def made(**numbers: object) -> LettersReport:
    part = Part("Below", "So it is.", ["<b>text</b>", table(["a"], [[1]])], numbers, [("one", "1"), ("a longer name", "2")])
    return LettersReport("Title", "subtitle", ["intro"], [Part("Above", "", (), {"x": {"a": 1}}, parts=[part])], {"task": "t"})


def test_numbers_are_one_tree():
    assert made(x={"b": float("nan")}, y=[1, 2]).numbers() == {"task": "t", "x": {"a": 1, "b": None}, "y": [1, 2]}


def test_two_sections_cannot_give_the_same_number():
    with pytest.raises(AssertionError, match="'a'"):
        made(x={"a": 2}).numbers()


def test_the_page_holds_sections_and_escapes_text():
    page = made().html()
    assert "Above" in page and "Below" in page and "So it is." in page
    assert "&lt;b&gt;text&lt;/b&gt;" in page and "<b>text</b>" not in page


def test_the_terminal_sees_lines_side_by_side():
    assert made().text() == "Title\nsubtitle\n\none            1\na longer name  2"


def test_both_files_are_written(tmp_path: Path):
    folder = tmp_path / "new" / "folder"
    html, numbers = made(y=1).save(folder)
    assert sorted(path.name for path in folder.iterdir()) == [HTML, JSON]
    assert json.loads(numbers.read_text())["y"] == 1 and "So it is." in html.read_text()


def test_what_fails_leaves_what_was_there(tmp_path: Path):
    made(y=1).save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(AssertionError):  # the page is written by then, the numbers are not
        made(task=3).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_way(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="is a file"):
            check_folder(place)
    assert check_folder(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"


def test_reports_are_on_tasks_that_exist():
    assert set(REPORTS) <= set(names())


def test_words():
    assert [num(0.0171), num(-3), num(float("nan")), num(12345.6)] == ["0.0171", "−3", "no value", "1.23e+04"]
    assert [signed(1.5), signed(-0.25), percent(0.123, 1), percent(float("inf"))] == ["+1.50", "−0.25", "12.3%", "no value"]
    assert [listed([]), listed("a"), listed("ab"), listed("abc", "or")] == ["none", "a", "a and b", "a, b or c"]
    assert [count(1, "mistake"), count(2000, "mistake")] == ["1 mistake", "2,000 mistakes"]
    assert by_head({"0.1": ["b", "c"], "0.2": []}) == "0.1: bc" and by_head({"0.0": []}) == "none"
    assert [share(1.0, 4.0), share(-1.0, 4.0), share(5.0, 4.0), share(1.0, 0.0)] == [" (25%)", "", "", ""]
    values = torch.tensor([1.0, float("nan"), 3.0])
    assert mean_of(values) == 2 and mean_of(values, torch.tensor([False, True, True])) == 3
    assert mean_of(values, torch.zeros(3, dtype=torch.bool)) != mean_of(values)
    x = torch.arange(5.0)
    assert correlation(x, -2 * x) == pytest.approx(-1) and slope(x, 3 - 2 * x) == pytest.approx(-2)
    assert num(correlation(x, torch.ones(5))) == num(slope(torch.ones(5), x)) == "no value"
