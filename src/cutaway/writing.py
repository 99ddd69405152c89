"""Writing files: a draft in the same folder, flushed to disk, renamed when it is whole. All that cutaway writes comes here.

A draft is locked while its process lives, so the next write in that folder can tell drafts of killed processes, which it
removes, from those of its neighbours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from cutaway.errors import AlreadyThere, CutawayError, NotWritten

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, drafts of killed processes stay
    fcntl = None  # type: ignore[assignment]

DRAFT = re.compile(r"\.cutaway-[0-9a-f]{12}\.partial")
BLOCK = b"\0" * 4096  # what a check writes: a full disk takes an empty file, but not this
SURROGATES = re.compile("[\ud800-\udfff]")

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: PathLike, *, under: PathLike | None = None) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` at the end; if anything fails, `path` is as it was.

    Links are followed, a file that is replaced keeps its permissions, and what is no regular file (a pipe, `/dev/null`)
    is written to directly. Folders are made where they are missing, but none above `under`: a folder of results that vanishes
    in the middle of a run is not made anew.

    Raises:
        NotWritten: the folder or the disk does not take it.
    """
    file = _target(path)
    try:
        if _is_device(file):
            with file.open("wb") as out:
                yield out
            return
        _make_folder(file.parent, None if under is None else _target(under))
        with _draft(file.parent) as (draft, out):
            yield out
            _flush(out)
            with contextlib.suppress(FileNotFoundError):
                os.chmod(draft, stat.S_IMODE(file.stat().st_mode))
            os.replace(draft, file)
        _flush_folder(file.parent)
    except CutawayError:
        raise
    except OSError as error:
        if under is not None and not _target(under).is_dir():
            raise NotWritten(f"{under} has vanished, and what was in it: run the same again") from error
        raise _refused(path, error) from error


def named(path: PathLike, ending: str) -> Path:
    """The path with this ending, where it has none; a device or a pipe (`/dev/null`) keeps its name."""
    given = Path(path)
    return given if given.suffix or _is_device(_target(given)) else given.with_name(f"{given.name}{ending}")


def found_as(path: PathLike, ending: str) -> Path:
    """A file to read: as it is called or, where there is none of that name, with the ending that `named` adds."""
    given = Path(path)
    return given if given.is_file() or not (other := named(given, ending)).is_file() else other


def write(path: PathLike, data: bytes | str, *, under: PathLike | None = None) -> Path:
    """Write a whole file, text as UTF-8. Lone surrogates, which UTF-8 lacks, become U+FFFD. `under`: see `replacing`.

    Raises:
        NotWritten: the folder or the disk does not take it.
    """
    if isinstance(data, str):
        data = SURROGATES.sub("\ufffd", data).encode()
    with replacing(path, under=under) as out:
        out.write(data)
    return Path(path)


def write_json(path: PathLike, text: str) -> Path:
    r"""Write JSON that is text already. Lone surrogates become its escapes (`\ud800`), so that reading gives them back.

    Raises:
        NotWritten: the folder or the disk does not take it.
    """
    return write(path, text.encode(errors="backslashreplace"))


def check_new(path: PathLike, *, replace: bool = False, option: str = "replace=True") -> Path:
    """Make sure that a file of results does not exist yet, or may be replaced, and that its folder is there: a folder that is
    misspelt is not made. Every `.save` of one file and every command asks this.

    Args:
        option: how the caller is told to replace it.

    Raises:
        NotWritten: there is no such folder.
        AlreadyThere: it exists, and `replace` is off.
    """
    if not (folder := Path(path).expanduser().parent).exists():
        raise NotWritten(f"cannot write {os.fspath(path)}: there is no folder {folder}; make it, or choose another place")
    return check_absent(path, replace=replace, option=option)


def check_absent(path: PathLike, *, replace: bool = False, option: str = "replace=True") -> Path:
    """The same for a file in a folder that is made where it is missing, as reports make theirs.

    Args:
        option: how the caller is told to replace it.

    Raises:
        AlreadyThere: it exists, and `replace` is off.
    """
    if not replace and _target(path).is_file():
        raise AlreadyThere(f"{os.fspath(path)} is there already; give another name, or {option} to write over it")
    return Path(path)


def check_writable(path: PathLike) -> Path:
    """Make sure that a file can be written here, before anything is computed. Nothing is left behind.

    Raises:
        NotWritten: it is a folder, its folder does not take files, or the disk is full.
    """
    file = _target(path)
    if file.is_dir():
        raise NotWritten(f"cannot write {path}: it is a folder; give the name of a file in it, such as {file.name}/out")
    try:
        if _is_device(file):
            file.open("wb").close()
        else:
            _try_folder(file.parent)
    except OSError as error:
        raise _refused(path, error) from error
    return Path(path)


def check_folder(path: PathLike, names: Iterable[str] = (), *, replace: bool = False, option: str = "replace=True") -> Path:
    """Make sure that files can be written into this folder, which need not exist yet. Nothing is left behind.

    Args:
        names: of the files, none of which may exist yet unless it may be replaced; `option` as in `check_absent`.

    Raises:
        NotWritten: a file has its name or that of a folder above, it does not take files, or the disk is full.
        AlreadyThere: one of the files exists, and `replace` is off.
    """
    folder = Path(path).expanduser()
    try:
        _try_folder(folder)
    except OSError as error:
        raise _refused(path, error) from error
    for name in names:
        check_absent(folder / name, replace=replace, option=option)
    return folder


def _target(path: PathLike) -> Path:
    """The file that is replaced: where a link points to, since a rename would put a file in the link's place."""
    return Path(os.path.realpath(Path(path).expanduser()))


def _is_device(file: Path) -> bool:
    return file.exists() and not file.is_file() and not file.is_dir()


def _try_folder(folder: Path) -> None:
    """Write a block into the folder, or into the nearest one above it that exists."""
    there = _existing(folder)
    with _draft(there) as (_, out):
        out.write(BLOCK)
        _flush(out)


def _make_folder(folder: Path, under: Path | None = None) -> None:
    _existing(folder)
    if under is None:
        folder.mkdir(parents=True, exist_ok=True)
        return
    for one in [*reversed(folder.relative_to(under).parents), folder.relative_to(under)]:
        if one != Path("."):
            (under / one).mkdir(exist_ok=True)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file, so it can hold none")
    return there


@contextlib.contextmanager
def _draft(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A locked draft; gone at the end, unless it was renamed."""
    _remove_dead_drafts(folder)
    draft, out = _open_draft(folder)
    try:
        with out:
            yield draft, out
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _open_draft(folder: Path) -> tuple[Path, IO[bytes]]:
    while True:
        draft = folder / f".cutaway-{secrets.token_hex(6)}.partial"
        out = draft.open("xb")
        if _lock(out.fileno()) and os.fstat(out.fileno()).st_nlink:
            return draft, out
        out.close()  # a neighbour removed it between its creation and its lock


def _lock(descriptor: int) -> bool:
    """Whether the lock of a file could be taken; file systems without locks count as taken."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _remove_dead_drafts(folder: Path) -> None:
    """Remove drafts that nobody holds the lock of: their processes were killed."""
    if fcntl is None:
        return
    for entry in os.scandir(folder):
        if not DRAFT.fullmatch(entry.name):
            continue
        with contextlib.suppress(OSError), open(entry.path, "r+b") as draft:  # another may have removed it, or own it
            fcntl.flock(draft, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(entry.path)


def _flush(out: IO[bytes]) -> None:
    out.flush()
    os.fsync(out.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush the rename itself, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _refused(path: PathLike, error: OSError) -> NotWritten:
    return NotWritten(f"cannot write {os.fspath(path)}: {error.strerror or error}; choose another place")
