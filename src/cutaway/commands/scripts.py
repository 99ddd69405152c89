"""Commands for code written for others: `run SCRIPT`, `stand-in install | remove`.

The stand-in is a small distribution called `transformer-lens`: it satisfies what libraries require, and hands over to
cutaway when somebody imports it.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from cutaway.commands import console
from cutaway.errors import ConfigError
from cutaway.writing import write

DISTRIBUTION, VERSION, OURS = "transformer-lens", "2.18.0+cutaway", "cutaway"
CODE = '''"""Stands in for TransformerLens: hands over to cutaway. `cutaway stand-in remove` takes it away."""

import importlib
import sys

import cutaway.compat

cutaway.compat.install()
sys.modules[__name__] = importlib.import_module(__name__)
'''
stand_in = typer.Typer(no_args_is_help=True, help="A distribution `transformer-lens` that hands over to cutaway, for libraries.")


def run(
    script: Annotated[Path, typer.Argument(help="A Python file.", exists=True, dir_okay=False)],
    arguments: Annotated[list[str] | None, typer.Argument(help="What the script is given.")] = None,
) -> None:
    """Run a script in which `transformer_lens` and `circuitsvis` are cutaway; its exit code is ours."""
    code = subprocess.run([sys.executable, "-m", "cutaway.compat.script", str(script), *(arguments or [])]).returncode
    if code:
        raise typer.Exit(code)


@stand_in.command("install")
def install(
    target: Annotated[Path | None, typer.Option(help="A folder of packages; by default this Python's own.")] = None,
) -> None:
    """Write the stand-in into this environment. Refused where the real package is installed."""
    folder = _folder(target)
    _refuse_the_real_one(folder)
    package, info = folder / "transformer_lens", folder / f"transformer_lens-{VERSION}.dist-info"
    about = f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {VERSION}\nSummary: Stands in for TransformerLens: cutaway.\n"
    wheel = "Wheel-Version: 1.0\nGenerator: cutaway\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {package / "__init__.py": CODE, info / "METADATA": about, info / "WHEEL": wheel, info / "INSTALLER": f"{OURS}\n"}
    names = [file.relative_to(folder).as_posix() for file in (*files, info / "RECORD")]
    files[info / "RECORD"] = "".join(f"{name},,\n" for name in names)
    try:
        for file, text in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file, text)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}); give another folder with --target") from error
    console.echo(f"{DISTRIBUTION} {VERSION} stands in {folder}; `cutaway stand-in remove` takes it away")


@stand_in.command("remove")
def remove(
    target: Annotated[Path | None, typer.Option(help="The folder that `install` was given.")] = None,
) -> None:
    """Take the stand-in away again; a real package is left alone."""
    folder = _folder(target)
    found = _installed(folder)
    if found is None or not _is_ours(found):
        raise ConfigError(f"no stand-in of ours is in {folder}" + ("" if found is None else ", but the real package"))
    listed = [folder / str(file) for file in found.files or ()]
    for file in listed:
        file.unlink(missing_ok=True)
    for place in {file.parent for file in listed}:
        for left in place.glob("__pycache__/*"):
            left.unlink()
        (place / "__pycache__").rmdir() if (place / "__pycache__").is_dir() else None
        place.rmdir()
    console.echo(f"{DISTRIBUTION} {VERSION} is gone from {folder}")


def _folder(target: Path | None) -> Path:
    return Path(sysconfig.get_paths()["purelib"]) if target is None else target


def _installed(folder: Path) -> metadata.Distribution | None:
    return next(iter(metadata.distributions(name=DISTRIBUTION, path=[str(folder)])), None)


def _is_ours(found: metadata.Distribution) -> bool:
    return (found.read_text("INSTALLER") or "").strip() == OURS


def _refuse_the_real_one(folder: Path) -> None:
    everywhere = [*metadata.distributions(name=DISTRIBUTION), *metadata.distributions(name=DISTRIBUTION, path=[str(folder)])]
    real = next((one for one in everywhere if not _is_ours(one)), None)
    if real is not None:
        raise ConfigError(
            f"TransformerLens {real.version} itself is installed, so nothing may stand in for it; uninstall it first "
            f"(pip uninstall {DISTRIBUTION}), or use `cutaway run SCRIPT`, which leaves it alone"
        )
