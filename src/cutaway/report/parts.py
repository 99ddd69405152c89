"""What reports are made of: parts with sentences, figures and numbers, put together and written.

A part knows nothing of the others. Its numbers go into one tree, which is `report.json`; its sentences and figures
become a section of `report.html`; its lines are what a terminal shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.runs.results import plain
from cutaway.view import Code, Figure, Section, page
from cutaway.writing import check_folder, replacing

HTML, JSON = "report.html", "report.json"

Block = str | Figure | Code | Sequence[str]


@dataclass(frozen=True, eq=False)
class Part:
    """One section: what the numbers show in a sentence or two, figures and text, numbers, and lines for the terminal.

    `parts` are sections below it.
    """

    heading: str
    summary: str = ""
    blocks: Sequence[Block] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[tuple[str, str]] = ()
    parts: Sequence[Part] = ()

    def section(self) -> Section:
        """The section of the page."""
        return Section(self.heading, tuple(self.blocks), summary=self.summary, sections=[part.section() for part in self.parts])

    def all_numbers(self) -> dict[str, Any]:
        """Its own numbers and those of the sections below it."""
        out: dict[str, Any] = {}
        for numbers in (self.numbers, *(part.all_numbers() for part in self.parts)):
            _merge(out, numbers)
        return out

    def all_lines(self) -> list[tuple[str, str]]:
        """Its own lines and those of the sections below it."""
        return [*self.lines, *(line for part in self.parts for line in part.all_lines())]


@dataclass(frozen=True, eq=False)
class LettersReport:
    """A finished report."""

    title: str
    subtitle: str
    intro: Sequence[Block]
    parts: Sequence[Part]
    about: Mapping[str, Any]

    def numbers(self) -> dict[str, Any]:
        """Every number, by key; NaN is None."""
        out: dict[str, Any] = {}
        for numbers in (self.about, *(part.all_numbers() for part in self.parts)):
            _merge(out, numbers)
        found: dict[str, Any] = plain(out)
        return found

    def json(self) -> str:
        """The numbers as text."""
        return json.dumps(self.numbers(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def html(self) -> str:
        """The page, which needs nothing else."""
        sections = [part.section() for part in self.parts]
        return page(self.title, sections, intro=tuple(self.intro), subtitle=self.subtitle).html()

    def text(self) -> str:
        """What a terminal shows: a line for each thing worth knowing first."""
        lines = [line for part in self.parts for line in part.all_lines()]
        width = max((len(name) for name, _ in lines), default=0)
        return "\n".join([self.title, self.subtitle, "", *(f"{name.ljust(width)}  {said}".rstrip() for name, said in lines)])

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `report.html` and `report.json`; what was there before stays until both are whole.

        Raises:
            CheckpointError: the folder or the disk does not take them.
        """
        folder = check_folder(folder)
        html, numbers = folder / HTML, folder / JSON
        with replacing(html) as first, replacing(numbers) as second:
            first.write(self.html().encode(errors="replace"))
            second.write(self.json().encode(errors="backslashreplace"))
        return html, numbers


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if key in into and isinstance(into[key], dict) and isinstance(value, Mapping):
            _merge(into[key], value)
        else:
            assert key not in into, f"two sections give {key!r}"
            into[key] = dict(value) if isinstance(value, Mapping) else value
