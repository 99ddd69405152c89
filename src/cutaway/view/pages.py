"""A page of sections: headings, paragraphs, figures and tables in one HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from cutaway.errors import ShapeError
from cutaway.view import html
from cutaway.view.figure import Figure


@dataclass(frozen=True, eq=False)
class Code:
    """A block of code or of preformatted text."""

    text: str


@dataclass(frozen=True, eq=False)
class Folded:
    """A line, and below it a table that opens with a click: prompts, say."""

    line: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


Fact = tuple[str, str | Code | Folded]  # a name, and what it is


@dataclass(frozen=True, eq=False)
class Facts:
    """What a page rests on, line by line: model, hash, date, command, prompts, metric."""

    facts: Sequence[Fact]


Block = str | Figure | Sequence[str] | Code | Facts


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a page: a heading, blocks below it, and sections below those.

    A block is a paragraph (a string of plain text), a list of strings (a bulleted list), a `Code`, `Facts` or a `Figure`.
    `summary` is set off at the top of the section: what it found, in a sentence or two.
    """

    heading: str
    blocks: Sequence[Block] = ()
    anchor: str = ""
    summary: str = ""
    sections: Sequence[Section] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Page:
    """A page as data; `.html()` and `.save(path)` write it."""

    title: str
    sections: Sequence[Section]
    intro: Sequence[Block] = field(default=())
    subtitle: str = ""

    def html(self) -> str:
        """The page, complete: styles, scripts and data are inside, and nothing is fetched."""
        taken: set[str] = set()
        anchored = [(section, _anchor(section, taken)) for section in self.sections]
        below = {id(section): [(one, _anchor(one, taken)) for one in section.sections] for section, _ in anchored}
        entries = []
        for section, anchor in anchored:
            inner = "".join(f'<li><a href="#{a}">{escape(s.heading)}</a></li>' for s, a in below[id(section)])
            entries.append(f'<li><a href="#{anchor}">{escape(section.heading)}</a>{f"<ul>{inner}</ul>" if inner else ""}</li>')
        contents = f'<nav class="ct-toc" aria-label="Contents"><h2>Contents</h2><ol>{"".join(entries)}</ol></nav>'
        several = len(anchored) > 1 or any(below.values())
        parts = "".join(_section(section, anchor, below[id(section)]) for section, anchor in anchored)
        lead = f'<p class="ct-subtitle">{escape(self.subtitle)}</p>' if self.subtitle else ""
        body = (
            f'<header class="ct-head"><h1>{escape(self.title)}</h1>{lead}</header>'
            f'<div class="ct-columns">{contents if several else ""}<main>{_blocks(self.intro)}{parts}</main></div>'
        )
        return html.document(self.title, body, kind="page")

    def __repr__(self) -> str:
        return f"<Page {self.title!r}: {len(self.sections)} sections; .save(path) writes it>"

    def save(self, path: str | Path, *, replace: bool = False) -> Path:
        """Write the page to a file, and say where.

        Raises:
            ConfigError: the file's name is that of an image, and a page is HTML.
            AlreadyThere: the file exists, and `replace` is off.
        """
        return html.save(path, self.html, replace=replace)


def page(title: str, sections: Sequence[Section], *, intro: Sequence[Block] | str = (), subtitle: str = "") -> Page:
    """One self-contained page, with a table of contents for several sections; figures share one copy of the bundle."""
    return Page(title, tuple(sections), (intro,) if isinstance(intro, str) else tuple(intro), subtitle)


def _section(section: Section, anchor: str, below: Sequence[tuple[Section, str]], level: int = 2) -> str:
    summary = f'<p class="ct-summary">{_lines(section.summary)}</p>' if section.summary else ""
    inner = "".join(_section(one, at, (), level + 1) for one, at in below)
    heading = f'<h{level}>{escape(section.heading)} <a class="ct-anchor" href="#{anchor}" aria-label="link here">#</a></h{level}>'
    return f'<section id="{anchor}">{heading}{summary}{_blocks(section.blocks, section.heading)}{inner}</section>'


def _blocks(blocks: Sequence[Block], heading: str = "") -> str:
    """The blocks below a heading; a figure that is called the same does not say it again."""
    parts = []
    for block in blocks:
        if isinstance(block, Figure):
            parts.append(_figure_html(block, titled=block.title != heading))
        elif isinstance(block, Code):
            parts.append(f'<pre class="ct-code" tabindex="0"><code>{escape(block.text)}</code></pre>')
        elif isinstance(block, Facts):
            parts.append(f'<dl class="ct-facts">{"".join(map(_fact, block.facts))}</dl>')
        elif isinstance(block, str):
            parts.append(f"<p>{_lines(block)}</p>")
        else:
            parts.append("<ul>" + "".join(f"<li>{_lines(item)}</li>" for item in block) + "</ul>")
    return "".join(parts)


def _fact(fact: Fact) -> str:
    name, value = fact
    if isinstance(value, Code):
        html = f"<code>{escape(value.text)}</code>"
    elif isinstance(value, Folded):
        head = "".join(f"<th>{escape(column)}</th>" for column in value.columns)
        rows = "".join(f"<tr>{''.join(f'<td>{_lines(cell)}</td>' for cell in row)}</tr>" for row in value.rows)
        table = f'<div class="ct-rows" tabindex="0"><table><tr>{head}</tr>{rows}</table></div>'
        html = f"<details><summary>{escape(value.line)}</summary>{table}</details>"
    else:
        html = _lines(value)
    return f"<dt>{escape(name)}</dt><dd>{html}</dd>"


def _figure_html(figure: Figure, titled: bool) -> str:
    try:
        return html.holder(figure.payload(), figure.text, figure.height, titled=titled)
    except ShapeError as error:  # too large for a page: said in its place
        return html.notice(str(error))


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _anchor(section: Section, taken: set[str]) -> str:
    base = re.sub(r"[^a-z0-9]+", "-", (section.anchor or section.heading).lower()).strip("-") or "section"
    anchor, count = base, 2
    while anchor in taken:
        anchor, count = f"{base}-{count}", count + 1
    taken.add(anchor)
    return anchor
