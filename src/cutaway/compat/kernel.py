"""The Jupyter kernel "Python (cutaway)": IPython's own, with the aliases installed before the first cell runs.

Run as `python -m cutaway.compat.kernel -f CONNECTION_FILE`; `cutaway kernel install` writes that down for Jupyter.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Install the aliases and become a kernel."""
    try:
        from ipykernel import kernelapp
    except ModuleNotFoundError as error:
        if error.name != "ipykernel":
            raise
        sys.exit("cutaway: the kernel needs the package ipykernel: pip install 'cutaway[notebook]'")
    from cutaway.compat import install

    install()
    kernelapp.launch_new_instance(extensions=["cutaway.compat"])


if __name__ == "__main__":
    main()
