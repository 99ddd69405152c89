"""Stands between a check and the judge: adopts whatever a reader's code starts, and ends all of it before it ends itself.

Called by its path, as `python warden.py COMMAND…`, so that it imports nothing of the package. Where Linux is the system, orphans
of its descendants become its children, in whatever session they are and whatever their environment says.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Run the command; its exit code, once nothing that it started is left."""
    with contextlib.suppress(AttributeError, OSError):  # other systems have no prctl
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    process = subprocess.Popen(sys.argv[1:])

    def stop(number: int, frame: FrameType | None) -> None:
        process.kill()

    signal.signal(signal.SIGTERM, stop)
    code = process.wait()
    _end_all()
    return code if code >= 0 else 128 - code


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
