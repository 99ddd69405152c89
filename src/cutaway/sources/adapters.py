"""Adapters of PEFT: base and adapter are merged exactly, in float32 at least. A live model of the caller stays as it is."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cutaway.errors import CheckpointError, PackageNeeded, UnknownModel, UnsupportedArchitecture
from cutaway.sources import folders, hub, objects
from cutaway.sources.files import pickled
from cutaway.sources.foreign import ForeignCheckpoint
from cutaway.sources.hub import Access
from cutaway.sources.tensor_files import safetensors

CONFIG, *WEIGHTS = hub.ADAPTER
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def is_adapted(model: Any) -> bool:
    """Whether a live model has adapters: one that PEFT wraps, or one of `transformers` with adapters added."""
    return hasattr(model, "peft_config") or bool(getattr(model, "_hf_peft_config_loaded", False))


def read(folder: Path, *, tokenizer: Any = None, name: str | None = None, access: Access | None = None) -> ForeignCheckpoint:
    """The model that an adapter in a folder makes of its base, which is a folder or on the hub.

    Raises:
        CheckpointError: the base is missing, or the adapter does not fit it.
        PackageNeeded: the package `peft` is not installed.
        UnsupportedArchitecture: the adapter cannot be merged into weights.
    """
    peft = _peft()
    about = folders.read_config(folder, CONFIG)
    base = _base(folder, about, access or Access())
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, local_files_only=True)
        rows = _rows(folder)
        if rows not in (None, len(model.get_input_embeddings().weight)):
            model.resize_token_embeddings(rows, mean_resizing=False)
        adapted = peft.PeftModel.from_pretrained(model, str(folder), local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"the adapter in {folder} does not fit its base {base}: {message}") from error
    own = tokenizer or folders.read_tokenizer(folder) or folders.read_tokenizer(base)
    found = objects.read(_unloaded(adapted, peft), tokenizer=own, name=name or folder.resolve().name)
    provenance = {"folder": str(folder), "base": about.get("base_model_name_or_path"), "adapter": about.get("peft_type")}
    return replace(found, provenance=provenance)


def merged(model: Any) -> Any:
    """A copy of a live model with its active adapters in its weights; those that are switched off are left out.

    Raises:
        UnsupportedArchitecture: an adapter cannot be merged into weights.
        CheckpointError: some layers have their adapters switched off, and others not.
    """
    peft = _peft()
    settings = model.peft_config if isinstance(getattr(model, "peft_config", None), dict) else {}
    for one in settings.values():
        if getattr(one, "is_prompt_learning", False):
            kind = getattr(one.peft_type, "value", one.peft_type)
            raise UnsupportedArchitecture(f"an adapter of type {kind} adds to the prompt and cannot be merged into weights")
    model = copy.deepcopy(model)
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
        model = model.float()
    return _unloaded(model, peft)


def _unloaded(model: Any, peft: Any) -> Any:
    """The model without adapters, merged where they are switched on. (The given one is taken apart.)"""
    enabled = peft.get_model_status(model).enabled
    if enabled not in (True, False):
        raise CheckpointError("some layers of the given model have their adapters switched off, and others not; switch all on")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # (on adapters that are merged already)
        if hasattr(model, "merge_and_unload"):
            return model.merge_and_unload(safe_merge=True) if enabled else model.unload()
        return _taken_off(model, enabled)


def _taken_off(model: Any, enabled: bool) -> Any:
    """The same for a model of `transformers` that had adapters added."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if not isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
            continue
        path, _, last = name.rpartition(".")
        if isinstance(module, BaseTunerLayer):
            if enabled:
                module.merge(safe_merge=True)
            inner = module.get_base_layer()
        else:
            active = module.active_adapter if isinstance(module.active_adapter, str) else module.active_adapter[0]
            inner = module.modules_to_save[active] if enabled else module.original_module
        setattr(model.get_submodule(path), last, inner)
    return model


def _base(folder: Path, about: dict[str, Any], access: Access) -> Path:
    """The folder of an adapter's base model."""
    name = about.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{folder / CONFIG} names no base model; write its folder or id as base_model_name_or_path")
    for place in (Path(name).expanduser(), folder / name):
        if place.is_dir():
            return place
    try:
        return hub.fetch(hub.official(name), access.of(about.get("revision")))
    except (CheckpointError, UnknownModel) as error:
        raise CheckpointError(
            f"the adapter in {folder} needs its base {name!r}, which is missing ({error}); put its folder there, or write "
            f"where it is as base_model_name_or_path in {CONFIG}"
        ) from error


def _rows(folder: Path) -> int | None:
    """How many tokens an adapter's own embedding has, where it brings one."""
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"no {' or '.join(WEIGHTS)} in {folder}; save the adapter again")
    tensors = safetensors([file]) if file.suffix == ".safetensors" else pickled([file])
    return next((shape[0] for name, shape in tensors.shapes.items() if name.endswith(EMBEDDINGS)), None)


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise PackageNeeded("models with adapters need the package peft: pip install 'cutaway[peft]'") from error
    return peft
