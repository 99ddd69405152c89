"""Tasks: what our toys are trained on, and how.

`find(name)` gives a task that `training.train` can train; datasets such as `FirstUniqueChar` stand on their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cutaway.axes import Tokens
from cutaway.errors import ConfigError, UnknownTask, nearest, suggest_names
from cutaway.model.transformer import Transformer
from cutaway.tasks.attn_only_2l import AttnOnly2L
from cutaway.tasks.behaviours import ALGORITHMIC, behaviour, behaviour_names
from cutaway.tasks.first_unique_char import FirstUniqueCharTask
from cutaway.tasks.first_unique_dataset import FirstUniqueChar, first_unique
from cutaway.tasks.task import UNCOUNTED, Examples, Recipe, Task, evaluate, loss_of

__all__ = [
    "UNCOUNTED",
    "AttnOnly2L",
    "Examples",
    "FirstUniqueChar",
    "FirstUniqueCharTask",
    "Recipe",
    "Task",
    "answers",
    "behaviour",
    "behaviour_names",
    "evaluate",
    "find",
    "loss_of",
    "names",
    "summaries",
]

_LISTED: tuple[Any, ...] = (*ALGORITHMIC, AttnOnly2L)
_TASKS: dict[str, Any] = {task.name: task for task in _LISTED}


def names() -> list[str]:
    """The tasks there are."""
    return list(_TASKS)


def summaries() -> dict[str, str]:
    """Task → one line on what is learned."""
    return {name: task.summary for name, task in _TASKS.items()}


def find(name: str, *, text: Sequence[str | Path] = ()) -> Task:
    """The task of this name; a task of language takes the files that it reads.

    Raises:
        UnknownTask: no task has this name.
        ConfigError: the task needs text and gets none, or the other way round.
    """
    if name not in _TASKS:
        raise UnknownTask(f"no task called {name!r}{nearest(name, _TASKS)}; there are {', '.join(_TASKS)}")
    task = _TASKS[name]
    if task is AttnOnly2L:
        if not text:
            raise ConfigError(f"the task {name!r} learns from text: give files (text=[…], or --text FILE)")
        return AttnOnly2L.read(text)
    if text:
        raise ConfigError(f"the task {name!r} draws its own examples and takes no text")
    return task()


def answers(model: Transformer, tokens: Tokens) -> Tokens | None:
    """The right answer at each position, where the model was trained on a task other than to predict the next token.

    Such a model is known by the name in its configuration; of any other, None.

    Raises:
        TokenError: the tokens are no sequence of the task.
    """
    cfg = model.cfg
    if cfg.model_name == FirstUniqueCharTask.name:
        return first_unique(tokens, cfg.d_vocab_out - 1)
    trained_on = next((kind() for kind in ALGORITHMIC if kind.name == cfg.model_name), None)
    if trained_on is None or (len(trained_on.vocabulary), trained_on.length) != (cfg.d_vocab, tokens.shape[1]):
        return None
    return trained_on.answers(tokens)


suggest_names(__name__)
