"""The form of what `--json` prints, command by command: `schemas.json` holds it, since users' scripts read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KEPT: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def form(value: Any) -> Any:
    """The form of JSON: the words of a table's keys, what lists hold, and kinds; numbers of whatever kind are numbers."""
    if isinstance(value, dict):
        named = {key: form(one) for key, one in sorted(value.items())}
        alike = len(named) > 2 and len({json.dumps(one) for one in named.values()}) == 1
        return {"…": next(iter(named.values()))} if alike else named
    if isinstance(value, list):
        kinds = sorted({json.dumps(form(one)) for one in value})
        return [json.loads(one) for one in kinds]
    return {bool: "yes or no", int: "number", float: "number", str: "text", type(None): "nothing"}[type(value)]


def check_schema(command: str, printed: Any) -> None:
    """What a command printed has the form that is kept of it."""
    assert form(printed) == KEPT[command], "a schema changed; users read this: say so in the changelog"
