"""From a source to a network: weights are rewritten and moved in one at a time, never held twice.

A network is first laid out without memory (on the meta device); then each parameter takes its tensor, in the
right precision, on the right device, in the memory order that the network computes with. The largest go
first, when there is most room.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cutaway.config import DTYPES, HookedTransformerConfig, as_dtype
from cutaway.errors import CheckpointError, ConfigError, WeightsMismatch
from cutaway.model.transformer import Transformer
from cutaway.sources import files, folders, gguf, hub, objects, packages, toys
from cutaway.sources.checkpoint import Checkpoint, LazyTensors
from cutaway.sources.foreign import ForeignCheckpoint
from cutaway.weights import canonical, families, processing

Network = TypeVar("Network", bound=Transformer)


class NotFiniteWeights(UserWarning):
    """Weights that were loaded hold NaN or infinity."""


WORTH_A_BAR = 100_000_000  # parameters from which on loading takes long enough to show how far it is

TURNS = ("<|im_start|>",)
"""BOS tokens that begin a turn of a chat, and so no plain text (SmolLM2's instructed models)."""


def from_pretrained(
    kind: type[Network],
    model_name: str | PathLike[str],
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    refactor_factored_attn_matrices: bool = False,
    checkpoint_index: int | None = None,
    checkpoint_value: int | None = None,
    checkpoint_label: int | None = None,
    hf_model: Any = None,
    device: torch.device | str | None = None,
    n_devices: int = 1,
    tokenizer: Any = None,
    move_to_device: bool = True,
    fold_value_biases: bool = True,
    default_prepend_bos: bool | None = None,
    default_padding_side: str | None = None,
    dtype: torch.dtype | str = "float32",
    first_n_layers: int | None = None,
    n_ctx: int | None = None,
    **hf_kwargs: Any,
) -> Network:
    """A network of class `kind` with published weights, rewritten as asked, each rewrite exact.

    Its `provenance` says where the weights came from, and which fields of their config were ignored, since
    `transformers` never reads them.

    Args:
        model_name: a bundled model, a model of an installed package (`smollm2-135m-instruct`), an id or a short name of the
            Hugging Face hub, a folder, a GGUF file, or one of our files.
        fold_ln, center_writing_weights, center_unembed, fold_value_biases, refactor_factored_attn_matrices: see
            `cutaway.weights.processing`. Weights of a network without norms are not centred: nothing there takes out a mean.
        checkpoint_index, checkpoint_value: which checkpoint of a training run: its number, or its step.
        hf_model: a live `transformers` model to take the weights from; then `model_name` is only a name.
        n_devices: GPUs to spread the layers over.
        tokenizer: instead of the model's own.
        first_n_layers, n_ctx: a smaller model than the published one.
        hf_kwargs: `revision`, or `torch_dtype` instead of `dtype`.

    Raises:
        UnknownModel: nothing has this name; says near names.
        UnsupportedArchitecture: the model is of a family, or has a config field, that is not understood.
        CheckpointError: its files cannot be fetched, or are damaged.
        ConfigError: options contradict each other or the model, or ask for a device or precision that is not there.
    """
    dtype = as_dtype(hf_kwargs.pop("torch_dtype", None) or dtype)
    value = checkpoint_value if checkpoint_value is not None else checkpoint_label
    revision, chosen = _revision(model_name, hf_kwargs.pop("revision", None), checkpoint_index, value)
    for harmless in ("trust_remote_code", "low_cpu_mem_usage", "use_safetensors"):
        hf_kwargs.pop(harmless, None)
    if hf_kwargs:
        raise TypeError(f"from_pretrained does not know {', '.join(hf_kwargs)}")
    source = find(model_name, hf_model=hf_model, tokenizer=tokenizer, revision=revision)
    checkpoint = understand(source, n_ctx=n_ctx, first_n_layers=first_n_layers)
    cfg = copy.copy(checkpoint.config)
    for field, setting in chosen.items():
        setattr(cfg, field, setting)
    cfg.default_prepend_bos = cfg.default_prepend_bos if default_prepend_bos is None else default_prepend_bos
    cfg.n_devices, cfg.dtype = n_devices, dtype
    cfg.device = (device or ("cuda" if torch.cuda.is_available() else "cpu")) if move_to_device else "cpu"
    check_device(cfg)
    tokenizer = tokenizer if tokenizer is not None else checkpoint.tokenizer
    if tokenizer is None and cfg.tokenizer_name is not None:
        tokenizer = pretrained_tokenizer(cfg.tokenizer_name)
    rewrites = {
        "fold_ln": fold_ln,
        "center_writing_weights": center_writing_weights and cfg.normalization_type is not None,
        "center_unembed": center_unembed,
        "fold_value_biases": fold_value_biases,
        "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
    }
    weights: Mapping[str, Tensor] = checkpoint.tensors
    with progress(cfg) as shown:
        if any(rewrites.values()) and not checkpoint.processed:
            weights, cfg = processing.process(_read_once(weights, dtype, shown), cfg, **rewrites)
        mine = weights is not checkpoint.tensors
        model = build(kind, cfg, weights, tokenizer=tokenizer, default_padding_side=default_padding_side, shown=shown, mine=mine)
    model.provenance = dict(checkpoint.provenance)
    model.end_tokens = _end_tokens(source, hf_model)
    return model


def _end_tokens(source: Any, hf_model: Any) -> list[int] | None:
    """What ends a generation, as the model's `generation_config.json` or its configuration says."""
    found = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    folder = getattr(source, "provenance", {}).get("folder")
    file = Path(folder) / "generation_config.json" if folder else None
    if found is None and file is not None and file.is_file():
        with suppress(OSError, ValueError):  # it is there for generation only, and a damaged one is no reason not to load
            said = json.loads(file.read_text(encoding="utf-8"))
            found = said.get("eos_token_id") if isinstance(said, dict) else None
    if found is None and isinstance(source, ForeignCheckpoint):
        found = source.config.get("eos_token_id")
    listed = found if isinstance(found, list | tuple) else [] if found is None else [found]
    return [one for one in listed if isinstance(one, int) and one >= 0] or None


def _revision(model_name: Any, revision: str | None, index: int | None, value: int | None) -> tuple[str | None, dict[str, Any]]:
    """The revision on the hub, and what the configuration notes about a checkpoint of a training run."""
    if index is None and value is None:
        return revision, {}
    if revision is not None:
        raise ConfigError("give a revision or a checkpoint, not both")
    revision, index, step = hub.checkpoint_revision(hub.official(str(model_name)), index=index, value=value)
    noted = {"from_checkpoint": True, "checkpoint_index": index, "checkpoint_value": step, "checkpoint_label_type": "step"}
    return revision, noted


def find(model_name: str | PathLike[str], *, hf_model: Any = None, tokenizer: Any = None, revision: str | None = None) -> Any:
    """The source that a name, a path or a live model stands for: a `Checkpoint` or a `ForeignCheckpoint`.

    A live model, a folder, a file and a bundled model never touch the network.
    """
    if hf_model is not None:
        return objects.read(hf_model, tokenizer=tokenizer, name=str(model_name) if model_name else None)
    if model_name in toys.names():
        return toys.find(str(model_name))
    place = Path(model_name).expanduser()
    packaged = packages.find(str(model_name)) if revision is None and not place.exists() else None
    if packaged is not None:
        return gguf.read(packaged, tokenizer=tokenizer, name=hub.official(str(model_name)))
    if place.is_dir():
        inside = None if folders.has_weights(place) else gguf.in_folder(place)
        return gguf.read(inside, tokenizer=tokenizer) if inside else folders.read(place, tokenizer=tokenizer)
    if gguf.is_gguf(place):
        return gguf.read(place, tokenizer=tokenizer)
    if place.is_file() or place.suffix in files.SUFFIXES:
        return files.read(place)
    return hub.read(str(model_name), revision=revision, tokenizer=tokenizer)


def understand(
    source: Checkpoint | ForeignCheckpoint, *, n_ctx: int | None = None, first_n_layers: int | None = None
) -> Checkpoint:
    """A checkpoint in our form, whatever form its source has; nothing is read yet.

    Raises:
        UnsupportedArchitecture: its family, or a field of its config, is not understood.
        WeightsMismatch: its tensors are not those of its family.
    """
    if isinstance(source, Checkpoint):
        if n_ctx is not None or first_n_layers is not None:
            raise ConfigError("n_ctx and first_n_layers are for models of transformers; this one is ours, and small already")
        return source
    options: dict[str, Any] = {"n_ctx": n_ctx, "first_n_layers": first_n_layers, "resolved": source.resolved}
    cfg, tensors = families.convert(source.config, source.tensors, **options)
    ignored = families.ignored_fields(source.config, resolved=source.resolved)
    provenance = {**source.provenance, "ignored_fields": ignored} if ignored else source.provenance
    cfg.model_name = source.name.rsplit("/", 1)[-1]
    if source.tokenizer is not None:
        published = source.provenance.get("repository")  # rather than the folder of the cache
        cfg.tokenizer_name = published or getattr(source.tokenizer, "name_or_path", None) or None
        if getattr(source.tokenizer, "bos_token", None) in TURNS:
            cfg.default_prepend_bos = False
    return Checkpoint(cfg, tensors, source.tokenizer, False, provenance)


def pretrained_tokenizer(name: str) -> Any:
    """The tokenizer of a folder, an id or a short name: from the cache, or fetched into it.

    Raises:
        TokenError: there is none.
        UnknownModel, CheckpointError: nothing has this name, or it cannot be fetched.
    """
    return hub.read_tokenizer(name)


def build(
    kind: type[Network],
    cfg: HookedTransformerConfig,
    weights: Mapping[str, Tensor],
    *,
    tokenizer: Any = None,
    default_padding_side: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    shown: Shown | None = None,
    mine: bool = False,
) -> Network:
    """A network of class `kind` with these weights; a dict of them is emptied as they move in.

    Args:
        mine: nobody else has these tensors, so that those that fit as they are may become parameters.

    Raises:
        WeightsMismatch: the weights do not fit the configuration.
    """
    cfg = copy.copy(cfg)
    cfg.device = device or cfg.device
    cfg.dtype = as_dtype(dtype) if dtype is not None else cfg.dtype
    canonical.check(getattr(weights, "shapes", weights), cfg)
    with torch.device("meta"):
        model = kind(cfg, tokenizer, move_to_device=False, default_padding_side=default_padding_side)
    names = sorted((name for name, _ in model.named_parameters()), key=lambda name: -model.get_parameter(name).numel())
    step = (shown or Shown()).steps(len(names), "loading")
    for name in names:
        tensor = weights.pop(name) if isinstance(weights, MutableMapping) else weights[name]
        _place(model, name, tensor, device=_device_of(name, cfg), dtype=cfg.torch_dtype, mine=mine)
        step()
    return model.eval() if not model.training else model


def _place(model: nn.Module, name: str, tensor: Tensor, *, device: torch.device, dtype: torch.dtype, mine: bool) -> None:
    """Put one tensor where a parameter without memory stands, in that parameter's memory order."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    empty: nn.Parameter = getattr(module, last)
    as_it_should_be = (tensor.stride(), tensor.dtype, tensor.device) == (empty.stride(), dtype, device)
    if mine and as_it_should_be and tensor.untyped_storage().nbytes() == tensor.nbytes:
        real = tensor
    else:
        real = torch.empty_strided(empty.shape, empty.stride(), dtype=dtype, device=device)
        with torch.no_grad():
            real.copy_(tensor)
    if not finite(real):
        raise CheckpointError(f"{name!r} holds {_not_finite(real)} of {real.numel()} numbers that are NaN or infinite: {DAMAGED}")
    setattr(module, last, nn.Parameter(real, requires_grad=dtype.is_floating_point))


DAMAGED = "the file is damaged, or the training went astray; to look at it all the same, build the model and load_state_dict"


def finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite. One sum tells, unless it overflows."""
    if x.is_meta or not x.is_floating_point():
        return True
    total = x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32))
    return bool(torch.isfinite(total)) or not _not_finite(x)


def _not_finite(x: Tensor) -> int:
    return int((~torch.isfinite(x.detach())).sum())


def _read_once(weights: Mapping[str, Tensor], dtype: torch.dtype, shown: Shown) -> LazyTensors:
    """Copies of the weights, each made when it is asked for, as their rewriting will.

    They have the precision that is asked for, or their own where that is wider: rewriting must not round twice.
    """
    shapes = getattr(weights, "shapes", None) or {name: tuple(tensor.shape) for name, tensor in weights.items()}
    step = shown.steps(len(shapes), "reading")

    def read(name: str) -> Tensor:
        step()
        tensor = weights[name].detach()
        return tensor.to(torch.promote_types(tensor.dtype, dtype), copy=True)

    return LazyTensors(shapes, read)


# Devices.


def _device_of(name: str, cfg: HookedTransformerConfig) -> torch.device:
    """Where a parameter lives: layers are spread evenly, embeddings are with the first, the unembedding with the last."""
    first = torch.device(str(cfg.device))
    if cfg.n_devices == 1:
        return first
    parts = name.split(".")
    if parts[0] == "blocks":
        number = int(parts[1]) * cfg.n_devices // cfg.n_layers
    else:
        number = cfg.n_devices - 1 if parts[0] in ("ln_final", "unembed") else 0
    return torch.device(first.type, (first.index or 0) + number)


def check_device(cfg: HookedTransformerConfig) -> None:
    """Stop with `ConfigError` where a device is missing, or cannot compute in the precision that is asked for."""
    try:
        device = torch.device(str(cfg.device))
    except RuntimeError as error:
        raise ConfigError(f"no device called {str(cfg.device)!r}; there are cpu, cuda, cuda:1, …, mps") from error
    if cfg.n_devices < 1:
        raise ConfigError(f"n_devices={cfg.n_devices} must be at least 1")
    if cfg.n_devices > 1 and device.type != "cuda":
        raise ConfigError(f"n_devices={cfg.n_devices} needs GPUs, and device is {device}")
    if device.type == "cuda":
        there, last = torch.cuda.device_count(), (device.index or 0) + cfg.n_devices - 1
        if last >= there:
            have = f"{there} GPU{'s' if there != 1 else ''}" if there else "no GPU"
            raise ConfigError(f"device={device} with n_devices={cfg.n_devices}, and there is {have} here; try device='cpu'")
    if not cfg.torch_dtype.is_floating_point:
        raise ConfigError(f"dtype={cfg.dtype} is no precision of weights; there are {', '.join(DTYPES)}")
    try:
        probe = torch.ones(2, 2, dtype=cfg.torch_dtype, device=device)
        probe = probe @ probe
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ConfigError(f"{device} cannot compute in {cfg.dtype}: {str(error).splitlines()[0]}") from error


# Progress.


class Shown:
    """Shows how far something is; stays quiet for small models and where nobody watches."""

    def __init__(self, bar: Any = None):
        self.bar = bar

    def steps(self, total: int, doing: str) -> Callable[[], None]:
        """To be called after each of `total` steps."""
        if self.bar is None:
            return lambda: None
        task = self.bar.add_task(doing, total=total)
        return lambda: self.bar.advance(task)


@contextmanager
def progress(cfg: HookedTransformerConfig) -> Iterator[Shown]:
    """A bar on stderr while weights are read, where they are many."""
    if (cfg.n_params or 0) < WORTH_A_BAR:
        yield Shown()
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Shown(bar)


# State dicts.


def fill(model: Transformer, weights: Mapping[str, Tensor], *, strict: bool = True, assign: bool = False) -> Any:
    """Copy weights into a network that has memory already; what did not fit, as `nn.Module.load_state_dict` returns it.

    A network with parts of somebody else's (a wrapped MLP, parameters of a subclass) is filled by its own names.

    Args:
        assign: take the tensors themselves instead, as Torch does.

    Raises:
        WeightsMismatch: with `strict`, when they do not fit exactly.
    """
    weights = canonical.without_buffers(weights, model.cfg)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ordinary = names == set(canonical.shapes(model.cfg))
    if strict and ordinary:
        canonical.check(weights, model.cfg)
    for name, tensor in weights.items():
        if not finite(tensor):
            said = f"{name!r} holds {_not_finite(tensor)} numbers that are NaN or infinite"
            warnings.warn(said, NotFiniteWeights, stacklevel=3)
    try:
        return nn.Module.load_state_dict(model, weights, strict=strict, assign=assign)
    except RuntimeError as error:
        raise WeightsMismatch(str(error)) from error
