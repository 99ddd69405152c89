"""Runs a script in which `transformer_lens` and `circuitsvis` are cutaway: `python -m cutaway.compat.script FILE [ARGS]`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from cutaway.compat import aliases


def main(arguments: list[str]) -> None:
    """Run a file as if Python had been started with it."""
    file = Path(arguments[0])
    sys.argv = arguments
    sys.path[0] = str(file.resolve().parent)
    aliases.install()
    runpy.run_path(str(file), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
