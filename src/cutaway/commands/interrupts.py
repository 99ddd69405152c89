"""What Ctrl-C leaves: every command says what it has kept and how to go on, or that nothing is kept.

A command that knows more (how many questions a report has answered) raises its own `KeyboardInterrupt` with the sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

KEPT = {  # of commands that keep what is finished, the option that says where
    "collect": ("out", "the chunks that are finished are kept in {}; the same command goes on"),
    "across": ("results", "the answers that are finished are kept in {}; the same command computes the others"),
    "patch": ("results", "what is finished is kept in {}; the same command goes on"),
    "train": ("out", "finished epochs are kept in {}; the same command with --resume continues"),
}
ENDS = {  # commands that Ctrl-C is the way to end
    "open": "the workbench has ended; what was recorded in it is in {out}",
    "run": "the script has ended",
}


class Interruptible(TyperCommand):
    """A command that says what an interrupt leaves."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(*error.args or [left(str(self.name), ctx.params)]) from None


def left(command: str, given: Mapping[str, Any]) -> str:
    """What an interrupted command leaves, and how to go on.

    Args:
        given: its options.
    """
    if command in ENDS:
        return ENDS[command].format(**given)
    option, sentence = KEPT.get(command, ("", ""))
    folder = given.get(option)
    if folder is not None and not given.get("plan"):
        if "://" in str(folder):  # an address, which is not asked now
            return sentence.format(folder)
        from cutaway.runs.kept_sweeps.by_key import PLANS, TASKS

        if any(one.is_file() and not {PLANS, TASKS} & {*one.parts} for one in Path(folder).rglob("*")):
            return sentence.format(folder)
        return f"nothing was finished yet, so nothing is kept in {folder}; the same command begins anew"
    hint = f"; with --{option} FOLDER what is finished is, and the same command goes on" if option and option in given else ""
    return "nothing is kept" + (hint if not given.get("plan") else "")


def said_by_all(app: typer.Typer) -> None:
    """Let every command of an application, and of its groups, say what an interrupt leaves."""
    for command in app.registered_commands:
        command.cls = Interruptible
    for group in app.registered_groups:
        if group.typer_instance is not None:
            said_by_all(group.typer_instance)
