"""From a config and tensors of `transformers` to ours, by a family's table.

Everything is checked before a tensor is read: each config field, and the name and shape of each tensor. The
tensors are then read one at a time, whenever a canonical one is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, UnsupportedArchitecture, WeightsMismatch
from cutaway.weights.canonical import shapes
from cutaway.weights.families import schema
from cutaway.weights.families.rope import stretches
from cutaway.weights.families.table import BASE, SHARED, Family, Fields, Found, Place

MANY = 100_000  # layers that we would believe


def fill_in(family: Family, config: Mapping[str, Any]) -> Fields:
    """The config with every field that it leaves out.

    Raises:
        UnsupportedArchitecture: a field has a value that the family's table does not understand. Names the field.
    """
    known = BASE | dict(family.fields)
    schema.check(config, family.fields.keys() | (BASE.keys() - SHARED.keys()))
    hf = Fields(family.name, {name: field.default for name, field in known.items()} | dict(config))
    hf.ignored = {name: value for name, value in config.items() if name not in known and value is not None}
    for name in config.keys() & known.keys():
        accepted = known[name].accepted
        if accepted is not None and config[name] not in accepted:
            raise hf.refuse(name, f"only {' or '.join(map(repr, accepted))} is understood")
    for architecture in config.get("architectures") or ():
        if architecture not in family.architectures:
            raise hf.refuse("architectures", f"only {', '.join(family.architectures)} is understood")
    return hf


def configure(
    family: Family, config: Mapping[str, Any], *, n_ctx: int | None = None, first_n_layers: int | None = None
) -> tuple[HookedTransformerConfig, Fields]:
    """Our configuration of a model, and the config with its left-out fields."""
    hf = fill_in(family, config)
    ours: dict[str, Any] = {"original_architecture": (config.get("architectures") or family.architectures)[0]}
    for name, field in (BASE | dict(family.fields)).items():
        if field.ours is not None:
            ours[field.ours] = hf[name] if field.via is None else field.via(hf[name])
    ours |= dict(family.always) | family.rest(hf)
    if ours.get("n_key_value_heads") == ours.get("n_heads"):
        ours["n_key_value_heads"] = None
    ours["n_ctx"] = _context(ours, hf, n_ctx)
    if first_n_layers is not None:
        if not 0 <= first_n_layers <= ours["n_layers"]:
            raise ConfigError(f"first_n_layers={first_n_layers} of a model that has {ours['n_layers']}")
        ours["n_layers"] = first_n_layers
    return HookedTransformerConfig.from_dict(ours), hf


def _context(ours: Mapping[str, Any], hf: Fields, wanted: int | None) -> int:
    longest = int(ours["n_ctx"])
    if wanted is None or wanted <= longest:
        return longest if wanted is None else wanted
    if ours.get("positional_embedding_type", "standard") in ("standard", "shortformer"):
        raise ConfigError(f"n_ctx={wanted}, and the model has learned embeddings of {longest} positions only")
    if stretches(hf):
        raise ConfigError(f"n_ctx={wanted}, and dynamic rotary scaling is understood up to {longest} positions only")
    return wanted


class CanonicalTensors(Mapping[str, Tensor]):
    """Canonical name → tensor; each is read and reshaped when it is asked for, and not kept.

    Raises:
        WeightsMismatch: (when it is made) a tensor that the table asks for is not there, one is left over, or a shape
            is wrong.
    """

    def __init__(self, family: Family, cfg: HookedTransformerConfig, hf: Fields, foreign: Mapping[str, Tensor]):
        self.family, self.cfg, self.hf, self.foreign = family, cfg, hf, foreign
        self.shapes = shapes(cfg)
        self.fresh = bool(getattr(foreign, "fresh", False))
        self._names = set(foreign)
        self._layers = next(int(hf[name]) for name, field in family.fields.items() if field.ours == "n_layers")
        self._found: dict[str, tuple[Found, list[str], Place] | None] = {name: self._find(name) for name in self.shapes}
        self._check_all_used()
        self._check_shapes()
        self._last: tuple[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __getitem__(self, name: str) -> Tensor:
        entry = self._found[name]
        if entry is None:
            return torch.zeros(self.shapes[name])
        found, names, place = entry
        return _reshaped(found, place, [self._read(one) for one in names])

    def forget(self) -> None:
        """Let go of the tensor that was read last."""
        self._last = None

    def _read(self, name: str) -> Tensor:
        """A foreign tensor; the last one is kept, because packed ones are asked for several times in a row."""
        if self._last is None or self._last[0] != name:
            self._last = None  # let go of it before the next is read
            self._last = (name, self.foreign[name])
        return self._last[1]

    def _check_shapes(self) -> None:
        """Does every reshaping give the shape that is wanted? Tried on tensors without memory, once for each kind."""
        given: Mapping[str, tuple[int, ...]] = getattr(self.foreign, "shapes", {})
        known: dict[tuple[object, ...], tuple[int, ...] | None] = {}
        for canonical, entry in self._found.items():
            if entry is None:
                continue
            found, names, place = entry
            shapes_there = [tuple(given[name] if name in given else self.foreign[name].shape) for name in names]
            kind = (_pattern(canonical)[0], found.name, *shapes_there)
            if kind not in known:
                known[kind] = _shape_after(found, place, shapes_there)
            if known[kind] != self.shapes[canonical]:
                wanted = f"{canonical} of shape {list(self.shapes[canonical])}"
                raise WeightsMismatch(f"{names[0]} has shape {list(shapes_there[0])}, which gives no {wanted}")

    def _find(self, canonical: str) -> tuple[Found, list[str], Place] | None:
        pattern, layer, expert = _pattern(canonical)
        entries = self.family.tensors.get(pattern, ())
        options = [
            one for one in (entries if isinstance(entries, tuple) else (entries,)) if one.when is None or one.when(self.hf)
        ]
        place = Place(self.cfg, self.hf, layer, expert)
        for option in options:
            names = self._there(option, layer, expert)
            if names:
                return option, names, place
        if not options and canonical.rsplit(".", 1)[-1].lstrip("_").startswith("b"):
            return None  # the family has no such bias
        looked = " or ".join(repr(one.name.format(l=layer, e=expert, h=0)) for one in options)
        raise WeightsMismatch(f"the checkpoint lacks {looked or 'any source'} for {canonical} of this {self.family.name} model")

    def _there(self, option: Found, layer: int, expert: int) -> list[str]:
        for prefix in self.family.prefixes:
            per_head = range(MANY) if "{h}" in option.name else range(1)
            names: list[str] = []
            for head in per_head:
                name = prefix + option.name.format(l=layer, e=expert, h=head)
                if name not in self._names:
                    break
                names.append(name)
            if names:
                return names
        return []

    def _check_all_used(self) -> None:
        """Is there a tensor that nothing reads? Then the checkpoint is more than we understand."""
        used = {name for entry in self._found.values() if entry is not None for name in entry[1]}
        known = [_as_regex(one.name) for entries in self.family.tensors.values() for one in _options(entries, self.hf)]
        known += [*self.family.unused, r"lm_head\.weight"]  # a tied unembedding may be written down twice
        left = [name for name in self._names - used if not self._beyond(name, known)]
        if left:
            some = ", ".join(sorted(left)[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
            raise WeightsMismatch(f"the checkpoint holds tensors that a {self.family.name} model of this config lacks: {some}")

    def _beyond(self, name: str, known: Iterable[str]) -> bool:
        """Whether an unread tensor is a buffer, an alternative form of one that was read, or of a layer left out."""
        prefixes = "|".join(map(re.escape, self.family.prefixes))
        for pattern in known:
            match = re.fullmatch(f"(?:{prefixes})(?:{pattern})", name)
            if match is None:
                continue
            layer = match.groupdict().get("l")
            if layer is None or self.cfg.n_layers <= int(layer) < self._layers:
                return True
        return False


def _reshaped(found: Found, place: Place, parts: list[Tensor]) -> Tensor:
    x = parts[0] if len(parts) == 1 else torch.stack(parts)
    for step in found.steps:
        x = step(x, place)
    return x


def _shape_after(found: Found, place: Place, shapes_there: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape that a tensor comes out with; None where the reshaping fails."""
    try:
        return tuple(_reshaped(found, place, [torch.empty(shape, device="meta") for shape in shapes_there]).shape)
    except (RuntimeError, IndexError):
        return None


def _pattern(canonical: str) -> tuple[str, int, int]:
    """`blocks.3.mlp.experts.1.W_in` → `blocks.{l}.mlp.experts.{e}.W_in`, 3, 1; shared keys and values as the others."""
    layer = expert = 0
    if match := re.match(r"blocks\.(\d+)\.", canonical):
        layer, canonical = int(match[1]), "blocks.{l}." + canonical[match.end() :]
    if match := re.search(r"\.experts\.(\d+)\.", canonical):
        expert, canonical = int(match[1]), canonical[: match.start()] + ".experts.{e}." + canonical[match.end() :]
    return canonical.replace("._", "."), layer, expert


def _options(entries: Found | tuple[Found, ...], hf: Fields) -> list[Found]:
    options = entries if isinstance(entries, tuple) else (entries,)
    return [one for one in options if one.when is None or one.when(hf)]


def _as_regex(name: str) -> str:
    """The names that a pattern stands for; the layer is a group of its own, where there is one."""
    return re.escape(name).replace(r"\{l\}", r"(?P<l>\d+)").replace(r"\{e\}", r"\d+").replace(r"\{h\}", r"\d+")


def unknown(config: Mapping[str, Any], families: Iterable[Family]) -> UnsupportedArchitecture:
    """The error for a family that we do not have; says which we do, and that code of a checkpoint is never run."""
    names = ", ".join(dict.fromkeys(family.name for family in families))
    remote = "its code is in the checkpoint (auto_map), and is never run; " if config.get("auto_map") else ""
    return UnsupportedArchitecture(f"no family for model_type={config.get('model_type')!r}; {remote}there are {names}")
