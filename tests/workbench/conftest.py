"""A workbench that is being served, and a tab that speaks to it without a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cutaway.view import Figure
from cutaway.workbench import serving
from tests.view.conftest import chrome as chrome  # the browser of the figures' tests
from tests.workbench import clicks

pytest.importorskip("starlette")
client = pytest.importorskip("websockets.sync.client")
OPEN = ExitStack()


class Tab:
    """A tab: says something, waits for what it is told."""

    def __init__(self, made: serving.Workbench, token: str | None = None, origin: str | None = None, hello: bool = True):
        self.base = made.address.partition("/?")[0]
        address = self.base.replace("http", "ws") + "/socket"
        self.line = OPEN.enter_context(client.connect(address, origin=origin or self.base, max_size=2**26, proxy=None))
        self.told: dict[str, Any] = {}
        if hello:
            self.say({"do": "hello", "token": token or made.address.partition("token=")[2]})

    def say(self, message: Any) -> None:
        self.line.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def hear(self, timeout: float = 30) -> tuple[str, Any]:
        data = self.line.recv(timeout=timeout)
        if isinstance(data, bytes):
            figure = Figure.from_wire(data)
            kind, said = f"figure {figure.meta['slot']}", figure
        else:
            said = json.loads(data)
            kind = said["kind"]
        self.told[kind] = said
        return kind, said

    def until(self, wanted: str, timeout: float = 30) -> Any:
        """The next message of a kind."""
        while True:
            kind, said = self.hear(timeout)
            if kind == wanted:
                return said

    def drawn(self, turn: int) -> None:
        """Wait until a turn is on the page."""
        while self.until("drawn")["turn"] < turn:
            pass

    def close_code(self) -> int:
        """How the server closed the line."""
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                self.hear(20)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[serving.Workbench]:
    """A workbench on a small model."""
    model = clicks.small_model()
    made, _ = serving.prepare(model, "small", folder=tmp_path / "records", port=8500)
    clicks_of = made.bench.session
    clicks_of.set({"clean": [1, 2, 3, 4, 5, 6], "corrupted": [1, 2, 7, 4, 5, 6], "right": 3, "wrong": 5})
    serving.start(made)
    yield made
    OPEN.close()
    made.stop()
    assert not any(point.listening for point in model.hook_points()), "a hook was left on"
