"""The server: one page, one WebSocket for each tab. Only this machine, only pages of this address, only with its token.

    GET /               the page (no data in it), /bench.js, /bench.css
    WS  /socket         first message `hello` with the token; then messages of `state`, bounded in size and rate

What a tab has not yet taken is kept by kind, so that a slow one gets the newest of each and nothing piles up.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from cutaway.errors import CutawayError, NotReadable
from cutaway.view import Figure
from cutaway.workbench import questions, recording
from cutaway.workbench.jobs import Lanes
from cutaway.workbench.session import Session
from cutaway.workbench.state import Ask, Example, GoToStep, Hello, Peek, Save, SetFields, Stop, parse

TABS = 16  # at once
BURST, RATE = 200.0, 60.0  # messages of one tab: at once, and in a second
PATIENCE = 10.0  # seconds until the first message
FORBIDDEN, TOO_MANY, WRONG = 4403, 4429, 4400
HOSTS = ("127.0.0.1", "localhost", "[::1]")
STATIC = {"/": ("bench.html", "text/html"), "/bench.js": ("bench.js", "text/javascript"), "/bench.css": ("bench.css", "text/css")}


@cache
def static(name: str) -> bytes:
    """A file of the page."""
    return files("cutaway.workbench").joinpath("static").joinpath(name).read_bytes()


class Tab:
    """One page: what it has not taken yet, the newest of each kind."""

    def __init__(self, socket: WebSocket):
        self.socket = socket
        self.waiting: OrderedDict[str, str | bytes] = OrderedDict()
        self.wakes = asyncio.Event()
        self.allowance, self.then = BURST, time.monotonic()

    def put(self, kind: str, data: str | bytes) -> None:
        """Send this, instead of what waits of its kind."""
        self.waiting.pop(kind, None)
        self.waiting[kind] = data
        self.wakes.set()

    async def send(self) -> None:
        """Send what waits, for ever."""
        while True:
            await self.wakes.wait()
            while self.waiting:
                _, data = self.waiting.popitem(last=False)
                await (self.socket.send_bytes(data) if isinstance(data, bytes) else self.socket.send_text(data))
            self.wakes.clear()

    def within_rate(self) -> bool:
        """Whether this tab may say one more thing now."""
        now = time.monotonic()
        self.allowance = min(BURST, self.allowance + (now - self.then) * RATE)
        self.then = now
        self.allowance -= 1
        return self.allowance >= 0


class Bench:
    """A session with the tabs that look at it.

    Args:
        folder: where records go; nothing is written anywhere else.
    """

    def __init__(self, session: Session, folder: Path, token: str | None = None):
        self.session, self.folder = session, folder
        self.token = secrets.token_urlsafe(24) if token is None else token
        self.tabs: set[Tab] = set()
        self.frames: OrderedDict[str, str | bytes] = OrderedDict()  # the newest of each place of the page, for new tabs
        self.loop: asyncio.AbstractEventLoop | None = None
        session.post = self.post
        self.lanes = Lanes(lambda text: self.post("error", {"text": text}))

    # From the threads to the tabs.

    def post(self, kind: str, message: Any) -> None:
        """Tell every tab; called in any thread."""
        if isinstance(message, Figure):
            slot = f"figure {message.meta['slot']}"
            self._tell(slot, message.wire(), keeps=message.meta["slot"] != "peek")
        elif kind == "gone":
            self._tell(f"figure {message['slot']}", _text(kind, message), keeps=True)
        else:
            self._tell(kind, _text(kind, message), keeps=kind in ("value", "text", "answer"))

    def _tell(self, kind: str, data: str | bytes, *, keeps: bool) -> None:
        loop = self.loop
        if loop is None or loop.is_closed():
            if keeps:
                self.frames[kind] = data
            return
        loop.call_soon_threadsafe(self._tell_here, kind, data, keeps)

    def _tell_here(self, kind: str, data: str | bytes, keeps: bool) -> None:
        if keeps:
            self.frames[kind] = data
        for tab in self.tabs:
            tab.put(kind, data)

    def show(self) -> None:
        """Send the state, and compute what follows from it."""
        self._tell("state", _text("state", self.session.shown()), keeps=True)
        self.lanes.look.submit(self._look)

    def _look(self, between: Callable[[], None]) -> None:
        self.session.look(between)
        self._tell("steps", _text("steps", {"steps": self.session.shown()["steps"]}), keeps=False)

    # From a tab.

    def take(self, tab: Tab, text: str | bytes) -> None:
        """Do what a message says.

        Raises:
            CutawayError: it cannot be done; the session stays as it is.
        """
        message = parse(text)
        session = self.session
        if isinstance(message, SetFields):
            for one in session.set(message.fields, slide=message.slide):
                tab.put(f"notice {one}", _text("notice", {"text": one}))
            self.show()
        elif isinstance(message, Example):
            session.example(message.behaviour, message.number)
            self.show()
        elif isinstance(message, GoToStep):
            session.go(message.to)
            self.show()
        elif isinstance(message, Peek):
            if self.lanes.look.idle.is_set():
                session.peek(message.layer, message.head)
        elif isinstance(message, Ask):
            self.lanes.ask.submit(lambda between: self._answer(message, between))
        elif isinstance(message, Stop):
            self.lanes.ask.stop()
            self.post("progress", {"done": None})
        elif isinstance(message, Save):
            self.lanes.ask.submit(lambda between: self._save(tab, message, between))
        else:
            raise NotReadable("the message is not understood: this tab has said hello already")

    def _answer(self, what: Ask, between: Callable[[], None]) -> None:
        self.post("progress", {"done": 0.0})
        try:
            answer = questions.ask(self.session, what, lambda done, of: self.post("progress", {"done": done / of}), between)
        finally:
            self.post("progress", {"done": None})
        self.session.answered(answer.figure)
        self.post("answer", answer.message())
        if what.what == "strongest":
            self.session.set({"colour": "ablation"})
            self.show()

    def _save(self, tab: Tab, what: Save, between: Callable[[], None]) -> None:
        session = self.session
        if what.what == "record":
            place, apart = recording.save(session, self.folder / what.name, between)
            text = f"recorded in {place}; its numbers are within {apart:.1e} of those shown. Run it again: cutaway replay {place}"
            self._to(tab, "notice record", _text("notice", {"text": text}))
            return
        found = session.find(session.state, session.pair, between)
        text = recording.code(session, found) if what.what == "python" else recording.saved_page(session, found)
        name, kind = (f"{what.name}.py", "text/x-python") if what.what == "python" else (f"{what.name}.html", "text/html")
        self._to(tab, f"file {name}", _text("file", {"name": name, "type": kind, "text": text, "copy": what.what == "python"}))

    def _to(self, tab: Tab, kind: str, data: str) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(tab.put, kind, data)

    def end(self) -> None:
        """End the threads; hooks are off, since every run takes off its own."""
        self.lanes.end()


def _text(kind: str, fields: Any) -> str:
    return json.dumps({"kind": kind, **fields}, ensure_ascii=True, separators=(",", ":"))


def allowed_host(host: str | None, port: int) -> bool:
    """Whether a request names this machine: another name that leads here is somebody else's page."""
    return host in {f"{name}:{port}" for name in HOSTS}


def app(bench: Bench, port: Callable[[], int]) -> Starlette:
    """The ASGI application.

    Args:
        port: the port that is served, once it is known.
    """

    def headers(kind: str) -> dict[str, str]:
        policy = (
            "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data: blob:; "
            f"connect-src 'self' ws://127.0.0.1:{port()} ws://localhost:{port()}; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        )
        return {
            "content-type": f"{kind}; charset=utf-8", "content-security-policy": policy, "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer", "cache-control": "no-store", "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin", "x-frame-options": "DENY",
        }  # fmt: skip

    async def file(request: Request) -> Response:
        if not allowed_host(request.headers.get("host"), port()):
            return PlainTextResponse("this server answers to 127.0.0.1 and localhost only", 421)
        name, kind = STATIC[request.url.path]
        return Response(static(name), headers=headers(kind))

    async def socket(websocket: WebSocket) -> None:
        host, origin = websocket.headers.get("host"), websocket.headers.get("origin")
        if not allowed_host(host, port()) or origin != f"http://{host}":
            await websocket.close(FORBIDDEN)
            return
        await websocket.accept()
        bench.loop = asyncio.get_running_loop()
        await _serve(bench, websocket)

    return Starlette(routes=[*(Route(path, file, methods=["GET"]) for path in STATIC), WebSocketRoute("/socket", socket)])


async def _serve(bench: Bench, websocket: WebSocket) -> None:
    """One tab, from its first message to its end."""
    try:
        first = await asyncio.wait_for(_receive(websocket), PATIENCE)
        hello = parse(first)
    except (TimeoutError, asyncio.TimeoutError, NotReadable, WebSocketDisconnect):
        await _close(websocket, WRONG)
        return
    if not isinstance(hello, Hello) or not hmac.compare_digest(hello.token.encode(), bench.token.encode()):
        await _close(websocket, FORBIDDEN)
        return
    if len(bench.tabs) >= TABS:
        await _close(websocket, TOO_MANY)
        return
    tab = Tab(websocket)
    tab.put("about", _text("about", bench.session.about()))
    if hello.state is not None:
        await _tried(tab, lambda: bench.session.restore(hello.state))  # type: ignore[arg-type]
    for kind, data in bench.frames.items():
        tab.put(kind, data)
    bench.tabs.add(tab)
    bench.show()
    sending = asyncio.create_task(tab.send())
    try:
        await _listen(bench, tab)
    except WebSocketDisconnect:
        pass
    finally:
        bench.tabs.discard(tab)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _listen(bench: Bench, tab: Tab) -> None:
    while True:
        text = await _receive(tab.socket)
        if not tab.within_rate():
            await _close(tab.socket, TOO_MANY)
            return
        await _tried(tab, lambda said=text: bench.take(tab, said))  # type: ignore[misc]


async def _tried(tab: Tab, do: Callable[[], Any]) -> None:
    """Do something; what cannot be done is said to the tab."""
    try:
        done = do()
        if isinstance(done, Awaitable):
            await done
    except CutawayError as error:
        tab.put("error", _text("error", {"text": str(error)}))


async def _receive(websocket: WebSocket) -> str | bytes:
    """The next message, text or bytes."""
    said = await websocket.receive()
    if said["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(said.get("code", 1000))
    text: str | bytes | None = said.get("text")
    return text if text is not None else said.get("bytes") or b""


async def _close(websocket: WebSocket, code: int) -> None:
    if websocket.application_state is WebSocketState.CONNECTED and websocket.client_state is WebSocketState.CONNECTED:
        await websocket.close(code)
