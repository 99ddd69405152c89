"""Is this model loaded exactly? Our float32 numbers beside those of `transformers`, both held against its float64.

Real models have activations thousands of times larger than the rest, so a difference alone says little. The yardstick is
`transformers` in float64: ours are the same where their error against it is no more than twice its own float32 error. Each
layer is measured by itself: both are given the stream that the float64 model has before it, so an error stays where it
begins, and one wrong weight shows in its layer. Log-probabilities are those of whole runs.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutaway import tokens as text_tokens
from cutaway.errors import CheckpointError, ConfigError, UnsupportedArchitecture
from cutaway.hooked_transformer import HookedTransformer
from cutaway.numbers_given import options
from cutaway.sources import adapters, folders, gguf, hub, packages, toys
from cutaway.sources.short_names import ENCODERS
from cutaway.weights import families
from cutaway.weights.processing import SkippedRewrite

TOLERANCE = 2.0
UNIT = 2.0**-23  # of float32's last place: an error below it counts as one of this size
TEXT = (
    "When Ada and Charles went to the market, Ada gave a basket of apples to Charles. He counted them twice: "
    "twelve in the morning, eleven at noon. The engine, 3.5 metres long, was waiting at home."
)
RANDOM = 64  # tokens, where there is no tokenizer
ENOUGH = 48  # tokens, for their errors to say something


@dataclass(frozen=True)
class PlaceErrors:
    """How far our float32 and that of `transformers` are from its float64, at one place.

    An error is relative: a number's difference over its size plus the typical size at this place (the median), squared and
    averaged over positions, and of the coordinate where that is largest, the root. So a coordinate of a thousand times the
    usual size does not hide what happens in the others.
    """

    place: str
    """`embedding`, `layer 3`, `final norm`, `logits`, `log-probabilities` or `log-probabilities, processed`."""
    error: float
    """Ours."""
    theirs: float
    """That of `transformers` in float32."""
    absolute: float
    """Our largest difference, as it is."""

    @property
    def times(self) -> float:
        """Our error as a multiple of theirs; errors below a unit in the last place of float32 count as one."""
        return self.error / max(self.theirs, UNIT)


@dataclass(frozen=True)
class Verification:
    """What was compared, in the order of the forward pass."""

    model: str
    family: str
    tokens: int
    """How many tokens the text has."""
    tolerance: float
    """How many times the float32 error of `transformers` ours may be."""
    differences: tuple[PlaceErrors, ...]
    ignored_fields: Mapping[str, Any]
    """Fields of the model's config that `transformers` never reads."""

    def same(self, one: PlaceErrors) -> bool:
        """Whether our error at a place is within the tolerance; one that is not a number is not."""
        return one.times <= self.tolerance

    @property
    def first_apart(self) -> PlaceErrors | None:
        """Where ours are not the same first; None: nowhere."""
        return next((one for one in self.differences if not self.same(one)), None)

    @property
    def largest(self) -> PlaceErrors:
        """Where our error is the largest multiple of theirs."""
        return max(self.differences, key=lambda one: one.times if one.times == one.times else float("inf"))

    @property
    def passed(self) -> bool:
        """Whether all is within the tolerance."""
        return self.first_apart is None

    def summary(self) -> str:
        """A table of both errors at each place, and the verdict."""
        width = max(len(one.place) for one in self.differences)
        lines = [
            f"{self.model} ({self.family}), {self.tokens} tokens: errors in float32 against transformers in float64",
            f"  {'':<{width}}     ours  transformers   ours/theirs  (largest difference)",
        ]
        for one in self.differences:
            mark = "" if self.same(one) else "  ←"
            numbers = f"{one.error:8.1e}  {one.theirs:12.1e}  {one.times:12.2f}  ({one.absolute:.1e})"
            lines.append(f"  {one.place:<{width}} {numbers}{mark}")
        if any(one.theirs < min(UNIT, one.error) for one in self.differences):
            lines.append(f"errors of transformers below {UNIT:.1e}, one unit in float32's last place, count as that")
        if self.ignored_fields:
            lines.append(f"ignored fields of the config, which transformers never reads: {', '.join(self.ignored_fields)}")
        first, largest = self.first_apart, self.largest
        most = f"our error is at most {largest.times:.2f} times that of transformers ({largest.place})"
        allowed = f"{self.tolerance:g} times is allowed"
        if first is None:
            lines.append(f"the same as transformers: {most}; {allowed}")
        else:
            lines.append(f"NOT the same, first at {first.place}: there our error is {first.times:.3g} times theirs; {allowed}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return asdict(self) | {"passed": self.passed}


@options(tolerance=(0, math.inf), n_ctx=1)
def verify(
    model: str | PathLike[str],
    *,
    hf_model: Any = None,
    tokenizer: Any = None,
    text: str = TEXT,
    tolerance: float = TOLERANCE,
    device: str = "cpu",
    n_ctx: int | None = None,
) -> Verification:
    """Compare our numbers with those of `transformers`, layer by layer. Takes about 16 bytes of memory per parameter.

    Args:
        model: an id or a short name of the Hugging Face hub, a folder (of a model or an adapter), or a GGUF file.
        hf_model: a live `transformers` model instead, which is left as it was; then `model` is only a name.
        text: what both read, several times if it is shorter than 48 tokens; without a tokenizer, fixed random tokens are read.
        tolerance: how many times the float32 error of `transformers` ours may be.
        n_ctx: as for `from_pretrained`.

    Raises:
        ConfigError: the model is bundled, or ours, so there is nothing to compare it with.
        CutawayError: whatever keeps it from being loaded.
    """
    place = None if hf_model is not None else _place(model)
    where = str(model) if place is None else str(place)
    options: dict[str, Any] = {"tokenizer": tokenizer, "device": device, "n_ctx": n_ctx, "hf_model": hf_model}
    ours = HookedTransformer.from_pretrained_no_processing(where, **options)
    tokens = _tokens(ours, text).to(device)
    reference = copy.deepcopy(hf_model) if place is None else _load(place)
    yardstick = measure(reference.eval().to(device), tokens, ours.cfg.n_layers)
    del reference
    differences = compare(ours, yardstick)
    family, ignored = ours.cfg.original_architecture or "", ours.provenance.get("ignored_fields", {})
    del ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRewrite)
        processed = HookedTransformer.from_pretrained(where, **options)
    with torch.no_grad():
        log_probs = _kept(processed(tokens)).log_softmax(-1)
    differences.append(_difference(PROCESSED, log_probs, yardstick.theirs[PLAIN], yardstick.exact[PLAIN]))
    return Verification(str(model), family, tokens.shape[1], tolerance, tuple(differences), ignored)


EMBEDDING, FINAL, LOGITS = "embedding", "final norm", "logits"
PLAIN, PROCESSED = "log-probabilities", "log-probabilities, processed"
Places = dict[str, Tensor]
"""Place → what is computed there, as float64 on the CPU."""


def _place(model: str | PathLike[str]) -> Path:
    """The folder or GGUF file of a model that `transformers` has; fetched, where it is on the hub."""
    place = Path(model).expanduser()
    if not place.exists():
        packaged = packages.find(str(model))
        if packaged is not None:
            return packaged
    if place.is_dir():
        inside = None if folders.has_weights(place) else gguf.in_folder(place)
        if inside is not None:
            return inside
    elif gguf.is_gguf(place):
        return place
    elif str(model) in toys.names() or place.is_file():
        raise ConfigError(f"{model} is a model of our own, so there is nothing to compare it with")
    else:
        place = hub.fetch(hub.official(str(model)))
    if not adapters.is_adapter(place) and "model_type" not in folders.read_config(place):
        raise ConfigError(f"{model} is not a model of transformers, so there is nothing to compare it with")
    return place


def _tokens(ours: HookedTransformer, text: str) -> Tensor:
    if ours.tokenizer is not None:
        options: dict[str, Any] = {"prepend_bos": ours.cfg.default_prepend_bos, "n_ctx": ours.cfg.n_ctx}
        return _enough(text_tokens.to_tokens(ours.tokenizer, text, **options), ours.cfg.n_ctx)
    draw = torch.Generator().manual_seed(0)
    return torch.randint(ours.cfg.d_vocab, (1, min(RANDOM, ours.cfg.n_ctx)), generator=draw)


def _enough(tokens: Tensor, longest: int) -> Tensor:
    """A short text several times: errors of a few numbers vary, and products of a few rows are taken by other kernels."""
    times = max(1, min(-(-ENOUGH // tokens.shape[1]), longest // tokens.shape[1]))
    return tokens.repeat(1, times)


# What `transformers` computes.


def _load(place: Path) -> Any:
    from transformers import AutoModelForCausalLM

    folder, file = (place, {}) if place.is_dir() else (place.parent, {"gguf_file": place.name})
    try:
        with redirect_stderr(StringIO()):  # (progress bars)
            return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True, **file)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"transformers cannot load {place}: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Yardstick:
    """What `transformers` computes of some tokens."""

    tokens: Tensor
    exact: Places
    """In float64."""
    theirs: Places
    """In float32, where each layer, the final norm and the logits are given the stream of the float64 model."""


@torch.no_grad()
def measure(model: Any, tokens: Tensor, n_layers: int) -> Yardstick:
    """Run a model of `transformers` in float64, then in float32, in which it is left."""
    layers = _decoder_layers(model, n_layers)
    nn.Module.double(model)  # (its own refuses where the weights come from GGUF)
    exact = _run(model, layers, tokens)
    nn.Module.float(model)
    theirs = _run(model, layers, tokens, given=exact)
    whole = _kept(model(tokens, use_cache=False).logits)
    return Yardstick(tokens, exact, theirs | {PLAIN: whole.log_softmax(-1)})


def _decoder_layers(model: Any, n_layers: int) -> nn.ModuleList:
    """The blocks of a model of `transformers`."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for inside in (decoder, model):
        for module in inside.modules():
            if isinstance(module, nn.ModuleList) and len(module) == n_layers:
                return module
    raise UnsupportedArchitecture(f"no list of {n_layers} layers in {type(model).__name__}, so it cannot be compared")


def _run(model: Any, layers: nn.ModuleList, tokens: Tensor, *, given: Places | None = None) -> Places:
    """One run; with `given`, each layer and what comes after the last reads from it instead of what came before."""
    found: Places = {}
    streams = [EMBEDDING, *(f"layer {number}" for number in range(len(layers)))]

    def before(number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name = streams[number]
            stream = args[0] if args else kwargs["hidden_states"]
            if number == 0:
                found[name] = _kept(stream)
            if given is None:
                return None
            stream = given[name].to(stream)
            return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})

        return hook

    def after(number: int) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> Any:
            name = streams[number + 1]
            stream = out[0] if isinstance(out, tuple) else out
            found[name] = _kept(stream)
            if given is None or number + 1 < len(layers):
                return None
            stream = given[name].to(stream)
            return (stream, *out[1:]) if isinstance(out, tuple) else stream

        return hook

    handles = [layer.register_forward_pre_hook(before(number), with_kwargs=True) for number, layer in enumerate(layers)]
    handles += [layer.register_forward_hook(after(number)) for number, layer in enumerate(layers)]
    try:
        out = model(tokens, use_cache=False, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    if out.hidden_states is None:
        raise UnsupportedArchitecture(f"{type(model).__name__} does not give its hidden states, so it cannot be compared")
    logits = _kept(out.logits)
    return found | {FINAL: _kept(out.hidden_states[-1]), LOGITS: logits, PLAIN: logits.log_softmax(-1)}


def _kept(x: Tensor) -> Tensor:
    return x.detach().double().cpu()


# What we compute.


@torch.no_grad()
def compare(ours: HookedTransformer, yardstick: Yardstick) -> list[PlaceErrors]:
    """Our float32 beside theirs, each layer given the stream of the float64 model."""
    tokens, exact = yardstick.tokens, yardstick.exact
    found = {EMBEDDING: ours(tokens, stop_at_layer=0)}
    stream = exact[EMBEDDING].float().to(tokens.device)
    for layer in range(ours.cfg.n_layers):
        found[f"layer {layer}"] = ours(stream, start_at_layer=layer, stop_at_layer=layer + 1)
        stream = exact[f"layer {layer}"].float().to(tokens.device)
    found[FINAL], found[LOGITS] = ours.ln_final(stream), ours(stream, start_at_layer=ours.cfg.n_layers)
    found[PLAIN] = _kept(ours(tokens)).log_softmax(-1)
    return [_difference(place, _kept(x), yardstick.theirs[place], exact[place]) for place, x in found.items()]


def _difference(place: str, ours: Tensor, theirs: Tensor, exact: Tensor) -> PlaceErrors:
    return PlaceErrors(place, _error(ours, exact), _error(theirs, exact), float((ours - exact).abs().max()))


def _error(x: Tensor, exact: Tensor) -> float:
    """See `PlaceErrors`."""
    relative = (x - exact) / (exact.abs() + exact.abs().median()).clamp(min=1e-30)
    return float(relative.square().flatten(0, -2).mean(0).sqrt().max())


def known_models() -> dict[str, Any]:
    """What can be loaded by name: families and examples of each, bundled models, those on this machine, short names.

    And the short names of unsupported models.
    """
    listed = [
        {"name": family.name, "model_type": family.model_type, "examples": list(family.examples)}
        for family in families.FAMILIES.values()
    ]
    bundled = toys.names()  # a bundled model goes before a short name
    aliases = {name: repo for name, repo in sorted(hub.ALIASES.items()) if name not in bundled}
    unsupported = {name: repo for name, repo in aliases.items() if repo in ENCODERS}
    aliases = {name: repo for name, repo in aliases.items() if name not in unsupported}
    here = hub.local_models()
    return {"families": listed, "bundled": bundled, "on_this_machine": here, "aliases": aliases, "unsupported": unsupported}
