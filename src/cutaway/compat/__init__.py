"""Notebooks written for others: `import transformer_lens` and `import circuitsvis` reach cutaway.

Nothing happens before `install()`. After it both names, with their submodules, are thin aliases of what cutaway has,
whether or not the originals are installed; `uninstall()` gives the originals back. In a notebook,
`%load_ext cutaway.compat` does the same.
"""

from __future__ import annotations

from typing import Any

from cutaway.compat.aliases import install, installed, uninstall
from cutaway.compat.installing import without_aliased

__all__ = ["install", "installed", "load_ipython_extension", "uninstall", "unload_ipython_extension"]


def load_ipython_extension(ipython: Any) -> None:
    """What `%load_ext cutaway.compat` calls."""
    install()
    if without_aliased not in ipython.input_transformers_cleanup:
        ipython.input_transformers_cleanup.append(without_aliased)


def unload_ipython_extension(ipython: Any) -> None:
    """What `%unload_ext cutaway.compat` calls."""
    uninstall()
    if without_aliased in ipython.input_transformers_cleanup:
        ipython.input_transformers_cleanup.remove(without_aliased)
