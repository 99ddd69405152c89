"""Writes `docs/reference.md`: every public name with its docstring, by the rooms of `docs/api.md`, for the site that `make docs` builds.

The front door imports its names when they are first used, which the site's reader of source cannot follow: each name is listed by
the place where it is defined.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Reference

Every public name, in the order of [public names](api.md), with what it takes, gives and refuses. Written by `make docs`.
"""


def page() -> str:
    """The page as it should be."""
    sys.path.insert(0, str(ROOT / "src"))
    import cutaway

    parts = [HEAD]
    for line in (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            parts.append(f"\n{line}\n")
        elif found := re.match(r"\| `(\w+)` \|", line):
            name = found[1]
            where = cutaway._MODULES.get(name) or f"{cutaway._HOME[name]}.{cutaway._CALLED.get(name, name)}"
            parts.append(f"\n::: {where}\n")
    return "".join(parts)


if __name__ == "__main__":
    target = ROOT / "docs" / "reference.md"
    target.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{target.relative_to(ROOT)} is written\n")
