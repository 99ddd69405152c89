"""What commands share: options with the same words everywhere, loading a model, and showing an answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.errors import TokenError

DEFAULT = "attn-only-2l"
Model = Annotated[str, typer.Argument(help="A bundled model, a name of the Hugging Face hub, a folder or a file.")]
Text = Annotated[str | None, typer.Option(help="The text to run on.")]
File = Annotated[Path | None, typer.Option(help="A file of text to run on.", exists=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]
Html = Annotated[Path | None, typer.Option(help="Write a page with the figures to this file.")]
Record = Annotated[Path | None, typer.Option(help="Write a record to this folder, for `cutaway replay` and `cutaway compare`.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 …")]


def load(name: str, device: str) -> Any:
    """The network of that name, its weights rewritten as usual."""
    from cutaway import loading
    from cutaway.model.transformer import Transformer

    return loading.from_pretrained(Transformer, name, device=device)


def given_text(text: str | None, file: Path | None, what: str = "this command") -> str:
    """The text of `--text` or `--file`.

    Raises:
        TokenError: neither, or both, or a file that is not text.
    """
    if text is None and file is None:
        raise TokenError(f"{what} needs text: give either --text or --file")
    if text is not None and file is not None:
        raise TokenError(f"{what} takes --text or --file, not both")
    if file is None:
        return str(text)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise TokenError(f"{file} is not UTF-8 text") from None


def show(
    text: str, numbers: Any, figures: Iterable[tuple[str, Any]], *, as_json: bool, html: Path | None, title: str
) -> None:  # fmt: skip
    """Print the text or the numbers, and write the page if one was asked for."""
    if as_json:
        typer.echo(json.dumps(numbers, indent=2, ensure_ascii=False))
    else:
        typer.echo(text)
    if html is not None:
        from cutaway.view import Section, page

        made = list(figures)  # one needs no section: the page's title and its own say what it is
        sections = [Section(heading, [figure]) for heading, figure in made] if len(made) > 1 else []
        page(title, sections, intro=[] if sections else [figure for _, figure in made]).save(html)
        if not as_json:
            typer.echo(f"\n{html}")


def lines(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An aligned table of all rows."""
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [list(columns), *cells]
    )
