"""What commands share: options with the same words everywhere, loading a model, and showing an answer."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from cutaway.commands import console
from cutaway.commands.console import visible
from cutaway.errors import ConfigError, TokenError
from cutaway.writing import check_new, check_writable, named

DEFAULT = "attn-only-2l"
Model = Annotated[
    str | None,
    typer.Argument(help="A bundled model, a name of the Hugging Face hub, a folder or a file.", show_default=DEFAULT),
]
Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]


WORDS: ContextVar[tuple[str, ...]] = ContextVar("words of the command line", default=("cutaway",))


def _page_file(context: Any, path: Path | None) -> Path | None:
    """A file that a page can be written to: asked before anything is computed.

    Raises:
        ConfigError: another ending, a folder.
        NotWritten: no folder around it, or the folder or disk takes no file; `AlreadyThere`, where it exists without --replace.
    """
    if path is None:
        return None
    from cutaway.view.html import ENDINGS

    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--html writes an HTML page, not {path.suffix}; call it {path.with_suffix('.html').name!r}")
    if path.is_dir():
        raise ConfigError(f"--html {path} is a folder; give the name of a file in it, such as {str(path / 'page.html')!r}")
    return free_file(context, named(path, ".html"))


def free_file(context: Any, path: Path | None) -> Path | None:
    """A file that can be written: one that is there only with `--replace`, which is read before other options.

    Raises:
        NotWritten: its folder or the disk takes no file; `AlreadyThere`, where it exists.
    """
    if path is None:
        return None
    return check_writable(check_new(path, replace=context.params.get("replace", False), option=REPLACE))


REPLACE = "--replace"
Replace = Annotated[bool, typer.Option(REPLACE, is_eager=True, help="Write over a file that is there already.")]
Html = Annotated[Path | None, typer.Option(help="Write a page with the figures to this file.", callback=_page_file)]
Record = Annotated[Path | None, typer.Option(help="Write a record to this folder, for `cutaway replay` and `cutaway compare`.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1 …")]


def load(given: str | None, device: str, **options: Any) -> Any:
    """The network of that name, its weights rewritten as usual. A folder may also be one that `cutaway train` wrote.

    Without a name it is a small bundled one, which is said before anything is computed with it.
    """
    from cutaway import loading
    from cutaway.model.transformer import Transformer

    if given is None:
        console.echo(f"no model is named, so this is about {DEFAULT}, a small bundled one", err=True)
    name = given or DEFAULT
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


def one_token(network: Any, word: str, option: str, *, first: bool = False) -> int:
    """The token that an option names, as `token_of`; says on stderr that a space in front may be missing."""
    from cutaway.tokens import to_tokens

    token = token_of(network.tokenizer, word, option, first=first)
    single = len(to_tokens(network.tokenizer, word, prepend_bos=False)[0]) == 1
    if single and (other := spaced(network, word)) is not None:
        console.echo(
            f"{option}: {word!r} is taken as it stands, without a space in front; within a text it is {other!r}", err=True
        )
    return token


def token_of(tokenizer: Any, word: str, option: str, *, first: bool = False) -> int:
    """The token that an option names; with `first` (`--allow-first-token`) the first of several.

    Raises:
        TokenError: it is several, or none; says which, and whether a space in front was forgotten.
    """
    from cutaway.tokens import to_str_tokens, to_tokens

    ids = to_tokens(tokenizer, word, prepend_bos=False)[0]
    if len(ids) == 1 or (len(ids) and first):
        return int(ids[0])
    if not len(ids):
        raise TokenError(f"{option} is empty; give one token")
    parts = to_str_tokens(tokenizer, ids)
    hint = "with its leading space where it has one"
    other = f" {word}"
    try:
        if len(to_tokens(tokenizer, other, prepend_bos=False)[0]) == 1:
            hint = f"such as {other!r}, with a space in front"
    except TokenError:  # the vocabulary has no space
        hint = f"such as {parts[0]!r}"
    from cutaway.prompts import FIRST

    raise TokenError(f"{option} {word!r} is {len(ids)} tokens, not one: {parts}; give one token, {hint}, or {FIRST}")


def spaced(network: Any, word: str) -> str | None:
    """The word with a space in front, where that is another token and the word has none: what a text usually goes on with."""
    from cutaway.tokens import to_tokens

    if not word[:1].isalnum():
        return None
    try:
        found = to_tokens(network.tokenizer, f" {word}", prepend_bos=False)[0]
    except TokenError:  # the vocabulary has no space
        return None
    return f" {word}" if len(found) == 1 else None


def command_line() -> str:
    """The words of this command, as a shell takes them."""
    return shlex.join(WORDS.get())


def facts(network: Any, prompts: Any = None) -> list[Any]:
    """Model, hash, time, command and prompts: the head of every page that a command writes."""
    from cutaway.runs.provenance import Provenance, now

    return Provenance(command_line(), now(), lambda: network, prompts).facts(call="command")


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
    console = Console(width=10_000, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())
