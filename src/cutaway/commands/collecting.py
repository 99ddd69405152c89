"""Commands for more than one machine: collect the activations of a corpus, and check a cluster."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.commands import choices, console
from cutaway.commands.progress import bar
from cutaway.commands.shared import Device, Json, located
from cutaway.errors import ConfigError

INCOMPLETE = 1  # the exit code where chunks were set aside, or a cluster fails its check
Executor = Annotated[
    str,
    typer.Option(help="Where to compute: local, processes:N, ray, ray:ADDRESS, or ranks (under torchrun or srun).",
                 callback=choices.executor),
]  # fmt: skip


def collect(
    model: Annotated[str, typer.Argument(help="A bundled model, a name of the Hugging Face hub, a folder or a file.")],
    corpus: Annotated[Path, typer.Argument(help="A file of text, JSON lines or parquet, or a folder of them or of datasets.")],
    out: Annotated[str, typer.Option(help="The folder of the collection, or an address of fsspec, which all workers see.")],
    sites: Annotated[
        list[str],
        typer.Option("--sites", "--site", help="Sites, such as resid_post5; several by commas, or repeated.",
                     callback=choices.names(choices.site)),
    ],
    packing: Annotated[
        str,
        typer.Option(help="documents (each in rows of its own) or packed (joined by EOS).",
                     callback=choices.among("cutaway.collect.options:PACKINGS", "packing")),
    ] = "documents",
    length: Annotated[int, typer.Option(min=1, help="Tokens of a row at most.")] = 128,
    positions: Annotated[
        str,
        typer.Option("--positions", "--position", help="all, last (of each document), or tokens (those of --token).",
                     callback=choices.among("cutaway.collect.options:POSITIONS", "positions")),
    ] = "all",
    token: Annotated[list[str] | None, typer.Option(help="Store positions where this token stands; may be repeated.")] = None,
    dtype: Annotated[
        str,
        typer.Option(help="How activations are stored: float32, bfloat16, float16 or int8.",
                     callback=choices.among("cutaway.collect.options:DTYPES", "precision of activations")),
    ] = "float32",
    compute: Annotated[
        str,
        typer.Option(help="The precision of the network.", callback=choices.among("cutaway.config:DTYPES", "precision")),
    ] = "float32",
    bos: Annotated[bool | None, typer.Option("--bos/--no-bos", help="Whether rows begin with BOS.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Each line of a text file is a document.")] = False,
    column: Annotated[
        str | None, typer.Option(help="The column, or the field of a JSON line, that holds the text. By default text.")
    ] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave broken lines out, and count them.")] = False,
    chunk: Annotated[int, typer.Option(min=16, help="Characters of a chunk, which becomes one shard, at most.")] = 2**17,
    batch: Annotated[int, typer.Option(min=1, help="Tokens that run together at most.")] = 2**11,
    executor: Executor = "local",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each worker.")] = 1,
    stream: Annotated[
        str | None,
        typer.Option(help="How much of the weights is in memory, the rest is read as it runs: '2 GiB'; a number alone is MiB.",
                     callback=choices.size_of("--stream")),
    ] = None,
    weight_bits: Annotated[int | None, typer.Option(help="8: keep weights in 8 bits, and say what that changes.")] = None,
    device: Device = "cpu",
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would cost and what would be reused; run one chunk.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Store the activations of a corpus as a data set; where a part of it is there already, the rest.

    Interrupt it at any moment: the same command goes on, and ends with the same bytes, whatever the executor.
    """
    from cutaway.collect import collect as run
    from cutaway.collect.corpus import Corpus
    from cutaway.collect.planning import plan as count

    if token and positions == "last":
        raise ConfigError("--token stores the positions of tokens, and --positions last those of others; give one of them")
    read = Corpus(corpus, column=column, lines=lines, skip_broken=skip_broken)
    options: dict[str, Any] = {
        "packing": packing, "length": length, "positions": "tokens" if token else positions, "tokens": token or (),
        "dtype": dtype, "compute": compute, "prepend_bos": bos, "chunk": chunk, "batch": batch, "executor": executor,
        "threads": threads, "stream": stream, "weight_bits": weight_bits, "device": device,
    }  # fmt: skip
    if plan:
        counted = count(located(model), read, sites, out, **options)
        console.echo(json.dumps(counted.to_json(), indent=2) if as_json else counted.summary())
        return
    with bar("collecting") as progress:
        found = run(located(model), read, sites, out, progress=progress, say=partial(console.echo, err=True), **options)
    console.echo(json.dumps(found.to_json(), indent=2) if as_json else found.summary())
    if found.set_aside:
        raise typer.Exit(INCOMPLETE)


cluster = typer.Typer(no_args_is_help=True, help="Clusters on which collections and sweeps run.")


@cluster.command("check")
def check_one(
    address: Annotated[str, typer.Argument(help="Of a Ray cluster: host:port, ray://host:port, auto, or local to start one.")],
    folder: Annotated[Path | None, typer.Option(help="A folder that all its machines see.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="How many workers to try.")] = 2,
    as_json: Json = False,
) -> None:
    """Try a cluster: versions, clocks, the folder, a killed worker, the same bytes as here; exit code 1 where one fails."""
    from cutaway.collect.conformance import check_cluster

    tries = []
    for one in check_cluster(None if address == "local" else address, folder, workers):
        tries.append(one)
        if not as_json:
            console.echo(str(one))
    if as_json:
        console.echo(json.dumps([one.__dict__ for one in tries], indent=2))
    if not all(one.passed for one in tries):
        raise typer.Exit(INCOMPLETE)


COMMANDS = (collect,)
GROUPS = {"cluster": cluster}
