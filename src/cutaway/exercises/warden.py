"""Stands between a check and the judge: hides the solutions, adopts whatever a reader's code starts, and ends all of it.

Called by its path, as `python warden.py HIDDEN COMMAND…`, so that it imports nothing of the package. Where Linux is the system,
orphans of its descendants become its children, in whatever session they are and whatever their environment says; and neither it
nor anything that it starts can read a file below HIDDEN, by whatever way (Landlock, https://docs.kernel.org/userspace-api/landlock.html).
Elsewhere only the judge's own guard stands before the solutions.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on every processor
READ_FILE, REFER = 1 << 2, 1 << 13  # REFER: to link or move into another folder, which is forbidden where nothing allows it


def main() -> int:
    """Run the command; its exit code, once nothing that it started is left."""
    with contextlib.suppress(AttributeError, OSError):  # other systems have no prctl
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        hide(os.path.realpath(sys.argv[1]))
    process = subprocess.Popen(sys.argv[2:])

    def stop(number: int, frame: FrameType | None) -> None:
        process.kill()

    signal.signal(signal.SIGTERM, stop)
    code = process.wait()
    _end_all()
    return code if code >= 0 else 128 - code


def hide(folder: str) -> bool:
    """Let this process and all that it starts read no file below a package but its `__init__.py`; whether the system can do that.

    A rule allows what is below a path and none forbids, so everything is allowed that stands beside the way to the folder.
    """
    call = ctypes.CDLL(None, use_errno=True).syscall
    version = call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    rights = READ_FILE | (REFER if version >= 2 else 0)
    ruleset = call(CREATE_RULESET, ctypes.byref(ctypes.c_uint64(rights)), ctypes.c_size_t(8), ctypes.c_uint32(0))
    above = "/"
    for part in folder.strip("/").split("/"):
        for entry in os.scandir(above):
            if entry.name == part or entry.is_symlink():  # what a link leads to has its own place
                continue
            with contextlib.suppress(OSError):
                _allow(call, ruleset, entry.path, rights if entry.is_dir() else READ_FILE)
        above = os.path.join(above, part)
    with contextlib.suppress(OSError):
        _allow(call, ruleset, os.path.join(folder, "__init__.py"), READ_FILE)
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(call(RESTRICT_SELF, ruleset, ctypes.c_uint32(0)) == 0)


def _allow(call: Any, ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        rule = struct.pack("=Qi", rights, descriptor)
        call(ADD_RULE, ruleset, ctypes.c_uint32(1), rule, ctypes.c_uint32(0))
    finally:
        os.close(descriptor)


def _end_all() -> None:
    """End children until there are none; grandchildren become children when their parents end."""
    while True:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    me, found = str(os.getpid()), []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if status.read_text(errors="replace").rpartition(")")[2].split()[1] == me:
                found.append(int(status.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
