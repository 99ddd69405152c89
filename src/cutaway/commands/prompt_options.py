"""What commands are asked about: one set of options for texts, pairs, files and behaviours, the same in every command.

`@shared_options()` puts these into a command's signature and hands it one `Request`, which loads the model and makes `Prompts`
when the command first looks at them.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from cutaway.commands import choices, console
from cutaway.commands.shared import (
    DEFAULT,
    Device,
    Html,
    Json,
    Model,
    Replace,
    facts,
    load,
    one_token,
    read_file,
    spaced,
    token_of,
)
from cutaway.errors import ConfigError, ContextTooLong, TokenError

if TYPE_CHECKING:
    from cutaway.prompts import Prompts

Words = list[str] | None
Figures = Sequence[tuple[str, Any]]
COUNT = 64  # prompts of a behaviour, unless --count says otherwise
SCREEN = 20  # rows of a table, unless --top or --all say otherwise
NO_BOS = "no BOS in front: each text's first token is what heads rest on where they do nothing"
TOKENS = ("target", "minus", "word", "effect")  # options that name one token of the model
DTYPES = ("float32", "float64", "bfloat16", "float16")

Texts = Annotated[Words, typer.Option("--text", help="A text to run on; may be repeated.")]
Cleans = Annotated[Words, typer.Option("--clean", "--text", help="A prompt that gives the answer; may be repeated.")]
Corrupteds = Annotated[Words, typer.Option("--corrupted", help="Its counterpart, of as many tokens; as many as --clean.")]
File = Annotated[Path | None, typer.Option(help="A file that is one text.", callback=choices.text_file)]
PromptsFile = Annotated[
    Path | None, typer.Option("--prompts", help="A file with a text on each line.", callback=choices.prompts_file)
]
PairsFile = Annotated[
    Path | None,
    typer.Option("--pairs", help="JSON lines: clean, corrupted, answer, wrong, roles.", callback=choices.prompts_file),
]
BehaviourName = Annotated[
    str | None,
    typer.Option("--behaviour", help="Prompts of a behaviour: ioi, greater-than, subject-verb, …", callback=choices.behaviour),
]
Count = Annotated[
    int | None, typer.Option(min=1, help=f"How many prompts: of a behaviour (by default {COUNT}), or the first of what is given.")
]
Seed = Annotated[int, typer.Option(help="Seed of the behaviour's prompts, and of all else that is drawn.")]
AnswerWords = Annotated[Words, typer.Option("--answer", help="The token after each text: one for all, or one for each.")]
WrongWords = Annotated[Words, typer.Option("--wrong", help="The token that it is compared with: one for all, or one for each.")]
FirstToken = Annotated[bool, typer.Option("--allow-first-token", help="Of an answer of several tokens take the first.")]
NoBos = Annotated[bool, typer.Option("--no-bos", help="Put no beginning-of-text token in front.")]
Messages = Annotated[bool, typer.Option("--messages", help="Each text is a user's message, put into the chat template.")]
Dtype = Annotated[
    str | None,
    typer.Option(help=f"Precision of the weights: {', '.join(DTYPES)}.", callback=choices.each(lambda one: _dtype(one))),
]
Top = Annotated[int | None, typer.Option(min=1, help="How many rows to print. By default what fits on a screen.")]
All = Annotated[bool, typer.Option("--all", help="Print all rows.")]
Positions = Annotated[
    str | None,
    typer.Option("--positions", "--position", help="Roles or numbers: 'end', 'S2', '3,-1'.",
                 callback=choices.each(lambda one: positions_of(one))),
]  # fmt: skip
Layers = Annotated[
    str | None,
    typer.Option("--layers", "--layer", help="Some of the layers: '0-3,7'. By default all.",
                 callback=choices.each(choices.layers_of)),
]  # fmt: skip

SHARED: dict[str, tuple[Any, Any]] = {
    "file": (File, None),
    "prompts": (PromptsFile, None),
    "pairs": (PairsFile, None),
    "behaviour": (BehaviourName, None),
    "count": (Count, None),
    "answer": (AnswerWords, None),
    "wrong": (WrongWords, None),
    "allow_first_token": (FirstToken, False),
    "no_bos": (NoBos, False),
    "messages": (Messages, False),
}
LAST: dict[str, tuple[Any, Any]] = {
    "top": (Top, None),
    "all_rows": (All, False),
    "seed": (Seed, 0),
    "dtype": (Dtype, None),
    "device": (Device, "cpu"),
    "as_json": (Json, False),
    "html": (Html, None),
    "replace": (Replace, False),
}


def shared_options(
    *, pairs: bool = False, model: bool = True, text: bool = True, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the shared options, and hand it what they say as its first argument.

    Args:
        pairs: whether texts come with counterparts (`--clean`, `--corrupted`).
        model: whether the model is the first argument; otherwise the command sets `request.model` itself.
        text: whether it needs some.
        without: options that the command has no use for.
    """
    needed = text and "text" not in without

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [one.replace(annotation=hints[name]) for name, one in list(inspect.signature(command).parameters.items())[1:]]
        first = {"model": (Model, None)} if model else {}
        texts = {"text": (Cleans, None), "corrupted": (Corrupteds, None)} if pairs else {"text": (Texts, None)}
        own_names = {*without, *(one.name for one in own)}
        taken = {name: pair for name, pair in {**first, **texts, **SHARED, **LAST}.items() if name not in own_names}
        keyword = inspect.Parameter.KEYWORD_ONLY
        made = [inspect.Parameter(name, keyword, default=default, annotation=kind) for name, (kind, default) in taken.items()]
        at = len(made) - len(LAST.keys() - own_names)
        parameters = [one.replace(kind=keyword) for one in [*made[:at], *own, *made[at:]]]
        if not model:  # the argument that names the model comes first
            parameters.sort(key=lambda one: one.name != "words")

        @functools.wraps(command)
        def with_request(**given: Any) -> None:
            shared = {name: given.pop(name) for name in taken}
            request = Request(command.__name__.rstrip("_").replace("_", " "), shared, pairs=pairs, own=given.copy())
            if needed and "text" in taken:
                request.check_sources()
            command(request, **given)

        with_request.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_request.__annotations__ = {one.name: one.annotation for one in parameters}
        del with_request.__wrapped__
        return with_request

    return decorate


@dataclass
class Request:
    """What the shared options of a command say; the model and the prompts are made when they are first looked at."""

    command: str
    options: dict[str, Any]
    pairs: bool = False
    rewrites: dict[str, bool] = field(default_factory=dict)  # of weights, where they are not the usual ones
    own: dict[str, Any] = field(default_factory=dict)  # what the command's own options say
    look: Callable[[Any], Any] | None = None  # at the model's configuration, before its weights are read

    @property
    def model(self) -> str:
        """The name of the model."""
        return str(self.options["model"] or DEFAULT)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["options"][name]
        except KeyError:
            if name in SHARED or name in ("text", "corrupted"):
                return None  # an option that this command has no use for
            raise AttributeError(name) from None

    @cached_property
    def network(self) -> Any:
        """The model, loaded."""
        import torch

        options: dict[str, Any] = {"look": self._look, **self.rewrites}
        if self.dtype is not None:
            options["dtype"] = getattr(torch, self.dtype)
        return load(self.options["model"], self.device, **options)

    def _look(self, cfg: Any, tokenizer: Any) -> None:
        """Make sure, before weights are read, that the model has what options name: layers, heads, tokens.

        Raises:
            CutawayError: it has not.
        """
        if self.look is not None:
            self.look(cfg)
        for name, value in self.own.items():
            if value is not None and name in choices.WITHIN:
                choices.WITHIN[name](value, cfg, tokenizer)
        words = [(name, self.own.get(name)) for name in TOKENS]
        if self.sources in (["--clean"], ["--text"], ["--file"], ["--prompts"]):
            words += [(name, self.options.get(name)) for name in ("answer", "wrong")]
        for name, given in words:
            listed = [given] if isinstance(given, str) else given
            for word in listed if isinstance(listed, list) else []:  # the target of `circuit find` is a number
                token_of(tokenizer, word, f"--{name}", first=bool(self.allow_first_token))

    @property
    def bos(self) -> bool | None:
        """Whether texts begin with BOS: None, as the model says; a chat template has its own."""
        return False if self.no_bos or self.messages else None

    @property
    def sources(self) -> list[str]:
        """The options that give texts."""
        named = {
            "--clean" if self.pairs else "--text": self.text, "--file": self.file, "--prompts": self.prompts_file,
            "--pairs": self.options.get("pairs"), "--behaviour": self.behaviour,
        }  # fmt: skip
        return [name for name, value in named.items() if value]

    @property
    def prompts_file(self) -> Path | None:
        """The file of `--prompts`."""
        found: Path | None = self.options.get("prompts")
        return found

    @cached_property
    def long_text(self) -> str | None:
        """The one text of `--text` or `--file`, where nothing else is said about it: it may be longer than the context."""
        self.check_sources()
        if self.file is not None:
            return read_file(self.file, self.command)
        known = self.answer or self.no_bos or self.messages
        return self._texts()[0] if self.text and len(self.text) == 1 and not known else None

    @cached_property
    def given_prompts(self) -> Prompts:
        """The prompts.

        Raises:
            TokenError: no text, or several sources of texts.
            PromptError: a broken line of a file (its number is said), pairs of different lengths, answers of several tokens.
        """
        from cutaway.prompts import Prompts

        self.check_sources()
        bos = self.bos
        if self.options.get("pairs") is not None:
            made = Prompts.read(self.options["pairs"], self.network, **self._reading(bos))
        elif self.behaviour is not None:
            made = self.behaviour_prompts()
        else:
            made = self._of_texts(bos)
        if self.options.get("pairs") is not None or self.prompts_file is not None:
            self._note_spaces(made)
        return self._fitting(made if self.count is None else made[: self.count])

    def _note_spaces(self, made: Prompts) -> None:
        """Say on stderr where the answers of a file lack the space that a text usually goes on with."""
        words = {self.network.tokenizer.decode(list(ids)) for row in made.right for ids in row.values() if len(ids) == 1}
        lacking = {word: other for word in sorted(words) if (other := spaced(self.network, word)) is not None}
        if lacking:
            word, other = next(iter(lacking.items()))
            count = f"{len(lacking)} answers are" if len(lacking) > 1 else "an answer is"
            console.echo(
                f"{count} taken as written, without a space in front: {word!r}, which within a text is {other!r}", err=True
            )

    def check_sources(self) -> None:
        """Make sure that there is one source of texts, which needs no model.

        Raises:
            TokenError: there is none, or several.
        """
        names = self.sources
        if not names:
            first = "--clean" if self.pairs else "--text"
            raise TokenError(
                f"{self.command} needs text: give either {first} or --file, --prompts FILE, --pairs FILE or --behaviour NAME"
            )
        if len(names) > 1:
            more = ", not both" if len(names) == 2 else "; give one of them"
            raise TokenError(f"{self.command} takes {' or '.join(names)}{more}")

    def _texts(self) -> list[str]:
        if self.text and not all(self.text):
            raise TokenError(f"{self.command} needs text, and {'--clean' if self.pairs else '--text'} is empty")
        return list(self.text or ())

    def _of_texts(self, bos: bool | None) -> Prompts:
        from cutaway.prompts import Prompts

        known: dict[str, Any] = {"answers": self._for_each("answer"), "wrong": self._for_each("wrong")}
        known["corrupted"] = (self.options.get("corrupted") or None) if self.pairs else None
        if self.prompts_file is not None:
            texts = list(Prompts.read(self.prompts_file, self.network).texts)
        else:
            texts = [read_file(self.file, self.command)] if self.file is not None else self._texts()
        if self.messages:
            texts = [self.message(one) for one in texts]
            known["corrupted"] = known["corrupted"] and [self.message(one) for one in known["corrupted"]]
        return Prompts.of_texts(self.network, texts, **self._reading(bos), **known)

    def _reading(self, bos: bool | None) -> dict[str, Any]:
        return {"prepend_bos": bos, "allow_first_token": self.allow_first_token}

    def _for_each(self, name: str) -> str | list[str] | None:
        words = self.options.get(name)
        for word in words or ():
            if not self.allow_first_token:
                one_token(self.network, word, f"--{name}")
        return None if not words else words[0] if len(words) == 1 else words

    def message(self, text: str) -> str:
        """A text as a user's message, in the chat template.

        Raises:
            TokenError: the model has none.
        """
        template = getattr(self.network.tokenizer, "chat_template", None)
        if template is None:
            raise TokenError(f"--messages needs a model with a chat template, and {self.model} has none")
        messages = [{"role": "user", "content": text}]
        return str(self.network.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def behaviour_prompts(self) -> Prompts:
        """The prompts of the behaviour.

        Raises:
            ConfigError: they should be messages; they are texts already.
        """
        from cutaway.tasks.given import of_behaviour

        if self.messages:
            raise ConfigError("--messages is for texts of --text, --file or --prompts; a behaviour's prompts are no messages")
        return of_behaviour(self.behaviour, self.network, self.count or COUNT, self.seed, prepend_bos=not self.no_bos)[1]

    def _fitting(self, made: Prompts) -> Prompts:
        """Prompts that fit the context: a text without answers is cut to it, and what is left unread is said on stderr."""
        from cutaway.prompts import Prompts

        most, longest = self.network.cfg.n_ctx, made.tokens.shape[1]
        if longest <= most:
            return made
        if made.right or made.corrupted is not None:
            raise ContextTooLong(f"a prompt has {longest} tokens, and the model has {most} positions; give shorter prompts")
        console.echo(f"only the first {most} of {longest} tokens are read: the model has no more positions", err=True)
        return Prompts(made.tokens[:, :most], made.mask[:, :most], texts=made.texts)

    # What is said of it.

    @property
    def description(self) -> str:
        """Model, and count and length of the texts, in a line."""
        found = self.__dict__.get("given_prompts")
        if found is None:
            return str(self.model)
        low, high = int(found.lengths.min()), int(found.lengths.max())
        count, length = len(found), f"{low}" if low == high else f"{low} to {high}"
        source = f" ({self.behaviour}, seed {self.seed})" if self.behaviour else ""
        pairs = " in pairs" if found.corrupted is not None else ""
        what = f"{self.model}: {count} prompt{'s' * (count != 1)} of {length} token{'s' * (length != '1')}{pairs}{source}"
        return what + (f"; {NO_BOS}" if self.without_bos else "")

    @property
    def without_bos(self) -> bool:
        """Whether the prompts of a language model begin with a word: heads rest on that, and means over positions have it."""
        found, tokenizer = self.__dict__.get("given_prompts"), self.network.tokenizer
        special = getattr(tokenizer, "all_special_ids", None)  # (vocabularies of tasks have none)
        if found is None or special is None or not self.network.cfg.n_layers:
            return False
        first = found.tokens[range(len(found)), found.mask.long().argmax(1)]
        return not bool(set(first.tolist()) & set(special))

    def about(self) -> dict[str, Any]:
        """The same as numbers, for `--json`."""
        found = self.__dict__.get("given_prompts")
        numbers: dict[str, Any] = {"command": self.command, "model": self.model}
        if found is not None:
            lengths = found.lengths.tolist()
            pairs = found.corrupted is not None
            numbers["prompts"] = {
                "count": len(found), "shortest": min(lengths), "longest": max(lengths), "pairs": pairs,
                "bos": not self.without_bos,
            }  # fmt: skip
        return numbers

    def rows(self, rows: Sequence[Any], *, last: bool = False) -> tuple[list[Any], str]:
        """The rows that are printed, the first or the last of them, and a line that says how many are not."""
        most = len(rows) if self.all_rows else self.top or SCREEN
        rest = len(rows) - most
        shown = list(rows[-most:] if last else rows[:most])
        return shown, f"{rest} {'earlier' if last else 'more'} row{'s' * (rest != 1)}; --all prints them" if rest > 0 else ""

    def show(
        self, text: str, numbers: dict[str, Any], figures: Figures, title: str, result: Any = None, page_text: str | None = None
    ) -> None:
        """Print, and write the page.

        Args:
            figures: headings and figures.
            page_text: what the page says above the figures; by default what is printed.
            result: what was computed, where it is one result: its summary, metric, audit and baseline stand on the page.
        """
        found = {**self.about(), **numbers}
        console.echo(json.dumps(found, indent=2, ensure_ascii=False) if self.as_json else f"{text}\n{self.description}".strip())
        if self.html is None:
            return
        from cutaway.runs.provenance import measured, page_with

        page_facts = facts(self.network, self.__dict__.get("given_prompts", self.__dict__.get("long_text")))
        page_facts += [("behaviour", f"{self.behaviour}, seed {self.seed}")] if self.behaviour else []
        page_facts += [("beginning", NO_BOS)] if self.without_bos else []
        page_facts += [] if result is None else measured(result)
        above = _page_text(text if page_text is None else page_text, result)
        page_with(title, page_facts, above, figures).save(self.html, replace=True)
        if not self.as_json:
            console.echo(f"\n{self.html}")


def _page_text(text: str, result: Any) -> Sequence[Any]:
    """What a page says above its figures: the summary, and what was printed, so that --top and --all count there too."""
    from cutaway.view import Code

    if not text:
        return []
    summary = "" if result is None else result.summary()
    if summary and text.startswith(summary.splitlines()[0]):
        return [text]
    if not summary or summary.count("\n") >= SCREEN:  # a table itself
        return [Code(text)]
    return [summary, Code(text.replace(summary, "").strip("\n"))]


# Options with one meaning everywhere.


def positions_of(given: str | None) -> list[str | int] | None:
    """The roles and numbers of `--positions`."""
    if given is None:
        return None
    found: list[str | int] = []
    for one in map(str.strip, given.split(",")):
        if not one:
            raise ConfigError(f"--positions {given!r} has an empty part; write roles or numbers, such as 'S2,end' or '3,-1'")
        found.append(int(one) if one.lstrip("-").isdecimal() else one)
    return found


def _dtype(given: str) -> None:
    if given not in DTYPES:
        raise ConfigError(f"--dtype {given!r} is not known; there are {', '.join(DTYPES)}")
