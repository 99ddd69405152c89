"""Serving a workbench: a free port of this machine, a browser, and an end. Nothing listens on any other address."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cutaway.errors import ConfigError, PackageNeeded
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options

PORT, TRIED = 8420, 20
HOST = "127.0.0.1"
FOLDER = Path("out") / "workbench"


@dataclass(eq=False)
class Workbench:
    """A workbench that is being served.

    Args:
        address: open it in a browser on this machine; it holds the token.
        bench: the session and its tabs.
    """

    address: str
    bench: Any
    server: Any
    listening: socket.socket
    thread: threading.Thread | None = field(default=None)

    def stop(self) -> None:
        """End the server, its threads and its port."""
        self.server.should_exit = True
        if self.thread is not None:
            self.thread.join(30)
        self.bench.end()
        self.listening.close()

    def __repr__(self) -> str:
        return f"<Workbench {self.address}; .stop() ends it>"

    def _repr_html_(self) -> str:
        return f'<a href="{self.address}" target="_blank" rel="noopener">open the workbench</a>'


def needed() -> None:
    """Import the packages of the server, so that a model is not loaded in vain where they are missing.

    Raises:
        PackageNeeded: they are not.
    """
    from importlib import import_module
    from importlib.util import find_spec

    absent = [name for name in ("starlette", "uvicorn", "websockets") if find_spec(name) is None]
    if absent:
        raise PackageNeeded(f"the workbench needs {', '.join(absent)}; install them with: pip install 'cutaway[workbench]'")
    import_module("uvicorn")
    import_module("cutaway.workbench.server")


def free_port(wanted: int | None) -> tuple[socket.socket, int, bool]:
    """A listening socket, its port, and whether it is another than the wanted one, which was in use.

    Raises:
        ConfigError: none of the ports that were tried is free.
    """
    first = PORT if wanted is None else wanted
    for port in range(first, min(first + TRIED, 65536)):
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name == "posix":  # a port whose last connection is just over is free; elsewhere this would share it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen(64)
        except (OSError, OverflowError):
            listening.close()
            continue
        return listening, listening.getsockname()[1], port != first
    raise ConfigError(f"the ports {first} to {first + TRIED - 1} are all in use or not allowed; give another with --port")


def prepare(model: Transformer, name: str, *, folder: Path | str = FOLDER, port: int | None = None) -> tuple[Workbench, bool]:
    """A workbench ready to be served, and whether it took another port than the wanted one."""
    needed()
    import uvicorn

    from cutaway.workbench.server import Bench, app
    from cutaway.workbench.session import Session
    from cutaway.workbench.state import LARGEST

    bench = Bench(Session(model, name), Path(folder))
    bench.show()  # the first runs, while the browser opens
    listening, at, port_taken = free_port(port)
    config = uvicorn.Config(
        app(bench, lambda: at), log_level="error", ws="websockets-sansio", ws_max_size=LARGEST, ws_max_queue=64,
        ws_ping_interval=20.0, ws_ping_timeout=60.0, server_header=False, date_header=False, lifespan="off",
        timeout_graceful_shutdown=2, access_log=False,
    )  # fmt: skip
    return Workbench(f"http://{HOST}:{at}/?token={bench.token}", bench, uvicorn.Server(config), listening), port_taken


def leave_a_core() -> None:
    """Give the browser a processor core of its own: where it shares them all, a click on two cores takes 1.6 times as long."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores - 1)))


def serve(made: Workbench) -> None:
    """Serve in this thread until Ctrl-C.

    Raises:
        KeyboardInterrupt: always, when it has ended: uvicorn catches the signal, and not every event loop raises it again.
    """
    try:
        asyncio.run(made.server.serve(sockets=[made.listening]))
        raise KeyboardInterrupt
    finally:
        made.bench.end()
        made.listening.close()


def start(made: Workbench) -> Workbench:
    """Serve in a thread of its own."""
    made.thread = threading.Thread(
        target=lambda: asyncio.run(made.server.serve(sockets=[made.listening])), name="cutaway-workbench", daemon=True
    )
    made.thread.start()
    return made


def show(address: str) -> bool:
    """Open a browser; whether there is one."""
    try:
        return webbrowser.open(address)
    except webbrowser.Error:
        return False


@options(port=0)
def workbench(
    model: Transformer, *, name: str | None = None, folder: Path | str = FOLDER, port: int | None = None, browser: bool = True
) -> Workbench:
    """Serve a page on this machine where a model is taken apart by hand, until `.stop()`.

    Example: `bench = cutaway.workbench(model)`

    Args:
        name: what records call the model; by it `cutaway replay` loads it again. By default the name in its configuration.
        folder: where records go.
        port: the first port that is tried.
        browser: open one; the address is printed either way.

    Raises:
        PackageNeeded: `cutaway[workbench]` is not installed.
        ConfigError: no port is free.
    """
    made, _ = prepare(model, name or model.cfg.model_name, folder=folder, port=port)
    start(made)
    if not browser or not show(made.address):
        print(made.address)
    return made
