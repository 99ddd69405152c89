"""Results as files: every number and word of a result in one safetensors file, read back as the same result.

Findings and reports are kept in the same way, for those who ask many questions.

What a result refers to and does not own (the model that it was computed with) is left out: a loaded result draws, compares and
summarises itself, and cannot be recorded or run again.
"""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cutaway import reading
from cutaway.errors import CheckpointError, NotReadable
from cutaway.runs.hashes import digest
from cutaway.runs.provenance import Provenance
from cutaway.runs.results import Labelled, Result
from cutaway.view import Figure
from cutaway.writing import check_new, found_as, write

FORMAT = "cutaway result 1"
LARGEST = 2**32  # bytes
PLAIN = (str, int, float, bool)


def save_result(result: Result, path: str | Path, *, replace: bool = False) -> Path:
    """Write a result to a file (`.cutaway`), and say where.

    Raises:
        NotWritten: the folder or the disk does not take it; `AlreadyThere`, where it exists and `replace` is off.
    """
    check_new(path, replace=replace)
    return save_value(result, path)


def save_value(value: Any, path: str | Path, *, timeless: bool = False, under: str | Path | None = None) -> Path:
    """Write a result, a finding or a report.

    Args:
        timeless: leave out when it was computed, so that the same value has the same bytes.
        under: a folder that must still be there.

    Raises:
        NotWritten: the folder or the disk does not take it.
        CheckpointError: it is none of these.
    """
    if not _kept(value):
        raise CheckpointError(f"a {type(value).__name__} is no result that a file can hold")
    tensors: dict[str, Tensor] = {}
    encoded = _encoded(value, tensors)
    if getattr(value, "provenance", None) is not None:
        encoded["provenance"] = value.provenance.to_json() | ({"when": ""} if timeless else {})
    encoded["format"] = FORMAT  # inside, since the order of several metadata is left to chance
    encoded["digest"] = _digest(encoded, tensors)
    meta = {"result": json.dumps(encoded, ensure_ascii=True, allow_nan=True)}
    if not tensors:
        tensors["nothing"] = torch.zeros(1)
    return write(path, save_tensors(tensors, metadata=meta), under=under)


def load_result(path: str | Path) -> Result:
    """A result that was saved; the ending `.cutaway` may be left out.

    Example: `cutaway.load("lens.cutaway").figure()`

    Raises:
        NotReadable: no such file, or one that is damaged or something else.
    """
    found = load_value(path)
    if not isinstance(found, Result):
        raise NotReadable(f"{path} holds no result")
    return found


def load_value(path: str | Path) -> Any:
    """What `save_value` wrote.

    Raises:
        NotReadable: no such file, or one that is damaged or something else.
    """
    path = found_as(path, ".cutaway")
    data = reading.read_bytes(path, largest=LARGEST)
    try:
        size = int.from_bytes(data[:8], "little")
        header = reading.parse(data[8 : 8 + size], f"{path}", finite=False)
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, OverflowError, RuntimeError) as error:
        raise NotReadable(f"{path} is no saved result, or damaged: {str(error)[:100]}") from error
    meta = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    encoded = reading.parse(str(meta.get("result", "{}")), f"{path}", finite=False) if isinstance(meta, dict) else {}
    known = meta.get("format", encoded.get("format") if isinstance(encoded, dict) else None)
    if known != FORMAT:
        raise NotReadable(f"{path} is no saved result: its format is {known!r}, not {FORMAT!r}")
    written = encoded.pop("digest", None)  # (files of 0.1 have none)
    if written is not None and written != _digest(encoded, tensors):
        raise NotReadable(f"{path} is damaged: it does not hold what was written")
    try:
        found = _decoded(encoded, tensors)
    except (KeyError, TypeError, AttributeError, ImportError, ValueError) as error:
        raise NotReadable(f"{path} is damaged, or of another version: {str(error)[:100]}") from error
    if not _kept(found):
        raise NotReadable(f"{path} holds no result")
    if (provenance := encoded.get("provenance")) is not None:
        object.__setattr__(found, "provenance", Provenance.from_json(provenance))
    return found


def _digest(encoded: Any, tensors: dict[str, Tensor]) -> str:
    """A hash of all that a file holds."""
    return digest([json.dumps(encoded, allow_nan=True), *(tensors[name] for name in sorted(tensors) if name != "nothing")])


# To plain values and tensors, and back.


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        name, turned = f"t{len(tensors)}", value.ndim == 2 and not value.is_contiguous() and value.T.is_contiguous()
        tensors[name] = (value.T if turned else value).detach().cpu().clone().contiguous()
        return {"tensor": name, "turned": True} if turned else {"tensor": name}  # products round as their factors lie in memory
    if isinstance(value, Figure):
        return {"figure": value.to_json()}
    if isinstance(value, torch.Size | tuple):
        return {"tuple": [_encoded(one, tensors) for one in value]}
    if isinstance(value, list):
        return [_encoded(one, tensors) for one in value]
    if _kept(value):
        kind = type(value)
        parts = {part.name: _encoded(getattr(value, part.name), tensors) for part in dataclasses.fields(value) if part.init}
        return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": parts}
    if hasattr(value, "items"):
        return {"pairs": [[_encoded(key, tensors), _encoded(one, tensors)] for key, one in value.items()]}
    return None  # a model, a task: not the result's own


def _kept(value: Any) -> bool:
    """Whether this is data of ours: results, labelled arrays, audits, snippets; and no task, which holds a model."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type) or not type(value).__module__.startswith("cutaway."):
        return False
    return isinstance(value, Result | Labelled) or _simple(type(value))


def _simple(kind: type) -> bool:
    return kind.__name__ in ("Audit", "Snippet", "Baseline", "Value", "Finding", "Report")


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]].T if value.get("turned") else tensors[value["tensor"]]
    if "figure" in value:
        return Figure.from_json(value["figure"])
    if "tuple" in value:
        return tuple(_decoded(one, tensors) for one in value["tuple"])
    if "pairs" in value:
        return {_decoded(key, tensors): _decoded(one, tensors) for key, one in value["pairs"]}
    kind = _class_of(value["class"])
    return kind(**{name: _decoded(one, tensors) for name, one in value["fields"].items()})


def _class_of(name: str) -> type:
    """A class of results; a file names none but ours, and nothing of it is run."""
    module, _, kind = name.partition(":")
    if not module.startswith("cutaway.") or not kind.isidentifier():
        raise ValueError(f"{name!r} is no class of results")
    found = getattr(import_module(module), kind)
    if not isinstance(found, type) or not (issubclass(found, Result | Labelled) or _simple(found)):
        raise ValueError(f"{name!r} is no class of results")
    return found
