"""Notebooks, run from outside: every cell in order, in a kernel where `transformer_lens` is cutaway, outputs kept.

The kernel is that of `cutaway.compat.kernel`, started by its command; this process only listens to it. Needs the
packages of `cutaway[notebook]`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cutaway import reading
from cutaway.errors import CutawayError, NotReadable, PackageNeeded
from cutaway.writing import check_new, check_writable, write_json

KERNEL = "cutaway"
DISPLAY_NAME = "Python (cutaway)"
ARGV = [sys.executable, "-m", "cutaway.compat.kernel", "-f", "{connection_file}"]
SPEC = {
    "display_name": DISPLAY_NAME,
    "language": "python",
    "metadata": {"debugger": True},
}
PATIENCE = 10  # seconds that a kernel has to come to itself after an interrupt
START = 120  # … and to start: importing torch can take long on a cold disk
OF_THE_NETWORK = {
    "ConnectError", "ConnectTimeout", "ConnectionError", "HTTPError", "HfHubHTTPError", "LocalEntryNotFoundError",
    "MaxRetryError", "NewConnectionError", "OfflineModeIsEnabled", "ProxyError", "SSLError", "URLError", "Unreachable",
    "gaierror",
}  # fmt: skip


LARGEST = 2**29  # bytes of a notebook


class _Notebook(msgspec.Struct):
    """The frame of a notebook; nbformat's own schema says the rest."""

    nbformat: Annotated[int, Meta(ge=1, le=4)]
    nbformat_minor: Annotated[int, Meta(ge=0, le=1000)] = 0
    metadata: dict[str, Any] = {}


class NotebookError(CutawayError, ValueError):
    """A notebook that cannot be read, or whose cells failed."""


@dataclass(frozen=True)
class NotebookCell:
    """One code cell that was run: its number among the code cells (from 1), how long it took, and why it failed, if it did."""

    number: int
    of: int
    first_line: str
    seconds: float
    problem: str | None = None


Watch = Callable[[NotebookCell], None]


@dataclass(frozen=True)
class Ran:
    """What came of a notebook: the cells that ran, and where the notebook with their outputs is."""

    path: Path
    out: Path
    cells: tuple[NotebookCell, ...]

    @property
    def failed(self) -> tuple[NotebookCell, ...]:
        """Those that failed."""
        return tuple(cell for cell in self.cells if cell.problem is not None)

    def summary(self) -> str:
        """A sentence or two."""
        total = self.cells[-1].of if self.cells else 0
        lines = [f"{len(self.cells) - len(self.failed)} of {total} cells ran; outputs in {self.out}"]
        return "\n".join([*lines, *(f"cell {cell.number}: {cell.problem}" for cell in self.failed)])


def run(
    path: str | Path,
    out: str | Path | None = None,
    *,
    keep_going: bool = False,
    timeout: float | int | None = None,
    watch: Watch | None = None,
    replace: bool = False,
    option: str = "replace=True",
) -> Ran:
    """Run a notebook's cells in order, in the folder where it lies, and write it with its outputs to `out`.

    Whatever stops it, an error or an interrupt, the outputs so far are written.

    Args:
        out: by default `NAME.run.ipynb` beside the notebook, which itself is left alone.
        keep_going: go on after a cell that failed.
        timeout: seconds that a cell may take.
        watch: told of each cell when it has run.
        replace, option: whether `out` may be replaced, and how somebody is told to say so.

    Raises:
        NotebookError: the file is no notebook, or not one of Python.
        NotWritten: `out` cannot be written, or is there already and not to be replaced; nothing has run then.
        PackageNeeded: the packages that run notebooks are not installed.
    """
    nbformat = needed("nbformat")
    needed("nbclient")
    needed("ipykernel")
    path = Path(path)
    notebook = read(path, nbformat)
    out = path.with_suffix(".run.ipynb") if out is None else Path(out)
    check_writable(check_new(out, replace=replace, option=option))
    cells: list[NotebookCell] = []

    def ran(cell: NotebookCell) -> None:
        cells.append(cell)
        if watch is not None:
            watch(cell)

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    try:
        asyncio.run(_run(notebook, path.resolve().parent, keep_going=keep_going, timeout=timeout, ran=ran))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the outputs so far are in {out}") from None
    finally:
        write_json(out, nbformat.writes(notebook) + "\n")
    return Ran(path, out, tuple(cells))


def read(path: Path, nbformat: Any) -> Any:
    """The notebook of a file, in today's format.

    Raises:
        NotebookError: it is none, or not one of Python.
    """
    try:
        text = reading.read_bytes(path, largest=LARGEST).decode()
        reading.decode(text, _Notebook, str(path), finite=False)
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validator.normalize(notebook)
        _, notebook = nbformat.validator.normalize(notebook, strip_invalid_metadata=True)
        nbformat.validate(notebook)
    except UnicodeDecodeError as error:
        raise NotebookError(f"{path} is no notebook: it is not text ({error.reason})") from error
    except NotReadable as error:
        raise NotebookError(f"no notebook that can be read: {error}") from error
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise NotebookError(f"{path} is no notebook that can be read: {reason[:200]}") from error
    language = notebook.metadata.get("kernelspec", {}).get("language") or notebook.metadata.get("language_info", {}).get("name")
    if language not in (None, "python", "ipython"):
        raise NotebookError(f"{path} is a notebook of {language}, and only those of Python can be run")
    return notebook


async def _run(notebook: Any, folder: Path, *, keep_going: bool, timeout: float | int | None, ran: Watch) -> None:
    """Run the cells; `ran` hears of each."""
    from nbclient import NotebookClient

    code = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]
    with _kernel_manager() as manager:
        resources = {"metadata": {"path": str(folder)}}
        client = NotebookClient(notebook, km=manager, timeout=timeout, resources=resources, startup_timeout=START)
        try:
            client.reset_execution_trackers()
            await client.async_start_new_kernel()
            await client.async_start_new_kernel_client()
            for number, (index, cell) in enumerate(code, start=1):
                first = cell.source.strip().split("\n")[0]
                started = time.monotonic()
                problem, alive = await _execute(client, cell, index, timeout)
                ran(NotebookCell(number, len(code), first, time.monotonic() - started, problem))
                if problem is not None and not (keep_going and alive):
                    break
        finally:
            if client.kc is not None:
                client.kc.stop_channels()
            if manager.has_kernel:
                await manager.shutdown_kernel(now=True)


async def _execute(client: Any, cell: Any, index: int, timeout: float | int | None) -> tuple[str | None, bool]:
    """Why a cell failed, or None; and whether the kernel can go on."""
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    try:
        await client.async_execute_cell(cell, index)
    except CellExecutionError as error:
        return why(error.ename, error.evalue), True
    except DeadKernelError:
        if await client.km.is_alive():  # what nbclient makes of an interrupt of this process
            raise asyncio.CancelledError from None
        problem = "the kernel died; was it short of memory?"
        _note(cell, "DeadKernelError", problem)
        return problem, False
    except CellTimeoutError:
        problem = f"it ran longer than {timeout:g} s and was interrupted (--timeout)"
        alive = await _interrupted(client)
        problem += "" if alive else "; the kernel does not answer any more"
        _note(cell, "TimeoutError", problem)
        return problem, alive
    return None, True


async def _interrupted(client: Any) -> bool:
    """Interrupt the kernel; whether it answers again."""
    await client.km.interrupt_kernel()
    try:
        await client.kc.wait_for_ready(timeout=PATIENCE)
    except RuntimeError:
        return False
    return True


def _note(cell: Any, name: str, problem: str) -> None:
    """Put an error among the cell's outputs, where the kernel could not."""
    from nbformat.v4 import new_output

    cell.outputs.append(new_output("error", ename=name, evalue=problem, traceback=[f"{name}: {problem}"]))


def why(name: str, message: str) -> str:
    """What an error in a cell means for whoever runs the notebook."""
    first = message.strip().split("\n")[0]
    if name == "ModuleNotFoundError" and first.startswith("No module named "):
        package = first.removeprefix("No module named ").strip("'\"; ").split(".")[0].split("'")[0]
        return f"it needs the package {package}, which is not installed ({name}: {first})"
    if name in OF_THE_NETWORK:
        return f"it needs something from the network ({name}: {first})"
    return f"{name}: {first}" if first else name


# The kernel.


def install_kernel(*, prefix: str | Path | None = None, name: str = KERNEL) -> Path:
    """Write the kernel down for Jupyter: for the user, or under a prefix (an environment's). Returns the folder.

    Raises:
        PackageNeeded: ipykernel is not installed.
    """
    needed("ipykernel")
    manager = needed("jupyter_client.kernelspec").KernelSpecManager()
    with tempfile.TemporaryDirectory() as folder:
        _write_spec(Path(folder))
        where = {"prefix": str(prefix)} if prefix is not None else {"user": True}
        installed = Path(manager.install_kernel_spec(folder, kernel_name=name, **where))
    for path in (installed, *installed.iterdir()):  # Jupyter copies the modes of a private temporary folder
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    return installed


def _write_spec(folder: Path, *options: str) -> None:
    spec = SPEC | {"argv": [*ARGV, *options]}
    write_json(folder / "kernel.json", json.dumps(spec, indent=1) + "\n")


@contextmanager
def _kernel_manager() -> Iterator[Any]:
    """A manager that knows the kernel by a folder of its own, so that nothing needs to be installed."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    with tempfile.TemporaryDirectory() as folder:
        _write_spec(Path(folder) / KERNEL, "--log-level=ERROR")
        specs = KernelSpecManager(kernel_dirs=[folder], ensure_native_kernel=False)
        yield AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=specs)


def needed(module: str) -> Any:
    """A module of the packages that run notebooks.

    Raises:
        PackageNeeded: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise PackageNeeded(f"this needs the package {package}: pip install 'cutaway[notebook]'") from None
