"""GGUF files, as llama.cpp reads them: a config as `transformers` would write it, tensors under its names, a tokenizer.

Every tensor is read and dequantised when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import CheckpointError, UnsupportedArchitecture, WeightsMismatch
from cutaway.sources import tokenizers
from cutaway.sources.checkpoint import LazyTensors
from cutaway.sources.files import must_exist
from cutaway.sources.foreign import ForeignCheckpoint
from cutaway.sources.gguf_file import MAGIC, SUFFIX, GGUFHeader, TensorInfo, quantisations, read_header, read_rows
from cutaway.sources.gguf_tables import ARCHITECTURES, NEUTRAL, TWO_NORMS, Architecture, Config, Restore

UNUSED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that say how positions rotate; they become part of the config."""


def is_gguf(file: Path) -> bool:
    """Whether a file is GGUF, by its name or its first bytes."""
    if file.suffix == SUFFIX:
        return True
    try:
        with file.open("rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read(file: Path, *, tokenizer: Any = None, with_tokenizer: bool = True, name: str | None = None) -> ForeignCheckpoint:
    """The model in a GGUF file.

    Args:
        tokenizer: used instead of the file's own.
        with_tokenizer: whether to read one at all.
        name: what to call it; by default as the file says, else as it is called.

    Raises:
        UnsupportedArchitecture: its architecture, or a setting of it, is not understood; says which are.
        CheckpointError: it is missing or damaged, or quantised in a way that cannot be undone.
        PackageNeeded: the package `gguf` is not installed.
    """
    must_exist(file)
    header = read_header(file)
    architecture, prefix = _architecture(header, file)
    config = _config(header, architecture, prefix, file)
    tensors = _tensors(header, architecture, config, file)
    if tokenizer is None and with_tokenizer:
        tokenizer = read_tokenizer(file)
    provenance = {"file": str(file), "quantisation": quantisations(header), "licence": header.metadata.get("general.license")}
    return ForeignCheckpoint(config, tensors, tokenizer, name or file.stem, provenance)


def in_folder(folder: Path) -> Path | None:
    """The GGUF file of a folder (the first part, where it comes in parts); None where there is none.

    Raises:
        CheckpointError: there are several; names them.
    """
    there = sorted(file for file in folder.glob(f"*{SUFFIX}") if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", file.name))
    if len(there) > 1:
        names = ", ".join(file.name for file in there[:5]) + (", …" if len(there) > 5 else "")
        raise CheckpointError(f"{folder} holds several GGUF files; name one of them: {names}")
    return there[0] if there else None


def read_tokenizer(file: Path) -> Any:
    """The tokenizer of a GGUF file, or None with a warning where `transformers` cannot read it."""

    def load() -> Any:
        from transformers import PreTrainedTokenizerFast  # AutoTokenizer gives the same, after reading the file twice

        return PreTrainedTokenizerFast.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)

    tokenizer = tokenizers.read(file, load)
    if tokenizer is not None:
        tokenizer.name_or_path = str(file)
    return tokenizer


def _architecture(header: GGUFHeader, file: Path) -> tuple[Architecture, str]:
    """The architecture, and the prefix of its keys."""
    called = header.metadata.get("general.architecture")
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedArchitecture(f"{file.name} is no model but of type {kind!r}; name the model's own file")
    experts = header.metadata.get("llama.expert_count", 0)
    key = "mixtral" if called == "llama" and experts else called
    if not isinstance(called, str) or key not in ARCHITECTURES:
        raise UnsupportedArchitecture(
            f"{file.name} is of the architecture {called!r}; GGUF files of {', '.join(sorted(ARCHITECTURES))} can be read: "
            "try the folder or hub id that the model was converted from"
        )
    return ARCHITECTURES[key], called


# Config.


def _config(header: GGUFHeader, architecture: Architecture, prefix: str, file: Path) -> Config:
    metadata = {key.removeprefix(prefix + "."): value for key, value in header.metadata.items() if key.startswith(prefix + ".")}
    _refuse_unread(metadata, architecture, file)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.name} has no token_embd.weight: it is no whole model; download it again")
    config: Config = {
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **architecture.always,
    }
    for key, name in architecture.fields.items():
        if key in metadata:
            config[name] = _same_everywhere(metadata[key], key, file)
    for name in ("bos_token_id", "eos_token_id"):
        config[name] = header.metadata.get(f"tokenizer.ggml.{name}")
    head = _head(metadata, file)
    if head is not None:
        config["head_dim"] = head
    config |= architecture.rest(metadata, config, set(header.tensors))
    return config | _rotation(header, metadata, config, file)


def _refuse_unread(metadata: Mapping[str, Any], architecture: Architecture, file: Path) -> None:
    """Stop at a key that changes what the model computes, where no table reads it."""
    for key, neutral in NEUTRAL.items():
        unread = key not in architecture.fields and key not in architecture.reads
        if key in metadata and unread and metadata[key] not in neutral:
            raise _not_understood(f"{key}={metadata[key]!r}", file)


def _not_understood(what: str, file: Path) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"{what} in the header of {file.name} is not understood: try the folder or hub id that the model was converted from"
    )


def _same_everywhere(value: Any, key: str, file: Path) -> Any:
    """A value that may be listed layer by layer, where all layers agree."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise _not_understood(f"{key}, which differs from layer to layer,", file)
    return value[0]


def _head(metadata: Mapping[str, Any], file: Path) -> int | None:
    """The size of a head, where the header says it."""
    length, values = metadata.get("attention.key_length"), metadata.get("attention.value_length")
    if values not in (None, length):
        raise _not_understood(f"attention.value_length={values} beside attention.key_length={length}", file)
    return length


# Rotary positions.


def _rotation(header: GGUFHeader, metadata: Mapping[str, Any], config: Config, file: Path) -> Config:
    """How rotations are scaled: said by keys of the header, or by factors for each frequency."""
    original = metadata.get("rope.scaling.original_context_length")
    if "rope_factors_long.weight" in header.tensors:
        long, short = (read_rows(header.tensors[f"rope_factors_{one}.weight"]).flatten().tolist() for one in ("long", "short"))
        scaling = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        return {"rope_scaling": scaling, "original_max_position_embeddings": original}
    if "rope_freqs.weight" in header.tensors:
        return _factors(read_rows(header.tensors["rope_freqs.weight"]).flatten(), config, file)
    kind, factor = metadata.get("rope.scaling.type", "none"), metadata.get("rope.scaling.factor")
    if kind == "none" or factor in (None, 0.0, 1.0):
        return {}
    if kind not in ("linear", "yarn"):
        raise _not_understood(f"rope.scaling.type={kind!r}", file)
    scaling = {"rope_type": kind, "factor": factor}
    return {"rope_scaling": scaling | ({"original_max_position_embeddings": original} if kind == "yarn" and original else {})}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every published Llama 3 says beside its factor."""


def _factors(found: Tensor, config: Config, file: Path) -> Config:
    """The scaling of Llama 3, recovered from what it does to each frequency (its factor is the largest)."""
    factor = float(found.max())
    if factor == 1.0 and float(found.min()) == 1.0:
        return {}
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    exponents = torch.arange(0, head, 2, dtype=torch.float64) / head
    wavelengths = 2 * torch.pi * float(config.get("rope_theta", 10000.0)) ** exponents
    low, high, original = LLAMA3.values()
    smooth = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    wanted = 1 / ((1 - smooth) / factor + smooth)
    if found.shape != wanted.shape or not torch.allclose(found.double(), wanted, rtol=1e-4):
        raise _not_understood("the scaling of rotations by rope_freqs.weight", file)
    return {"rope_scaling": {"rope_type": "llama3", "factor": factor, **LLAMA3}}


# Tensors.


@dataclass(frozen=True)
class _Part:
    """A tensor of `transformers`, or the part of a stored one that it is."""

    entry: TensorInfo
    index: int | None
    step: Restore | None

    @property
    def stored(self) -> tuple[int, ...]:
        return self.entry.shape if self.index is None else self.entry.shape[1:]

    def read(self, config: Config) -> Tensor:
        rows = prod(self.stored[:-1])
        x = read_rows(self.entry, rows * (self.index or 0), rows).reshape(self.stored)
        return x if self.step is None else self.step(x, config)

    def shape(self, config: Config) -> tuple[int, ...]:
        empty = torch.empty(self.stored, device="meta")
        return tuple((empty if self.step is None else self.step(empty, config)).shape)


def _tensors(header: GGUFHeader, architecture: Architecture, config: Config, file: Path) -> LazyTensors:
    names = {**architecture.names} | (TWO_NORMS if config.get("new_decoder_architecture") else {})
    parts: dict[str, _Part] = {}
    for stored, entry in header.tensors.items():
        if stored not in UNUSED:
            parts |= _parts(stored, entry, names, architecture, file)
    try:
        shapes = {name: part.shape(config) for name, part in parts.items()}
    except (RuntimeError, ZeroDivisionError) as error:
        raise WeightsMismatch(f"the tensors of {file.name} do not fit what its header says of their sizes: {error}") from error
    return LazyTensors(shapes, lambda name: parts[name].read(config), fresh=True)


def _parts(stored: str, entry: TensorInfo, names: Mapping[str, str], architecture: Architecture, file: Path) -> dict[str, _Part]:
    """The tensors of `transformers` that a stored one holds, by name."""
    layer = re.match(r"blk\.(\d+)\.", stored)
    pattern = stored if layer is None else "blk.{l}." + stored[layer.end() :]
    base, _, ending = pattern.rpartition(".")
    if base not in names or ending not in ("weight", "bias"):
        raise WeightsMismatch(f"{file.name} holds {stored!r}, which no {architecture.model_type} model has; try another file")
    where, step = f"{names[base]}.{ending}", architecture.steps.get(pattern)
    indices = range(entry.shape[0]) if "{i}" in where else (None,)
    return {where.format(l=layer and layer[1], i=index): _Part(entry, index, step) for index in indices}
