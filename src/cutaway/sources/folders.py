"""Folders as `save_pretrained` and the Hugging Face hub lay them out: a config, weights, a tokenizer.

A folder never touches the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cutaway import reading
from cutaway.config import HookedTransformerConfig
from cutaway.errors import CheckpointError
from cutaway.sources import tokenizers, wrapped
from cutaway.sources.checkpoint import LazyTensors
from cutaway.sources.files import pickled
from cutaway.sources.foreign import ForeignCheckpoint
from cutaway.sources.tensor_files import safetensors, sharded

CONFIG = "config.json"
LARGEST_CONFIG = 2**24  # bytes
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where weights may be, best first."""

OWN_WEIGHTS = ("model.pt", "model.pth", "model.safetensors")

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")
"""Files of which a tokenizer has at least one."""

TOKENIZER_PARTS = (*TOKENIZER, "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
                   "generation_config.json")  # fmt: skip


def read(folder: str | Path, *, tokenizer: Any = None, with_tokenizer: bool = True, name: str | None = None) -> ForeignCheckpoint:
    """The model in a folder.

    Args:
        tokenizer: used instead of the folder's own.
        with_tokenizer: whether to look for one at all.
        name: what to call it; by default as its folder.

    Raises:
        CheckpointError: no config or no weights are there, or they are damaged.
    """
    place = Path(folder).expanduser()
    config = read_config(place)
    tensors, left_out = wrapped.plain(read_tensors(place))
    if tokenizer is None and with_tokenizer:
        tokenizer = read_tokenizer(place)
    called = name or place.resolve().name
    provenance = {"folder": str(place), **({"left_out": left_out} if left_out else {})}
    return ForeignCheckpoint(config, tensors, tokenizer, called, provenance)


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """What `config.json` of a folder holds, or its file of another name."""
    file = folder / name
    if not folder.is_dir():
        raise CheckpointError(f"no folder {folder}")
    if not file.exists():
        raise CheckpointError(f"no {name} in {folder}; a model's folder is as save_pretrained writes it")
    return reading.decode(reading.read_bytes(file, largest=LARGEST_CONFIG), dict[str, Any], str(file), finite=False)


def own_model(folder: Path) -> tuple[Path, HookedTransformerConfig] | None:
    """The weights and the configuration of a folder in the dialect's own form: `config.json` has the fields of
    `HookedTransformerConfig`, and `model.pt` (or `.pth`, `.safetensors`) the dialect's keys. None of any other folder.

    Raises:
        CheckpointError: it has such a configuration and no weights.
    """
    if not (folder / CONFIG).is_file():
        return None
    fields = read_config(folder)
    if "model_type" in fields or "architectures" in fields or not {"n_layers", "d_model", "n_ctx"} <= set(fields):
        return None
    found = next((folder / name for name in OWN_WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} has a configuration of HookedTransformer and none of {', '.join(OWN_WEIGHTS)}")
    return found, HookedTransformerConfig.from_dict({"model_name": folder.name, **fields})


def weight_files(names: Iterable[str]) -> str | None:
    """Which of these files holds the weights, or says where they are: the best there is."""
    there = set(names)
    return next((name for name in WEIGHTS if name in there), None) or own_weights(there)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights as `save_pretrained` writes them."""
    return weight_files(file.name for file in folder.iterdir()) is not None


def own_weights(names: Iterable[str]) -> str | None:
    """The final weights in a repository of the dialect's own models."""
    return next((name for name in sorted(names) if name.endswith("final.pth") and "/" not in name), None)


def read_tensors(folder: Path) -> LazyTensors:
    """The weights in a folder: safetensors or `.bin`, in one file or several."""
    name = weight_files(file.name for file in folder.iterdir())
    if name is None:
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:6]) or "nothing"
        raise CheckpointError(f"no weights in {folder}: it should hold one of {', '.join(WEIGHTS)}, and holds {there}")
    files = sharded(folder / name) if name.endswith(".index.json") else [folder / name]
    return safetensors(files) if "safetensors" in name else pickled(files)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, or None; one that cannot be read is a warning, since tokens work without it."""
    if not any((folder / name).is_file() for name in TOKENIZER):
        return None
    from transformers import AutoTokenizer

    return tokenizers.read(folder, lambda: AutoTokenizer.from_pretrained(str(folder), local_files_only=True))
