"""What an option may say: whatever needs no model is refused while the command line is read, the rest before weights are read.

Labels of components and sites are written in one way for every model (callbacks of their options see to that). Whether a model
has such a layer, head or token, its configuration and its tokenizer say: `WITHIN` names a check for each option.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cutaway.errors import ConfigError

Callback = Callable[[Any], Any]


def each(check: Callable[[str], Any]) -> Callback:
    """A callback of an option that looks at each of its values, and leaves them as they are."""

    def look(given: Any) -> Any:
        for one in given if isinstance(given, list | tuple) else [] if given is None else [given]:
            check(one)
        return given

    return look


def names(check: Callable[[str], Any] = str) -> Callback:
    """A callback of a repeatable option whose values are names: commas separate some too, so that `z,q` is `z` and `q`.

    Raises:
        ConfigError: (when the option is read) there is nothing between two commas.
    """

    def split(given: Any) -> Any:
        found = [one.strip() for listed in given or () for one in listed.split(",")]
        if not all(found):
            raise ConfigError(f"{','.join(given)!r} has an empty part; write names with one comma between them")
        for one in found:
            check(one)
        return found or given

    return split


def size_of(option: str) -> Callback:
    """A callback of a size, `512 MiB`; a number alone counts MiB."""

    def look(given: Any) -> Any:
        from cutaway.numbers_given import size

        return given if given is None else f"{size(given, option, 'MiB')} B"

    return look


def among(place: str, what: str) -> Callback:
    """A word that is known: of a constant, `module:NAME`, whose module is imported only where the option is given.

    Args:
        what: what it is, in the singular: "kind of patch".
    """
    return each(_known(place, what))


def some_among(place: str, what: str) -> Callback:
    """The same for `names`."""
    return names(_known(place, what))


def _known(place: str, what: str) -> Callable[[str], None]:
    module, _, name = place.partition(":")

    def check(word: str) -> None:
        from cutaway.numbers_given import one_of

        one_of(word, tuple(getattr(importlib.import_module(module), name)), what)

    return check


@each
def regular_expression(word: str) -> None:
    """A regular expression.

    Raises:
        ConfigError: it is none.
    """
    try:
        re.compile(word)
    except re.error as error:
        raise ConfigError(f"--matches {word!r} is not a regular expression: {error}") from None


def known_behaviour(word: str) -> None:
    """The name of a behaviour.

    Raises:
        UnknownTask: there is none of that name.
    """
    from cutaway.tasks.behaviours import behaviour as find

    find(word)


behaviour = each(known_behaviour)


def site(word: str) -> None:
    """A site of some network, by its short or full name.

    Raises:
        UnknownSite: no network has it.
    """
    from cutaway.model.sites import spelled

    spelled(word)


def writer(word: str) -> None:
    """The label of a component that writes to the stream, in some network.

    Raises:
        UnknownName: it is none.
    """
    from cutaway.model.components import check_writer, spelled

    check_writer(spelled(word))


def reader(word: str) -> None:
    """The label of a component that reads from the stream, in some network.

    Raises:
        UnknownName: it is none.
    """
    from cutaway.model.components import check_reader, spelled

    check_reader(spelled(word))


def head(word: str) -> None:
    """The label of a head, in some network.

    Raises:
        UnknownName: it is none.
    """
    from cutaway.model.components import check_head, spelled

    check_head(spelled(word))


SORTS = ("mlps", "attentions", "heads")  # components that `--component` names by a word


def ablated(word: str) -> None:
    """What `--component` names: all components of a sort, or one by its label.

    Raises:
        UnknownName: it is neither.
    """
    if word not in SORTS:
        writer(word)


@each
def lens_rows(words: str) -> None:
    """What `--of` names: the stream, components of a sort, or labels between commas.

    Raises:
        UnknownName: it is none of these.
    """
    from cutaway.analysis.logit_lens import STREAMS

    if words not in STREAMS:
        names(writer)([words])


@each
def executor(word: str) -> None:
    """The name of an executor; it is not started.

    Raises:
        ConfigError: no executor has it.
    """
    from cutaway.executors.choosing import names

    if not re.fullmatch(r"local|ranks|processes:\d+|ray(:.*)?", word):
        raise ConfigError(f"no executor called {word!r}; there are {', '.join(names)}")


@each
def prompts_file(path: Any) -> None:
    """A file of prompts: it is there, and each line of JSON lines is an object.

    Raises:
        PromptError: it is missing or broken.
    """
    from cutaway.prompts import objects_of

    objects_of(Path(path))


@each
def text_file(path: Any) -> None:
    """A file that can be opened.

    Raises:
        OSError: it is missing, or a folder.
    """
    Path(path).open("rb").close()


# What a model's configuration and tokenizer say.

Within = Callable[[Any, Any, Any], Any]  # of the option's value, the configuration, and the tokenizer


def _layers(given: str | list[str], cfg: Any, _: Any) -> None:
    layers_of(given if isinstance(given, str) else ",".join(given), cfg.n_layers)


def _writers(given: list[str], cfg: Any, _: Any) -> None:
    from cutaway.model.components import parse_writers

    labels = [one for one in given if one not in SORTS] + ["0.mlp"] * ("mlps" in given and cfg.attn_only)
    if labels:
        parse_writers(labels, cfg)


def _readers(given: list[str], cfg: Any, _: Any) -> None:
    from cutaway.model.components import parse_readers

    parse_readers(given, cfg)


def _heads(given: list[str], cfg: Any, _: Any) -> None:
    from cutaway.model.components import parse_head

    for one in given:
        parse_head(one, cfg)


def _lens_rows(given: str, cfg: Any, _: Any) -> None:
    from cutaway.analysis.logit_lens import STREAMS, components_of

    if given != STREAMS[0]:
        components_of(cfg, given if given in STREAMS else [one.strip() for one in given.split(",")])


def _path(given: str, cfg: Any, _: Any) -> None:
    from cutaway.analysis.weight_circuits import parse

    parse(given, cfg)


WITHIN: Mapping[str, Within] = {
    "layers": _layers, "component": _writers, "zero": _writers, "sender": _writers, "receiver": _readers, "head": _heads,
    "of": _lens_rows, "features": _writers, "path": _path,
}  # fmt: skip
"""The name of an option, as commands have it → a check of what it says, once the model is known and before weights are read.

The features of `neurons` and the path of `circuit`, which are arguments, are among them.
"""


def layers_of(given: str | None, n_layers: int | None = None) -> list[int]:
    """The layers of `--layers`: '0-3,7'; `n_layers`: how many the model has, where it is known.

    Raises:
        ConfigError: no numbers, or layers that the model lacks.
    """
    if given is None:
        return list(range(n_layers or 0))
    found: list[int] = []
    for part in map(str.strip, given.split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"--layers {given!r}: write numbers and ranges, such as '0-3,7'")
        found += range(int(first), int(last or first) + 1)
    outside = [one for one in found if n_layers is not None and one >= n_layers]
    if outside:
        there = f"the layers 0 to {(n_layers or 0) - 1}" if n_layers else "none"
        raise ConfigError(f"--layers {given!r} names layer {outside[0]}, and the model has {there}")
    return list(dict.fromkeys(found))
