"""Files of weights: published `.pt` state dicts, and our own safetensors with the configuration inside.

Reading never runs code from a file.
Whether weights fit their configuration is checked where they are loaded.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import typing
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cutaway import reading
from cutaway.config import HookedTransformerConfig
from cutaway.errors import CheckpointError, ConfigError, NotReadable, TokenError, nearest
from cutaway.sources import tensor_files, wrapped
from cutaway.sources.checkpoint import Checkpoint, LazyTensors
from cutaway.tokens import from_saved, to_saved
from cutaway.writing import replacing

FORMAT = 1
KEY = "cutaway"
"""Where our JSON sits among the metadata of a safetensors file."""

SUFFIXES = (".pt", ".pth", ".safetensors")
_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

# What torch's reader has been seen to raise on damaged files, cut or changed at random.
DAMAGE = (
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,
    ValueError,
    TypeError,
    EOFError,
    OSError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    MemoryError,
)


def read(path: str | os.PathLike[str], cfg: HookedTransformerConfig | None = None) -> Checkpoint:
    """A checkpoint from a file: `.pt` or `.pth` as `torch.save(model.state_dict(), path)` writes it, or safetensors.

    Args:
        cfg: what model the weights are for; needed unless the file is one of ours, which has it inside.

    Raises:
        CheckpointError: the file is missing, damaged, would run code, or is no state dict.
    """
    file = Path(path).expanduser()
    must_exist(file)
    if _is_safetensors(file):
        return _read_safetensors(file, cfg)
    tensors = wrapped.plain_state_dict(load_state_dict(file))
    if cfg is None:
        raise CheckpointError(
            f"{file.name} holds weights without their configuration{_guess(tensors)}; give cfg=HookedTransformerConfig(…)"
        )
    lazy = LazyTensors({name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__)
    return Checkpoint(cfg, lazy, provenance={"file": str(file)})


def pickled(files: Iterable[Path]) -> LazyTensors:
    """The tensors of `.bin` or `.pth` files, which are opened as weights alone: no code in them can run.

    Raises:
        CheckpointError: a file is missing or damaged, asks for code, or holds no state dict.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"no file {file}; the model lacks a part, download it again")
        tensors |= load_state_dict(file)
    return LazyTensors({name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__)


def save(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    cfg: HookedTransformerConfig,
    *,
    tokenizer: Any = None,
    processed: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write weights, configuration and vocabulary as one safetensors file, which is there whole or not at all.

    Tensors are written one by one, so at most one is copied at a time. The same input gives the same bytes.

    Args:
        tokenizer: a `CharTokenizer` or a fast one of `transformers`.
        metadata: whatever says where the weights came from, as JSON has it.

    Raises:
        CheckpointError: the file cannot be written, or some tensor is of a type that safetensors lacks.
    """
    file = Path(path).expanduser()
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, torch.dtype] = {}
    for name in state_dict:
        tensor = state_dict[name]
        shapes[name], types[name] = tuple(tensor.shape), tensor.dtype
        if tensor.dtype not in _CODES:
            raise CheckpointError(f"{name} is {tensor.dtype}, which cannot be saved; there are {', '.join(map(str, _CODES))}")
    about = {
        "format": FORMAT,
        "config": config_to_json(cfg),
        "tokenizer": None if tokenizer is None else to_saved(tokenizer),
        "processed": processed,
        "metadata": dict(metadata or {}),
    }
    names = sorted(shapes, key=lambda name: (-types[name].itemsize, name))  # aligned, as safetensors likes it
    header: dict[str, Any] = {"__metadata__": {"format": "pt", KEY: json.dumps(about, sort_keys=True)}}
    start = 0
    for name in names:
        end = start + types[name].itemsize * torch.Size(shapes[name]).numel()
        header[name] = {"dtype": _CODES[types[name]], "shape": list(shapes[name]), "data_offsets": [start, end]}
        start = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with replacing(file) as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            out.write(_bytes(state_dict[name]))


def config_to_json(cfg: HookedTransformerConfig) -> dict[str, Any]:
    """The fields of a configuration as JSON has them; the device is left out, since it belongs to a machine."""
    fields = {name: value for name, value in cfg.to_dict().items() if name != "device"}
    return fields | {"dtype": str(cfg.dtype).removeprefix("torch.")}


def config_from_json(fields: Mapping[str, Any]) -> HookedTransformerConfig:
    """The configuration that `config_to_json` wrote down. Its seed is kept, but reseeds nothing here.

    Raises:
        ConfigError: a field is unknown, missing or contradicts another.
    """
    typed = _typed(fields)
    cfg = HookedTransformerConfig.from_dict({**typed, "seed": None})
    cfg.device = str(cfg.device)  # (files name none)
    cfg.seed = typed.get("seed")
    return cfg


def _typed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with the types that the configuration declares; a device and a precision are read by name."""
    try:
        known = reading.convert(dict(fields), _fields(), "the configuration")
    except NotReadable as error:
        raise ConfigError(str(error)) from error
    return {name: getattr(known, name, value) for name, value in fields.items()}


@cache
def _fields() -> Any:
    hints = typing.get_type_hints(HookedTransformerConfig)
    hints |= {"device": str | None, "dtype": str}
    return msgspec.defstruct("Configuration", [(name, kind | msgspec.UnsetType, msgspec.UNSET) for name, kind in hints.items()])


# Safetensors.


def _is_safetensors(file: Path) -> bool:
    """By content, where the content can tell (its JSON begins at byte 8), else by name."""
    try:
        with file.open("rb") as opened:
            start = opened.read(64)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from error
    if not start:
        raise CheckpointError(f"{file} is empty; download or save it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} is only a pointer of Git LFS; fetch the file itself with `git lfs pull`")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= file.stat().st_size - 8:
        return True  # also where the header's length happens to begin like a pickle
    if start.startswith((b"PK", b"\x80")):
        return False
    return start[8:9] == b"{" or file.suffix == ".safetensors"


def _read_safetensors(file: Path, cfg: HookedTransformerConfig | None) -> Checkpoint:
    try:
        opened = safe_open(str(file), framework="pt", device="cpu")
        metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        _damaged(file, error)
    about = _about(file, metadata.get(KEY))
    try:
        config = cfg if cfg is not None else None if about.config is None else config_from_json(about.config)
        tokenizer = from_saved(about.tokenizer) if about.tokenizer else None
    except (ConfigError, TokenError) as error:
        raise CheckpointError(f"what {file.name} says about its model is not understood: {error}") from error
    if config is None:
        raise CheckpointError(
            f"{file.name} has no configuration of ours inside; give cfg=HookedTransformerConfig(…), or, if it is part of a "
            "Hugging Face model, load the folder that holds its config.json"
        )
    provenance = {"file": str(file), **about.metadata}
    return Checkpoint(config, tensor_files.safetensors([file]), tokenizer, about.processed, provenance)


class _About(msgspec.Struct):
    """What we write among the metadata of a safetensors file."""

    format: int
    config: dict[str, Any] | None = None
    tokenizer: dict[str, Any] | None = None
    processed: bool = False
    metadata: dict[str, Any] = {}


def _about(file: Path, text: str | None) -> _About:
    if text is None:
        return _About(FORMAT)
    about = reading.decode(text, _About, f"what {file.name} says about its model", finite=False)
    if about.format > FORMAT:
        raise CheckpointError(f"{file.name} was written by a newer cutaway (format {about.format}, not {FORMAT}); upgrade")
    return about


# Torch's own files.


def load_state_dict(file: Path) -> dict[str, Tensor]:
    """Names and tensors of a `.pt` file, mapped from disk where its format allows; no code in it can run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old pickle protocols and storage types, which are read nevertheless
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            _damaged(file, error)
        raise CheckpointError(
            f"{file.name} is a pickle that asks for {wanted[1]}, which could run any code; nothing was run. Ask for its "
            "state dict alone: torch.save(model.state_dict(), …), or safetensors"
        ) from None
    except DAMAGE as error:
        _damaged(file, error)
    if isinstance(loaded, Mapping):
        loaded = wrapped.unnested(loaded)
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise CheckpointError(f"{file.name} holds {_article(loaded)}, not a state dict; save model.state_dict() instead")
    odd = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
    if odd:
        inner = [name for name in odd if isinstance(loaded[name], Mapping)]
        hint = f"; its entry {inner[0]!r} may be one: save that by itself" if inner else "; save model.state_dict() instead"
        raise CheckpointError(f"{file.name} is not a state dict: {odd[0]!r} is {_article(loaded[odd[0]])}{hint}")
    return {name: tensor.detach() for name, tensor in loaded.items()}


# Both.


def must_exist(file: Path) -> None:
    """A file that the caller names is there.

    Raises:
        CheckpointError: it is a folder, or missing; says what there is.
    """
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder; name a file in it{_files_in(file)}")
    if file.is_file():
        return
    if not file.parent.is_dir():
        raise CheckpointError(f"no file {file}: there is no folder {file.parent}")
    near = nearest(file.name, (other.name for other in file.parent.iterdir()))
    raise CheckpointError(f"no file called {file.name!r} in {file.parent}{near or _files_in(file.parent)}")


def _files_in(folder: Path) -> str:
    names = sorted(other.name for other in folder.iterdir() if other.suffix in SUFFIXES)
    return f"; there is {', '.join(names[:5])}" + (", …" if len(names) > 5 else "") if names else ""


def _damaged(file: Path, error: BaseException) -> NoReturn:
    lines = str(error).strip().splitlines()
    why = f" ({lines[0][:120]})" if lines and not isinstance(error, KeyError) else ""
    if isinstance(error, pickle.UnpicklingError):
        why = " (or a pickle of more than weights; nothing in it was run)"
    raise CheckpointError(f"{file.name} is cut short, damaged, or no file of weights{why}; download or save it again") from error


def _guess(tensors: Mapping[str, Tensor]) -> str:
    """What the shapes give away, for the one who must write the configuration."""
    W_E, W_Q = tensors.get("embed.W_E"), tensors.get("blocks.0.attn.W_Q")
    if W_E is None or W_E.ndim != 2 or W_Q is None or W_Q.ndim != 3:
        return ""
    layers = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    facts = {"n_layers": layers, "d_vocab": W_E.shape[0], "d_model": W_E.shape[1], "n_heads": W_Q.shape[0]}
    facts["d_head"] = W_Q.shape[2]
    if "pos_embed.W_pos" in tensors:
        facts["n_ctx"] = tensors["pos_embed.W_pos"].shape[0]
    return f" (their shapes say {', '.join(f'{name}={value}' for name, value in facts.items())})"


def _article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _bytes(tensor: Tensor) -> memoryview:
    """The values in row-major order, as they are on a little-endian machine; a copy only where the layout needs one."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
