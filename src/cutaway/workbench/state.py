"""State: what a workbench shows, as one value. Messages change it, its history is undo and record, the page's address holds it.

Everything here comes from a page and is checked before anything else sees it: by msgspec for types and sizes (`parse`), then
against the model (`switches.check`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cutaway import reading

LARGEST = 2**16  # bytes of a message
LONGEST = 20_000  # characters of a prompt

Index = Annotated[int, Meta(ge=0, le=10_000)]
Number = Annotated[float, Meta(ge=-1e6, le=1e6)]
Word = Annotated[str, Meta(max_length=200)]
Label = Annotated[str, Meta(max_length=40)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,59}$")]
Tokens = Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(min_length=1, max_length=LONGEST)]
Prompt = Annotated[str, Meta(max_length=LONGEST)] | Tokens
How = Literal["zero", "mean", "resample", "patch", "scale"]
Side = Literal["clean", "corrupted"]


class Switch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """One change of the run. `how` says what takes the place; `factor` is read where `how` is "scale"."""

    how: How = "zero"
    factor: Number = 0.0


class HeadSwitch(Switch, frozen=True, tag="head"):
    """A head's output (`hook_z`), everywhere or at one position."""

    layer: Index = 0
    head: Index = 0
    position: Index | None = None


class MlpSwitch(Switch, frozen=True, tag="mlp"):
    """What an MLP writes (`hook_mlp_out`), everywhere or at one position."""

    layer: Index = 0
    position: Index | None = None


class PositionSwitch(Switch, frozen=True, tag="position"):
    """The residual stream of one position, before a layer (`hook_resid_pre`)."""

    position: Index = 0
    layer: Index = 0


class EdgeSwitch(Switch, frozen=True, tag="edge"):
    """What a reader (`5.3.q`, `5.mlp`, `logits`) reads of a writer (`0.1`, `0.mlp`, `embed`), as it writes without switches."""

    writer: Label = "embed"
    reader: Label = "logits"


class LookSwitch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="look"):
    """One entry of a head's attention pattern becomes 0: a query no longer looks at a key."""

    layer: Index = 0
    head: Index = 0
    query: Index = 0
    key: Index = 0


class SteerSwitch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="steer"):
    """A steering vector: the difference of two texts at their last tokens before a layer, `factor` times, added everywhere."""

    layer: Index = 0
    factor: Number = 1.0
    plus: Word = ""
    minus: Word = ""


AnySwitch = HeadSwitch | MlpSwitch | PositionSwitch | EdgeSwitch | LookSwitch | SteerSwitch
Pin = tuple[Index, Index]  # layer, head


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is selected: a head, an MLP (no head), and a position."""

    layer: Index | None = None
    head: Index | None = None
    position: Index | None = None


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that decides what a page shows.

    Args:
        clean, corrupted: the two prompts: text, or token ids as a behaviour draws them. An empty text: none.
        chat: texts are messages of a user, in the model's chat template.
        at: the position whose next token is asked for; -1 is the last.
        right, wrong: the answers that are compared; None: the likeliest next tokens of the two prompts.
        side: which prompt runs with the switches; values are taken from the other one.
        roles: names of positions, from a behaviour.
        colour: what colours the map; `source`, `query`: which attention; `how`: which ablation.
        attention: patterns with the switches, without, or the difference.
        words: how many tokens are generated; 0: none.
    """

    clean: Prompt = ""
    corrupted: Prompt = ""
    chat: bool = False
    at: Annotated[int, Meta(ge=-1, le=10_000)] = -1
    right: Word | Index | None = None
    wrong: Word | Index | None = None
    metric: Literal["logit difference", "log-probability", "probability", "KL"] = "logit difference"
    side: Side = "clean"
    switches: Annotated[tuple[AnySwitch, ...], Meta(max_length=64)] = ()
    roles: Annotated[dict[Label, Index], Meta(max_length=20)] = {}
    selected: Selection = Selection()
    pins: Annotated[tuple[Pin, ...], Meta(max_length=8)] = ()
    colour: Literal["attention", "direct", "ablation", "change"] = "direct"
    source: Label = "first token"
    query: Literal["end", "every"] = "end"
    how: How = "zero"
    attention: Literal["now", "clean", "change"] = "now"
    words: Annotated[int, Meta(ge=0, le=100)] = 0


EXPERIMENT = ("clean", "corrupted", "chat", "at", "right", "wrong", "metric", "side", "switches")
"""Fields that decide numbers: a change of one is a step. The others only choose what is looked at."""


def experiment(state: State) -> tuple[Any, ...]:
    """What of a state decides its numbers."""
    return tuple(getattr(state, name) for name in EXPERIMENT)


# What a page may say.


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="hello"):
    """The first message of a page: the token of its address, and the state that the address holds."""

    token: Word
    state: State | None = None


class SetFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="set"):
    """New values of some fields of the state; `slide`: one of many while a slider moves."""

    fields: dict[str, Any]
    slide: bool = False


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="example"):
    """Take a behaviour's prompts: number `number` of its examples."""

    behaviour: Label
    number: Annotated[int, Meta(ge=0, le=1_000)] = 0


class GoToStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="step"):
    """Go to a step of the history."""

    to: Index


class Peek(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="peek"):
    """Show the attention of a head for a moment."""

    layer: Index
    head: Index


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="ask"):
    """Ask what takes longer: `query` and `key` for "look"."""

    what: Literal["strongest", "writers", "look", "edges"]
    query: Index | None = None
    key: Index | None = None


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="stop"):
    """Stop what was asked."""


class Save(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="save"):
    """A record in the workbench's folder, the page as one file, or the code that does the same."""

    what: Literal["record", "page", "python"]
    name: Name = "experiment"


Message = Hello | SetFields | Example | GoToStep | Peek | Ask | Stop | Save


def parse(text: str | bytes) -> Any:
    """A message of a page.

    Raises:
        NotReadable: too large, no JSON, or nothing that a page says.
    """
    return reading.decode(text, Message, "the message", largest=LARGEST)


def changed(state: State, fields: dict[str, Any]) -> State:
    """The state with new values of some fields, checked as a whole.

    Raises:
        NotReadable: no such field, or no such value.
    """
    known: State = reading.convert({**msgspec.to_builtins(state), **fields}, State, "the message")
    return known
