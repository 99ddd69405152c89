"""One browser for all tests of this folder; where there is none, the summary says why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.view.view_browser import Browser, missing


@pytest.fixture(scope="session")
def chrome() -> Iterator[Browser]:
    """A headless browser; skips, saying why, where there is none."""
    if missing():
        pytest.skip(f"no browser tests: {missing()}")
    browser = Browser()
    yield browser
    browser.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say that tests in a browser were left out: a skip alone is easy to miss."""
    if missing():
        terminalreporter.write_line(f"figures were not looked at in a browser: {missing()}")
