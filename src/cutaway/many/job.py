"""One question to one model on one set of prompts, and what a worker does with it: load the model, ask, keep the answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from cutaway.errors import ConfigError, NotReadable, nearest
from cutaway.model.transformer import Transformer
from cutaway.runs.model_source import ModelSource
from cutaway.runs.result_files import load_value, save_value

ANSWERS = "answers"


@dataclass(frozen=True)
class OneQuestion:
    """A unit of work.

    Args:
        number, label: its place among all, and what it is called.
        key: a hash of all that decides the answer.
        kind: a hash of what decides how long it takes for so many prompts: the model's shape, the set of prompts, options.
        function: `module:name`, one of cutaway's.
        source: the model.
        prompts, options: what the function is called with.
    """

    number: int
    label: str
    key: str
    kind: str
    function: str
    source: ModelSource | None = field(repr=False)
    prompts: Any = field(repr=False)
    options: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.label

    @property
    def head(self) -> OneQuestion:
        """The same without model, prompts and options."""
        return replace(self, source=None, prompts=None, options={})

    @property
    def model(self) -> str:
        """The hash of the model."""
        assert self.source is not None
        return self.source.hash

    def of_some(self, rows: int) -> OneQuestion:
        """The same about so many of the prompts, drawn at random, in their order."""
        drawn = torch.randperm(len(self.prompts), generator=torch.Generator().manual_seed(0))[:rows]
        return replace(self, prompts=self.prompts[drawn.sort().values])

    def path(self, folder: Path | str) -> Path:
        """Where its answer is kept."""
        return Path(folder) / ANSWERS / f"{self.key}.cutaway"


def name_of(function: Callable[..., Any]) -> str:
    """A function of cutaway as `module:name`; a key has its name, since the version stands for its code.

    Raises:
        ConfigError: a function of somebody else, whose code may change under the same key.
    """
    module, name = function.__module__, function.__qualname__
    if not module.startswith("cutaway.") or getattr(import_module(module), name, None) is not function:
        raise ConfigError(
            f"across asks functions of cutaway, such as patch, ablate, circuit_for or report.make; {name} of {module} may change "
            "and keep its name, so its answers could not be told apart"
        )
    return f"{module}:{name}"


def function_of(name: str) -> Callable[..., Any]:
    """The function that `name_of` named."""
    module, _, last = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), last)
    return found


def answer_of(folder: Path | str, question: OneQuestion) -> Any:
    """An answer that is kept; None where it is missing or damaged."""
    path = question.path(folder)
    if not path.is_file():
        return None
    try:
        return load_value(path)
    except NotReadable:  # it is computed again
        return None


@dataclass(frozen=True)
class AskJob:
    """Questions, as workers are told of them."""

    folder: str

    def start(self) -> Callable[[OneQuestion], str]:
        """See `Job`. A worker keeps the model that it was asked about last."""
        kept: dict[tuple[str, str], Transformer] = {}

        def keep(question: OneQuestion) -> str:
            source = question.source
            assert source is not None
            known = source.name, source.hash
            if source.live is None and known not in kept:
                kept.clear()  # before the next is loaded
                kept[known] = source.open()
            model = kept[known] if source.live is None else source.live
            save_value(ask(question, model), question.path(self.folder), timeless=True, under=self.folder)
            return question.key

        return keep


def ask(question: OneQuestion, model: Transformer) -> Any:
    """The answer, computed as every worker does."""
    assert question.source is not None
    with question.source.computing(), torch.enable_grad():
        return function_of(question.function)(model, question.prompts, **question.options)


def check_options(function: Callable[..., Any], options: Iterable[str]) -> None:
    """Make sure that a function has these options, before any model is loaded.

    Raises:
        ConfigError: it has not.
    """
    known = [name for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY]
    for name in options:
        if name not in inspect.signature(function).parameters:
            raise ConfigError(f"{function.__name__} has no option {name}={nearest(name, known)}; there are {', '.join(known)}")


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has an argument of this name."""
    return name in inspect.signature(function).parameters
