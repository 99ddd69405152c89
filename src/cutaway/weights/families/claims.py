"""Which family a config claims to be of: classes that are known, classes that a user vouches for, and code that is never run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cutaway.errors import ConfigError, UnsupportedArchitecture, nearest
from cutaway.weights.families.table import Family


@dataclass(frozen=True)
class Claim:
    """A config as a class that is known, and what its own class is where that had to be taken for it.

    Args:
        strange: a class that is not known, of a family that is: the model is that of the family only if every tensor and
            every field of its config is. None where the class is known, or vouched for.
        refusal: what to raise otherwise.
    """

    config: Mapping[str, Any]
    strange: str | None = None
    refusal: UnsupportedArchitecture | None = None

    def refuse(self, why: object) -> UnsupportedArchitecture:
        """The refusal, with the reason why the family's own class was not taken."""
        return UnsupportedArchitecture(f"{self.refusal}; it was not taken for one by itself: {why}")

    @property
    def note(self) -> str:
        """Of a class that is not known: what it is taken for."""
        own = self.config["architectures"][0]
        return (
            f"its class {self.strange} is not known; every tensor and every field of its config is one of {own}, so it is taken "
            "to compute what that does"
        )


def settled(config: Mapping[str, Any], families: Mapping[str, Family], *, name: str, architecture: str | None = None) -> Claim:
    """The config, with the class that `architecture` names instead of its own, or its family's where its own is not known.

    Raises:
        ConfigError: `architecture` is no class that is known.
        UnsupportedArchitecture: the model's class is not known and its code is its own; says which to vouch for.
    """
    known = {one: family for family in families.values() for one in family.architectures}
    if architecture is not None:
        return Claim(_vouched(config, known, architecture))
    listed = config.get("architectures") or ()
    own = [str(one) for one in listed] if isinstance(listed, list | tuple) else [str(listed)]
    strange = next((one for one in own if one not in known), None)
    if strange is None and (not config.get("auto_map") or _model_type(config) in families):
        return Claim(config)
    family = families.get(_model_type(config))
    example = family.architectures[0] if family else "LlamaForCausalLM"
    if config.get("auto_map") and family is None:
        raise UnsupportedArchitecture(
            f"{name} is a {strange or _model_type(config)} whose code is in its repository, and code of a repository is never "
            f"run; if it computes what a known class does, name that: architecture={example!r}"
        )
    if family is None:
        return Claim(config)  # (an unknown family is said better where families are looked up)
    refusal = UnsupportedArchitecture(
        f"{name} is a {strange}, and the classes of {family.name} that are known are {', '.join(family.architectures)}; if it "
        f"computes what one of them does, name that: architecture={example!r}"
    )
    if config.get("auto_map") or strange is None:
        raise refusal
    return Claim(_vouched(config, known, example), strange, refusal)


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
