"""An executor from its name: `local`, `processes:2`, `ray`, `ray:ADDRESS`, `ranks`."""

from __future__ import annotations

from cutaway.errors import ConfigError
from cutaway.executors.driving import Executor
from cutaway.executors.local import Local
from cutaway.executors.processes import Processes
from cutaway.executors.ranks import Ranks
from cutaway.executors.ray_cluster import Ray

names = ("local", "processes:N", "ray", "ray:ADDRESS", "ranks")


def executor_of(chosen: str | Executor | None) -> Executor:
    """The executor that is meant; None is this process.

    Raises:
        ConfigError: no executor has this name.
    """
    if chosen is None or chosen == "local":
        return Local()
    if not isinstance(chosen, str):
        return chosen
    kind, _, rest = chosen.partition(":")
    if kind == "processes" and rest.isdecimal():
        return Processes(int(rest))
    if kind == "ray":
        return Ray((chosen if rest.startswith("//") else rest) or None)
    if chosen == "ranks":
        return Ranks()
    raise ConfigError(f"no executor called {chosen!r}; there are {', '.join(names)}")
