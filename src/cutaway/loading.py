"""From a source to a network: weights are rewritten and moved in one at a time, never held twice.

A network is first laid out without memory (on the meta device); then each parameter takes its tensor, in the
right precision, on the right device, in the memory order that the network computes with. The largest go
first, when there is most room.
"""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cutaway.config import DTYPES, HookedTransformerConfig, as_dtype
from cutaway.errors import CheckpointError, ConfigError, UnsupportedArchitecture, WeightsMismatch, nearest
from cutaway.model import eight_bits, placement
from cutaway.model.dialect_attention import DialectAttention
from cutaway.model.streaming import StreamedBlocks
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import size
from cutaway.sources import adapters, files, folders, gguf, hub, objects, packages, toys, wrapped
from cutaway.sources.checkpoint import Checkpoint, LazyTensors
from cutaway.sources.foreign import ForeignCheckpoint
from cutaway.weights import canonical, families, old_layout, processing

Network = TypeVar("Network", bound=Transformer)
Look = Callable[[HookedTransformerConfig, Any], None]


class NotFiniteWeights(UserWarning):
    """Weights that were loaded hold NaN or infinity."""


WORTH_A_BAR = 100_000_000  # parameters from which on loading takes long enough to show how far it is

TURNS = ("<|im_start|>",)
"""BOS tokens that begin a turn of a chat, and so no plain text (SmolLM2's instructed models)."""


def from_pretrained(
    kind: type[Network], model_name: str | PathLike[str], fold_ln: bool = True, center_writing_weights: bool = True,
    center_unembed: bool = True, refactor_factored_attn_matrices: bool = False, checkpoint_index: int | None = None,
    checkpoint_value: int | None = None, checkpoint_label: int | None = None, hf_model: Any = None,
    device: torch.device | str | None = None, n_devices: int = 1, tokenizer: Any = None, move_to_device: bool = True,
    fold_value_biases: bool = True, default_prepend_bos: bool | None = None, default_padding_side: str | None = None,
    dtype: torch.dtype | str = "float32", first_n_layers: int | None = None, n_ctx: int | None = None,
    architecture: str | None = None, device_map: Any = None, stream: int | str | None = None, weight_bits: int | None = None,
    look: Look | None = None, **hf_kwargs: Any,
) -> Network:  # fmt: skip
    """A network of class `kind` with published weights, rewritten as asked, each rewrite exact.

    Its `provenance` says where the weights came from, which fields of their config were ignored, since `transformers`
    never reads them, and which rewrites were left out, since they would change what the model computes.

    Args:
        model_name: a bundled model, a model of an installed package (`smollm2-135m-instruct`), an id or a short name of the
            Hugging Face hub, a folder (of a model or an adapter), a GGUF file, or one of our files.
        fold_ln, center_writing_weights, center_unembed, fold_value_biases, refactor_factored_attn_matrices: see
            `cutaway.weights.processing`. Weights of a network without norms are not centred: nothing there takes out a mean.
        checkpoint_index, checkpoint_value: which checkpoint of a training run: its number, or its step.
        hf_model: a live `transformers` model to take the weights from, with or without adapters; `model_name` is only a name.
        n_devices, tokenizer: GPUs to spread the layers over; instead of the model's own.
        first_n_layers, n_ctx, dtype: a smaller model than the published one; a precision, or "auto" for the checkpoint's.
        architecture: the class of `transformers` that a model computes like, where its own class is not known.
        device_map: where layers go, as `transformers` has it: "auto", a device, or a dict of module names (with `accelerate`).
        stream: bytes, or a text such as "2 GiB", that weights may take in memory; blocks beyond them are read when they run.
            For weights as published.
        weight_bits: 8: keep the matrices of blocks as whole numbers with a scale for each output, a quarter of float32. For
            weights as published; how far log-probabilities are off is measured, and is `provenance["weight_bits"]`.
        look: called with the configuration and the tokenizer before any weight is read; what it raises ends the loading.
        hf_kwargs: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download` as `transformers` has them;
            `torch_dtype` instead of `dtype`; `attn_implementation` is noted and has no effect.

    Raises:
        UnknownModel: nothing has this name; says near names.
        UnsupportedArchitecture: the model is of a family, or has a config field, that is not understood.
        CheckpointError: its files cannot be fetched, or are damaged.
        ConfigError: options contradict each other or the model, or ask for a device or precision that is not there.
    """
    dtype = "auto" if (dtype := hf_kwargs.pop("torch_dtype", None) or dtype) == "auto" else as_dtype(dtype)
    value = checkpoint_value if checkpoint_value is not None else checkpoint_label
    revision, chosen = _revision(model_name, hf_kwargs.pop("revision", None), checkpoint_index, value)
    access, without_effect = _handed_through(hf_kwargs, revision)
    source = find(model_name, hf_model=hf_model, tokenizer=tokenizer, access=access)
    if n_ctx is None and hf_model is None:
        n_ctx = hub.usual_length(str(model_name))
    checkpoint = understand(source, n_ctx=n_ctx, first_n_layers=first_n_layers, architecture=architecture)
    provenance = {**checkpoint.provenance, **without_effect}
    bos = checkpoint.config.default_prepend_bos if default_prepend_bos is None else default_prepend_bos
    precision = own_dtype(source) if dtype == "auto" else as_dtype(dtype)
    cfg = _changed(checkpoint.config, chosen | {"default_prepend_bos": bos, "n_devices": n_devices, "dtype": precision})
    cfg.device = (device or torch.device("cuda" if torch.cuda.is_available() else "cpu")) if move_to_device else "cpu"
    where = placement.of(device_map, cfg) if device_map is not None else {}
    check_device(cfg, placed=bool(where))
    rewrites = {
        "fold_ln": fold_ln, "center_writing_weights": center_writing_weights and cfg.normalization_type is not None,
        "center_unembed": center_unembed, "fold_value_biases": fold_value_biases,
        "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
    }  # fmt: skip
    rewritten = any(rewrites.values()) and not checkpoint.processed
    stream = None if stream is None else size(stream, "stream")
    _check_stream(stream, weight_bits, plainly=not (n_devices > 1 or where or rewritten))
    words = _tokenizer(tokenizer, checkpoint)
    if look:
        look(cfg, words)
    weights: Mapping[str, Tensor] = checkpoint.tensors
    with progress(cfg) as shown, skipped_in_silence() as skipped:
        if rewritten:
            weights, cfg = processing.process(_read_once(weights, cfg.torch_dtype, shown), cfg, **rewrites)
        model = build(
            kind, cfg, weights, tokenizer=words, default_padding_side=default_padding_side,
            shown=shown, owned=weights is not checkpoint.tensors, where=where, stream=stream, weight_bits=weight_bits,
        )  # fmt: skip
    model.provenance = provenance | ({"skipped_rewrites": skipped} if skipped else {})
    model.end_tokens = _end_tokens(source, hf_model)
    if isinstance(model.blocks, StreamedBlocks):
        _say_how(model, weights, "" if hf_model is not None else str(model_name), stream, weight_bits)
    return model


def _changed(cfg: HookedTransformerConfig, fields: Mapping[str, Any]) -> HookedTransformerConfig:
    """A copy with other fields. (`dataclasses.replace` would seed everything anew.)"""
    cfg = copy.copy(cfg)
    for name, value in fields.items():
        setattr(cfg, name, value)
    return cfg


def _say_how(model: Transformer, weights: Mapping[str, Tensor], name: str, stream: int | None, weight_bits: int | None) -> None:
    """Note how workers find a streamed or packed model, and how far packing is off."""
    if weight_bits is not None:
        model.provenance["weight_bits"] = str(eight_bits.measured(model, _reader(model, weights)))
    if name:
        model.found_by = name, stream, (("weight_bits", weight_bits),) if weight_bits else ()


def _tokenizer(given: Any, checkpoint: Checkpoint) -> Any:
    """What was given, or the model's own."""
    found = given if given is not None else checkpoint.tokenizer
    name = checkpoint.config.tokenizer_name
    return pretrained_tokenizer(name) if found is None and name is not None else found


def _check_stream(stream: int | None, weight_bits: int | None, *, plainly: bool) -> None:
    if weight_bits not in (None, 8):
        raise ConfigError(f"weight_bits={weight_bits!r}: weights are kept in 8 bits, or, without it, as dtype says")
    if weight_bits is not None and (stream is not None or not plainly):
        raise ConfigError(
            "weight_bits= keeps blocks as published, in memory and on one device; use from_pretrained_no_processing(…, "
            "weight_bits=8), without stream=, n_devices= and device_map="
        )
    if stream is not None and not plainly:
        raise ConfigError(
            "stream= reads blocks as published, onto one device; use from_pretrained_no_processing(…, stream=…), without "
            "n_devices= and device_map="
        )


@contextmanager
def skipped_in_silence() -> Iterator[list[str]]:
    """Lists rewrites that do not hold for an architecture instead of warning: at loading, nobody asked for each by name."""
    skipped: list[str] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", processing.SkippedRewrite)
        yield skipped
    for one in seen:
        if issubclass(one.category, processing.SkippedRewrite):
            skipped.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno, source=one.source)


def _end_tokens(source: Any, hf_model: Any) -> list[int] | None:
    """What ends a generation, as the model's `generation_config.json` or its configuration says."""
    found = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    folder = getattr(source, "provenance", {}).get("folder")
    file = Path(folder) / "generation_config.json" if folder else None
    if found is None and file is not None and file.is_file():
        with suppress(OSError, ValueError):  # it is there for generation only, and a damaged one is no reason not to load
            generation = json.loads(file.read_text(encoding="utf-8"))
            found = generation.get("eos_token_id") if isinstance(generation, dict) else None
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


TRANSFORMERS_ONLY = ("trust_remote_code", "low_cpu_mem_usage", "use_safetensors", "attn_implementation", "offload_folder")
"""Options of `transformers` that change nothing here."""


def _handed_through(options: dict[str, Any], revision: str | None) -> tuple[hub.Access, dict[str, Any]]:
    """How to reach the hub, and a note of the options that have no effect."""
    given = {field.name: options.pop(field.name) for field in fields(hub.Access) if field.name in options}
    idle = {name: options.pop(name) for name in TRANSFORMERS_ONLY if name in options}
    if options:
        access = [field.name for field in fields(hub.Access)]
        known = [*inspect.signature(from_pretrained).parameters, *access, *TRANSFORMERS_ONLY]
        raise TypeError(f"from_pretrained does not know {', '.join(name + nearest(name, known) for name in options)}")
    return hub.Access(**given).of(revision), {"without_effect": idle} if idle else {}


def own_dtype(source: Checkpoint | ForeignCheckpoint) -> torch.dtype:
    """The precision of a checkpoint: what its config says, else that of its first weight."""
    config: Mapping[str, Any] = source.config if isinstance(source, ForeignCheckpoint) else {}
    inner = config["text_config"] if isinstance(config.get("text_config"), Mapping) else config
    declared = inner.get("dtype") or inner.get("torch_dtype")
    if declared is not None and str(declared).removeprefix("torch.") in DTYPES:
        return as_dtype(str(declared).removeprefix("torch."))
    tensors = (source.tensors[name] for name in source.tensors)
    return next((tensor.dtype for tensor in tensors if tensor.dtype.is_floating_point), torch.float32)


def find(
    model_name: str | PathLike[str], *, hf_model: Any = None, tokenizer: Any = None, access: hub.Access | None = None
) -> Checkpoint | ForeignCheckpoint:
    """The source that a name, a path or a live model stands for: a `Checkpoint` or a `ForeignCheckpoint`.

    A live model, a folder, a file and a bundled model never touch the network.
    """
    access = access or hub.Access()
    if hf_model is not None:
        hf_model = objects.unwrapped(hf_model) if not hasattr(hf_model, "v_head") else hf_model
        hf_model = adapters.merged(hf_model) if adapters.is_adapted(hf_model) else hf_model
        return objects.read(hf_model, tokenizer=tokenizer, name=str(model_name) if model_name else None)
    if toys.is_bundled(str(model_name)):
        return toys.find(str(model_name))
    place = Path(model_name).expanduser()
    packaged = packages.find(str(model_name)) if access.revision is None and not place.exists() else None
    if packaged is not None:
        return gguf.read(packaged, tokenizer=tokenizer, name=hub.official(str(model_name)))
    if place.is_dir() and adapters.is_adapter(place):
        return adapters.read(place, tokenizer=tokenizer, access=access)
    if place.is_dir():
        if (own := folders.own_model(place)) is not None:
            return files.read(own[0], own[1])
        inside = None if folders.has_weights(place) else gguf.in_folder(place)
        return gguf.read(inside, tokenizer=tokenizer) if inside else folders.read(place, tokenizer=tokenizer)
    if gguf.is_gguf(place):
        return gguf.read(place, tokenizer=tokenizer)
    if place.is_file() or place.suffix in files.SUFFIXES:
        return files.read(place)
    repo = hub.official(str(model_name))
    folder = hub.fetch(repo, access)
    if adapters.is_adapter(folder):
        return adapters.read(folder, tokenizer=tokenizer, name=repo, access=access)
    return hub.read(repo, tokenizer=tokenizer, access=access, folder=folder)


def understand(
    source: Checkpoint | ForeignCheckpoint,
    *,
    n_ctx: int | None = None,
    first_n_layers: int | None = None,
    architecture: str | None = None,
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
    claim = families.claimed(source.config, name=source.name, architecture=architecture)
    config = claim.config
    options: dict[str, Any] = {"n_ctx": n_ctx, "first_n_layers": first_n_layers, "resolved": source.resolved}
    try:
        cfg, tensors = families.convert(config, source.tensors, **options)
    except (UnsupportedArchitecture, WeightsMismatch) as error:
        if claim.strange is None:
            raise
        raise claim.refuse(error) from error
    ignored = families.ignored_fields(config, resolved=source.resolved)
    provenance = {**source.provenance, "ignored_fields": ignored} if ignored else source.provenance
    if claim.strange is not None:
        if ignored:  # code that is not known may read them
            raise claim.refuse(f"its config has fields that no class of the family reads: {', '.join(sorted(ignored))}")
        provenance = {**provenance, "taken_for": claim.note}
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
    owned: bool = False,
    where: Mapping[str, torch.device] | None = None,
    stream: int | None = None,
    weight_bits: int | None = None,
) -> Network:
    """A network of class `kind` with these weights; a dict of them is emptied as they move in.

    Args:
        owned: nobody else has these tensors, so that those that fit as they are may become parameters.
        where: the device of each part (`embed`, `blocks.3`, …), where parts are placed one by one; see `placement`.
        stream: bytes that all weights may take; blocks beyond them are read when they run, each time anew.
        weight_bits: 8: matrices of blocks are kept in 8 bits; see `eight_bits`.

    Raises:
        WeightsMismatch: the weights do not fit the configuration.
        ConfigError: embeddings and the largest block do not fit into `stream`.
    """
    cfg = copy.copy(cfg)
    cfg.device = device or cfg.device
    cfg.dtype = as_dtype(dtype) if dtype is not None else cfg.dtype
    canonical.check(getattr(weights, "shapes", weights), cfg)
    with torch.device("meta"):
        model = kind(cfg, tokenizer, move_to_device=False, default_padding_side=default_padding_side)
    names = sorted((name for name, _ in model.named_parameters()), key=lambda name: -model.get_parameter(name).numel())
    if stream is not None:
        names = [name for name in names if not name.startswith("blocks.")]
        _stream(model, _reader(model, weights), stream - sum(_bytes(model, name) for name in names))
    elif weight_bits is not None:
        blocks = [name for name in names if name.startswith("blocks.")]
        names = [name for name in names if not name.startswith("blocks.")]
        _pack(model, weights, blocks)
    step = (shown or Shown()).steps(len(names), "loading")
    fresh = bool(getattr(weights, "fresh", False))
    for name in names:
        tensor = weights.pop(name) if isinstance(weights, MutableMapping) else weights[name]
        device = placement.device_of(name, cfg, where or {})
        taken = _place(model, name, tensor, device=device, dtype=cfg.torch_dtype, owned=owned or fresh)
        if taken and stream is None:
            getattr(weights, "forget", lambda: None)()  # what is tied to this one is read anew: nobody may write into both
        del tensor
        step()
    return model.eval() if not model.training else model


Reader = Callable[[str, Tensor | None], Tensor]


def _reader(model: Transformer, weights: Mapping[str, Tensor]) -> Reader:
    """Reads a parameter of a block, as the network computes with it, into memory that is there or into new memory."""
    like = {name: (one.shape, one.stride()) for name, one in model.named_parameters()}
    device, dtype = torch.device(str(model.cfg.device)), model.cfg.torch_dtype

    def read(name: str, room: Tensor | None) -> Tensor:
        real = torch.empty_strided(*like[name], dtype=dtype, device=device) if room is None else room
        real.copy_(weights[name].detach())
        return _checked(name, real)

    return read


def _stream(model: Transformer, read: Reader, room: int) -> None:
    """Let blocks be read when they run."""
    model.blocks = StreamedBlocks(model.blocks, read, room)
    model.setup()  # weights that come and go do not make it another network


def _pack(model: Transformer, weights: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Keep weights of blocks in 8 bits; each block is made float when it runs, in the memory of the one before it."""
    exact = _reader(model, weights)
    kept = {name: eight_bits.Packed.of(x) if (x := exact(name, None)).ndim > 1 else x for name in sorted(names)}

    def read(name: str, room: Tensor | None) -> Tensor:
        one, like = kept[name], model.blocks.empty[name.removeprefix("blocks.")]
        room = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=_device(one)) if room is None else room
        return one.unpacked(room) if isinstance(one, eight_bits.Packed) else room.copy_(one)

    largest = max((sum(_bytes(block, name) for name, _ in block.named_parameters()) for block in model.blocks), default=0)
    _stream(model, read, largest)


def _device(one: eight_bits.Packed | Tensor) -> torch.device:
    return one.q.device if isinstance(one, eight_bits.Packed) else one.device


def _bytes(model: nn.Module, name: str) -> int:
    one = model.get_parameter(name)
    return one.numel() * one.element_size()


def _place(model: nn.Module, name: str, tensor: Tensor, *, device: torch.device, dtype: torch.dtype, owned: bool) -> bool:
    """Put one tensor where a parameter without memory stands, in its memory order; whether it is that tensor itself."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    empty: nn.Parameter = getattr(module, last)
    as_it_should_be = (tensor.stride(), tensor.dtype, tensor.device) == (empty.stride(), dtype, device)
    taken = owned and as_it_should_be and tensor.untyped_storage().nbytes() == tensor.nbytes
    if taken:
        real = tensor
    else:
        real = torch.empty_strided(empty.shape, empty.stride(), dtype=dtype, device=device)
        with torch.no_grad():
            real.copy_(tensor)
    setattr(module, last, nn.Parameter(_checked(name, real), requires_grad=dtype.is_floating_point))
    return taken


DAMAGED = "the file is damaged, or the training went astray; to look at it all the same, build the model and load_state_dict"


def _checked(name: str, x: Tensor) -> Tensor:
    """The same tensor, if all its numbers are finite."""
    if not finite(x):
        raise CheckpointError(f"{name!r} holds {_not_finite(x)} of {x.numel()} numbers that are NaN or infinite: {DAMAGED}")
    return x


def finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite. One sum tells, unless it overflows."""
    if x.is_meta or not x.is_floating_point():
        return True
    total = x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32))
    return bool(torch.isfinite(total)) or not _not_finite(x)


def _not_finite(x: Tensor) -> int:
    return int((~torch.isfinite(x.detach())).sum())


def _read_once(weights: Mapping[str, Tensor], dtype: torch.dtype, shown: Shown) -> LazyTensors:
    """The weights, each read when it is asked for, as their rewriting will; copies where somebody else has them, too.

    They have the precision that is asked for, or their own where that is wider: rewriting must not round twice.
    """
    shapes = getattr(weights, "shapes", None) or {name: tuple(tensor.shape) for name, tensor in weights.items()}
    step, fresh = shown.steps(len(shapes), "reading"), bool(getattr(weights, "fresh", False))

    def read(name: str) -> Tensor:
        step()
        tensor = weights[name].detach()
        own = fresh and tensor.untyped_storage().nbytes() == tensor.nbytes  # nobody else's, and no part of something larger
        return tensor.to(torch.promote_types(tensor.dtype, dtype), copy=not own)

    return LazyTensors(shapes, read)


# Devices.


def check_device(cfg: HookedTransformerConfig, *, placed: bool = False) -> None:
    """Stop with `ConfigError` where a device is missing, or cannot compute in the precision that is asked for.

    `placed`: a map says where each part goes, and its devices were checked.
    """
    try:
        device = torch.device(str(cfg.device))
    except RuntimeError as error:
        raise ConfigError(f"no device called {str(cfg.device)!r}; there are cpu, cuda, cuda:1, …, mps") from error
    if cfg.n_devices < 1:
        raise ConfigError(f"n_devices={cfg.n_devices} must be at least 1")
    if cfg.n_devices > 1 and device.type != "cuda" and not placed:
        raise ConfigError(f"n_devices={cfg.n_devices} needs GPUs, and device is {device}")
    if device.type == "cuda":
        there, last = torch.cuda.device_count(), (device.index or 0) + (0 if placed else cfg.n_devices - 1)
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


def as_today(weights: Mapping[str, Any], cfg: HookedTransformerConfig) -> Mapping[str, Tensor]:
    """A state dict as the network has it: without the words of wrappers, and in today's layout."""
    return old_layout.modern(wrapped.plain_state_dict(weights), cfg)


def _take_masks(model: Transformer, weights: Mapping[str, Any]) -> None:
    """Masks, and what scores are where one hides them, as a state dict of the dialect has them; those of other lengths aside."""
    for layer, block in enumerate(model.blocks.children()):  # (streamed blocks are not read for this)
        attention = getattr(block, "attn", None)
        ignore, mask = (weights.get(f"blocks.{layer}.attn.{name}") for name in ("IGNORE", "mask"))
        if isinstance(attention, DialectAttention):
            attention.take_buffers(mask, ignore)


def fill(model: Transformer, weights: Mapping[str, Any], *, strict: bool = True, assign: bool = False) -> Any:
    """Copy weights into a network that has memory already; what did not fit, as `nn.Module.load_state_dict` returns it.

    A network with parts of somebody else's (a wrapped MLP, parameters of a subclass) is filled by its own names.

    Args:
        assign: take the tensors themselves instead, as Torch does.

    Raises:
        WeightsMismatch: with `strict`, when they do not fit exactly.
    """
    _take_masks(model, weights)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ordinary = names == set(canonical.shapes(model.cfg))
    given = as_today(weights, model.cfg) if ordinary else weights
    weights = canonical.without_buffers(given, model.cfg)
    if strict and ordinary:
        canonical.check(weights, model.cfg)
    for name, tensor in weights.items():
        if not finite(tensor):
            message = f"{name!r} holds {_not_finite(tensor)} numbers that are NaN or infinite"
            warnings.warn(message, NotFiniteWeights, stacklevel=3)
    try:
        misfits = nn.Module.load_state_dict(model, weights, strict=strict, assign=assign)
    except RuntimeError as error:
        raise WeightsMismatch(str(error)) from error
    if not strict and DialectAttention.in_state_dict:  # published notebooks print masks among what is missing
        misfits.missing_keys[:] = [name for name in model.state_dict() if name not in given]
    return misfits
