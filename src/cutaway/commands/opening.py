"""The command `cutaway open`: a model in the workbench, in a browser on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutaway.commands import console, shared

Out = Annotated[Path, typer.Option(help="Folder for records; nothing is written anywhere else.")]


def open_model(
    model: shared.Model = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The first port that is tried. By default 8420.")] = None,
    out: Out = Path("out") / "workbench",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser, or only print the address.")] = True,
    device: shared.Device = "cpu",
) -> None:
    """Open a model in the workbench: a page on this machine where it is taken apart by hand.

    Switch heads, MLPs, positions and edges off, patch them from another prompt, and see what changes. Ctrl-C ends it.
    """
    from cutaway.workbench import serving
    from cutaway.writing import check_folder

    serving.needed()
    check_folder(out)
    serving.leave_a_core()
    network = shared.load(model, device)
    made, port_taken = serving.prepare(network, model or shared.DEFAULT, folder=out, port=port)
    if port_taken:
        console.echo(f"port {port or serving.PORT} is in use; this is another one", err=True)
    if not browser or not serving.show(made.address):
        console.echo("open this address in a browser on this machine:" if browser else "the workbench is at:", err=True)
    console.echo(made.address)
    serving.serve(made)
