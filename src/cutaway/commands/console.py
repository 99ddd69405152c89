"""The console: the one place through which commands print. Control characters never reach a terminal raw.

A text, a configuration's key or a notebook's cell may hold escape sequences that move the cursor, change the title or write to
the clipboard. They are printed as `\\u001b`, which is also what they are in JSON.
"""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

import typer

# All of C0 but tab and line break, DEL and C1, marks that turn the direction of text round, and lone surrogates.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text, with every control character as its escape."""
    return CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\r\n", "\n"))


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print to stdout, or to stderr."""
    typer.echo(visible(text), err=err, nl=nl)


def show_warnings() -> None:
    """Print warnings as commands print: one line on stderr, without a place in the source."""

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        echo(f"cutaway: {message}", err=True)

    warnings.showwarning = show


class _Echo(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        echo(record.getMessage(), err=True)


def show_messages() -> None:
    """Print what executors say of where they compute, one line each on stderr."""
    logger = logging.getLogger("cutaway.executors")
    logger.addHandler(_Echo())
    logger.setLevel(logging.INFO)
