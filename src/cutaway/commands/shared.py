"""What commands share: options with the same words everywhere, loading a model, and showing an answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.commands import console
from cutaway.commands.console import visible
from cutaway.errors import ConfigError, TokenError
from cutaway.writing import check_writable

DEFAULT = "attn-only-2l"
Model = Annotated[str, typer.Argument(help="A bundled model, a name of the Hugging Face hub, a folder or a file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]


def _page_file(path: Path | None) -> Path | None:
    """A file that a page can be written to: asked before anything is computed.

    Raises:
        ConfigError: it has the name of an image, is a folder, or its folder is not there.
        NotWritten: its folder or the disk takes no file.
    """
    if path is None:
        return None
    from cutaway.view.html import IMAGES

    if path.suffix.lower() in IMAGES:
        raise ConfigError(f"--html writes an HTML page, not {path.suffix}; call it {path.with_suffix('.html').name!r}")
    if path.is_dir():
        raise ConfigError(f"--html {path} is a folder; give the name of a file in it, such as {str(path / 'page.html')!r}")
    if not path.parent.is_dir():
        raise ConfigError(f"--html {path}: there is no folder {path.parent}")
    return check_writable(path)


Html = Annotated[Path | None, typer.Option(help="Write a page with the figures to this file.", callback=_page_file)]
Record = Annotated[Path | None, typer.Option(help="Write a record to this folder, for `cutaway replay` and `cutaway compare`.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 …")]


def load(name: str, device: str, **options: Any) -> Any:
    """The network of that name, its weights rewritten as usual. A folder may also be one that `cutaway train` wrote."""
    from cutaway import loading
    from cutaway.model.transformer import Transformer

    network = loading.from_pretrained(Transformer, located(name), device=device, **options)
    if "taken_for" in network.provenance:
        console.echo(f"{name}: {network.provenance['taken_for']}", err=True)
    return network


def located(name: str) -> str:
    """The name, or the file of weights in it where it is a folder that `cutaway train` wrote."""
    from cutaway.sources.toys import MODEL

    trained = Path(name) / MODEL
    return str(trained) if trained.is_file() and not (Path(name) / "config.json").exists() else name


def read_file(file: Path, what: str) -> str:
    """The text of a file.

    Raises:
        TokenError: a file that is not text, or nothing in it.
    """
    try:
        found = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise TokenError(f"{file} is not UTF-8 text") from None
    if not found:
        raise TokenError(f"{what} needs text, and {file} is empty")
    return found


def one_token(network: Any, word: str, option: str) -> int:
    """The token that an option names.

    Raises:
        TokenError: it is several, or none; says which, and whether a space in front was forgotten.
    """
    from cutaway.tokens import to_str_tokens, to_tokens

    ids = to_tokens(network.tokenizer, word, prepend_bos=False)[0]
    if len(ids) == 1:
        return int(ids[0])
    if not len(ids):
        raise TokenError(f"{option} is empty; give one token")
    parts = to_str_tokens(network.tokenizer, ids)
    hint = "with its leading space where it has one"
    spaced = f" {word}"
    try:
        if len(to_tokens(network.tokenizer, spaced, prepend_bos=False)[0]) == 1:
            hint = f"such as {spaced!r}, with a space in front"
    except TokenError:  # the vocabulary has no space
        hint = f"such as {parts[0]!r}"
    raise TokenError(f"{option} {word!r} is {len(ids)} tokens, not one: {parts}; give one token, {hint}")


def show(
    text: str, numbers: Any, figures: Iterable[tuple[str, Any]], *, as_json: bool, html: Path | None, title: str
) -> None:  # fmt: skip
    """Print the text or the numbers, and write the page if one was asked for."""
    if as_json:
        console.echo(json.dumps(numbers, indent=2, ensure_ascii=False))
    else:
        console.echo(text)
    if html is not None:
        from cutaway.view import Section, page

        made = list(figures)  # one needs no section: the page's title and its own say what it is
        sections = [Section(heading, [figure]) for heading, figure in made] if len(made) > 1 else []
        page(title, sections, intro=[] if sections else [figure for _, figure in made]).save(html)
        if not as_json:
            console.echo(f"\n{html}")


def lines(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An aligned table of all rows, drawn by rich; numbers have four digits."""
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=Box("\n".join(["    "] * 8) + "\n"), show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for column in columns:
        table.add_column(Text(visible(column)), no_wrap=True)
    for row in rows:
        table.add_row(*(Text(visible(f"{cell:.4g}" if isinstance(cell, float) else str(cell))) for cell in row))
    drawn = Console(width=10_000, color_system=None, force_terminal=False)
    with drawn.capture() as capture:
        drawn.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())
