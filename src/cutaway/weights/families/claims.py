"""Which family a config claims to be of: classes that are known, classes that a user vouches for, and code that is never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutaway.errors import ConfigError, UnsupportedArchitecture, nearest
from cutaway.weights.families.table import Family


def settled(
    config: Mapping[str, Any], families: Mapping[str, Family], *, name: str, architecture: str | None = None
) -> Mapping[str, Any]:
    """The config, with the class that `architecture` names instead of its own.

    Raises:
        ConfigError: `architecture` is no class that is known.
        UnsupportedArchitecture: the model's class is not known; says which to vouch for.
    """
    known = {one: family for family in families.values() for one in family.architectures}
    if architecture is not None:
        return _vouched(config, known, architecture)
    listed = config.get("architectures") or ()
    own = [str(one) for one in listed] if isinstance(listed, list | tuple) else [str(listed)]
    strange = next((one for one in own if one not in known), None)
    if strange is None and (not config.get("auto_map") or _model_type(config) in families):
        return config
    family = families.get(_model_type(config))
    example = family.architectures[0] if family else "LlamaForCausalLM"
    if config.get("auto_map") and family is None:
        raise UnsupportedArchitecture(
            f"{name} is a {strange or _model_type(config)} whose code is in its repository, and code of a repository is never "
            f"run; if it computes what a known class does, name that: architecture={example!r}"
        )
    if family is None:
        return config  # (an unknown family is said better where families are looked up)
    raise UnsupportedArchitecture(
        f"{name} is a {strange}, and the classes of {family.name} that are known are {', '.join(family.architectures)}; if it "
        f"computes what one of them does, name that: architecture={example!r}"
    )


def _vouched(config: Mapping[str, Any], known: Mapping[str, Family], architecture: str) -> Mapping[str, Any]:
    if architecture not in known:
        near = nearest(architecture, known) or f"; there are {', '.join(sorted(known))}"
        raise ConfigError(f"architecture={architecture!r} is no class that is known{near}")
    model_type = known[architecture].model_type
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        config = {**config, "text_config": {**inner, "model_type": model_type, "architectures": [architecture]}}
    return {**config, "architectures": [architecture], "model_type": model_type}


def _model_type(config: Mapping[str, Any]) -> str:
    inner = config.get("text_config")
    return str((inner if isinstance(inner, Mapping) else config).get("model_type"))
