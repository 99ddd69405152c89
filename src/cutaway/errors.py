"""What can go wrong, as a family. Every message says what was asked, what is there, what to try.

    CutawayError
    ├── ConfigError            a configuration that contradicts itself or asks for the unknown
    ├── UnknownName            a name that nothing has: says the nearest ones
    │   ├── UnknownSite        … of a site, a hook or an activation
    │   ├── UnknownModel       … of a model, a toy or an alias
    │   ├── UnknownTask        … of a task or a behaviour
    │   ├── UnknownRole        … of a position in prompts
    │   └── UnknownPattern     … of a pattern that heads are compared with
    ├── MissingActivation      a cache lacks a site that a question needs
    ├── StaleCache             a cache is older than the weights that it would be multiplied with
    ├── HookNeverFired         a hook was attached, and the run never came by
    ├── HookReturned           a hook, or a module at a hook point, returned what cannot flow on
    ├── CheckpointError        a file of weights that is missing, corrupt or unsafe
    │   ├── WeightsMismatch    … or that does not fit the configuration
    │   ├── NotReadable        … or data from outside that is not what it should be
    │   └── NotWritten         … or a file of any kind that cannot be written
    │       └── AlreadyThere   … since there is one, and it is not to be replaced
    ├── UnsupportedArchitecture  a model family, or a field of its config, that is not understood
    ├── TokenError             text or tokens that the model cannot take
    │   └── ContextTooLong     … because there are more than `n_ctx` of them
    ├── PromptError            prompts, pairs or answers that do not fit each other; a broken line of a file
    ├── PackageNeeded          something that only an optional package can do, which is not installed
    ├── ShapeError             arrays that do not fit each other
    │   └── BroadcastMismatch  … because their leading axes cannot be broadcast
    ├── CollectionError        a data set of activations that is another one, or whose corpus has changed
    ├── WorkerRefused          a worker that computes with other versions or another model
    ├── WorkerFailed           chunks of a plan that failed three times; the others are kept
    ├── ClusterUnreachable     no cluster answers at an address
    ├── ProgramError           a program that contradicts itself, or that no weights can compute: says which line and why
    └── NotFinite              a result that is NaN or infinite, where a number is needed

Each is also the built-in error that callers of such code expect (`KeyError`, `ValueError`, …).
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import Any

LONGEST = 2000  # characters of a message


class CutawayError(Exception):
    """The root of every error that cutaway raises on purpose.

    Some are an `AssertionError` too, because the dialect asserts where they are raised, and code written for it catches that.
    """

    def __str__(self) -> str:  # KeyError would show the repr
        message = str(self.args[0]) if self.args else ""
        if len(message) <= LONGEST:
            return message
        return f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"  # it quotes something of any length


class ConfigError(CutawayError, ValueError, AssertionError):
    """A configuration that contradicts itself or asks for something unknown."""


class UnknownName(CutawayError, LookupError, ValueError):
    """A name that nothing has."""


class UnknownSite(UnknownName, KeyError):
    """No site, hook point or activation has this name."""


class UnknownModel(UnknownName):
    """No model, toy or alias has this name."""


class UnknownTask(UnknownName):
    """No task has this name."""


class UnknownRole(UnknownName, KeyError):
    """No position of these prompts has this role."""


class UnknownPattern(UnknownName, AssertionError):
    """No attention pattern that heads are compared with has this name."""


class MissingActivation(CutawayError, KeyError):
    """A cache lacks a site that a question needs."""


class StaleCache(CutawayError, RuntimeError):
    """A cache was made before the weights were rewritten that it would be multiplied with."""


class HookNeverFired(CutawayError, RuntimeError):
    """A hook was attached, and the run never passed its site."""


class ChunkDamaged(UserWarning):
    """A chunk in the folder of an interrupted sweep cannot be used, and is computed again."""


class HookDidNotFire(UserWarning):
    """A hook was attached for a scope or for good, and no run called it."""


class SharedHookPoint(UserWarning):
    """One hook point stands at two places of a network, so that what passes at one cannot be told from the other."""


class HookReturned(CutawayError, TypeError, ValueError):
    """A hook, or a module at a hook point, returned something of another type, precision or device."""


class CheckpointError(CutawayError, ValueError):
    """A file of weights that is missing, corrupt or unsafe to open."""


class WeightsMismatch(CheckpointError, RuntimeError):
    """Weights whose names or shapes do not fit the configuration; PyTorch's own error of that kind is a `RuntimeError`."""


class NotReadable(CheckpointError):
    """Data from outside that is not what it should be: damaged, too large, or of another shape."""


class NotWritten(CheckpointError, OSError):
    """A file that cannot be written: no room, no right, or a folder in its place."""


class AlreadyThere(NotWritten, FileExistsError):
    """A file of this name exists, and nobody said that it may be replaced."""


class UnsupportedArchitecture(CutawayError, ValueError):
    """A model family, or a field of its config, that is not understood."""


class TokenError(CutawayError, ValueError, AssertionError):
    """Text or tokens that the model cannot take."""


class ContextTooLong(TokenError):
    """More tokens than the model has positions."""


class PromptError(CutawayError, ValueError):
    """Prompts, pairs or answers that do not fit each other, or a line of a file that is none of these."""


class PackageNeeded(CutawayError, ImportError):
    """Something that only an optional package can do."""


class ShapeError(CutawayError, ValueError, AssertionError):
    """Arrays or axes that do not fit each other."""


class BroadcastMismatch(ShapeError, RuntimeError):
    """Leading axes that cannot be broadcast; PyTorch's own error of that kind is a `RuntimeError`."""


class ExplainError(CutawayError, ValueError):
    """Something that cannot be explained: too large, without answers, or answered in an unknown way."""


class CollectionError(CutawayError, ValueError):
    """A data set of activations that is another one than asked, or a corpus that cannot be read."""


class WorkerRefused(CutawayError, RuntimeError):
    """A worker that cannot be used: it has another version of the code or another model, or ends at once."""


class WorkerFailed(CutawayError, RuntimeError):
    """Chunks of a plan failed three times, so the whole has no result; what is finished is kept."""


class ClusterUnreachable(CutawayError, ConnectionError):
    """No cluster answers at the address."""


class ProgramError(CutawayError, ValueError):
    """A program that contradicts itself, or that cannot be compiled; says which line and why."""


class NotExact(CutawayError, ArithmeticError):
    """A shortened computation is further from a plain one than rounding explains; names what was off."""


class OutOfMemory(CutawayError, MemoryError):
    """The device has no memory left, not even for the smallest piece of what was asked."""


class NotFinite(CutawayError, ArithmeticError):
    """A result is NaN or infinite, where a number is needed."""


CLOSE = 0.08  # how much less alike than the nearest name another may be, to be named beside it


def near_names(name: str, names: Iterable[str], *, most: int = 3) -> list[str]:
    """The names that may have been meant: the one most like it, and those that are nearly as much like it."""
    near = difflib.get_close_matches(name, dict.fromkeys(names), n=most, cutoff=0.6)
    alike = [difflib.SequenceMatcher(None, one, name).ratio() for one in near]
    return [one for one, value in zip(near, alike, strict=True) if value >= alike[0] - CLOSE]


def nearest(name: str, names: Iterable[str], *, most: int = 3) -> str:
    """` (did you mean 'a' or 'b'?)`, or nothing where no name is near. In brackets, so that a sentence may go on after it."""
    near = near_names(name, names, most=most)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def suggest_names(module: str) -> None:
    """Let a module answer for a name that it lacks with the nearest that it has: a `__getattr__` that hides nothing from mypy.

    Raises:
        AttributeError: (when the name is looked up) always.
    """
    names = vars(sys.modules[module])

    def missing(name: str) -> Any:
        there = names.get("__all__") or [one for one in names if not one.startswith("_")]
        raise AttributeError(f"module {module!r} has no attribute {name!r}{nearest(name, there)}", name=name)

    names["__getattr__"] = missing


suggest_names(__name__)
