"""The behaviours that there are, by name."""

from __future__ import annotations

from cutaway.errors import UnknownTask, nearest
from cutaway.tasks.balanced_brackets import BalancedBrackets
from cutaway.tasks.behaviour import Algorithmic, Behaviour
from cutaway.tasks.cumulative_sum import CumulativeSum
from cutaway.tasks.docstring_arguments import DocstringArguments
from cutaway.tasks.first_unique_char import FirstUniqueCharTask
from cutaway.tasks.greater_than import GreaterThan
from cutaway.tasks.indirect_objects import IndirectObjects
from cutaway.tasks.induction import Induction
from cutaway.tasks.modular_addition import ModularAddition
from cutaway.tasks.palindromes import Palindromes
from cutaway.tasks.sorted_list import SortedList
from cutaway.tasks.subject_verb import SubjectVerb
from cutaway.tasks.sum_of_two import SumOfTwo

LANGUAGE: tuple[type[Behaviour], ...] = (IndirectObjects, GreaterThan, Induction, DocstringArguments, SubjectVerb)
ALGORITHMIC: tuple[type[Algorithmic], ...] = (
    FirstUniqueCharTask,
    Palindromes,
    SortedList,
    SumOfTwo,
    CumulativeSum,
    ModularAddition,
    BalancedBrackets,
)
ALIASES = {"ioi": "indirect-objects", "docstring": "docstring-arguments"}
_ALL: dict[str, type[Behaviour]] = {kind.name: kind for kind in (*LANGUAGE, *ALGORITHMIC)}


def behaviour_names() -> list[str]:
    """Every behaviour's name."""
    return list(_ALL)


def behaviour(name: str) -> Behaviour:
    """The behaviour of this name, such as "indirect-objects" (or "ioi").

    Raises:
        UnknownTask: there is none; the message lists those there are.
    """
    name = ALIASES.get(name, name)
    if name not in _ALL:
        short = {whole: f" (or {one})" for one, whole in ALIASES.items()}
        there = ", ".join(f"{one}{short.get(one, '')}" for one in _ALL)
        raise UnknownTask(f"no behaviour called {name!r}{nearest(name, (*_ALL, *ALIASES))}; there are {there}")
    return _ALL[name]()
