"""Bundled models: small trained models that ship in the package, each with a card that says how it was made.

Each is a folder `bundled/NAME/` with `model.safetensors` and `card.md`, as `cutaway train` writes them.
"""

from __future__ import annotations

from pathlib import Path

from cutaway.errors import UnknownModel, nearest
from cutaway.sources import files
from cutaway.sources.checkpoint import Checkpoint
from cutaway.sources.short_names import LEFT_TO_THE_DIALECT

FOLDER = Path(__file__).parent / "bundled"
MODEL, CARD = "model.safetensors", "card.md"


OWN = "cutaway-"
"""Before its name, this means a bundled model at any time."""


def names() -> list[str]:
    """The bundled models."""
    return [f"{OWN}{name}" if name in LEFT_TO_THE_DIALECT else name for name in _folders()]


def is_bundled(name: str) -> bool:
    """Whether this name means a bundled model."""
    return name in names() or (f"{OWN}{name.removeprefix(OWN)}" == name and name.removeprefix(OWN) in _folders())


def _folders() -> list[str]:
    return sorted(folder.parent.name for folder in FOLDER.glob(f"*/{MODEL}"))


def find(name: str) -> Checkpoint:
    """The checkpoint of a bundled model.

    Raises:
        UnknownModel: none has this name.
        CheckpointError: its file is damaged; install cutaway again.
    """
    return files.read(_folder(name) / MODEL)


def card(name: str) -> str:
    """What the card of a bundled model says, in Markdown: the command and the seed that made it, and what it came to.

    Raises:
        UnknownModel: none has this name.
    """
    return (_folder(name) / CARD).read_text(encoding="utf-8")


def _folder(name: str) -> Path:
    known = names()
    if not is_bundled(name):
        near = nearest(name, known) or (f"; there is {', '.join(known)}" if known else "; none is installed")
        raise UnknownModel(f"no bundled model called {name!r}{near}")
    return FOLDER / name.removeprefix(OWN)
