"""What notebooks install before they start: `%pip install transformer_lens` would fetch the package that stands aliased
already, and with it old versions of everything that it depends on. Such lines are left out and said.
"""

from __future__ import annotations

import re

INSTALL = re.compile(
    r"^(?P<lead>\s*[!%]\s*(?:uv\s+)?(?:python3?\s+-m\s+)?pip3?\s+install\s+)(?P<rest>.*?)(?P<end>\s*)$", re.DOTALL
)
OURS = re.compile(r"transformer[-_]?lens|easy[-_]?transformer|circuitsvis", re.IGNORECASE)


def without_aliased(lines: list[str]) -> list[str]:
    """The lines of a cell, where those that install packages leave out the aliased ones."""
    return [_spared(line) for line in lines]


def _spared(line: str) -> str:
    match = INSTALL.match(line)
    if match is None or not OURS.search(match["rest"]):
        return line
    words = match["rest"].split()
    kept = [word for word in words if not OURS.search(word)]
    left_out = " ".join(word for word in words if OURS.search(word))
    if any(not word.startswith("-") for word in kept):
        return f"{match['lead']}{' '.join(kept)}{match['end']}"
    indent = re.match(r"\s*", line)
    return f"{indent[0] if indent else ''}print({f'not installed, as cutaway stands in: {left_out}'!r}){match['end']}"
